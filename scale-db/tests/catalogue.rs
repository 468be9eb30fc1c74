//! The lists of built-in functions, compared with the catalogues of servers.
#![cfg(all(feature = "postgres", feature = "mysql", feature = "sqlite"))]
#![allow(clippy::unwrap_used)]

use anyhow::Result;
use scale_db::Db;
use scale_db::router::{Dialect, Router, Verdict};
use testkit::{MariaDb, Postgres};

fn is_read(dialect: Dialect, name: &str) -> bool {
    Router::new(dialect, [""; 0]).verdict(
        &format!("select \"{name}\"(1)")
            .replace('"', if dialect == Dialect::MySql { "" } else { "\"" }),
    ) == Verdict::Read
}

#[tokio::test]
async fn postgres_s_functions_are_those_of_its_catalogue() -> Result<()> {
    let pg = Postgres::start(0).await?;
    let harmless = pg.node(0).sql(include_str!("../src/router/functions/postgres.sql")).await?;
    let names: Vec<_> = harmless.lines().collect();
    assert!(names.len() > 1_000, "{}", names.len());
    // A newer server has more functions; listed functions that this server has must be harmless on
    // it.
    let unlisted = names.iter().filter(|name| !is_read(Dialect::Postgres, name)).count();
    let version: u32 = pg.node(0).sql("show server_version_num").await?.parse()?;
    assert!(
        unlisted == 0 || version >= 160_000,
        "make postgres.txt anew: {unlisted} functions are not in it"
    );
    let volatile = "select string_agg(distinct proname, ' ') from pg_proc \
        where pronamespace = 'pg_catalog'::regnamespace and provolatile = 'v'
        and proname not in ('clock_timestamp', 'gen_random_uuid', 'random', 'timeofday', \
        'random_normal', 'array_sample', 'array_shuffle', 'uuidv4', 'uuidv7')";
    let volatile = pg.node(0).sql(volatile).await?;
    let wrong: Vec<_> =
        volatile.split(' ').filter(|name| is_read(Dialect::Postgres, name)).collect();
    assert!(wrong.is_empty(), "{wrong:?}");
    Ok(())
}

#[tokio::test]
async fn sqlite_s_functions_are_those_it_lists() -> Result<()> {
    let db = Db::<sqlx::Sqlite>::connect("sqlite::memory:").await?;
    // 0x800: deterministic; 0x80000: direct only.
    let all: Vec<(String, i64)> = sqlx::query_as(
        "select distinct name, flags from pragma_function_list where name glob '[a-z]*'",
    )
    .fetch_all(db.primary())
    .await?;
    let harmful = [
        "load_extension", "changes", "total_changes", "last_insert_rowid", "fts3_tokenizer",
        "optimize",
    ];
    for (name, flags) in &all {
        if harmful.contains(&name.as_str()) {
            assert!(!is_read(Dialect::Sqlite, name), "{name}");
        } else if flags & 0x800 != 0 && !name.starts_with("sqlite_") && !name.starts_with("fts") {
            assert!(is_read(Dialect::Sqlite, name), "{name} is unknown");
        }
    }
    assert!(all.len() > 50);
    Ok(())
}

#[tokio::test]
async fn mariadb_s_functions_that_write_or_lock_are_on_no_list() -> Result<()> {
    let maria = MariaDb::start(0).await?;
    let all =
        maria.node(0).sql("select lower(function) from information_schema.sql_functions").await?;
    let reads: Vec<_> =
        all.lines().map(str::trim).filter(|name| is_read(Dialect::MySql, name)).collect();
    for harmful in [
        "get_lock", "release_lock", "release_all_locks", "is_free_lock", "is_used_lock", "sleep",
        "benchmark", "load_file", "last_insert_id", "row_count", "found_rows", "nextval",
        "lastval", "setval", "next value", "uuid_short", "connection_id", "master_pos_wait",
        "master_gtid_wait", "master_gtid_pos", "binlog_gtid_pos", "spider_direct_sql",
        "spider_bg_direct_sql", "rowid",
    ] {
        assert!(!reads.contains(&harmful), "{harmful}");
    }
    assert!(reads.len() > 150, "{}", reads.len());
    Ok(())
}

#[test]
fn what_tells_of_the_node_or_its_session_is_no_read() {
    let postgres = Router::new(Dialect::Postgres, [""; 0]);
    assert_eq!(postgres.verdict("select pg_is_in_recovery()"), Verdict::Write);
    assert_eq!(postgres.verdict("select last_value from orders_id_seq"), Verdict::Write);
    assert_eq!(postgres.verdict("select * from shop.orders_id_seq"), Verdict::Write);
    assert_eq!(
        postgres.verdict("select last_value(price) over (order by id) from items"),
        Verdict::Read
    );
    let mysql = Router::new(Dialect::MySql, [""; 0]);
    for write in [
        "select @@session.sql_mode",
        "select @@read_only",
        "select @a",
        "select Sql_Calc_Found_Rows * from t limit 1",
        "select found_rows()",
    ] {
        assert_eq!(mysql.verdict(write), Verdict::Write, "{write}");
    }
}
