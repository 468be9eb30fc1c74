//! The cache and the database together: a load that follows an invalidation does not read the old
//! row from a replica that lags.
#![allow(clippy::unwrap_used)]

use std::time::Duration;

use anyhow::Result;
use scale_cache::{Cache, LoadContext, Options};
use scale_db::Db;
use scale_db::sticky::{self, Mark};
use sqlx::Postgres as Pg;
use testkit::{Postgres, Redis, eventually};

async fn price(cache: &Cache, db: &Db<Pg>) -> Result<i64> {
    let db = db.clone();
    let options = Options::ttl(Duration::from_mins(5)).tag("product:1");
    let load = |load: LoadContext| async move {
        let seen = load.position().map(Mark::from_bytes);
        sticky::seeing(
            &db,
            seen,
            sqlx::query_scalar::<_, i64>("select price from products where id = 1").fetch_one(&db),
        )
        .await
    };
    Ok(*cache.get_or_load("price:1", &options, load).await?)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_load_after_an_invalidation_reads_where_the_write_has_arrived() -> Result<()> {
    let (pg, redis) = tokio::try_join!(Postgres::start(2), Redis::start())?;
    let urls = pg.urls();
    let connect = || {
        Db::<Pg>::builder(&urls[0])
            .replica(&urls[1])
            .replica(&urls[2])
            .monitor_interval(Duration::from_millis(50))
            .connect()
    };
    let (writer, reader) = (connect().await?, connect().await?);
    let (here, there) =
        (Cache::connect(&redis.url(), "test").await?, Cache::connect(&redis.url(), "test").await?);
    for cache in [&here, &there] {
        eventually("the link", async || cache.is_healthy().then_some(())).await?;
    }
    sqlx::query("create table products (id bigint primary key, price bigint)")
        .execute(&writer)
        .await?;
    sqlx::query("insert into products values (1, 100)").execute(&writer).await?;
    pg.caught_up().await?;
    assert_eq!((price(&here, &reader).await?, price(&there, &reader).await?), (100, 100));

    for (round, lagging) in [(1, [1, 2]), (2, [2, 1])] {
        let new = 100 + round;
        // Both replicas are paused: a read from one of them would now cache old data.
        for node in lagging {
            pg.node(node).pause_replay().await?;
        }
        let mark = sticky::scope(None, async {
            sqlx::query("update products set price = $1 where id = 1")
                .bind(new)
                .execute(&writer)
                .await?;
            anyhow::Ok(sticky::mark(&writer).await)
        })
        .await?
        .unwrap();
        here.invalidate_tags_at(["product:1"], &mark.to_bytes()).await;
        assert_eq!(price(&here, &reader).await?, new, "on the node that invalidated");
        eventually("the other node", async || {
            (price(&there, &reader).await.ok()? == new).then_some(())
        })
        .await?;
        // A node that was not running and received no event reads the state from Redis.
        let late = Cache::connect(&redis.url(), "test").await?;
        late.space::<i64>("").remove("price:1").await;
        assert_eq!(price(&late, &reader).await?, new);
        // One replica resumes: a value loaded then may come from it, and is current.
        pg.node(lagging[0]).resume_replay().await?;
        here.invalidate_tags(["product:1"]).await;
        assert_eq!(price(&here, &reader).await?, new);
        pg.node(lagging[1]).resume_replay().await?;
        pg.caught_up().await?;
    }
    Ok(())
}
