//! Partitions: created ahead, archived and dropped, and no row is lost wherever the work is
//! interrupted.
#![cfg(all(feature = "partition", feature = "postgres"))]
#![allow(clippy::unwrap_used)]

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use scale_db::partition::{Every, Partitions, Report, restore};
use scale_db::{Db, Error};
use sqlx::Postgres as Pg;
use testkit::Postgres;

async fn start() -> Result<(Postgres, Db<Pg>, tempfile::TempDir)> {
    let server = Postgres::start(0).await?;
    let db = Db::<Pg>::builder(server.node(0).url())
        .lock_timeout(Duration::from_secs(1))
        .connect()
        .await?;
    sqlx::raw_sql(
        "create table events (id bigint generated always as identity, at timestamptz not null, \
         note text default 'x', \
         size bigint generated always as (length(note)) stored, check (note <> 'bad'), primary key \
         (id, at)) partition by range (at)",
    )
    .execute(&db)
    .await?;
    Ok((server, db, tempfile::tempdir()?))
}

/// Creates a partition from `back` months ago, with rows of all kinds.
async fn month(db: &Db<Pg>, back: u32, rows: u32) -> Result<String> {
    let sql = format!(
        "do $$ declare start timestamptz := date_trunc('month', now() at time zone 'UTC') at time \
         zone 'UTC' - interval '{back} month'; begin
         execute format('create table events_{back} partition of events for values \
         from (%L) to (%L)', start, start + interval '1 month');
         insert into events (at, note) select start + n * interval '1 minute', E'it''s \\n \"' || \
         n || '\"' from generate_series(1, {rows}) n;
         end $$"
    );
    sqlx::raw_sql(sqlx::AssertSqlSafe(sql)).execute(db).await?;
    Ok(format!("events_{back}"))
}

async fn count(db: &Db<Pg>, sql: &str) -> Result<i64> {
    Ok(sqlx::query_scalar(sqlx::AssertSqlSafe(sql.to_owned())).fetch_one(db.primary()).await?)
}

/// Counts the rows in all archives, each file once, by restoring them into a table.
async fn restored(db: &Db<Pg>, folder: &Path) -> Result<i64> {
    sqlx::raw_sql(
        "drop table if exists again; create table again (note text, size bigint, at \
        timestamptz, id bigint)",
    )
    .execute(db)
    .await?;
    for file in std::fs::read_dir(folder)? {
        let path = file?.path();
        if path.extension().is_some_and(|e| e == "zst")
            && !path.file_name().unwrap().to_string_lossy().starts_with('.')
        {
            restore(db, "again", &path).await?;
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
    assert_eq!(
        count(&db, "select count(*) from pg_class where relname in ('events_3', 'events_4')")
            .await?,
        0
    );
    assert_eq!(restored(&db, folder.path()).await?, 700);
    assert_eq!(
        count(&db, "select count(*) from again where note like E'it''s \\n \"%\"'").await?,
        700,
        "as they were"
    );
    let check = std::process::Command::new("sha256sum")
        .args(["-c", "events_3.csv.zst.sha256"])
        .current_dir(&folder)
        .output()?;
    assert!(check.status.success(), "{check:?}");

    // New rows go to the created partitions, with defaults, checks and indexes.
    let insert = "insert into events (at) values (now()), (now() + interval '2 months') \
        returning note, size";
    let rows: Vec<(String, i64)> = sqlx::query_as(insert).fetch_all(&db).await?;
    assert_eq!(rows[0], ("x".to_owned(), 1));
    assert!(
        sqlx::query("insert into events (at, note) values (now(), 'bad')")
            .execute(&db)
            .await
            .is_err()
    );
    // Nothing more is due.
    let Report { created, detached, archived, failed, .. } = months.maintain(&db).await?;
    assert!(created.is_empty() && detached.is_empty() && archived.is_empty() && failed.is_empty());
    Ok(())
}

#[tokio::test]
async fn each_period_has_its_partition_whatever_the_column() -> Result<()> {
    let (_server, db, _folder) = start().await?;
    for (n, (kind, every)) in
        [("date", Every::Day), ("timestamp", Every::Week), ("date", Every::Year)]
            .into_iter()
            .enumerate()
    {
        let table = format!("Odd Name {n}");
        let create =
            format!("create table \"{table}\" (at {kind} not null) partition by range (at)");
        sqlx::raw_sql(sqlx::AssertSqlSafe(create)).execute(&db).await?;
        let report = Partitions::of(&table, every).ahead(9).maintain(&db).await?;
        assert_eq!(report.created.len(), 10, "{report:?}");
        assert_eq!(Partitions::of(&table, every).ahead(10).maintain(&db).await?.created.len(), 1);
        let insert = format!(
            "insert into \"{table}\" select now() + n * interval '1 day' \
             from generate_series(0, 9) n"
        );
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
        // Interrupted a little later each time: first by dropping the call, then alternately also
        // by ending its connection, repeatedly.
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
    let nowhere = Partitions::of("events", Every::Month)
        .archive_after(0, folder.path().join("missing"))
        .maintain(&db)
        .await;
    let nowhere = nowhere?;
    assert!(
        matches!(&nowhere.failed[..], [failed] if matches!(failed.error, Error::Archive { .. })),
        "{nowhere:?}"
    );
    assert_eq!(
        count(&db, &format!("select count(*) from {table}")).await?,
        50,
        "detached, and whole"
    );
    // An archive with that name exists, with other rows: it is not replaced.
    let file = folder.path().join("events_2.csv.zst");
    std::fs::write(&file, zstd::encode_all(&b"id\n1\n"[..], 1)?)?;
    let before = std::fs::read(&file)?;
    let here = Partitions::of("events", Every::Month).archive_after(0, folder.path());
    // Another transaction writes to the detached table: the archiving waits for it, and fails if it
    // takes too long.
    let mut tx = db.begin().await?;
    sqlx::query("delete from events_2 where id = 1").execute(&mut *tx).await?;
    let locked = here.maintain(&db).await?;
    assert!(matches!(&locked.failed[..], [failed] if failed.partition == "events_2"), "{locked:?}");
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
    let lock = "select pg_advisory_lock(hashtextextended('scale-db partitions of ' || \
        'events'::regclass::oid, 0))";
    sqlx::query(lock).execute(&mut *holder).await?;
    assert!(months.maintain(&db).await?.busy);
    holder.close().await?;
    let report = testkit::eventually("its turn", async || {
        months.maintain(&db).await.ok().filter(|r| !r.busy)
    })
    .await?;
    assert_eq!(report.dropped, ["events_5"]);
    assert_eq!(
        server.node(0).sql("select count(*) from pg_locks where locktype = 'advisory'").await?,
        "0",
        "no lock stays behind"
    );
    Ok(())
}

/// Creates a table with an old partition, and changes that an application might make to it.
async fn old(db: &Db<Pg>, table: &str, columns: &str, more: &str) -> Result<()> {
    let sql = format!(
        "create table {table} (at timestamptz not null, {columns}) partition by range (at);
         create table {table}_old partition of {table} for values \
         from ('2020-01-01') to ('2020-02-01'); {more}"
    );
    sqlx::raw_sql(sqlx::AssertSqlSafe(sql)).execute(db).await?;
    Ok(())
}

#[tokio::test]
async fn rows_that_a_policy_hides_are_not_dropped() -> Result<()> {
    let (server, db, folder) = start().await?;
    server.node(0).sql("create role app login; grant all on schema public to app").await?;
    let app = Db::<Pg>::connect(&server.node(0).url().replace("postgres@", "app@")).await?;
    let policy =
        "alter table s_old enable row level security; alter table s_old force row level security;
        create policy p on s_old using (tenant = 1) with check (true);
        insert into s values ('2020-01-02', 1), ('2020-01-03', 2), ('2020-01-04', 2)";
    old(&app, "s", "tenant int", policy).await?;
    let report =
        Partitions::of("s", Every::Month).archive_after(12, folder.path()).maintain(&app).await?;
    assert!(
        matches!(&report.failed[..], [f] if matches!(f.error, Error::Archive { .. }))
            && report.archived.is_empty(),
        "{report:?}"
    );
    assert_eq!(count(&db, "select count(*) from s_old").await?, 3);
    // A role that can see all rows archives them.
    let report =
        Partitions::of("s", Every::Month).archive_after(12, folder.path()).maintain(&db).await?;
    assert_eq!(report.archived[0].rows, 3);
    Ok(())
}

#[tokio::test]
async fn what_is_archived_comes_back_as_it_was() -> Result<()> {
    let (server, db, folder) = start().await?;
    let rows = r#"create type mood as enum ('a b', '"q"');
        alter table o add m mood, add j jsonb, add a text[], add b bytea, add f float4;
        insert into o (at, given, m, j, a, b, f) values
        ('2020-01-02 03:04:05.678901+05', 'plain', '"q"', '{"a": [1]}', '{a,"b c",NULL,"\"q\""}',
            '\x00ff', 1e-40),
        ('2020-01-03', '', 'a b', 'null', '{}', '', 'NaN'),
        ('2020-01-04', null, null, null, null, null, null),
        ('2020-01-05', E'a\n\\.\nb\r\t,"', null, null, null, null, 3.4e38),
        ('2020-01-06', E'\\.', null, null, null, null, 0.1)"#;
    let columns = "given text, \"Odd, \"\"name\"\"\" int default 7, twice int generated always as \
        (3 * 2) stored, id bigint generated always as identity";
    old(&db, "o", columns, rows).await?;
    let sum = "select count(*) || ' ' || md5(string_agg(o::text, E'\\n' order by id)) from o";
    let before = server.node(0).sql(sum).await?;
    assert!(before.starts_with("5 "), "{before}");
    let months = Partitions::of("o", Every::Month).archive_after(12, folder.path());
    let path = months.maintain(&db).await?.archived[0].path.clone();
    // Into a partition with the columns in a different order.
    sqlx::raw_sql(
        "create table o_back (like o including generated); alter table o_back drop given, add \
         given text; \
        alter table o attach partition o_back for values from ('2020-01-01') to ('2020-02-01')",
    )
    .execute(&db)
    .await?;
    assert_eq!(restore(&db, "o", &path).await?, 5);
    assert_eq!(server.node(0).sql(sum).await?, before);
    // A damaged or incomplete file changes nothing.
    let whole = std::fs::read(&path)?;
    for bad in [&whole[..whole.len() - 1], &[&whole[..], b"x"].concat()] {
        std::fs::write(&path, bad)?;
        let refused = restore(&db, "o", &path).await;
        assert!(matches!(refused, Err(Error::Archive { .. })), "{refused:?}");
    }
    assert!(restore(&db, "o", folder.path().join("none.csv.zst")).await.is_err());
    assert_eq!(count(&db, "select count(*) from o").await?, 5);
    Ok(())
}

#[tokio::test]
async fn no_moment_is_left_without_a_partition() -> Result<()> {
    let (server, db, _folder) = start().await?;
    let bounds = |zone: &str, days: Option<u32>| {
        let stop =
            days.map_or("interval '1 month'".to_owned(), |days| format!("interval '{days} days'"));
        format!(
            "do $$ declare s timestamp := date_trunc('month', now() at time zone '{zone}') + \
             interval '1 month'; begin
             execute format('create table gap_hand partition of gap for values \
             from (%L) to (%L)', s at time zone '{zone}', (s + {stop}) at time zone '{zone}');
             end $$"
        )
    };
    for hand in [
        bounds("Europe/Berlin", None),
        bounds("UTC", Some(7)),
        bounds("Asia/Kathmandu", Some(9)),
        "select 1".into(),
    ] {
        server
            .node(0)
            .sql(
                "drop table if exists gap; create table gap (at timestamptz not null) partition \
                by range (at)",
            )
            .await?;
        server.node(0).sql(&hand).await?;
        let report = Partitions::of("gap", Every::Month).ahead(2).maintain(&db).await?;
        assert!(report.failed.is_empty(), "{report:?}");
        let each_hour = "insert into gap select generate_series(date_trunc('month', now() at time \
            zone 'UTC') at time zone 'UTC',
            (date_trunc('month', now() at time zone 'UTC') + interval '3 months') at time zone \
            'UTC' - interval '1 second', interval '30 minutes')";
        server.node(0).sql(each_hour).await?;
        assert!(
            Partitions::of("gap", Every::Month).ahead(2).maintain(&db).await?.created.is_empty()
        );
    }
    Ok(())
}

#[tokio::test]
async fn rows_of_the_default_partition_move_and_a_foreign_key_stops_its_own_partition_alone()
-> Result<()> {
    let (server, db, folder) = start().await?;
    old(
        &db,
        "q",
        "id bigint, primary key (id, at)",
        "create table q_rest (id bigint not null, at \
        timestamptz not null);
        alter table q attach partition q_rest default;
        insert into q values (now(), 1), (now() + interval '1 month', 2), ('1999-01-01', 3), \
        ('2020-01-05', 4);
        create table q_older partition of q for values from ('2019-01-01') to ('2019-02-01'); \
        insert into q values ('2019-01-05', 5);
        create table refers (id bigint, at timestamptz, foreign key (id, at) references q); insert \
        into refers values (5, '2019-01-05')",
    )
    .await?;
    let report = Partitions::of("q", Every::Month)
        .ahead(1)
        .archive_after(12, folder.path())
        .maintain(&db)
        .await?;
    assert_eq!(
        (report.created.len(), report.detached.as_slice()),
        (2, &["q_old".to_owned()][..]),
        "{report:?}"
    );
    assert!(matches!(&report.failed[..], [failed] if failed.partition == "q_older"), "{report:?}");
    assert_eq!(report.archived.iter().map(|a| a.rows).sum::<u64>(), 1);
    assert_eq!(
        count(&db, "select count(*) from q_rest").await?,
        1,
        "what no partition takes stays"
    );
    assert_eq!(count(&db, "select count(*) from q").await?, 4);
    server.node(0).sql("delete from refers").await?;
    let report = Partitions::of("q", Every::Month)
        .ahead(1)
        .archive_after(12, folder.path())
        .maintain(&db)
        .await?;
    assert_eq!(
        (report.detached.as_slice(), report.failed.len()),
        (&["q_older".to_owned()][..], 0),
        "{report:?}"
    );
    Ok(())
}

#[tokio::test]
async fn tables_with_the_longest_names_are_told_apart() -> Result<()> {
    let (_server, db, _folder) = start().await?;
    let long = "a_table_whose_name_is_as_long_as_names_may_be_in_some_schema";
    for table in [format!("{long}s1"), format!("{long}s2")] {
        let create =
            format!("create table {table} (at timestamptz not null) partition by range (at)");
        sqlx::raw_sql(sqlx::AssertSqlSafe(create)).execute(&db).await?;
        let report = Partitions::of(&table, Every::Month).ahead(2).maintain(&db).await?;
        assert_eq!((report.created.len(), report.failed.len()), (3, 0), "{report:?}");
        sqlx::query(sqlx::AssertSqlSafe(format!("insert into {table} values (now())")))
            .execute(&db)
            .await?;
    }
    Ok(())
}

#[tokio::test]
async fn moving_rows_sets_off_neither_foreign_keys_nor_triggers() -> Result<()> {
    let (server, db, folder) = start().await?;
    old(
        &db,
        "m",
        "id bigint, primary key (id, at)",
        "create table m_rest (id bigint not null, at timestamptz not null); alter table m attach \
         partition m_rest default;
        insert into m select now(), n from generate_series(1, 10) n;
        create table child (id bigint, at timestamptz, foreign key (id, at) references m \
        on delete cascade);
        create table log (what text);
        create function note() returns trigger language plpgsql as $$ begin insert into log \
        values (tg_op); return null; end $$;
        create trigger note after insert or delete on m for each row execute function note()",
    )
    .await?;
    let months = Partitions::of("m", Every::Month).ahead(1).archive_after(12, folder.path());
    let rows = async || {
        server
            .node(0)
            .sql(
                "select (select count(*) from m) || '/' || (select count(*) \
                from child) || '/' || (select count(*) from log)",
            )
            .await
    };
    server.node(0).sql("insert into child select id, at from m where id <= 5").await?;
    let report = months.maintain(&db).await?;
    assert_eq!(
        (report.failed.len(), rows().await?.as_str()),
        (1, "10/5/0"),
        "rows that are referred to stay: {report:?}"
    );
    server.node(0).sql("delete from child").await?;
    let report = months.maintain(&db).await?;
    assert_eq!((report.failed.len(), rows().await?.as_str()), (0, "10/0/0"), "{report:?}");
    assert_eq!(count(&db, "select count(*) from m_rest").await?, 0);
    // The trigger still exists.
    server.node(0).sql("insert into m values (now(), 11), ('1999-01-01', 12)").await?;
    assert_eq!(rows().await?, "12/0/2");
    Ok(())
}

#[tokio::test]
async fn nobody_else_s_table_is_dropped() -> Result<()> {
    let (server, db, folder) = start().await?;
    // Two tenants with tables of the same name.
    for schema in ["a", "b"] {
        server.node(0).sql(&format!("create schema {schema}")).await?;
        old(
            &db,
            &format!("{schema}.ev"),
            "id int",
            &format!("insert into {schema}.ev values ('2020-01-05', 1)"),
        )
        .await?;
    }
    let a = Partitions::of("a.ev", Every::Month);
    assert_eq!(
        a.clone().archive_after(1, folder.path().join("missing")).maintain(&db).await?.failed.len(),
        1
    );
    assert_eq!(
        Partitions::of("b.ev", Every::Month).drop_after(1).maintain(&db).await?.dropped,
        ["ev_old"]
    );
    assert_eq!(count(&db, "select count(*) from a.ev_old").await?, 1);
    // Its owner detaches it by hand to keep it, after it could not be detached.
    old(
        &db,
        "kept",
        "id int, primary key (id, at)",
        "insert into kept values ('2020-01-05', 1);
        comment on table kept_old is 'mine'; create table refers (id int, at timestamptz, foreign \
        key (id, at) references kept);
        insert into refers values (1, '2020-01-05')",
    )
    .await?;
    let kept = Partitions::of("kept", Every::Month).drop_after(1);
    assert_eq!(kept.maintain(&db).await?.failed.len(), 1);
    assert_eq!(
        server.node(0).sql("select obj_description('kept_old'::regclass, 'pg_class')").await?,
        "mine"
    );
    server.node(0).sql("drop table refers; alter table kept detach partition kept_old").await?;
    assert!(kept.maintain(&db).await?.dropped.is_empty());
    assert_eq!(count(&db, "select count(*) from kept_old").await?, 1);
    Ok(())
}

#[tokio::test]
async fn a_name_does_not_lead_out_of_the_folder_and_what_is_no_period_is_refused() -> Result<()> {
    let (server, db, folder) = start().await?;
    server
        .node(0)
        .sql(
            "create table n (at date not null) partition by range (at);
            create table \"/evil\" partition of n for values \
            from ('2020-01-01') to ('2020-02-01'); insert into n values ('2020-01-05')",
        )
        .await?;
    let report =
        Partitions::of("n", Every::Month).archive_after(1, folder.path()).maintain(&db).await?;
    assert_eq!(report.archived[0].path, folder.path().join("%2Fevil.csv.zst"));
    for (name, by) in
        [("two", "range (at, id)"), ("listed", "list (at)"), ("numbers", "range (id)")]
    {
        server
            .node(0)
            .sql(&format!("create table {name} (at date not null, id int) partition by {by}"))
            .await?;
        let refused = Partitions::of(name, Every::Month).maintain(&db).await;
        assert!(
            matches!(refused, Err(Error::Sql(sqlx::Error::Configuration(_)))),
            "{name}: {refused:?}"
        );
    }
    Ok(())
}
