<?php
// php session.php CASE PORT COUNT: requests per second with Laravel's session on Redis, in one
// process, without the rest of a request; prints one number.
require_once '/usr/share/php/Illuminate/Cache/autoload.php';
require_once '/usr/share/php/Illuminate/Redis/autoload.php';
require_once '/usr/share/php/Illuminate/Session/autoload.php';

use Illuminate\Session\Store;

[, $case, $port, $count] = $argv;
$app = new Illuminate\Container\Container();
$config = ['default' => ['host' => '127.0.0.1', 'port' => (int) $port, 'database' => 0, 'persistent' => true]];
$redis = new Illuminate\Redis\RedisManager($app, 'phpredis', $config);
$cache = new Illuminate\Cache\Repository(new Illuminate\Cache\RedisStore($redis, 'laravel:'));
$handler = new Illuminate\Session\CacheBasedSessionHandler($cache, 120);

$ids = [];
for ($n = 0; $n < 1000; $n++) {
    $session = new Store('laravel_session', $handler);
    $session->start();
    $session->put(['user' => 'somebody@example.org', 'theme' => 'dark', 'last' => sprintf('%030d', $n)]);
    $session->save();
    $ids[] = $session->getId();
}
$start = hrtime(true);
for ($n = 0; $n < $count; $n++) {
    $session = new Store('laravel_session', $handler, $ids[$n * 7919 % 1000]);
    $session->start();
    if ($case === 'write') {
        $seen = $session->get('last');
        $session->put('last', sprintf('%030d', $n));
    } else {
        $seen = $session->get('user');
    }
    if (! $seen) {
        throw new Exception('the session was not found');
    }
    // As its middleware does at the end of every request.
    $session->save();
}
echo $count / ((hrtime(true) - $start) / 1e9), "\n";
