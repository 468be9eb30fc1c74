//! The database: costs of routing, benefit of replicas, benefit of the tools for large databases.
//!
//! | case | scale-db | compared with |
//! | --- | --- | --- |
//! | `select_one` | `fetch_one(&db)`, one node, one connection (a new one each turn), one task | `sqlx-pool`: the same on a bare pool with defaults, which pings each connection before each query; `sqlx-pool-unasked`: a pool without pings, so that the difference is only that of the executor. `pgbouncer`: a bare pool through it, in session mode (Debian's 1.18 supports prepared statements in no other mode). `pgpool`: the same through Pgpool-II, which neither splits nor monitors here |
//! | `select_one_cpu` | the same, by the processor time of the client's threads | as above; the difference to `sqlx-pool-unasked` is bounded at 1 µs |
//! | `verdict` | the router's verdict for a known statement | |
//! | `replica_reads` | a primary and two replicas, 32 tasks | `primary-only`: the same reads on the primary |
//! | `keyset_page` | page 10,000 of 24 rows by cursor | `offset`: the same page by `offset` |
//! | `chunked_update` | p99 of concurrent single-row updates while all 1,000,000 rows are changed by `Db::chunked` | `one-update`: the same with one `update`, for whose end the others wait |
//! | `loader` | 100 look-ups through a `Loader` | `n-plus-one`: one by one |
//!
//! Client and servers share two cores: `replica_reads` shows that reads are distributed, not the
//! throughput of three machines.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use scale_db::page::Cursors;
use scale_db::page::Order;
use scale_db::{Builder, Db, Loader};
use sqlx::{Executor, FromRow, Postgres as Pg, QueryBuilder};
use testkit::{Pooler, Postgres};

use crate::Effort;
use crate::measure::{Better, Case};
use crate::report::Report;

const SELECT: &str = "select id, price from items where id = $1";
const ROWS: i64 = 1_000_000;
const PAGE: usize = 24;

#[derive(FromRow)]
struct Item {
    id: i64,
    price: i64,
}

/// Clock that is used.
#[derive(Clone, Copy)]
enum Clock {
    Wall,
    /// Processor time of all threads of this process, the client.
    Cpu,
}

impl Clock {
    fn nanos(self) -> f64 {
        let id = match self {
            Self::Wall => rustix::time::ClockId::Monotonic,
            Self::Cpu => rustix::time::ClockId::ProcessCPUTime,
        };
        let now = rustix::time::clock_gettime(id);
        now.tv_sec as f64 * 1e9 + now.tv_nsec as f64
    }
}

/// Returns nanoseconds per query, with one query after the other.
///
/// Each turn has a new connection, so that the processor of its server process and the state of the
/// caches are chosen again.
async fn select<E>(executor: E, clock: Clock, count: usize) -> Result<f64>
where
    E: Clone + Send + Sync + 'static,
    for<'e> &'e E: Executor<'e, Database = Pg>,
{
    let task = tokio::spawn(async move {
        let mut start = 0.0;
        for n in 0..count + 100 {
            if n == 100 {
                start = clock.nanos();
            }
            let item: Item =
                sqlx::query_as(SELECT).bind(n as i64 % ROWS).fetch_one(&executor).await?;
            std::hint::black_box(item.price);
        }
        anyhow::Ok((clock.nanos() - start) / count as f64)
    });
    task.await?
}

async fn select_db(url: &str, clock: Clock, count: usize) -> Result<f64> {
    let db = Db::<Pg>::builder(url).max_connections(1).connect().await?;
    let figure = select(db.clone(), clock, count).await;
    db.close().await;
    figure
}

async fn select_pool(url: &str, asks: bool, clock: Clock, count: usize) -> Result<f64> {
    let pool = sqlx::postgres::PgPoolOptions::new()
        .max_connections(1)
        .test_before_acquire(asks)
        .connect(url)
        .await?;
    let figure = select(pool.clone(), clock, count).await;
    pool.close().await;
    figure
}

async fn verdict(db: &Db<Pg>, count: usize) -> f64 {
    let start = Instant::now();
    for _ in 0..count {
        std::hint::black_box(db.router().verdict(std::hint::black_box(SELECT)));
    }
    start.elapsed().as_nanos() as f64 / count as f64
}

async fn reads(db: &Db<Pg>, count: usize) -> Result<f64> {
    let start = Instant::now();
    let tasks: Vec<_> = (0..32)
        .map(|task| {
            let db = db.clone();
            tokio::spawn(async move {
                for n in 0..count / 32 {
                    let id = (task * 7_919 + n) as i64 % ROWS;
                    let item: Item = sqlx::query_as(SELECT).bind(id).fetch_one(&db).await?;
                    std::hint::black_box(item.price);
                }
                anyhow::Ok(())
            })
        })
        .collect();
    for task in tasks {
        task.await??;
    }
    Ok(count as f64 / start.elapsed().as_secs_f64())
}

async fn keyset(db: &Db<Pg>, cursors: &Cursors, cursor: &str, count: usize) -> Result<f64> {
    let start = Instant::now();
    for _ in 0..count {
        let request = cursors.request::<(i64, i64)>("items", Some(cursor), PAGE)?;
        let mut query = QueryBuilder::<Pg>::new("select id, price from items where true");
        request.push(&mut query, [("price", Order::Ascending), ("id", Order::Ascending)]);
        let rows: Vec<Item> = query.build_query_as().fetch_all(db).await?;
        let page = request.page(rows, |item| (item.price, item.id))?;
        anyhow::ensure!(page.items.len() == PAGE, "a short page");
    }
    Ok(start.elapsed().as_secs_f64() * 1e3 / count as f64)
}

async fn offset(db: &Db<Pg>, skip: i64, count: usize) -> Result<f64> {
    let start = Instant::now();
    for _ in 0..count {
        let page =
            sqlx::query_as("select id, price from items order by price, id limit $1 offset $2");
        let rows: Vec<Item> = page.bind(PAGE as i64).bind(skip).fetch_all(db).await?;
        anyhow::ensure!(rows.len() == PAGE, "a short page");
    }
    Ok(start.elapsed().as_secs_f64() * 1e3 / count as f64)
}

/// Returns the time in ms for a hundred rows with a loader, which is new each time, as for each
/// request; the mean of several runs.
async fn loader(db: &Db<Pg>, times: usize) -> Result<f64> {
    let start = Instant::now();
    for _ in 0..times {
        let db = db.clone();
        let items = Loader::new(move |ids: Vec<i64>| {
            let db = db.clone();
            async move {
                let query =
                    sqlx::query_as("select id, price from items where id = any($1)").bind(ids);
                let rows: Vec<(i64, i64)> = query.fetch_all(&db).await?;
                Ok(rows.into_iter().collect::<HashMap<_, _>>())
            }
        });
        let found = items.load_many((0..100).map(|n| n * 37)).await?;
        anyhow::ensure!(found.iter().all(Option::is_some), "a missing row");
    }
    Ok(start.elapsed().as_secs_f64() * 1e3 / times as f64)
}

async fn n_plus_one(db: &Db<Pg>, times: usize) -> Result<f64> {
    let start = Instant::now();
    for n in (0..times).flat_map(|_| 0..100) {
        let item: Item = sqlx::query_as(SELECT).bind(n * 37_i64).fetch_one(db).await?;
        std::hint::black_box(item.price);
    }
    Ok(start.elapsed().as_secs_f64() * 1e3 / times as f64)
}

/// Returns the p99 in ms of concurrent single-row updates, of which one begins every 5 ms whatever
/// the state of the others, while `change` changes all rows.
async fn neighbour(db: &Db<Pg>, change: impl Future<Output = Result<()>>) -> Result<f64> {
    let mut tick = tokio::time::interval(Duration::from_millis(5));
    let mut updates = Vec::new();
    let mut change = std::pin::pin!(change);
    loop {
        tokio::select! {
            done = &mut change => break done?,
            _ = tick.tick() => {
                let (db, n) = (db.clone(), updates.len() as i64);
                updates.push(tokio::spawn(async move {
                    let start = Instant::now();
                    sqlx::query("update items set price = price \
                        where id = $1").bind(n * 7_919 % ROWS).execute(&db).await?;
                    Ok::<_, sqlx::Error>(start.elapsed().as_secs_f64() * 1e3)
                }));
            }
        }
    }
    let mut times = Vec::new();
    for update in updates {
        times.push(update.await??);
    }
    times.sort_unstable_by(f64::total_cmp);
    anyhow::ensure!(!times.is_empty(), "the neighbour never got a turn");
    Ok(times[(times.len() - 1) * 99 / 100])
}

async fn by_chunks(db: &Db<Pg>) -> Result<()> {
    let walk = db.chunked("items", "id").size(1_000).run(async |mut tx, ids| {
        let update =
            sqlx::query("update items set price = price + 1 - 1 where id between $1 and $2");
        Ok::<_, sqlx::Error>(
            update.bind(*ids.start()).bind(*ids.end()).execute(&mut **tx).await?.rows_affected(),
        )
    });
    anyhow::ensure!(walk.await?.rows == ROWS as u64, "not all rows");
    Ok(())
}

async fn by_one(db: &Db<Pg>) -> Result<()> {
    let update = sqlx::query("update items set price = price + 1 - 1").execute(db).await?;
    anyhow::ensure!(update.rows_affected() == ROWS as u64, "not all rows");
    Ok(())
}

/// Creates a bare pool with one connection through a pooler.
async fn select_through(pooler: &Result<Pooler>, count: usize) -> Result<f64> {
    match pooler {
        Ok(pooler) => select_pool(&pooler.url(), true, Clock::Wall, count).await,
        Err(why) => anyhow::bail!("{why:#}"),
    }
}

/// Measures reads by the number of replicas.
pub(super) async fn replicas(effort: Effort, report: &mut Report) -> Result<()> {
    let server = Postgres::start(3).await?;
    let table = "create table items (id bigint primary key, price bigint not null); \
        insert into items select n, n % 1000 from generate_series(0, 299999) n";
    server.node(0).sql(table).await?;
    server.caught_up().await?;
    let urls: Vec<_> = (0..4).map(|n| server.node(n).url()).collect();
    let mut handles = Vec::new();
    for replicas in 0..4 {
        let builder = urls[1..=replicas].iter().fold(Db::<Pg>::builder(&urls[0]), Builder::replica);
        handles.push(builder.connect().await?);
    }
    let mut case = Case::new("db_replicas", "us", Better::Lower);
    for (replicas, db) in handles.iter().enumerate() {
        case = case.subject(&replicas.to_string(), move || async move {
            Ok(1e6 / reads(db, 10_000 * effort.scale).await?)
        });
    }
    case.turns(effort.turns.min(5)).measure(effort, report).await;
    Ok(())
}

pub(crate) async fn run(effort: Effort) -> Result<Report> {
    let mut report = Report::new("db");
    let cluster = Postgres::start(2).await?;
    let urls = cluster.urls();
    cluster
        .node(0)
        .sql(&format!(
            "create table items (id bigint primary key, price bigint not null); \
             insert into items select n, n % 1000 from generate_series(0, {ROWS} - 1) n; \
             create index on items (price, id); analyze items"
        ))
        .await?;
    cluster.caught_up().await?;

    let port = cluster.node(0).port();
    let poolers = (Pooler::pgbouncer(port).await, Pooler::pgpool(port).await);
    let (bouncer, pgpool, url) = (&poolers.0, &poolers.1, urls[0].as_str());
    let count = 5_000 * effort.scale;
    Case::new("select_one", "ns", Better::Lower)
        .subject("scale-db", move || select_db(url, Clock::Wall, count / 2))
        .subject("sqlx-pool", move || select_pool(url, true, Clock::Wall, count / 2))
        .target(0.98)
        .subject("sqlx-pool-unasked", move || select_pool(url, false, Clock::Wall, count / 2))
        .target(0.98)
        .subject("pgbouncer", move || select_through(bouncer, count / 10))
        .subject("pgpool", move || select_through(pgpool, count / 10))
        .turns(effort.turns * 6)
        .measure(effort, &mut report)
        .await;
    Case::new("select_one_cpu", "ns", Better::Lower)
        .subject("scale-db", move || select_db(url, Clock::Cpu, count / 2))
        .subject("sqlx-pool", move || select_pool(url, true, Clock::Cpu, count / 2))
        .subject("sqlx-pool-unasked", move || select_pool(url, false, Clock::Cpu, count / 2))
        .turns(effort.turns * 6)
        .measure(effort, &mut report)
        .await;
    let known = Db::<Pg>::connect(url).await?;
    let known = &known;
    Case::new("verdict", "ns", Better::Lower)
        .subject("scale-db", move || async move { Ok(verdict(known, 1_000_000).await) })
        .measure(effort, &mut report)
        .await;

    let split = Db::<Pg>::builder(&urls[0]).replica(&urls[1]).replica(&urls[2]).connect().await?;
    let single = Db::<Pg>::connect(&urls[0]).await?;
    let (split, single) = (&split, &single);
    Case::new("replica_reads", "reads/s", Better::Higher)
        .subject("scale-db", move || reads(split, count * 2))
        .subject("primary-only", move || reads(single, count * 2))
        .measure(effort, &mut report)
        .await;

    let cursors = Cursors::new(b"a secret of the benchmark, 32 bytes or more")?;
    let skip = 9_999 * PAGE as i64;
    let last: Item =
        sqlx::query_as("select id, price from items order by price, id limit 1 offset $1")
            .bind(skip - 1)
            .fetch_one(single)
            .await
            .context("the row before page 10,000")?;
    let request = cursors.request::<(i64, i64)>("items", None, 1)?;
    let cursor =
        request.page(vec![(last.price, last.id), (0, 0)], |key| *key)?.next.context("a cursor")?;
    let (cursors, cursor) = (&cursors, cursor.as_str());
    Case::new("keyset_page", "ms", Better::Lower)
        .subject("scale-db", move || keyset(single, cursors, cursor, 50))
        .subject("offset", move || offset(single, skip, 5))
        .measure(effort, &mut report)
        .await;
    // A statement timeout would end the large update early.
    let patient = Db::<Pg>::builder(&urls[0])
        .max_connections(40)
        .acquire_timeout(Duration::from_mins(1))
        .lock_timeout(Duration::from_mins(1))
        .slow_query(Duration::from_mins(1))
        .connect()
        .await?;
    let patient = &patient;
    Case::new("chunked_update", "ms", Better::Lower)
        .subject("scale-db", move || neighbour(patient, by_chunks(patient)))
        .subject("one-update", move || neighbour(patient, by_one(patient)))
        .turns(3)
        .measure(effort, &mut report)
        .await;
    Case::new("loader", "ms", Better::Lower)
        .subject("scale-db", move || loader(single, 100))
        .subject("n-plus-one", move || n_plus_one(single, 20))
        .measure(effort, &mut report)
        .await;
    Ok(report)
}
