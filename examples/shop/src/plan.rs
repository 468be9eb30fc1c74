//! From the measured cost of a visit to what a number of users needs.
//!
//! A short load on a fleet of this machine gives the CPU time, the Redis commands and the log bytes
//! of a request; the rest is arithmetic, whose inputs are printed with its results.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use clap::Args;

use crate::fleet::{Fleet, Plan};
use crate::load::{self, Load};

#[derive(Args)]
pub(crate) struct Options {
    /// Registered users; several give a column each.
    #[arg(long, value_delimiter = ',', default_value = "1000,100000,1000000,5000000,50000000")]
    users: Vec<u64>,
    /// Share of the users who visit on a day.
    #[arg(long, default_value_t = 0.1)]
    daily: f64,
    /// Requests of a visitor on a day.
    #[arg(long, default_value_t = 40.0)]
    requests: f64,
    /// The busiest second, compared with the day's average.
    #[arg(long, default_value_t = 6.0)]
    peak: f64,
    /// Share of a core's time that is planned; the rest is for failures and deployments.
    #[arg(long, default_value_t = 0.5)]
    busy: f64,
    /// Sessions that are kept, as a share of the users.
    #[arg(long, default_value_t = 0.3)]
    sessions: f64,
    /// Price of a core for a month, with its memory.
    #[arg(long, default_value_t = 20.0)]
    core_price: f64,
    /// Rate of the measurement, in requests per second.
    #[arg(long, default_value_t = 300)]
    rate: u32,
    /// Duration of the measurement, in seconds.
    #[arg(long, default_value_t = 10)]
    seconds: u64,
}

/// Cost of a request of the mixed load.
struct Cost {
    /// CPU time in µs, by program.
    cpu: BTreeMap<String, f64>,
    redis_commands: f64,
    /// Bytes of the database's log.
    log_bytes: f64,
    /// Bytes of Redis for a session.
    session_bytes: f64,
}

impl Cost {
    /// Returns the CPU time of a program, in seconds.
    fn seconds(&self, program: &str) -> f64 {
        self.cpu.get(program).copied().unwrap_or_default() / 1e6
    }

    /// Returns the requests per second that use all cores of this machine, with everything on it.
    fn of_this_machine(&self) -> f64 {
        let cores = std::thread::available_parallelism().map_or(1, usize::from) as f64;
        cores * 1e6 / self.cpu.values().sum::<f64>().max(1.0)
    }
}

/// Redis commands per second that one node is planned for.
const REDIS_NODE: f64 = 50_000.0;
/// Cores of the largest server of the database that is planned for.
const LARGEST: f64 = 32.0;
/// Share of the requests that are checkouts, each with a job.
const CHECKOUTS: f64 = 0.02;
/// Seconds of a job, most of which it waits for a mail server.
const JOB_SECONDS: f64 = 0.3;
/// Jobs that a worker process runs at a time.
const CONCURRENCY: f64 = 16.0;
/// Connections of a process to each node of the database.
const CONNECTIONS: f64 = 10.0;
/// Web processes: one for each core, and two at least, so that one can be replaced.
const LEAST: f64 = 2.0;

#[allow(clippy::print_stdout)]
pub(crate) async fn run(options: Options) -> Result<()> {
    ensure!(options.rate > 0 && options.seconds > 0, "--rate, --seconds: 1 or more");
    ensure!(options.busy > 0.0 && options.busy <= 1.0, "--busy: more than 0, at most 1");
    let cost = measure(&options).await?;
    println!("{}", report(&options, &cost));
    Ok(())
}

async fn measure(options: &Options) -> Result<Cost> {
    let listen = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?;
    let plan = Plan { listen, webs: 2, workers: 1, limits: load::NO_LIMITS };
    let fleet = Fleet::start(&plan).await?;
    let mut load = Load::prepare(listen, &fleet.password, 300, 1).await?;
    let before = (commands(&fleet).await?, log_position(&fleet).await?, load::cpu::used());
    let time = Duration::from_secs(options.seconds);
    let tally = load.play(options.rate, time, 64).await?;
    let after = (commands(&fleet).await?, log_position(&fleet).await?, load::cpu::used());
    let per_request = |value: f64| value / tally.requests().max(1) as f64;
    let cpu = after.2.into_iter().map(|(name, used)| {
        let used = used.saturating_sub(before.2.get(&name).copied().unwrap_or_default());
        (name, per_request(used.as_secs_f64() * 1e6))
    });
    let cost = Cost {
        cpu: cpu.collect(),
        redis_commands: per_request(after.0 - before.0),
        log_bytes: per_request(after.1 - before.1),
        session_bytes: session_bytes(&fleet).await?,
    };
    fleet.stop().await?;
    Ok(cost)
}

async fn commands(fleet: &Fleet) -> Result<f64> {
    let text = fleet.redis.server(0).command(&["INFO", "stats"]).await?;
    let count = text.lines().find_map(|line| line.strip_prefix("total_commands_processed:"));
    count.and_then(|count| count.trim().parse().ok()).context("Redis counts no commands")
}

async fn log_position(fleet: &Fleet) -> Result<f64> {
    let position = "select pg_current_wal_lsn() - '0/0'::pg_lsn";
    Ok(fleet.postgres.node(0).sql(position).await?.trim().parse()?)
}

/// Returns the mean memory of a hundred sessions.
async fn session_bytes(fleet: &Fleet) -> Result<f64> {
    let script = "local n, sum = 0, 0 \
        for _, key in ipairs(redis.call('KEYS', '*:s*')) do \
        if n < 100 and (key:find(':s$') or key:find(':s:')) then \
        n = n + 1 sum = sum + redis.call('MEMORY', 'USAGE', key) end end \
        return math.floor(sum / math.max(n, 1))";
    let bytes = fleet.redis.server(0).command(&["EVAL", script, "0"]).await?;
    bytes.trim().parse().context("no memory of a session")
}

/// Needs of a number of users.
struct Needs {
    peak: f64,
    web_cores: f64,
    webs: f64,
    workers: f64,
    primary_cores: f64,
    shards: f64,
    replicas: f64,
    connections: f64,
    redis_commands: f64,
    redis_nodes: f64,
    redis_gigabytes: f64,
    log_gigabytes_a_day: f64,
    price: f64,
}

fn needs(options: &Options, cost: &Cost, users: u64) -> Needs {
    let users = users as f64;
    let average = users * options.daily * options.requests / 86_400.0;
    let peak = average * options.peak;
    let cores = |seconds: f64| peak * seconds / options.busy;
    let web_cores = cores(cost.seconds("shop"));
    let webs = web_cores.ceil().max(LEAST);
    let workers = (peak * CHECKOUTS * JOB_SECONDS / CONCURRENCY / options.busy).ceil().max(LEAST);
    // Nodes of the database together; a third of it is the primary's, by its writes and their
    // replay.
    let database_cores = cores(cost.seconds("postgres"));
    let primary_cores = database_cores / 3.0;
    let shards = (primary_cores / LARGEST).ceil().max(1.0);
    let replicas = (2.0 * database_cores / 3.0 / LARGEST).ceil().max(2.0);
    let redis_commands = peak * cost.redis_commands;
    let redis_nodes = (redis_commands / REDIS_NODE / options.busy).ceil().max(1.0);
    let all_cores = webs
        + workers
        + cores(cost.seconds("haproxy")).ceil()
        + database_cores.ceil().max(3.0)
        + 2.0 * redis_nodes;
    Needs {
        peak,
        web_cores,
        webs,
        workers,
        primary_cores,
        shards,
        replicas,
        connections: (webs + workers) * CONNECTIONS,
        redis_commands,
        redis_nodes,
        redis_gigabytes: users * options.sessions * cost.session_bytes / 1e9,
        log_gigabytes_a_day: average * 86_400.0 * cost.log_bytes / 1e9,
        price: all_cores * options.core_price,
    }
}

fn report(options: &Options, cost: &Cost) -> String {
    let mut text = format!(
        "Measured on this machine, for a request of the mixed load at {} a second:\n",
        options.rate
    );
    for (program, micros) in cost.cpu.iter().filter(|(_, micros)| **micros >= 1.0) {
        let _ = writeln!(text, "  {program:<14} {micros:>8.0} µs of CPU time");
    }
    let _ = writeln!(
        text,
        "  {:<14} {:>8.1} commands, {:.0} bytes for a session\n  {:<14} {:>8.0} bytes\n\
         With everything on it, the load too, this machine answers about {:.0} requests a \
         second.\n\nAssumed: {} % of the users come on a day, with {} requests each; the busiest \
         second has {} times the average; cores are {} % busy then; {} % of the users have a \
         session; a core costs {} a month; a Redis node runs {REDIS_NODE} commands a second.\n",
        "redis",
        cost.redis_commands,
        cost.session_bytes,
        "database log",
        cost.log_bytes,
        cost.of_this_machine(),
        options.daily * 100.0,
        options.requests,
        options.peak,
        options.busy * 100.0,
        options.sessions * 100.0,
        options.core_price
    );
    let columns: Vec<Needs> =
        options.users.iter().map(|users| needs(options, cost, *users)).collect();
    let _ = write!(text, "| users |");
    for users in &options.users {
        let _ = write!(text, " {users} |");
    }
    let _ = writeln!(text, "\n| --- |{}", " ---: |".repeat(columns.len()));
    type Row = (&'static str, usize, fn(&Needs) -> f64);
    let rows: [Row; 12] = [
        ("requests in the busiest second", 0, |n| n.peak),
        ("cores of web processes", 1, |n| n.web_cores),
        ("web processes", 0, |n| n.webs),
        ("worker processes", 0, |n| n.workers),
        ("cores of the primary", 1, |n| n.primary_cores),
        ("shards (scale_db::shard)", 0, |n| n.shards),
        ("replicas, of each", 0, |n| n.replicas),
        ("connections to each node; with more than 500, PgBouncer", 0, |n| n.connections),
        ("Redis commands a second", 0, |n| n.redis_commands),
        ("Redis nodes; with more than one, a Cluster", 0, |n| n.redis_nodes),
        ("GB of Redis for sessions", 2, |n| n.redis_gigabytes),
        ("GB of database log a day", 2, |n| n.log_gigabytes_a_day),
    ];
    for (name, digits, value) in rows {
        let _ = write!(text, "| {name} |");
        for column in &columns {
            let _ = write!(text, " {:.digits$} |", value(column));
        }
        text.push('\n');
    }
    let _ = write!(text, "| price a month |");
    for column in &columns {
        let _ = write!(text, " {:.0} |", column.price);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ten_times_the_users_need_ten_times_as_much_or_the_least() {
        let cpu = [("shop", 300.0), ("postgres", 150.0), ("haproxy", 30.0), ("load", 100.0)];
        let cost = Cost {
            cpu: cpu.into_iter().map(|(name, micros)| (name.to_owned(), micros)).collect(),
            redis_commands: 3.0,
            log_bytes: 100.0,
            session_bytes: 500.0,
        };
        let options = Options {
            users: vec![1_000, 50_000_000],
            daily: 0.1,
            requests: 40.0,
            peak: 6.0,
            busy: 0.5,
            sessions: 0.3,
            core_price: 20.0,
            rate: 300,
            seconds: 10,
        };
        let small = needs(&options, &cost, 1_000);
        assert!((small.peak - 0.277).abs() < 0.01, "{}", small.peak);
        let least = [small.webs, small.workers, small.shards, small.replicas, small.redis_nodes];
        assert_eq!(least, [2.0, 2.0, 1.0, 2.0, 1.0]);
        let large = needs(&options, &cost, 50_000_000);
        assert!((large.peak / small.peak - 50_000.0).abs() < 1.0);
        assert!((large.web_cores - large.peak * 300e-6 / 0.5).abs() < 1e-6);
        assert!(large.redis_nodes > 1.0 && large.price > small.price);
        let text = report(&options, &cost);
        assert!(text.contains("| users | 1000 | 50000000 |"), "{text}");
    }
}
