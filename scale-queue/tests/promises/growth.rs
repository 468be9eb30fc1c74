//! What must not grow with what waits: plans of the SQL statements on full tables, deaths beside many dead, fetches beside a far future.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use scale_queue::{Discard, Job, Queue, Worker};
use serde::{Deserialize, Serialize};
use sqlx::{Connection, PgConnection, Row, SqliteConnection};

use crate::server::{Server, run, until};

#[derive(Serialize, Deserialize)]
struct Plain {
    n: usize,
}

impl Job for Plain {
    const NAME: &'static str = "plain";
}

/// Rows of each kind. A million with `SCALE_QUEUE_ROWS=1000000`, which takes a minute; plans are the same.
fn rows() -> u64 {
    std::env::var("SCALE_QUEUE_ROWS").ok().and_then(|rows| rows.parse().ok()).unwrap_or(100_000)
}

/// Tables as of a queue that has lived for long: scheduled for later, waiting, blocked, dead, and other queues' and applications'.
fn filling(rows: u64, series: &str, hex: &str) -> Vec<String> {
    let jobs = |kind: &str, due: &str, line: &str, rows: u64| {
        format!(
            "insert into scale_queue_jobs (id, app, queue, due_ms, line, since_ms, group_key, unique_until_ms, body) \
             select '{kind}' || i, 'test', 'default', {due}, {line}, 0, {group}, 0, {hex} from {}",
            series.replace("{rows}", &rows.to_string()),
            group = if line == "null" { "null" } else { "'tenant'" },
        )
    };
    vec![
        jobs("scheduled", "4000000000000 + i", "null", rows),
        jobs("waiting", "1000 + i", "null", rows),
        jobs("blocked", "1000 + i", "'limit:tenant'", rows / 10),
        "insert into scale_queue_lines values ('test', 'default', 'limit:tenant', 4000000000000, 0, 0)".to_owned(),
        format!(
            "insert into scale_queue_dead (app, queue, id, died_ms, reason, body) select 'test', 'default', 'dead' || i, i, 'no', {hex} from {}",
            series.replace("{rows}", &(rows / 10).to_string())
        ),
        format!(
            "insert into scale_queue_once select 'test', 'default', 'k' || i, 'x', 4000000000000 from {}",
            series.replace("{rows}", &(rows / 10).to_string())
        ),
    ]
}

/// Statements that go over a whole state by their nature: they are for people, and say how much there is.
const COUNTS: [&str; 1] = ["stats"];

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
    // SQLite alone asks for a fetch in these steps.
    let of_postgres = |(name, _): &(&str, _)| !["pick", "claimed"].contains(name);
    for (name, sql) in scale_queue::store::statements("postgres").into_iter().filter(of_postgres) {
        if COUNTS.contains(&name)
            || !(sql.starts_with("select") || sql.starts_with("with") || sql.starts_with("delete") || sql.starts_with("update"))
        {
            continue;
        }
        // As prepared: the parameters are not known to the planner.
        let plan = async {
            sqlx::raw_sql("set plan_cache_mode = force_generic_plan").execute(&mut connection).await?;
            let prepare = format!("prepare probe as {sql}");
            sqlx::raw_sql(sqlx::AssertSqlSafe(prepare)).execute(&mut connection).await?;
            let parameters: i64 =
                sqlx::query("select cardinality(parameter_types)::bigint from pg_prepared_statements where name = 'probe'")
                    .fetch_one(&mut connection)
                    .await?
                    .try_get(0)?;
            let nulls = vec!["null"; parameters as usize].join(", ");
            let call = if parameters == 0 { "probe".to_owned() } else { format!("probe({nulls})") };
            let explain = format!("explain {}", format_args!("execute {call}"));
            let lines = sqlx::raw_sql(sqlx::AssertSqlSafe(explain)).fetch_all(&mut connection).await?;
            let plan: Vec<String> = lines.iter().map(|row| row.try_get(0)).collect::<Result<_, _>>()?;
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

    // The rows that a fetch reads are those that it returns.
    let fetch = scale_queue::store::statements("postgres").into_iter().find(|(name, _)| *name == "ack_and_fetch").unwrap().1;
    let explain = format!("explain (analyze, costs off, timing off) {fetch}");
    let explain =
        ["'test'", "'default'", "'w'", "''", "100::bigint", "4000000::bigint", "1000::bigint", "100::bigint", "0::bigint"]
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
    let series = "(with recursive n(i) as (select 1 union all select i + 1 from n where i < {rows}) select i from n)";
    for fill in filling(rows() / 10, series, "x'01'") {
        sqlx::query(sqlx::AssertSqlSafe(fill)).execute(&mut connection).await?;
    }
    let mut wrong = Vec::new();
    for (name, sql) in scale_queue::store::statements("sqlite") {
        // Those of Postgres alone, those that make tables, and those that count.
        if COUNTS.contains(&name)
            || sql.starts_with("with ") && !sql.starts_with("with recursive")
            || sql.contains("create table")
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

/// 16 and 17 as a user meets them: jobs that die beside a hundred thousand dead and behind a far future.
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
    println!("200 deaths: {few:?} in empty tables, {many:?} beside {} scheduled and {} dead", rows(), rows() / 10);
    // Seconds each when it went over them.
    assert!(many < few * 5 + Duration::from_secs(5), "{few:?}, then {many:?}");
    let kept = queue.stats("default").await?.dead;
    assert!(kept <= 10_000 + rows() / 10, "{kept}");
    Ok(())
}

async fn deaths(queue: &Queue) -> Result<Duration> {
    let before = queue.stats("default").await?.failed_total;
    queue.push_many((0..200).map(|n| Plain { n })).await?;
    let start = Instant::now();
    let worker = run(Worker::new(queue).concurrency(20).handle(|_: Plain, _| async { Err::<(), _>(Discard::because("no")) }));
    until(queue, "default", "200 deaths", |stats| stats.failed_total == before + 200).await?;
    let took = start.elapsed();
    worker.stop().await?;
    Ok(took)
}
