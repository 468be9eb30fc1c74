//! The promises of the README, each tested against real servers.
#![allow(clippy::unwrap_used)]

use std::time::{Duration, Instant};

use anyhow::Result;
use redis::AsyncCommands;
use scale_redis::{Config, Event, Redis, Subscription};
use testkit::{Log, Proxy, RedisCluster, RedisSentinel, eventually};

/// Returns the next event, without link checks, which arrive at any time.
async fn next(sub: &mut Subscription) -> Option<Event> {
    loop {
        match sub.next().await {
            Some(Event::Heard { .. }) => {}
            event => return event,
        }
    }
}

#[tokio::test]
async fn a_dead_server_costs_milliseconds_and_a_restart_heals() -> Result<()> {
    let server = testkit::Redis::start().await?;
    let mut redis = Redis::connect(&server.url()).await?;
    redis.set::<_, _, ()>("k", 1).await?;

    server.kill()?;
    eventually("the link to be known lost", async || redis.ping().await.err()).await?;
    let start = Instant::now();
    for _ in 0..100 {
        assert!(redis.ping().await.is_err());
    }
    assert!(start.elapsed() < Duration::from_secs(1), "100 failures took {:?}", start.elapsed());

    server.restart().await?;
    let value: i64 =
        eventually("the link to heal", async || redis.clone().get("k").await.ok()).await?;
    assert_eq!(value, 1);
    Ok(())
}

/// An outage is two lines of the log, with the address and without the password.
#[tokio::test]
async fn an_outage_is_logged_once_and_so_is_its_end() -> Result<()> {
    let (log, _recording) = Log::record();
    let server = testkit::Redis::start().await?;
    let redis = Redis::connect(&server.url()).await?;
    let place = server.url();
    server.kill()?;
    eventually("the link to be known lost", async || redis.ping().await.err()).await?;
    // Attempts to connect are 10, 20, 40, … ms apart.
    let start = Instant::now();
    eventually("several attempts", async || {
        assert!(redis.ping().await.is_err());
        (start.elapsed() > Duration::from_millis(400)).then_some(())
    })
    .await?;
    assert_eq!(log.lines_with(&["lost the connection", &place]), 1);
    server.restart().await?;
    eventually("the end", async || (log.lines_with(&["again", &place]) == 1).then_some(())).await?;
    assert_eq!(log.lines_with(&["WARN"]), 1);
    Ok(())
}

#[tokio::test]
async fn an_idle_handle_survives_a_restart_without_a_failed_command() -> Result<()> {
    let server = testkit::Redis::start().await?;
    let redis = Redis::connect(&server.url()).await?;
    let mut sub = redis.subscribe(["c"]);
    assert_eq!(next(&mut sub).await, Some(Event::Restored));
    server.restart().await?;
    assert_eq!(next(&mut sub).await, Some(Event::Lost));
    assert_eq!(next(&mut sub).await, Some(Event::Restored));
    eventually("the link to be back", async || redis.ping().await.ok()).await?;
    Ok(())
}

#[tokio::test]
async fn a_frozen_server_costs_the_time_out_and_no_more() -> Result<()> {
    let server = testkit::Redis::start().await?;
    let limit = Duration::from_millis(100);
    let redis =
        Config::new(server.url()).response_timeout(limit).connect_timeout(limit).connect().await?;
    server.pause()?;
    let start = Instant::now();
    assert!(redis.ping().await.is_err());
    assert!(start.elapsed() < limit * 5);
    eventually("commands to fail at once", async || {
        let start = Instant::now();
        redis.ping().await.err().filter(|_| start.elapsed() < limit / 4)
    })
    .await?;
    server.resume()?;
    eventually("the link to heal", async || redis.ping().await.ok()).await
}

#[tokio::test]
async fn a_cut_network_is_noticed_by_a_subscription() -> Result<()> {
    let server = testkit::Redis::start().await?;
    let proxy = Proxy::start(server.port()).await?;
    let redis = Redis::connect(&format!("redis://127.0.0.1:{}", proxy.port())).await?;
    let mut sub = redis.subscribe(["news"]);
    assert_eq!(next(&mut sub).await, Some(Event::Restored));
    server.command(&["PUBLISH", "news", "one"]).await?;
    assert_eq!(
        next(&mut sub).await,
        Some(Event::Message { channel: "news".into(), payload: b"one".to_vec() })
    );

    proxy.cut();
    assert_eq!(next(&mut sub).await, Some(Event::Lost), "silence is not peace");
    server.command(&["PUBLISH", "news", "missed"]).await?;
    proxy.heal();
    assert_eq!(next(&mut sub).await, Some(Event::Restored));
    server.command(&["PUBLISH", "news", "two"]).await?;
    assert_eq!(
        next(&mut sub).await,
        Some(Event::Message { channel: "news".into(), payload: b"two".to_vec() })
    );
    Ok(())
}

#[tokio::test]
async fn sentinel_fail_over_is_followed() -> Result<()> {
    let group = RedisSentinel::start().await?;
    let mut redis = Redis::connect(&group.url()).await?;
    redis.set::<_, _, ()>("before", "kept").await?;
    redis::cmd("WAIT").arg(1).arg(1_000).query_async::<i64>(&mut redis).await?;
    group.server(0).kill()?;
    eventually("a write on the new master", async || {
        redis.clone().set::<_, _, ()>("after", 1).await.ok()
    })
    .await?;
    assert_eq!(redis.get::<_, String>("before").await?, "kept");
    assert_eq!(group.server(1).command(&["GET", "after"]).await?, "1");
    Ok(())
}

#[tokio::test]
async fn a_demoted_master_is_left() -> Result<()> {
    let group = RedisSentinel::start().await?;
    let redis = Redis::connect(&group.url()).await?;
    let before = group.master_port().await?;
    // After a manual failover the old master is alive, as a replica that refuses writes.
    let sentinel = group
        .url()
        .split(['/', ','])
        .find(|h| h.contains(':') && !h.ends_with(':'))
        .map(str::to_owned)
        .unwrap();
    let mut admin = redis::Client::open(format!("redis://{sentinel}"))?
        .get_multiplexed_async_connection()
        .await?;
    redis::cmd("SENTINEL")
        .arg("FAILOVER")
        .arg(RedisSentinel::NAME)
        .query_async::<()>(&mut admin)
        .await?;
    eventually("the fail-over", async || (group.master_port().await.ok()? != before).then_some(()))
        .await?;
    // Until the Sentinels have demoted the old master, it still takes writes and loses them. This
    // is a property of Redis, not of the link.
    eventually("the demotion", async || {
        group.server(0).command(&["ROLE"]).await.ok()?.starts_with("slave").then_some(())
    })
    .await?;
    eventually("a write on the new master", async || {
        redis.clone().set::<_, _, ()>("k", 1).await.ok()
    })
    .await?;
    eventually("the value there", async || {
        (group.server(1).command(&["GET", "k"]).await.ok()? == "1").then_some(())
    })
    .await
}

#[tokio::test]
async fn a_cluster_serves_keys_scripts_and_channels() -> Result<()> {
    let cluster = RedisCluster::start().await?;
    let mut redis = Redis::connect(&cluster.url()).await?;
    assert!(redis.is_cluster());
    for n in 0..50 {
        redis.set::<_, _, ()>(format!("key:{n}"), n).await?;
    }
    let script = redis::Script::new("return redis.call('incrby', KEYS[1], ARGV[1])");
    assert_eq!(script.key("key:7").arg(3).invoke_async::<i64>(&mut redis).await?, 10);

    let mut sub = redis.subscribe(["news"]);
    assert_eq!(next(&mut sub).await, Some(Event::Restored));
    redis.publish::<_, _, ()>("news", "hello").await?;
    assert!(
        matches!(next(&mut sub).await, Some(Event::Message { payload, .. }) if payload == b"hello")
    );
    Ok(())
}

#[tokio::test]
async fn a_dedicated_connection_may_block_while_the_handle_goes_on() -> Result<()> {
    let server = testkit::Redis::start().await?;
    let mut redis =
        Config::new(server.url()).response_timeout(Duration::from_millis(50)).connect().await?;
    let mut own = redis.dedicated().await?;
    let waiting = tokio::spawn(async move {
        redis::cmd("BLPOP").arg("list").arg(5).query_async::<(String, String)>(&mut own).await
    });
    eventually("the block", async || {
        server.command(&["INFO", "clients"]).await.ok()?.contains("blocked_clients:1").then_some(())
    })
    .await?;
    redis.lpush::<_, _, ()>("list", "x").await?;
    assert_eq!(waiting.await??.1, "x");
    Ok(())
}

#[tokio::test]
async fn a_wrong_address_and_a_dead_server_are_told_apart() {
    assert!(matches!(Redis::connect("postgres://a").await, Err(scale_redis::Error::Address(_))));
    let error = Redis::connect("redis://:hunter2@127.0.0.1:1").await.unwrap_err();
    assert!(matches!(error, scale_redis::Error::Redis { .. }));
    assert!(!format!("{error} {error:?}").contains("hunter2"), "{error:?}");
}

#[tokio::test]
async fn a_server_that_forgets_keys_is_told_from_one_that_refuses() -> Result<()> {
    for (arguments, evicts) in [
        (&["--maxmemory", "8mb", "--maxmemory-policy", "allkeys-lru"][..], true),
        (&["--maxmemory", "8mb", "--maxmemory-policy", "volatile-ttl"], true),
        (&["--maxmemory", "8mb", "--maxmemory-policy", "noeviction"], false),
        (&["--maxmemory-policy", "allkeys-lru"], false),
    ] {
        let server = testkit::Redis::start_with(arguments).await?;
        assert_eq!(
            Redis::connect(&server.url()).await?.warn_of_eviction("jobs").await,
            evicts,
            "{arguments:?}"
        );
    }
    Ok(())
}

/// A message that is published at a node is received although the nodes cannot forward it to each
/// other.
#[tokio::test]
async fn a_cut_bus_loses_no_message_of_a_cluster() -> Result<()> {
    let cluster = RedisCluster::start().await?;
    let redis = Redis::connect(&cluster.url()).await?;
    let mut sub = redis.subscribe_everywhere(["news"]);
    assert_eq!(next(&mut sub).await, Some(Event::Restored));
    cluster.cut_bus();
    for n in 0..3 {
        cluster.node(n).command(&["PUBLISH", "news", &format!("from {n}")]).await?;
    }
    let mut heard = std::collections::BTreeSet::new();
    while heard.len() < 3 {
        match next(&mut sub).await {
            Some(Event::Message { payload, .. }) => heard.insert(String::from_utf8(payload)?),
            other => anyhow::bail!("{other:?}"),
        };
    }
    // A node whose messages cannot be received is reported.
    cluster.node(2).kill()?;
    assert_eq!(next(&mut sub).await, Some(Event::Lost));
    Ok(())
}

/// A handle is used on another runtime after the runtime that created it has ended.
#[test]
fn a_handle_outlives_its_runtime() -> Result<()> {
    let runtime =
        || tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
    let servers = runtime()?;
    let (server, cluster) = servers.block_on(async {
        anyhow::Ok((testkit::Redis::start().await?, RedisCluster::start().await?))
    })?;
    for url in [server.url(), cluster.url()] {
        let first = runtime()?;
        let redis = first.block_on(Redis::connect(&url))?;
        first.block_on(redis.ping())?;
        drop(first);
        let second = runtime()?;
        second.block_on(redis.ping())?;
        second.block_on(redis.clone().set::<_, _, ()>("k", 1))?;
    }
    Ok(())
}

/// Each connection has another number: after a restart, commands reach another server.
#[tokio::test]
async fn connections_are_counted() -> Result<()> {
    let server = testkit::Redis::start().await?;
    let redis = Redis::connect(&server.url()).await?;
    let first = redis.generation();
    assert!(first.is_some());
    server.restart().await?;
    eventually("another connection", async || {
        redis.generation().filter(|now| Some(*now) != first).map(drop)
    })
    .await
}
