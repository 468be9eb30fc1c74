//! Chunked updates of a table: every row once despite crashes, and replicas do not fall behind.
#![cfg(all(feature = "postgres", feature = "sqlite", feature = "mysql"))]
#![allow(clippy::unwrap_used)]

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::Result;
use scale_db::chunked::Progress;
use scale_db::{Backend, Db};
use sqlx::{Executor, MySql, Postgres as Pg, Sqlite};
use testkit::{MariaDb, Postgres, eventually};

const ROWS: i64 = 3_000;

/// Adds one to each row's `n` in chunks, and returns the result of the run.
macro_rules! add_one {
    ($walk:expr, $sql:expr) => {
        $walk
            .run(async |mut tx, ids| {
                let update = sqlx::query($sql).bind(*ids.start()).bind(*ids.end());
                Ok::<_, sqlx::Error>(update.execute(&mut **tx).await?.rows_affected())
            })
            .await
    };
}

const DOLLARS: &str = "update items set n = n + 1 where id between $1 and $2";
const MARKS: &str = "update items set n = n + 1 where id between ? and ?";

/// Keys with gaps between them, the first far from zero.
async fn table<DB: Backend>(db: &Db<DB>) -> Result<()>
where
    for<'c> &'c mut DB::Connection: Executor<'c, Database = DB>,
    DB::Arguments: sqlx::IntoArguments<DB>,
{
    sqlx::raw_sql("create table items (id bigint primary key, n bigint not null)")
        .execute(db)
        .await?;
    for block in 0..ROWS / 500 {
        let rows: Vec<_> =
            (block * 500..(block + 1) * 500).map(|n| format!("({}, 0)", n * 7 - 1_000)).collect();
        let insert = format!("insert into items values {}", rows.join(", "));
        sqlx::raw_sql(sqlx::AssertSqlSafe(insert)).execute(db).await?;
    }
    Ok(())
}

fn whole(progress: Progress) {
    assert_eq!((progress.rows, progress.fraction()), (ROWS as u64, 1.0), "{progress:?}");
    assert_eq!(
        (progress.first, progress.upto, progress.last),
        (-1_000, ROWS * 7 - 1_007, ROWS * 7 - 1_007)
    );
}

#[tokio::test]
async fn every_row_is_walked_once_on_every_system() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let (pg, maria) = (Postgres::start(0).await?, MariaDb::start(0).await?);
    let sqlite: Db<Sqlite> =
        Db::connect(&format!("sqlite://{}/a.db?mode=rwc", folder.path().display())).await?;
    let (pg, maria): (Db<Pg>, Db<MySql>) =
        (Db::connect(&pg.node(0).url()).await?, Db::connect(&maria.node(0).url()).await?);
    macro_rules! walked {
        ($db:expr, $sql:expr, $integer:ty) => {{
            table($db).await?;
            let mut told = Vec::new();
            let progress = add_one!(
                $db.chunked("items", "id").size(100).on_progress(|p| told.push(*p)),
                $sql
            )?;
            whole(progress);
            assert!(
                told.len() > 1
                    && told.windows(2).all(|p| p[0].upto < p[1].upto && p[0].rows < p[1].rows),
                "{told:?}"
            );
            // A named run that has ended stays ended until it is forgotten.
            whole(add_one!($db.chunked("items", "id").named("it's \\ once"), $sql)?);
            let again = add_one!($db.chunked("items", "id").named("it's \\ once"), $sql)?;
            assert_eq!(again.chunks, 0);
            whole(again);
            $db.forget_walk("it's \\ once").await?;
            whole(add_one!($db.chunked("items", "id").named("it's \\ once"), $sql)?);
            let spread: ($integer, $integer) =
                sqlx::query_as("select min(n), max(n) from items").fetch_one($db.primary()).await?;
            assert_eq!(spread, (3, 3));
            // An empty table is done at once.
            sqlx::raw_sql("delete from items").execute($db).await?;
            assert_eq!(add_one!($db.chunked("items", "id"), $sql)?.chunks, 0);
            assert!(add_one!($db.chunked("no such; table", "id"), $sql).is_err());
        }};
    }
    walked!(&sqlite, DOLLARS, i64);
    walked!(&pg, DOLLARS, i64);
    walked!(&maria, MARKS, i64);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_walk_cut_short_goes_on_where_it_was_and_two_share_one() -> Result<()> {
    let server = Postgres::start(0).await?;
    let url = server.node(0).url();
    let db: Db<Pg> = Db::connect(&url).await?;
    table(&db).await?;
    // Dropped repeatedly, often in the middle of a chunk.
    let done = Arc::new(AtomicU64::new(0));
    for round in 1..=5 {
        let (walked, enough) = (Arc::clone(&done), round * 200);
        let walk = async {
            add_one!(
                db.chunked("items", "id")
                    .size(20)
                    .target(Duration::from_millis(1))
                    .named("w")
                    .on_progress(|p| walked.store(p.rows, Ordering::SeqCst)),
                DOLLARS
            )
        };
        let cut = eventually("the walk to get on", async || {
            (done.load(Ordering::SeqCst) >= enough).then_some(())
        });
        tokio::select! {
            all = walk => whole(all?),
            cut = cut => cut?,
        }
    }
    // Three processes share the remaining chunks.
    let walkers: Vec<_> = (0..3)
        .map(|_| {
            let url = url.clone();
            tokio::spawn(async move {
                let db: Db<Pg> = Db::connect(&url).await?;
                whole(add_one!(db.chunked("items", "id").size(50).named("w"), DOLLARS)?);
                anyhow::Ok(())
            })
        })
        .collect();
    for walker in walkers {
        walker.await??;
    }
    let spread: (i64, i64) =
        sqlx::query_as("select min(n), max(n) from items").fetch_one(db.primary()).await?;
    assert_eq!(spread, (1, 1), "each row once");
    Ok(())
}

#[tokio::test]
async fn a_walk_waits_for_a_replica_that_lags() -> Result<()> {
    let server = Postgres::start(1).await?;
    let urls = server.urls();
    let interval = Duration::from_millis(50);
    let db: Db<Pg> =
        Db::<Pg>::builder(&urls[0]).replica(&urls[1]).monitor_interval(interval).connect().await?;
    table(&db).await?;
    server.caught_up().await?;
    server.node(1).pause_replay().await?;
    sqlx::query("update items set n = 0 where id = -1000").execute(&db).await?;
    let late = Duration::from_millis(100);
    let lags =
        async || db.nodes().iter().any(|n| n.lag.is_some_and(|lag| lag > late)).then_some(());
    eventually("the lag to be seen", lags).await?;
    let walk = async { add_one!(db.chunked("items", "id").size(100).max_lag(late), DOLLARS) };
    tokio::pin!(walk);
    let looks = async {
        // After ten probes of the monitor, nothing has changed.
        tokio::time::timeout(interval * 10, std::future::pending::<()>()).await.unwrap_err();
        server.node(0).sql("select max(n) from items").await
    };
    tokio::select! {
        walked = &mut walk => panic!("it did not wait: {walked:?}"),
        most = looks => assert_eq!(most?, "0"),
    }
    server.node(1).resume_replay().await?;
    whole(walk.await?);
    Ok(())
}
