<?php
// php limit.php PORT COUNT: checks per second of Laravel's RateLimiter on Redis, in one process;
// prints one number.
require_once '/usr/share/php/Illuminate/Cache/autoload.php';
require_once '/usr/share/php/Illuminate/Redis/autoload.php';

[, $port, $count] = $argv;
$app = new Illuminate\Container\Container();
$config = ['default' => ['host' => '127.0.0.1', 'port' => (int) $port, 'database' => 0, 'persistent' => true]];
$redis = new Illuminate\Redis\RedisManager($app, 'phpredis', $config);
$limiter = new Illuminate\Cache\RateLimiter(new Illuminate\Cache\Repository(new Illuminate\Cache\RedisStore($redis, 'bench:')));

$start = hrtime(true);
for ($n = 0; $n < $count; $n++) {
    $limiter->attempt('user:' . ($n % 1000), 1000000, fn () => true, 60);
}
echo $count / ((hrtime(true) - $start) / 1e9), "\n";
