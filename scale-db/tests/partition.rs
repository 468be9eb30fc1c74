//! Partitions: made ahead, archived and dropped, and no row lost wherever it is cut.
#![cfg(feature = "partition")]
#![allow(clippy::unwrap_used)]

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use scale_db::partition::{Every, Partitions, Report};
use scale_db::{Db, Error};
use sqlx::Postgres as Pg;
use testkit::Postgres;

async fn start() -> Result<(Postgres, Db<Pg>, tempfile::TempDir)> {
    let server = Postgres::start(0).await?;
    let db = Db::<Pg>::builder(&server.node(0).url()).lock_timeout(Duration::from_secs(1)).connect().await?;
    sqlx::raw_sql(
        "create table events (id bigint generated always as identity, at timestamptz not null, note text default 'x', \
         size bigint generated always as (length(note)) stored, check (note <> 'bad'), primary key (id, at)) partition by range (at)",
    )
    .execute(&db)
    .await?;
    Ok((server, db, tempfile::tempdir()?))
}

/// A partition `back` months ago, with rows of all kinds.
async fn month(db: &Db<Pg>, back: u32, rows: u32) -> Result<String> {
    let sql = format!(
        "do $$ declare start timestamptz := date_trunc('month', now() at time zone 'UTC') at time zone 'UTC' - interval '{back} month'; begin
         execute format('create table events_{back} partition of events for values from (%L) to (%L)', start, start + interval '1 month');
         insert into events (at, note) select start + n * interval '1 minute', E'it''s \\n \"' || n || '\"' from generate_series(1, {rows}) n;
         end $$"
    );
    sqlx::raw_sql(sqlx::AssertSqlSafe(sql)).execute(db).await?;
    Ok(format!("events_{back}"))
}

async fn count(db: &Db<Pg>, sql: &str) -> Result<i64> {
    Ok(sqlx::query_scalar(sqlx::AssertSqlSafe(sql.to_owned())).fetch_one(db.primary()).await?)
}

/// Rows in all archives, each file once, by putting them back into a table.
async fn restored(db: &Db<Pg>, folder: &Path) -> Result<i64> {
    sqlx::raw_sql("drop table if exists again; create table again (id bigint, at timestamptz, note text, size bigint)")
        .execute(db)
        .await?;
    for file in std::fs::read_dir(folder)? {
        let path = file?.path();
        if path.extension().is_some_and(|e| e == "zst") && !path.file_name().unwrap().to_string_lossy().starts_with('.') {
            let text = zstd::decode_all(std::fs::File::open(&path)?)?;
            let mut own = db.acquire().await?;
            let mut copy = own.copy_in_raw("copy again from stdin (format csv, header)").await?;
            copy.send(text).await?;
            copy.finish().await?;
        }
    }
    count(db, "select count(*) from again").await
}

#[tokio::test]
async fn partitions_are_made_ahead_and_old_ones_go_into_files() -> Result<()> {
    let (_server, db, folder) = start().await?;
    for back in [1, 2, 3, 4] {
        month(&db, back, 100 * back).await?;
    }
    let months = Partitions::of("events", Every::Month).ahead(3).archive_after(2, folder.path());
    let report = months.maintain(&db).await?;
    assert_eq!(report.created.len(), 4, "this month and three more: {report:?}");
    assert_eq!(report.detached, ["events_4", "events_3"]);
    let archived: Vec<_> = report.archived.iter().map(|a| (a.table.as_str(), a.rows)).collect();
    assert_eq!(archived, [("events_3", 300), ("events_4", 400)]);
    assert_eq!(count(&db, "select count(*) from events").await?, 300, "two months are kept");
    assert_eq!(count(&db, "select count(*) from pg_class where relname in ('events_3', 'events_4')").await?, 0);
    assert_eq!(restored(&db, folder.path()).await?, 700);
    assert_eq!(count(&db, "select count(*) from again where note like E'it''s \\n \"%\"'").await?, 700, "as they were");
    let check = std::process::Command::new("sha256sum").args(["-c", "events_3.csv.zst.sha256"]).current_dir(&folder).output()?;
    assert!(check.status.success(), "{check:?}");

    // New rows land in what was made, defaults, checks and indexes included.
    let insert = "insert into events (at) values (now()), (now() + interval '2 months') returning note, size";
    let rows: Vec<(String, i64)> = sqlx::query_as(insert).fetch_all(&db).await?;
    assert_eq!(rows[0], ("x".to_owned(), 1));
    assert!(sqlx::query("insert into events (at, note) values (now(), 'bad')").execute(&db).await.is_err());
    // Nothing is due any more.
    assert_eq!(months.maintain(&db).await?, Report::default());
    Ok(())
}

#[tokio::test]
async fn each_period_has_its_partition_whatever_the_column() -> Result<()> {
    let (_server, db, _folder) = start().await?;
    for (n, (kind, every)) in [("date", Every::Day), ("timestamp", Every::Week), ("date", Every::Year)].into_iter().enumerate() {
        let table = format!("Odd Name {n}");
        let create = format!("create table \"{table}\" (at {kind} not null) partition by range (at)");
        sqlx::raw_sql(sqlx::AssertSqlSafe(create)).execute(&db).await?;
        let report = Partitions::of(&table, every).ahead(9).maintain(&db).await?;
        assert_eq!(report.created.len(), 10, "{report:?}");
        assert_eq!(Partitions::of(&table, every).ahead(10).maintain(&db).await?.created.len(), 1);
        let insert = format!("insert into \"{table}\" select now() + n * interval '1 day' from generate_series(0, 9) n");
        sqlx::raw_sql(sqlx::AssertSqlSafe(insert)).execute(&db).await?;
    }
    let wrong = Partitions::of("no_such_table", Every::Day).maintain(&db).await;
    assert!(matches!(wrong, Err(Error::Sql(_))), "{wrong:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_row_is_lost_wherever_it_is_cut() -> Result<()> {
    let (server, db, folder) = start().await?;
    let mut rows = 0;
    for back in 1..=8 {
        month(&db, back, 2_000).await?;
        rows += 2_000;
    }
    let months = Partitions::of("events", Every::Month).archive_after(0, folder.path());
    let url = server.node(0).url();
    let mut cuts = 0;
    for round in 0_u64.. {
        // Cut a little later each time: at first by dropping the call, then by turns also by ending its connection, again and again.
        let after = Duration::from_millis(1 + round * 3);
        let dropped = round < 4 || round % 2 == 0;
        let kills = async {
            if dropped {
                std::future::pending::<()>().await;
            }
            loop {
                tokio::time::sleep(after).await;
                let all = "select count(pg_terminate_backend(pid)) from pg_stat_activity \
                    where application_name = 'cut'";
                let _ = server.node(0).sql(all).await;
            }
        };
        let limit = if dropped { after } else { Duration::from_secs(30) };
        let other = Db::<Pg>::connect(&format!("{url}?application_name=cut")).await?;
        let done = tokio::select! {
            done = tokio::time::timeout(limit, months.maintain(&other)) => done,
            never = kills => never,
        };
        if let Ok(Ok(report)) = &done
            && !report.busy
        {
            break;
        }
        cuts += 1;
    }
    assert!(cuts >= 4, "{cuts}");
    assert_eq!(count(&db, "select count(*) from events").await?, 0);
    assert_eq!(restored(&db, folder.path()).await?, rows, "each row in one file");
    assert_eq!(count(&db, "select count(distinct (id, at)) from again").await?, rows);
    let left = "select count(*) from pg_class where relname ~ '^events_\\d$'";
    assert_eq!(count(&db, left).await?, 0);
    Ok(())
}

#[tokio::test]
async fn what_cannot_be_archived_stays() -> Result<()> {
    let (_server, db, folder) = start().await?;
    let table = month(&db, 2, 50).await?;
    let nowhere = Partitions::of("events", Every::Month).archive_after(0, folder.path().join("missing")).maintain(&db).await;
    assert!(matches!(nowhere, Err(Error::Archive { .. })), "{nowhere:?}");
    assert_eq!(count(&db, &format!("select count(*) from {table}")).await?, 50, "detached, and whole");
    // An archive of that name is there, with other rows: it is not replaced.
    let file = folder.path().join("events_2.csv.zst");
    std::fs::write(&file, zstd::encode_all(&b"id\n1\n"[..], 1)?)?;
    let before = std::fs::read(&file)?;
    let here = Partitions::of("events", Every::Month).archive_after(0, folder.path());
    // Somebody writes to the detached table: it waits for them, and fails if they take long.
    let mut tx = db.begin().await?;
    sqlx::query("delete from events_2 where id = 1").execute(&mut *tx).await?;
    assert!(matches!(here.maintain(&db).await, Err(Error::Sql(_))));
    tx.commit().await?;
    let report = here.maintain(&db).await?;
    assert_eq!(report.archived[0].path.file_name().context("a name")?, "events_2-2.csv.zst");
    assert_eq!((report.archived[0].rows, std::fs::read(&file)?), (49, before));
    Ok(())
}

#[tokio::test]
async fn one_of_two_maintains_and_dropping_must_be_asked_for() -> Result<()> {
    let (server, db, _folder) = start().await?;
    month(&db, 5, 10).await?;
    sqlx::raw_sql("create table events_default partition of events default").execute(&db).await?;
    let months = Partitions::of("events", Every::Month).drop_after(3);
    let mut holder = db.acquire().await?;
    let lock = "select pg_advisory_lock(hashtextextended('scale-db partitions of ' || 'events'::regclass::oid, 0))";
    sqlx::query(lock).execute(&mut *holder).await?;
    assert!(months.maintain(&db).await?.busy);
    holder.close().await?;
    let report = testkit::eventually("its turn", async || months.maintain(&db).await.ok().filter(|r| !r.busy)).await?;
    assert_eq!(report.dropped, ["events_5"]);
    assert_eq!(
        server.node(0).sql("select count(*) from pg_locks where locktype = 'advisory'").await?,
        "0",
        "no lock stays behind"
    );
    Ok(())
}
