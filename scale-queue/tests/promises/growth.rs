//! Costs that must not grow with the backlog: plans of the SQL statements on full tables, deaths of
//! jobs among many dead jobs, and fetches with many scheduled jobs.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use scale_queue::outcome::Discard;
use scale_queue::{Job, Queue, Worker};
use serde::{Deserialize, Serialize};
use sqlx::{Connection, MySqlConnection, PgConnection, Row, SqliteConnection};

use crate::server::{Server, run, until};

#[derive(Serialize, Deserialize)]
struct Plain {
    n: usize,
}

impl Job for Plain {
    const NAME: &'static str = "plain";
}

/// Rows of each kind. `SCALE_QUEUE_ROWS=1000000` sets a million, which takes a minute; the plans
/// are the same.
fn rows() -> u64 {
    std::env::var("SCALE_QUEUE_ROWS").ok().and_then(|rows| rows.parse().ok()).unwrap_or(100_000)
}

/// Fills the tables as a long-used queue does: scheduled, waiting, blocked and dead jobs, and those
/// of other queues and applications.
fn filling(rows: u64, series: &str, hex: &str) -> Vec<String> {
    let jobs = |kind: &str, due: &str, line: &str, rows: u64| {
        format!(
            "insert into scale_queue_jobs (id, app, queue, due_ms, line, since_ms, group_key, \
             unique_until_ms, body) \
             select '{kind}' || i, 'test', 'default', {due}, {line}, 0, {group}, 0, {hex} from {}",
            series.replace("{rows}", &rows.to_string()),
            group = if line == "null" { "null" } else { "'tenant'" },
        )
    };
    vec![
        jobs("scheduled", "4000000000000 + i", "null", rows),
        jobs("waiting", "1000 + i", "null", rows),
        jobs("blocked", "1000 + i", "'limit:tenant'", rows / 10),
        "insert into scale_queue_lines values ('test', 'default', 'limit:tenant', \
         4000000000000, 0, 0)"
            .to_owned(),
        format!(
            "insert into scale_queue_dead (app, queue, id, died_ms, reason, body) \
             select 'test', 'default', 'dead' || i, i, 'no', {hex} from {}",
            series.replace("{rows}", &(rows / 10).to_string())
        ),
        format!(
            "insert into scale_queue_once select 'test', 'default', 'k' || i, 'x', 4000000000000 \
             from {}",
            series.replace("{rows}", &(rows / 10).to_string())
        ),
    ]
}

/// Statements that scan a whole state by design: they serve listings and counts for people.
const COUNTS: [&str; 1] = ["stats"];

/// Statements that PostgreSQL does not run: only the others fetch in these steps.
const OTHERS: [&str; 6] =
    ["pick", "pick_high", "pick_normal", "pick_low", "claimed_in_order", "lock_limit"];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_statement_of_postgres_reads_what_it_does_not_need() -> Result<()> {
    let server = Server::start("postgres").await?;
    let _queue = server.queue().await?;
    let mut connection = PgConnection::connect(&server.url).await?;
    for fill in filling(rows(), "generate_series(1, {rows}) as i", "'\\x01'::bytea") {
        sqlx::query(sqlx::AssertSqlSafe(fill)).execute(&mut connection).await?;
    }
    for table in ["jobs", "dead", "lines", "once", "workers", "queues"] {
        let analyze = format!("vacuum analyze scale_queue_{table}");
        sqlx::query(sqlx::AssertSqlSafe(analyze)).execute(&mut connection).await?;
    }
    let mut wrong = Vec::new();
    let of_postgres = |(name, _): &(&str, _)| !OTHERS.contains(name);
    for (name, sql) in scale_queue::store::statements("postgres").into_iter().filter(of_postgres) {
        if COUNTS.contains(&name)
            || !(sql.starts_with("select")
                || sql.starts_with("with")
                || sql.starts_with("delete")
                || sql.starts_with("update"))
        {
            continue;
        }
        // Planned as a prepared statement: the planner does not know the parameters.
        let plan = async {
            sqlx::raw_sql("set plan_cache_mode = force_generic_plan")
                .execute(&mut connection)
                .await?;
            let prepare = format!("prepare probe as {sql}");
            sqlx::raw_sql(sqlx::AssertSqlSafe(prepare)).execute(&mut connection).await?;
            let parameters: i64 = sqlx::query(
                "select cardinality(parameter_types)::bigint \
                    from pg_prepared_statements where name = 'probe'",
            )
            .fetch_one(&mut connection)
            .await?
            .try_get(0)?;
            let nulls = vec!["null"; parameters as usize].join(", ");
            let call = if parameters == 0 { "probe".to_owned() } else { format!("probe({nulls})") };
            let explain = format!("explain {}", format_args!("execute {call}"));
            let lines =
                sqlx::raw_sql(sqlx::AssertSqlSafe(explain)).fetch_all(&mut connection).await?;
            let plan: Vec<String> =
                lines.iter().map(|row| row.try_get(0)).collect::<Result<_, _>>()?;
            sqlx::raw_sql("deallocate probe").execute(&mut connection).await?;
            Ok::<_, sqlx::Error>(plan.join("\n"))
        };
        match plan.await {
            Ok(plan) => {
                for table in ["jobs", "dead", "once"] {
                    if plan.contains(&format!("Seq Scan on scale_queue_{table}")) {
                        wrong.push(format!("{name}: {sql}\n{plan}"));
                    }
                }
            }
            Err(error) => bail!("{name}: {error}\n{sql}"),
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n\n"));

    // The rows that a fetch reads are the rows that it returns.
    let fetch = scale_queue::store::statements("postgres")
        .into_iter()
        .find(|(name, _)| *name == "ack_and_fetch")
        .unwrap()
        .1;
    let explain = format!("explain (analyze, costs off, timing off) {fetch}");
    let explain = [
        "'test'", "'default'", "'w'", "'{}'::text[]", "100::bigint", "4000000::bigint",
        "1000::bigint", "100::bigint", "0::bigint",
    ]
    .iter()
    .enumerate()
    .fold(explain, |sql, (n, value)| sql.replace(&format!("${}", n + 1), value));
    let plan = sqlx::raw_sql(sqlx::AssertSqlSafe(explain)).fetch_all(&mut connection).await?;
    let plan: Vec<String> = plan.iter().map(|row| row.try_get(0)).collect::<Result<_, _>>()?;
    for line in plan.iter().filter(|line| line.contains("Rows Removed by Filter")) {
        let removed: u64 = line.split(": ").nth(1).unwrap().trim().parse()?;
        assert!(removed <= 100, "{}", plan.join("\n"));
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_statement_of_sqlite_reads_what_it_does_not_need() -> Result<()> {
    let server = Server::start("sqlite").await?;
    let queue = server.queue().await?;
    let mut connection = SqliteConnection::connect(&server.url).await?;
    let series = "(with recursive n(i) as (select 1 union all select i + 1 from n \
        where i < {rows}) select i from n)";
    for fill in filling(rows() / 10, series, "x'01'") {
        sqlx::query(sqlx::AssertSqlSafe(fill)).execute(&mut connection).await?;
    }
    let mut wrong = Vec::new();
    for (name, sql) in scale_queue::store::statements("sqlite") {
        // Statements that only PostgreSQL or MySQL runs, and statements that count.
        if COUNTS.contains(&name)
            || sql.starts_with("with ") && !sql.starts_with("with recursive")
            || sql.contains("::")
            || sql.contains("duplicate key")
        {
            continue;
        }
        let explain = format!("explain query plan {sql}");
        let plan = sqlx::raw_sql(sqlx::AssertSqlSafe(explain)).fetch_all(&mut connection).await;
        let plan = plan.map_err(|error| anyhow::anyhow!("{name}: {error}\n{sql}"))?;
        for row in plan {
            let step: String = row.try_get("detail")?;
            let whole = ["scale_queue_jobs", "scale_queue_dead", "scale_queue_once"];
            if whole.iter().any(|table| step == format!("SCAN {table}")) {
                wrong.push(format!("{name}: {step}\n{sql}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n\n"));
    drop(queue);
    Ok(())
}

/// Plans on MariaDB, including before it has statistics of the tables.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_statement_of_mariadb_reads_what_it_does_not_need() -> Result<()> {
    let server = Server::start("mariadb").await?;
    let _queue = server.queue().await?;
    let mut connection = MySqlConnection::connect(&server.url).await?;
    let series = "(select seq as i from seq_1_to_{rows}) as series";
    for fill in filling(rows(), series, "x'01'") {
        // MariaDB spells `||` differently, and an advisory lock reads no rows.
        let fill = fill.replace("|| i", ", i)").replace("'scheduled' ,", "concat('scheduled',");
        let fill = fill
            .replace("'waiting' ,", "concat('waiting',")
            .replace("'blocked' ,", "concat('blocked',");
        let fill = fill.replace("'dead' ,", "concat('dead',").replace("'k' ,", "concat('k',");
        sqlx::query(sqlx::AssertSqlSafe(fill.clone()))
            .execute(&mut connection)
            .await
            .context(fill)?;
    }
    let announced = format!(
        "insert into scale_queue_present (app, kind, name, about, until_ms) \
         select 'test', 'batch', seq, '', 4000000000000 from seq_1_to_{}",
        rows() / 10
    );
    sqlx::query(sqlx::AssertSqlSafe(announced)).execute(&mut connection).await?;
    let mut wrong = Vec::new();
    for analysed in [false, true] {
        if analysed {
            let tables = "analyze table scale_queue_jobs, scale_queue_dead, scale_queue_once, \
                scale_queue_lines";
            sqlx::raw_sql(tables).fetch_all(&mut connection).await?;
        }
        for (name, sql) in scale_queue::store::statements("mysql") {
            if COUNTS.contains(&name)
                || sql.starts_with("insert")
                || sql.contains("::")
                || sql.contains("json_each")
                || sql.starts_with("with recursive")
            {
                continue;
            }
            let mut explain = format!("explain {sql}");
            for n in (1..=10).rev() {
                let value = match n {
                    1 if sql.contains("app = $1") => "'test'",
                    2 if sql.contains("queue = $2") => "'default'",
                    3 if sql.contains("line = $3") => "'limit:tenant'",
                    3 if sql.contains("group_key = $3") => "'tenant'",
                    _ => "'1'",
                };
                let place = format!("${n}");
                explain = explain
                    .replace(&format!("limit {place}"), "limit 1")
                    .replace(&format!("offset {place}"), "offset 1");
                explain = explain.replace(&place, value);
            }
            let plan = sqlx::raw_sql(sqlx::AssertSqlSafe(explain.clone()))
                .fetch_all(&mut connection)
                .await;
            for row in plan.map_err(|error| anyhow::anyhow!("{name}: {error}\n{explain}"))? {
                let table: Option<String> = row.try_get("table")?;
                let how: Option<String> = row.try_get("type")?;
                let whole = [
                    "scale_queue_jobs", "scale_queue_dead", "scale_queue_once",
                    "scale_queue_present", "job",
                ];
                let extra: Option<String> = row.try_get("Extra")?;
                if sql.contains("skip locked")
                    && extra.is_some_and(|extra| extra.contains("filesort"))
                {
                    wrong.push(format!("{name} ({analysed}) locks all that it sorts\n{explain}"));
                }
                let is_whole = table.is_some_and(|table| whole.contains(&&*table));
                if is_whole && how.as_deref().is_some_and(|how| ["ALL", "index"].contains(&how)) {
                    wrong.push(format!("{name} ({analysed}): {how:?}\n{explain}"));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n\n"));
    Ok(())
}

/// Jobs that die among a hundred thousand dead jobs, and with many jobs scheduled far in the
/// future, through the public API.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn deaths_and_fetches_do_not_slow_down_with_what_is_there() -> Result<()> {
    let server = Server::start("postgres").await?;
    let queue = server.queue().await?;
    let few = deaths(&queue).await?;
    let mut connection = PgConnection::connect(&server.url).await?;
    for fill in filling(rows(), "generate_series(1, {rows}) as i", "'\\x01'::bytea") {
        if !fill.contains("'waiting'") && !fill.contains("lines") && !fill.contains("'blocked'") {
            sqlx::query(sqlx::AssertSqlSafe(fill)).execute(&mut connection).await?;
        }
    }
    let many = deaths(&queue).await?;
    println!(
        "200 deaths: {few:?} in empty tables, {many:?} beside {} scheduled and {} dead",
        rows(),
        rows() / 10
    );
    // Seconds each, when the statements scanned these jobs.
    assert!(many < few * 5 + Duration::from_secs(5), "{few:?}, then {many:?}");
    let kept = queue.stats("default").await?.dead;
    assert!(kept <= 10_000 + rows() / 10, "{kept}");
    Ok(())
}

async fn deaths(queue: &Queue) -> Result<Duration> {
    let before = queue.stats("default").await?.failed_total;
    queue.push_many((0..200).map(|n| Plain { n })).await?;
    let start = Instant::now();
    let worker = run(Worker::new(queue)
        .concurrency(20)
        .handle(|_: Plain| async { Err::<(), _>(Discard::because("no")) }));
    until(queue, "default", "200 deaths", |stats| stats.failed_total == before + 200).await?;
    let took = start.elapsed();
    worker.stop().await?;
    Ok(took)
}
