//! Failovers with stale primaries that continue to run, with their followers, and with two promoted
//! nodes.
#![cfg(feature = "postgres")]
#![allow(clippy::unwrap_used)]

use std::time::Duration;

use anyhow::{Context, Result};
use scale_db::cluster::Role;
use scale_db::sticky::{self, Mark};
use scale_db::{Builder, Db, Error};
use sqlx::Postgres as Pg;
use testkit::{PgNode, Postgres, Proxy, eventually};

fn over(urls: &[String]) -> Builder<Pg> {
    let interval = Duration::from_millis(100);
    let builder =
        Db::<Pg>::builder(&urls[0]).monitor_interval(interval).safe_function("inet_server_port");
    urls[1..].iter().fold(builder, Builder::replica)
}

async fn fit(db: &Db<Pg>, count: usize) -> Result<()> {
    eventually("nodes to be fit", async || {
        (db.nodes().iter().filter(|n| n.fit).count() == count).then_some(())
    })
    .await
}

async fn moved_to(db: &Db<Pg>, number: usize) -> Result<()> {
    let moved = async || {
        db.nodes()
            .iter()
            .any(|n| n.number == number && n.role == Role::Primary && n.fit)
            .then_some(())
    };
    eventually("the primary to move", moved).await
}

async fn insert(db: &Db<Pg>, n: i64) -> Result<Option<Mark>, sqlx::Error> {
    sticky::scope(None, async {
        sqlx::query("insert into t values ($1)").bind(n).execute(db).await?;
        Ok(sticky::mark(db).await)
    })
    .await
}

/// Returns how many rows with the number `n` a read with a mark finds.
async fn seen(db: &Db<Pg>, mark: Option<Mark>, n: i64) -> Result<i64, sqlx::Error> {
    let seen = mark.map(|mark| (sticky::id(db), mark));
    sticky::scope(
        seen,
        sqlx::query_scalar("select count(*) from t where n = $1").bind(n).fetch_one(db),
    )
    .await
}

#[tokio::test]
async fn a_replica_that_follows_a_leftover_serves_nobody() -> Result<()> {
    let pg = Postgres::start(2).await?;
    let db = over(&pg.urls()).max_replica_lag(Duration::from_mins(10)).connect().await?;
    sqlx::query("create table t (n bigint)").execute(&db).await?;
    pg.caught_up().await?;
    fit(&db, 3).await?;
    // Node 2 continues to follow node 0, to which a client that missed the failover still writes.
    pg.node(1).promote().await?;
    pg.node(0).sql("create table other as select generate_series(1, 50000) n").await?;
    moved_to(&db, 1).await?;
    let follower = async || {
        db.nodes().iter().any(|n| n.number == 2 && n.role == Role::Replica && !n.fit).then_some(())
    };
    eventually("the leftover's follower to be left", follower).await?;
    for n in 0..30 {
        let mark = insert(&db, n).await?;
        assert_eq!(seen(&db, mark, n).await?, 1, "a read with the write's mark");
        assert_eq!(seen(&db, None, n).await?, 1, "any other read: there is but the primary");
    }
    // The node is used again as soon as it follows the right primary and has no writes that the
    // primary lacks, which takes a new copy or pg_rewind.
    Ok(())
}

#[tokio::test]
async fn a_replica_that_follows_a_promotion_is_used_again_with_older_marks() -> Result<()> {
    let pg = Postgres::start(2).await?;
    let db = over(&pg.urls()).primary_wait(Duration::from_secs(10)).connect().await?;
    sqlx::query("create table t (n bigint)").execute(&db).await?;
    let before = insert(&db, 1).await?;
    pg.caught_up().await?;
    fit(&db, 3).await?;
    pg.node(0).kill()?;
    pg.node(1).promote().await?;
    pg.node(2).follow(pg.node(1)).await?;
    let after =
        eventually("a write to the new primary", async || insert(&db, 2).await.ok()).await?;
    assert!(after > before, "{after:?} {before:?}");
    let used = async || db.nodes().iter().any(|n| n.number == 2 && n.fit).then_some(());
    eventually("the replica to be used", used).await?;
    for _ in 0..20 {
        assert_eq!((seen(&db, before, 1).await?, seen(&db, after, 2).await?), (1, 1));
    }
    Ok(())
}

/// A role without group membership cannot see which timeline a replica receives, and learns it at
/// the replica's next restart point.
#[tokio::test]
async fn a_role_that_may_not_see_the_stream_waits_for_a_restart_point() -> Result<()> {
    let pg = Postgres::start(2).await?;
    let admin = over(&pg.urls()).connect().await?;
    sqlx::raw_sql("create table t (n bigint); create role app login; grant all on t to app")
        .execute(&admin)
        .await?;
    pg.caught_up().await?;
    let urls: Vec<_> = pg.urls().iter().map(|url| url.replacen("postgres@", "app@", 1)).collect();
    let db = over(&urls).primary_wait(Duration::from_secs(10)).connect().await?;
    fit(&db, 3).await?;
    pg.node(0).kill()?;
    pg.node(1).promote().await?;
    pg.node(2).follow(pg.node(1)).await?;
    moved_to(&db, 1).await?;
    let mark = eventually("a write to the new primary", async || insert(&db, 1).await.ok()).await?;
    assert_eq!(seen(&db, mark, 1).await?, 1);
    let restart_point = async || {
        pg.node(1).sql("checkpoint").await.ok()?;
        pg.node(2).sql("checkpoint").await.ok()?;
        db.nodes().iter().any(|n| n.number == 2 && n.fit).then_some(())
    };
    eventually("the replica to be used", restart_point).await?;
    assert_eq!(seen(&db, mark, 1).await?, 1);
    Ok(())
}

#[tokio::test]
async fn of_two_promoted_nodes_a_new_process_chooses_neither() -> Result<()> {
    let pg = Postgres::start(2).await?;
    let old = over(&pg.urls()).primary_wait(Duration::from_secs(10)).connect().await?;
    sqlx::query("create table t (n bigint)").execute(&old).await?;
    pg.caught_up().await?;
    fit(&old, 3).await?;
    pg.node(0).kill()?;
    pg.node(1).promote().await?;
    eventually("a write to the new primary", async || insert(&old, 1).await.ok()).await?;
    pg.node(2).promote().await?;
    pg.node(2).sql("create table filler as select generate_series(1, 100000)").await?;
    let new = over(&pg.urls()[1..]).connect().await;
    assert!(matches!(&new, Err(Error::TwoPrimaries { nodes }) if nodes == &[0, 1]), "{new:?}");
    for n in 2..20 {
        insert(&old, n).await?;
    }
    assert_eq!(pg.node(2).sql("select count(*) from t").await?, "0");
    // An administrator stops the primary that received no writes.
    pg.node(2).kill()?;
    over(&pg.urls()[1..]).connect().await.context("there is but one")?;
    Ok(())
}

async fn url(node: &PgNode) -> Result<(Proxy, String)> {
    let proxy = Proxy::start(node.port()).await?;
    let url = format!("postgres://postgres@127.0.0.1:{}/postgres", proxy.port());
    Ok((proxy, url))
}

#[tokio::test]
async fn a_mark_tells_a_process_of_a_fail_over_that_it_has_not_seen() -> Result<()> {
    let pg = Postgres::start(1).await?;
    let one = over(&pg.urls()).connect().await?;
    sqlx::query("create table t (n bigint)").execute(&one).await?;
    pg.caught_up().await?;
    // Probes once a minute; both paths lead through separate proxies.
    let ((_old, to_old), (way, to_new)) = (url(pg.node(0)).await?, url(pg.node(1)).await?);
    let late = |urls: &[String]| over(urls).monitor_interval(Duration::from_mins(1)).connect();
    let two = late(&[pg.urls()[0].clone(), pg.urls()[1].clone()]).await?;
    let cut_off = late(&[to_old, to_new]).await?;
    pg.node(1).promote().await?;
    moved_to(&one, 1).await?;
    let mark = insert(&one, 7).await?;
    assert_eq!(seen(&two, mark, 7).await?, 1, "it looks before it reads");
    way.cut();
    let refused = seen(&cut_off, mark, 7).await;
    assert!(
        matches!(
            &refused,
            Err(sqlx::Error::Configuration(e)) if matches!(e.downcast_ref(), Some(Error::Unseen)),
        ),
        "{refused:?}"
    );
    // Writes and forced reads on the primary fail too; and the mark is kept.
    let kept = sticky::scope(mark.map(|mark| (sticky::id(&cut_off), mark)), async {
        assert!(sqlx::query("insert into t values (8)").execute(&cut_off).await.is_err());
        assert!(sqlx::query("select count(*) from t").fetch_one(cut_off.primary()).await.is_err());
        assert!(cut_off.begin().await.is_err() && cut_off.acquire().await.is_err());
        sticky::mark(&cut_off).await
    })
    .await;
    assert_eq!(kept, mark);
    assert_eq!(pg.node(0).sql("select count(*) from t").await?, "0");
    way.heal();
    let found = async || seen(&cut_off, mark, 7).await.ok().filter(|n| *n == 1);
    eventually("the new primary to be found", found).await?;
    // A forged mark costs one probe and nothing more.
    let forged = "2.ff-ff".parse::<Mark>().ok();
    assert_eq!(seen(&one, forged, 7).await?, 1);
    Ok(())
}

#[tokio::test]
async fn a_rival_s_followers_are_not_read_from() -> Result<()> {
    let pg = Postgres::start(3).await?;
    let db = over(&pg.urls())
        .primary_wait(Duration::from_secs(10))
        .max_replica_lag(Duration::from_mins(10))
        .connect()
        .await?;
    sqlx::query("create table t (n bigint)").execute(&db).await?;
    pg.caught_up().await?;
    fit(&db, 4).await?;
    pg.node(0).kill()?;
    pg.node(1).promote().await?;
    moved_to(&db, 1).await?;
    pg.node(2).promote().await?;
    pg.node(3).follow(pg.node(2)).await?;
    pg.node(2).sql("create table astray as select generate_series(1, 100000)").await?;
    let following = async || {
        (pg.node(3).sql("select count(*) from pg_class where relname = 'astray'").await.ok()?
            == "1")
            .then_some(())
    };
    eventually("node 3 to follow the rival", following).await?;
    eventually("the rival to be seen", async || {
        (db.nodes()[2].role == Role::Primary).then_some(())
    })
    .await?;
    for n in 0..20 {
        let mark = insert(&db, n).await?;
        assert_eq!(seen(&db, mark, n).await?, 1);
    }
    assert!(db.nodes().iter().all(|node| node.fit == (node.number == 1)), "{:?}", db.nodes());
    Ok(())
}

#[tokio::test]
async fn one_server_under_two_addresses_is_one() -> Result<()> {
    let pg = Postgres::start(1).await?;
    let urls = [
        pg.urls()[0].clone(),
        pg.urls()[0].replace("127.0.0.1", "localhost"),
        pg.urls()[1].clone(),
    ];
    let db = over(&urls).connect().await?;
    sqlx::query("create table t (n bigint)").execute(&db).await?;
    fit(&db, 2).await?;
    assert!(db.nodes()[0].fit && db.nodes()[2].fit, "{:?}", db.nodes());
    Ok(())
}

#[tokio::test]
async fn a_silent_node_does_not_keep_the_writes_from_the_new_primary() -> Result<()> {
    let pg = Postgres::start(2).await?;
    let db = over(&pg.urls()).connect().await?;
    sqlx::query("create table t (n bigint)").execute(&db).await?;
    pg.caught_up().await?;
    fit(&db, 3).await?;
    pg.node(2).freeze()?;
    eventually("the silent node to be down", async || {
        (db.nodes()[2].role == Role::Down).then_some(())
    })
    .await?;
    pg.node(1).promote().await?;
    let written = async || {
        insert(&db, 1).await.ok()?;
        (pg.node(1).sql("select count(*) from t").await.ok()? != "0").then_some(())
    };
    eventually("a write to the new primary", written).await?;
    Ok(())
}
