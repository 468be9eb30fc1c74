<?php
// php queue.php CASE PORT COUNT: pushes or jobs per second of Laravel's Redis queue, in one
// process; prints one number.
foreach (['Queue', 'Redis', 'Events', 'Bus'] as $part) {
    if (is_file("/usr/share/php/Illuminate/$part/autoload.php")) require_once "/usr/share/php/Illuminate/$part/autoload.php";
}

[, $case, $port, $count] = $argv;

class Small
{
    public static int $done = 0;

    public function fire($job, $data)
    {
        if ($data['n'] + strlen($data['text']) < 0) throw new Exception();
        self::$done++;
        $job->delete();
    }
}

$app = new Illuminate\Container\Container();
$config = ['default' => ['host' => '127.0.0.1', 'port' => (int) $port, 'database' => 0, 'persistent' => true]];
$redis = new Illuminate\Redis\RedisManager($app, 'phpredis', $config);
$redis->connection()->flushall();
$queue = new Illuminate\Queue\RedisQueue($redis, 'default', null, 90, null);
$queue->setContainer($app);
$queue->setConnectionName('redis');
$data = fn ($n) => ['n' => $n, 'text' => 'a payload of about a hundred bytes, which is what most jobs carry around'];

$start = hrtime(true);
if ($case === 'push_one') {
    for ($n = 0; $n < $count; $n++) $queue->push('Small', $data($n));
} elseif ($case === 'push_bulk') {
    for ($n = 0; $n < $count; $n += 1000) $queue->bulk(array_fill(0, 1000, 'Small'), $data($n));
} else {
    for ($n = 0; $n < $count; $n += 1000) $queue->bulk(array_fill(0, 1000, 'Small'), $data($n));
    $start = hrtime(true);
    // The work of `queue:work` for each job, without its events and signals.
    while (Small::$done < $count && ($job = $queue->pop())) $job->fire();
    if (Small::$done < $count) exit(1);
}
echo $count / ((hrtime(true) - $start) / 1e9), "\n";
