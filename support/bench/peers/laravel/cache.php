<?php
// php cache.php CASE PORT COUNT: tagged gets per second, or ms to flush a tag of COUNT entries,
// with Laravel's cache on Redis, in one process.
require_once '/usr/share/php/Illuminate/Cache/autoload.php';
require_once '/usr/share/php/Illuminate/Redis/autoload.php';

[, $case, $port, $count] = $argv;
$app = new Illuminate\Container\Container();
$config = ['default' => ['host' => '127.0.0.1', 'port' => (int) $port, 'database' => 0, 'persistent' => true]];
$redis = new Illuminate\Redis\RedisManager($app, 'phpredis', $config);
$cache = new Illuminate\Cache\Repository(new Illuminate\Cache\RedisStore($redis, 'bench:'));
$value = str_repeat('seven and ', 10);

if ($case === 'tagged_get') {
    for ($n = 0; $n < 1000; $n++) $cache->tags(['a', 'b', 'c'])->put("key:$n", $value, 3600);
    $start = hrtime(true);
    for ($n = 0; $n < $count; $n++) {
        if ($cache->tags(['a', 'b', 'c'])->get('key:' . ($n % 1000)) !== $value) exit(1);
    }
    echo $count / ((hrtime(true) - $start) / 1e9), "\n";
} else {
    for ($n = 0; $n < $count; $n++) $cache->tags(['wide'])->put("wide:$n", 1, 3600);
    $start = hrtime(true);
    $cache->tags(['wide'])->flush();
    echo (hrtime(true) - $start) / 1e6, "\n";
}
