//! Partitions of MariaDB: created ahead, archived, dropped and restored, and no row is lost
//! wherever the work is interrupted.
#![cfg(all(feature = "partition", feature = "mysql"))]
#![allow(clippy::unwrap_used)]

use std::fmt::Write;
use std::path::Path;
use std::time::Duration;

use anyhow::Result;
use scale_db::partition::{Every, Partitions, restore};
use scale_db::{Db, Error};
use sqlx::MySql;
use testkit::MariaDb;

async fn start() -> Result<(MariaDb, Db<MySql>, tempfile::TempDir)> {
    let server = MariaDb::start(0).await?;
    let db = Db::<MySql>::builder(server.node(0).url())
        .lock_timeout(Duration::from_secs(1))
        .connect()
        .await?;
    Ok((server, db, tempfile::tempdir()?))
}

async fn tell(db: &Db<MySql>, sql: impl Into<String>) -> Result<()> {
    sqlx::raw_sql(sqlx::AssertSqlSafe(sql.into())).execute(db).await?;
    Ok(())
}

async fn count(db: &Db<MySql>, from: &str) -> Result<i64> {
    Ok(sqlx::query_scalar(sqlx::AssertSqlSafe(format!("select count(*) from {from}")))
        .fetch_one(db.primary())
        .await?)
}

/// Creates a table with a partition for each of the past months, with rows of all kinds.
async fn events(db: &Db<MySql>, months: u32, rows: u32) -> Result<()> {
    let mut sql = String::from(
        "create table events (id bigint auto_increment, at datetime(3) not null, note text, twice \
         int generated always as (7 * 2) stored, \
         picture blob, share float, flags bit(9), money decimal(20, 4), json json, small tinyint \
         unsigned, primary key (id, at)) \
         charset utf8mb4 partition by range columns (at) (",
    );
    for back in (0..months).rev() {
        let bound: String = sqlx::query_scalar(
            "select cast(date_format(utc_date(), '%Y-%m-01') - interval ? month as char)",
        )
        .bind(back)
        .fetch_one(db)
        .await?;
        let comma = if back + 1 == months { "" } else { ", " };
        write!(sql, "{comma}partition m{back} values less than ('{bound}')")?;
    }
    tell(db, sql + ")").await?;
    let insert = format!(
        "insert into events (at, note, picture, share, flags, money, json, small) \
         select date_format(utc_date(), '%Y-%m-01') - interval m.seq month + interval r.seq \
         second, \
         case r.seq mod 4 when 0 then null when 1 then '' when 2 then 'a\\n\\\\.\\n\
         b,\"\\' ü' else concat('note ', r.seq) end, \
         if(r.seq mod 3 = 0, null, unhex(hex(r.seq * 7919))), r.seq / 7, r.seq mod 512, r.seq / 3, \
         '{{\"a\": [1]}}', 255 \
         from seq_1_to_{months} m, seq_1_to_{rows} r"
    );
    tell(db, insert).await
}

/// Restores all rows of all archives into a table.
async fn restored(db: &Db<MySql>, folder: &Path) -> Result<i64> {
    tell(
        db,
        "drop table if exists again; create table again like events; alter table again remove \
        partitioning",
    )
    .await?;
    for file in std::fs::read_dir(folder)? {
        let path = file?.path();
        if path.extension().is_some_and(|e| e == "zst")
            && !path.file_name().unwrap().to_string_lossy().starts_with('.')
        {
            restore(db, "again", &path).await?;
        }
    }
    count(db, "again").await
}

#[tokio::test]
async fn partitions_are_made_ahead_and_old_ones_go_into_files() -> Result<()> {
    let (server, db, folder) = start().await?;
    events(&db, 4, 300).await?;
    let months = Partitions::of("events", Every::Month).ahead(3).archive_after(2, folder.path());
    let sum = "checksum table test.";
    tell(
        &db,
        "create table before_all like events; alter table before_all remove partitioning; \
        insert into before_all (id, at, note, picture, share, flags, money, json, small) \
        select id, at, note, picture, share, flags, money, json, small \
        from events partition (m2, m3)",
    )
    .await?;
    let report = months.maintain(&db).await?;
    assert_eq!(
        (report.created.len(), report.failed.len()),
        (4, 0),
        "this month and three more: {report:?}"
    );
    assert_eq!(report.detached, ["m3", "m2"]);
    assert_eq!(report.archived.iter().map(|a| a.rows).collect::<Vec<_>>(), [300, 300]);
    assert_eq!(count(&db, "events").await?, 600, "two months are kept");
    assert_eq!(restored(&db, folder.path()).await?, 600);
    let sums = (
        server.node(0).sql(&format!("{sum}again")).await?,
        server.node(0).sql(&format!("{sum}before_all")).await?,
    );
    assert_eq!(sums.0.split_whitespace().nth(1), sums.1.split_whitespace().nth(1), "as they were");
    let check = std::process::Command::new("sha256sum")
        .args(["-c", "events_m2.csv.zst.sha256"])
        .current_dir(&folder)
        .output()?;
    assert!(check.status.success(), "{check:?}");
    // New rows go to the created partitions.
    tell(
        &db,
        "insert into events (at) values (utc_timestamp()), (utc_timestamp() + interval 3 month)",
    )
    .await?;
    let again = months.maintain(&db).await?;
    assert!(
        again.created.is_empty()
            && again.detached.is_empty()
            && again.archived.is_empty()
            && again.failed.is_empty(),
        "{again:?}"
    );
    // A name that is not a column of the table is refused.
    tell(&db, "alter table again drop column money; delete from again").await?;
    assert!(matches!(
        restore(&db, "again", &report.archived[0].path).await,
        Err(Error::Archive { .. })
    ));
    assert_eq!(count(&db, "again").await?, 0);
    Ok(())
}

#[tokio::test]
async fn tables_are_split_by_dates_days_and_seconds_with_a_rest_or_without() -> Result<()> {
    let (_server, db, folder) = start().await?;
    let rest = "(partition rest values less than (maxvalue))";
    for (n, (kind, by, every, begin)) in [
        ("date", "range columns (at)", Every::Week, rest),
        ("datetime", "range (to_days(at))", Every::Day, rest),
        ("timestamp", "range (unix_timestamp(at))", Every::Month, rest),
        (
            "datetime",
            "range columns (at)",
            Every::Year,
            "(partition first values less than ('2000-01-01'))",
        ),
        (
            "datetime",
            "range (to_days(at))",
            Every::Month,
            "(partition first values less than (to_days('2000-01-01')))",
        ),
    ]
    .into_iter()
    .enumerate()
    {
        let table = format!("odd name {n}");
        tell(&db, format!("create table `{table}` (at {kind} not null) partition by {by} {begin}"))
            .await?;
        let old = if begin == rest { "2001-02-03" } else { "1999-02-03" };
        tell(&db, format!("insert into `{table}` values ('{old}')")).await?;
        if begin == rest {
            tell(&db, format!("insert into `{table}` values (utc_timestamp())")).await?;
        }
        let what = Partitions::of(&table, every).ahead(4).archive_after(1, folder.path());
        let report = what.maintain(&db).await?;
        assert_eq!(
            (report.created.len(), report.failed.len()),
            (6, 0),
            "what is over, the present and four more: {report:?}"
        );
        assert_eq!(
            report.archived.iter().map(|a| a.rows).collect::<Vec<_>>(),
            [u64::from(begin != rest)].iter().filter(|n| **n > 0).copied().collect::<Vec<_>>(),
            "{report:?}"
        );
        tell(&db, format!("insert into `{table}` values (utc_timestamp() + interval 3 day)"))
            .await?;
        assert!(what.maintain(&db).await?.created.is_empty());
    }
    tell(&db, "create table plain (at datetime)").await?;
    assert!(matches!(Partitions::of("plain", Every::Day).maintain(&db).await, Err(Error::Sql(_))));
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_row_is_lost_wherever_it_is_cut() -> Result<()> {
    let (server, db, folder) = start().await?;
    events(&db, 6, 1_000).await?;
    let months = Partitions::of("events", Every::Month).archive_after(0, folder.path());
    let mut cuts = 0;
    for round in 0_u64..500 {
        let after = Duration::from_millis(1 + round * 7);
        let dropped = round < 4 || round % 2 == 0;
        let kills = async {
            if dropped {
                std::future::pending::<()>().await;
            }
            loop {
                tokio::time::sleep(after).await;
                let all = "select group_concat('kill ', id separator ';') \
                    from information_schema.processlist where user = 'test' and db = 'test' \
                    and id <> connection_id()";
                if let Ok(kills) = server.node(0).sql(all).await
                    && kills.trim() != "NULL"
                {
                    let _ = server.node(0).sql(kills.trim()).await;
                }
            }
        };
        let limit = if dropped { after } else { Duration::from_secs(30) };
        let Ok(other) = Db::<MySql>::connect(&server.node(0).url()).await else { continue };
        let done = tokio::select! {
            done = tokio::time::timeout(limit, months.maintain(&other)) => done,
            never = kills => never,
        };
        if let Ok(Ok(report)) = &done
            && !report.busy
            && report.failed.is_empty()
        {
            break;
        }
        cuts += 1;
    }
    assert!(cuts >= 4, "{cuts}");
    // The kills have met the idle connections of this process as well.
    let db = Db::<MySql>::connect(&server.node(0).url()).await?;
    assert_eq!(count(&db, "events").await?, 0);
    assert_eq!(restored(&db, folder.path()).await?, 6_000, "each row in one file");
    assert_eq!(
        count(
            &db,
            "information_schema.tables where table_schema = 'test' \
        and table_name like 'events\\_m%'"
        )
        .await?,
        0
    );
    Ok(())
}

#[tokio::test]
async fn late_rows_stay_and_what_cannot_be_archived_too() -> Result<()> {
    let (_server, db, folder) = start().await?;
    events(&db, 2, 50).await?;
    let nowhere = Partitions::of("events", Every::Month)
        .archive_after(0, folder.path().join("missing"))
        .maintain(&db)
        .await?;
    assert!(nowhere.failed.len() == 2 && nowhere.archived.is_empty(), "{nowhere:?}");
    assert_eq!(
        count(&db, "events_m0").await? + count(&db, "events_m1").await?,
        100,
        "detached, and whole"
    );
    // A row for a month whose partition was removed goes to the oldest remaining partition.
    tell(&db, "insert into events (at) values ('2020-01-01')").await?;
    let here = Partitions::of("events", Every::Month).archive_after(0, folder.path());
    let report = here.maintain(&db).await?;
    assert_eq!(report.archived.iter().map(|a| a.rows).sum::<u64>(), 100, "{report:?}");
    assert_eq!(count(&db, "events").await?, 1);
    // Of two concurrent calls, one does the work.
    let (one, two) = tokio::join!(here.maintain(&db), here.maintain(&db));
    assert!(!(one?.busy && two?.busy));
    Ok(())
}

#[tokio::test]
async fn large_values_and_other_character_sets_come_back() -> Result<()> {
    let (server, db, folder) = start().await?;
    tell(
        &db,
        "create table wide (at date not null, n int, bytes longblob, latin longtext charset \
         latin1, wave varchar(20) charset sjis, \
         some enum('a', 'ß') charset latin1) partition by range columns (at) (partition old \
         values less than ('2020-02-01')); \
         insert into wide values ('2020-01-01', 1, repeat(unhex('00ff'), 5000000), null, _sjis \
         0x5c8160, 'ß'), \
         ('2020-01-01', 2, null, repeat(_latin1 0xe9, 12000000), null, null); \
         insert into wide select '2020-01-02', seq, repeat('x', 200000), null, null, 'a' \
         from seq_1_to_60; \
         create table before_all like wide; alter table before_all remove partitioning; insert \
         into before_all select * from wide",
    )
    .await?;
    let months = Partitions::of("wide", Every::Month).archive_after(1, folder.path());
    let report = months.maintain(&db).await?;
    assert_eq!((report.failed.len(), report.archived[0].rows), (0, 62), "{report:?}");
    tell(&db, "create table again like before_all").await?;
    assert_eq!(restore(&db, "again", &report.archived[0].path).await?, 62);
    let sums = server.node(0).sql("checksum table test.again, test.before_all").await?;
    let sums: Vec<_> = sums.split_whitespace().collect();
    assert_eq!(sums[1], sums[3], "as they were");
    Ok(())
}

#[tokio::test]
async fn nobody_else_s_table_is_dropped_and_what_is_no_period_is_refused() -> Result<()> {
    let (_server, db, folder) = start().await?;
    let old = "(at date not null, n int) partition by range columns (at) (partition old \
        values less than ('2020-02-01'))";
    for table in ["events", "Events", "`odd.name`"] {
        tell(
            &db,
            format!("create table {table} {old}; insert into {table} values ('2020-01-01', 1)"),
        )
        .await?;
    }
    let missing = folder.path().join("missing");
    assert_eq!(
        Partitions::of("Events", Every::Month)
            .archive_after(1, &missing)
            .maintain(&db)
            .await?
            .failed
            .len(),
        1
    );
    // A copy has the same comment.
    tell(&db, "create table rescue like Events_old; insert into rescue select * from Events_old")
        .await?;
    assert_eq!(
        Partitions::of("events", Every::Month).drop_after(1).maintain(&db).await?.dropped,
        ["events_old"]
    );
    assert_eq!(
        Partitions::of("Events", Every::Month).drop_after(1).maintain(&db).await?.dropped,
        ["Events_old"]
    );
    assert_eq!(count(&db, "rescue").await?, 1);
    // Partition names that are long, or contain a dot or a quote.
    let long = "p".repeat(60);
    tell(
        &db,
        format!(
            "create table named (at date not null) partition by range columns (at) (partition \
             `p.1` values less than ('2018-01-01'), \
             partition `a``b` values less than ('2019-01-01'), partition {long} \
             values less than ('2020-01-01')); \
             insert into named values ('2017-01-01'), ('2018-01-01'), ('2019-01-01')"
        ),
    )
    .await?;
    let report =
        Partitions::of("named", Every::Month).archive_after(1, folder.path()).maintain(&db).await?;
    assert_eq!((report.failed.len(), report.archived.len()), (0, 3), "{report:?}");
    for (name, table) in [
        (
            "numbers",
            "(at int not null) partition by range columns (at) (partition old \
             values less than (5))",
        ),
        (
            "words",
            "(at varchar(20) not null) partition by range columns (at) (partition old \
             values less than ('b'))",
        ),
        (
            "history",
            "(at date not null) with system versioning partition by system_time \
             limit 100 (partition p history, partition q current)",
        ),
        (
            "listed",
            "(at date not null) partition by list columns (at) (partition old \
             values in ('2020-01-01'))",
        ),
    ] {
        tell(&db, format!("create table {name} {table}")).await?;
        let refused = Partitions::of(name, Every::Month).maintain(&db).await;
        assert!(
            matches!(refused, Err(Error::Sql(sqlx::Error::Configuration(_)))),
            "{name}: {refused:?}"
        );
    }
    Ok(())
}
