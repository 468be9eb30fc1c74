//! Random statements, to compare the router's verdict with a real replica and a real primary.
//!
//! A replica must not refuse a statement that is classified as a read. On the primary, such a
//! statement must leave nothing behind: no row, no transaction id, no step of a sequence, no lock,
//! no setting, no listener.
#![cfg(feature = "postgres")]
#![allow(clippy::unwrap_used, clippy::format_push_string)]

use std::collections::BTreeSet;

use anyhow::Result;
use fastrand::Rng;
use scale_db::router::{Dialect, Router, Verdict};
use sqlx::postgres::PgPoolOptions;
use sqlx::{AssertSqlSafe, Connection, PgConnection, PgPool};
use testkit::Postgres;

const TABLES: &str = "
    create sequence s;
    create table t (id bigserial primary key, a bigint not null, b text not null, d timestamptz \
    not null default now());
    insert into t (a, b) select n, 'row ' || n from generate_series(1, 20) as n;
    create table u (id bigint primary key, t_id bigint not null, j jsonb not null);
    insert into u select n, n % 20 + 1, jsonb_build_object('k', n) from generate_series(1, 20) as n;
    create function harmful(n bigint) returns bigint language sql volatile as $$ insert \
    into t (a, b) values (n, 'harm') returning id $$;
    create view v as select id, b from t;
    create materialized view m as select count(*) from t;";

/// Fragments, harmless and harmful, from which statements are built.
const SELECTED: &[&str] = &[
    "a",
    "b",
    "*",
    "count(*)",
    "t.id",
    "id + a * 2",
    "lower(b)",
    "coalesce(a, 0)",
    "now()",
    "nextval('s')",
    "setval('s', 9)",
    "harmful(1)",
    "pg_advisory_lock(7)",
    "pg_try_advisory_xact_lock(7)",
    "pg_notify('c', 'x')",
    "set_config('work_mem', '1MB', false)",
    "txid_current()",
    "random()",
    "case when a > 1 then nextval('s') else 1 end",
    "(select max(id) from u)",
    "(select nextval('s'))",
    "array(select id from u)",
    "exists (select 1 from u for update)",
    "row_number() over (order by a)",
    "\"lower\"(b)",
    "b || 'x'",
    "pg_current_xact_id()",
    "lo_create(0)",
    "query_to_xml('delete from t', true, false, '')",
    "a::text",
    "cast(a as text)",
    "pg_catalog.upper(b)",
    "pg_catalog.nextval('s')",
    "'nextval'",
    "$$ delete from t $$",
    "currval('s')",
    "b like 'r%'",
    "pg_export_snapshot()",
    "sum(a) filter (where harmful(a) > 0)",
    "date_trunc('day', d)",
    "current_date",
    "interval '1 day'",
    "extract(year from d)",
];
const FROM: &[&str] = &[
    "t",
    "t, u",
    "t join u on u.t_id = t.id",
    "u right join t on u.t_id = t.id and nextval('s') > 0",
    "v as t",
    "only t",
    "t tablesample system (50)",
    "(select * from t) as t",
    "(select * from t for update) as t",
    "generate_series(1, 3) as a",
    "harmful(3) as a",
    "unnest(array[1, 2]) as a",
    "t, lateral (select harmful(t.id)) as l",
    "nextval('s') as a",
    "jsonb_each('{}') as a",
    "rows from (harmful(1)) as a",
    "pg_stat_activity",
    "m",
    "rows from (generate_series(1, 2), generate_series(1, 3)) as a",
    "json_table('[1]'::jsonb, '$[*]' columns (a int path '$')) as a",
];
const AFTER: &[&str] = &[
    "", "where a > 1", "where b = 'row 1'", "where exists (select harmful(1))", "group by a",
    "group by 1 having count(*) > 0", "order by 1", "order by nextval('s')", "limit 3",
    "limit harmful(1)", "limit (select nextval('s'))", "offset 1 rows fetch first 2 rows only",
    "for update", "for no key update", "for share", "for key share of t skip locked",
    "for read only", "window w as (order by harmful(1))", "union select 1",
    "union all (select 1 for update)", "except select nextval('s')",
    "fetch first 1 rows with ties",
];
const AROUND: &[&str] = &[
    "#",
    "select * from (#) as x",
    "with x as (#) select * from x",
    "with x as materialized (#) table x",
    "with recursive x as (#) select 1",
    "explain #",
    "explain analyze #",
    "explain (analyze, verbose) #",
    "select 1 where exists (#)",
    "(#)",
    "(#) union (#)",
    "#;",
    "/* c */ # -- c",
    "with w as (delete from t where id < 0 returning *) #",
    "with w as (insert into t (a, b) values (1, 'x') returning *) #",
    "values ((#))",
    "with w as (update t set a = 1 returning id) select * from w, (#) as x",
    "create table made as #",
    "insert into t (a, b) #",
    "copy (#) to stdout",
    "declare c cursor for #",
    "prepare p as #",
    "select array(#)",
    "#; select 1",
    "select 1; #",
    "create view made as #",
    "select (#) into made",
    "begin; #",
    "with w as (merge into t using u on t.id = u.id when matched then delete returning t.id) #",
    "table t",
    "explain (analyze off) #",
];
/// Words inserted into statements, where they may or may not make sense.
const WORDS: &[&str] = &[
    "for update", "into made", "nextval('s')", "harmful(1)", "analyze", "returning *",
    "delete from t", ";", "(", ")", ",", "select", "from", "only", "with", "--", "/*", "*/", "'",
    "\"", "$$", "lock", "insert", "update", "set", "as", "lateral", "table", "default", "E'\\'",
    "U&'x'", "::regclass", "collate \"C\"", "at time zone 'utc'", "operator(pg_catalog.+)",
    "is distinct from", "between", "filter", "within group (order by a)", "ordinality", "nothing",
    "on conflict", "array[1]", "cube (a)", "all", "any", "union", "temp", "unlogged",
];

fn pick<'a>(rng: &mut Rng, from: &[&'a str]) -> &'a str {
    from[rng.usize(..from.len())]
}

fn draw(rng: &mut Rng) -> String {
    let mut sql = format!("select {}", pick(rng, SELECTED));
    for _ in 0..rng.usize(..3) {
        sql += &format!(", {}", pick(rng, SELECTED));
    }
    sql += &format!(" from {}", pick(rng, FROM));
    for _ in 0..rng.usize(..3) {
        sql += &format!(" {}", pick(rng, AFTER));
    }
    for _ in 0..rng.usize(..3) {
        sql = pick(rng, AROUND).replace('#', &sql);
    }
    // Half of the statements are damaged, to find text that a lenient parser reads differently from
    // the server.
    for _ in 0..rng.usize(..6).saturating_sub(2) {
        let mut words: Vec<&str> = sql.split(' ').collect();
        let at = rng.usize(..words.len());
        match rng.u8(..4) {
            0 => drop(words.remove(at)),
            1 => words.insert(at, pick(rng, WORDS)),
            2 => words[at] = pick(rng, WORDS),
            _ => {
                let other = rng.usize(..words.len());
                words.swap(at, other);
            }
        }
        sql = words.join(" ");
        if sql.is_empty() {
            return "select 1".into();
        }
    }
    sql
}

/// State of the primary that a statement could change, except what a transaction reports about
/// itself.
const STATE: &str = "select concat_ws('|', (select md5(string_agg(t::text, ',' order by t.id)) \
    from t), (select md5(string_agg(u::text, ',' order by u.id)) from u), \
    (select last_value::text || is_called from s), (select count(*) \
    from pg_class), (select count(*) from pg_largeobject_metadata), \
    (select md5(string_agg(name || setting, ',' order by name)) from pg_settings \
    where name <> 'in_hot_standby'))";
/// Traces that a statement could leave in its own transaction or session.
const TRACES: &str = "select concat_ws('|', pg_current_xact_id_if_assigned() is not null, \
    (select count(*) from pg_locks where pid = pg_backend_pid() and (locktype = 'advisory' \
    or mode not in ('AccessShareLock', 'ExclusiveLock'))), \
    (select count(*) from pg_listening_channels()), (select count(*) from pg_prepared_statements \
    where from_sql), \
    (select count(*) from pg_cursors where not is_holdable and name <> ''))";

async fn pool(url: &str) -> Result<PgPool> {
    let options: sqlx::postgres::PgConnectOptions = url.parse()?;
    Ok(PgPoolOptions::new()
        .max_connections(1)
        .connect_with(options.options([("statement_timeout", "2s")]))
        .await?)
}

/// Runs a statement as one text and returns the SQLSTATE of its failure.
async fn code(connection: &mut PgConnection, sql: &str) -> Option<String> {
    let answer = sqlx::raw_sql(AssertSqlSafe(sql.to_owned())).execute(connection).await;
    answer.err().map(|e| {
        e.as_database_error()
            .and_then(|e| e.code().map(std::borrow::Cow::into_owned))
            .unwrap_or_default()
    })
}

async fn scalar(connection: &mut PgConnection, sql: &'static str) -> Result<String> {
    Ok(sqlx::query_scalar(sql).fetch_one(connection).await?)
}

#[tokio::test]
async fn what_is_judged_reading_runs_on_a_replica_and_leaves_nothing_on_the_primary() -> Result<()>
{
    const DRAWN: usize = 60_000;
    let servers = Postgres::start(1).await?;
    servers.node(0).sql(TABLES).await?;
    servers.caught_up().await?;
    let (primary, replica) =
        (pool(&servers.node(0).url()).await?, pool(&servers.node(1).url()).await?);
    let (mut primary, mut replica) =
        (primary.acquire().await?.detach(), replica.acquire().await?.detach());
    let router = Router::new(Dialect::Postgres, [""; 0]);
    let before = scalar(&mut primary, STATE).await?;
    let (mut judged, mut ran) = (BTreeSet::new(), 0);
    let mut rng = Rng::with_seed(4_711);
    for _ in 0..DRAWN {
        let sql = draw(&mut rng);
        if router.verdict(&sql) != Verdict::Read || !judged.insert(sql.clone()) {
            continue;
        }
        let refusal = code(&mut replica, &sql).await;
        let code_there = refusal.as_deref().unwrap_or("");
        // Read-only transaction; feature not supported (in recovery); object not in prerequisite
        // state (in recovery).
        assert!(
            !["25006", "0A000", "55000"].contains(&code_there)
                || no_replicas_fault(&mut primary, &sql, code_there).await?,
            "{code_there}: {sql}"
        );
        if refusal.is_some() {
            replica.ping().await?;
            continue;
        }
        ran += 1;
        let mut transaction = primary.begin().await?;
        let fresh = scalar(&mut transaction, TRACES).await?;
        if code(&mut transaction, &sql).await.is_some() {
            // Samples and random numbers sometimes fail.
            transaction.rollback().await?;
            continue;
        }
        assert_eq!(scalar(&mut transaction, TRACES).await?, fresh, "{sql}");
        transaction.commit().await?;
        assert_eq!(scalar(&mut primary, STATE).await?, before, "{sql}");
    }
    assert!(
        ran > 500,
        "only {ran} of {DRAWN} drawn statements were reading \
         and understood by the server ({} judged so)",
        judged.len()
    );
    Ok(())
}

/// Returns whether the primary refuses the statement with the same code: then the cause is the
/// statement, not the replica.
async fn no_replicas_fault(primary: &mut PgConnection, sql: &str, refusal: &str) -> Result<bool> {
    let mut transaction = primary.begin().await?;
    let same = code(&mut transaction, sql).await.as_deref() == Some(refusal);
    transaction.rollback().await?;
    Ok(same)
}

/// Postgres records which of its functions are volatile. No volatile function may be classified as
/// a read, except functions that only return a different value each time, and the one that returns
/// the kind of the node.
#[tokio::test]
async fn no_function_that_postgres_calls_volatile_is_taken_for_reading() -> Result<()> {
    const HARMLESS: &[&str] =
        &["clock_timestamp", "random", "gen_random_uuid", "timeofday", "pg_is_in_recovery"];
    let server = Postgres::start(0).await?;
    let pool = pool(&server.node(0).url()).await?;
    let functions: Vec<(String, bool)> = sqlx::query_as(
        "select proname::text, bool_or(provolatile = 'v') from pg_proc \
         where pronamespace = 'pg_catalog'::regnamespace group by proname",
    )
    .fetch_all(&pool)
    .await?;
    let router = Router::new(Dialect::Postgres, [""; 0]);
    let mut reading = 0;
    for (name, volatile) in &functions {
        for call in [
            format!("select {name}()"),
            format!("select {name}(1, 'x')"),
            format!("select * from {name}(1) as x"),
        ] {
            let read = router.verdict(&call) == Verdict::Read;
            reading += usize::from(read);
            assert!(!read || !volatile || HARMLESS.contains(&name.as_str()), "{call}");
        }
    }
    assert!(functions.len() > 2_000 && reading > 300, "{reading} of {}", functions.len());
    Ok(())
}
