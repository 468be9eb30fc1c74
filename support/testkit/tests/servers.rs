//! Every server starts, works as its handle describes, and is removed afterwards.
#![allow(clippy::unwrap_used)]

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use anyhow::Result;
use scale_testkit::{MariaDb, Postgres, Proxy, Redis, RedisCluster, RedisSentinel, eventually};

#[tokio::test]
async fn postgres_replicates_pauses_promotes_and_restarts() -> Result<()> {
    let pg = Postgres::start(2).await?;
    pg.node(0).sql("create table t (n int); insert into t values (1)").await?;
    pg.caught_up().await?;
    assert_eq!(pg.node(1).sql("select n from t").await?, "1");

    pg.node(1).pause_replay().await?;
    pg.node(0).sql("insert into t values (2)").await?;
    eventually("the other replica", async || {
        (pg.node(2).sql("select count(*) from t").await.ok()? == "2").then_some(())
    })
    .await?;
    assert_eq!(pg.node(1).sql("select count(*) from t").await?, "1");
    pg.node(1).resume_replay().await?;
    pg.caught_up().await?;
    assert_eq!(pg.node(1).sql("select count(*) from t").await?, "2");

    pg.node(0).kill()?;
    assert!(pg.node(0).sql("select 1").await.is_err());
    pg.node(2).promote().await?;
    pg.node(2).sql("insert into t values (3)").await?;
    pg.node(1).follow(pg.node(2)).await?;
    eventually("the follower", async || {
        (pg.node(1).sql("select count(*) from t").await.ok()? == "3").then_some(())
    })
    .await?;

    pg.node(0).restart().await?;
    assert_eq!(pg.node(0).sql("select count(*) from t").await?, "2");
    Ok(())
}

#[tokio::test]
async fn mariadb_replicates_by_gtid() -> Result<()> {
    let maria = MariaDb::start(1).await?;
    maria.node(0).sql("create table test.t (n int); insert into test.t values (1)").await?;
    eventually("the row on the replica", async || {
        (maria.node(1).sql("select n from test.t").await.ok()? == "1").then_some(())
    })
    .await?;
    maria.node(0).kill()?;
    maria.node(1).promote().await?;
    maria.node(1).sql("insert into test.t values (2)").await?;
    maria.node(0).restart().await?;
    assert_eq!(maria.node(0).sql("select count(*) from test.t").await?, "1");
    Ok(())
}

#[tokio::test]
async fn redis_keeps_its_data_over_a_restart() -> Result<()> {
    let redis = Redis::start().await?;
    redis.command(&["SET", "k", "v"]).await?;
    redis.restart().await?;
    assert_eq!(redis.command(&["GET", "k"]).await?, "v");
    assert!(redis.command(&["NOSUCH"]).await.is_err());
    Ok(())
}

#[tokio::test]
async fn sentinels_move_the_master() -> Result<()> {
    let group = RedisSentinel::start().await?;
    let before = group.master_port().await?;
    group.server(0).kill()?;
    eventually("a new master", async || (group.master_port().await.ok()? != before).then_some(()))
        .await?;
    Ok(())
}

#[tokio::test]
async fn a_cluster_spreads_its_slots() -> Result<()> {
    let cluster = RedisCluster::start().await?;
    assert!(
        cluster
            .node(0)
            .command(&["CLUSTER", "SLOTS"])
            .await?
            .contains(&cluster.node(2).port().to_string())
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_proxy_delays_cuts_and_resets() -> Result<()> {
    let redis = Redis::start().await?;
    let proxy = Proxy::start(redis.port()).await?;
    let port = proxy.port();
    let ask = move |mut stream: TcpStream| -> std::io::Result<(String, TcpStream)> {
        stream.write_all(b"PING\r\n")?;
        let mut answer = [0; 7];
        stream.read_exact(&mut answer)?;
        Ok((String::from_utf8_lossy(&answer).into_owned(), stream))
    };
    let connect = move || TcpStream::connect(("127.0.0.1", port));

    let (answer, stream) = tokio::task::spawn_blocking(move || ask(connect()?)).await??;
    assert_eq!(answer, "+PONG\r\n");

    proxy.delay(Duration::from_millis(40));
    let start = Instant::now();
    let (_, stream) = tokio::task::spawn_blocking(move || ask(stream)).await??;
    assert!(start.elapsed() >= Duration::from_millis(80), "both directions wait");

    proxy.heal();
    proxy.cut();
    stream.set_read_timeout(Some(Duration::from_millis(100)))?;
    let silent = tokio::task::spawn_blocking(move || ask(stream)).await?;
    assert!(silent.is_err(), "nothing passes a cut");

    proxy.heal();
    let (_, mut stream) = tokio::task::spawn_blocking(move || ask(connect()?)).await??;
    proxy.reset();
    let torn = tokio::task::spawn_blocking(move || stream.read(&mut [0; 1])).await?;
    assert!(!matches!(torn, Ok(n) if n > 0), "the connection is gone");

    proxy.refuse();
    assert!(tokio::task::spawn_blocking(move || ask(connect()?)).await?.is_err());
    Ok(())
}

/// A process that starts servers must not leave them behind, even when it is killed.
#[tokio::test]
async fn servers_die_with_a_killed_parent() -> Result<()> {
    // The child process is this test binary, running the helper below.
    let mut child = std::process::Command::new(std::env::current_exe()?)
        .args(["--exact", "helper_that_waits_to_be_killed", "--nocapture"])
        .env("TESTKIT_HELPER", "1")
        .stdout(std::process::Stdio::piped())
        .spawn()?;
    let mut out = std::io::BufReader::new(child.stdout.take().unwrap());
    let port: u16 = tokio::task::spawn_blocking(move || {
        use std::io::BufRead;
        let mut line = String::new();
        while !line.contains("port=") {
            line.clear();
            if out.read_line(&mut line)? == 0 {
                anyhow::bail!("the helper printed no port");
            }
        }
        Ok(line.trim().rsplit('=').next().unwrap().parse()?)
    })
    .await??;
    assert!(TcpStream::connect(("127.0.0.1", port)).is_ok());
    child.kill()?;
    child.wait()?;
    eventually("the orphan to die", async || {
        TcpStream::connect(("127.0.0.1", port)).is_err().then_some(())
    })
    .await
}

#[tokio::test]
async fn helper_that_waits_to_be_killed() -> Result<()> {
    if std::env::var_os("TESTKIT_HELPER").is_none() {
        return Ok(()); // only of use to `servers_die_with_a_killed_parent`
    }
    let redis = Redis::start().await?;
    println!("port={}", redis.port());
    std::future::pending().await
}
