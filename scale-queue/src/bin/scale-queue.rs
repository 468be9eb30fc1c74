//! Command line for queues: `scale-queue --help`. Feature `cli`, with the features of the stores it
//! is to reach.
//!
//! The store's address is read from the environment variable `SCALE_QUEUE_URL`, because arguments
//! are visible to other users of a machine.

use std::io::{ErrorKind, Write};
use std::process::ExitCode;
use std::time::Duration;

use clap::{Parser, Subcommand, ValueEnum};
use scale_queue::status::{Dead, State, Stats};
use scale_queue::{JobId, Queue};
use serde_json::{Value, json};

/// Looks at queues and manages them.
#[derive(Parser)]
#[command(
    name = "scale-queue",
    version,
    after_help = "The address of the store is read from \
    SCALE_QUEUE_URL, for example redis://127.0.0.1 or postgres://…"
)]
struct Arguments {
    /// Name of the application that owns the queues.
    #[arg(long, env = "SCALE_QUEUE_APP")]
    app: Option<String>,
    /// Print JSON, one value a line.
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Print the counts of all queues.
    Queues,
    /// Print jobs of a queue that are not dead.
    Jobs {
        queue: String,
        #[arg(long, value_enum, default_value = "waiting")]
        state: JobState,
        #[arg(long, default_value_t = 0)]
        offset: usize,
        #[arg(long, default_value_t = 20)]
        limit: usize,
    },
    /// Print dead jobs of a queue, the newest first.
    Dead {
        queue: String,
        #[arg(long, default_value_t = 0)]
        offset: usize,
        #[arg(long, default_value_t = 20)]
        limit: usize,
    },
    /// Let a dead job, or all of them, run again.
    Retry {
        queue: String,
        #[command(flatten)]
        which: Which,
        /// New content of the job, as JSON.
        #[arg(long, conflicts_with = "all")]
        payload: Option<String>,
    },
    /// Remove a dead job, or all of them.
    Forget {
        queue: String,
        #[command(flatten)]
        which: Which,
        /// Remove them: without it, only their number is printed.
        #[arg(long)]
        yes: bool,
    },
    /// End a job that is not dead.
    Cancel { queue: String, id: JobId },
    /// Let no job of a queue begin.
    Pause { queue: String },
    /// Let jobs of a queue begin again.
    Resume { queue: String },
    /// Remove all jobs of a queue that have not begun.
    Drain {
        queue: String,
        /// Remove them: without it, only their number is printed.
        #[arg(long)]
        yes: bool,
    },
    /// Print the live workers.
    Workers,
    /// Print the schedules that are running.
    Schedules,
    /// Print the batches of the last seven days.
    Batches,
    /// Let a worker begin no more jobs.
    Quiet {
        /// Id of the worker, as `workers` prints it.
        worker: String,
        /// Let it begin jobs again.
        #[arg(long)]
        off: bool,
    },
    /// Print the counts of a queue every second, until interrupted.
    Tail { queue: String },
    /// Connect, and check the tables of a database.
    Check,
    /// Print the migrations of a database system.
    #[cfg(feature = "sql")]
    Schema { system: Database },
}

#[derive(clap::Args)]
#[group(required = true, multiple = false)]
struct Which {
    /// Id of the job.
    id: Option<JobId>,
    /// All dead jobs of the queue.
    #[arg(long)]
    all: bool,
}

#[derive(Clone, Copy, ValueEnum)]
enum JobState {
    Waiting,
    Scheduled,
    Blocked,
    Leased,
}

#[cfg(feature = "sql")]
#[derive(Clone, Copy, ValueEnum)]
enum Database {
    Postgres,
    Mysql,
    Sqlite,
}

type Failure = Box<dyn std::error::Error>;

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let mut out = Output { json: arguments.json, to: std::io::stdout().lock() };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let ran =
        runtime.map_err(Into::into).and_then(|runtime| runtime.block_on(run(arguments, &mut out)));
    match ran {
        Ok(true) => ExitCode::SUCCESS,
        // Nothing was there to be changed.
        Ok(false) => ExitCode::from(1),
        // The reader has closed the pipe: `scale-queue … | head`.
        Err(error) if is_closed_pipe(&*error) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "scale-queue: {error}");
            ExitCode::from(2)
        }
    }
}

fn is_closed_pipe(error: &(dyn std::error::Error + 'static)) -> bool {
    error.downcast_ref::<std::io::Error>().is_some_and(|e| e.kind() == ErrorKind::BrokenPipe)
}

async fn run(arguments: Arguments, out: &mut Output<impl Write>) -> Result<bool, Failure> {
    #[cfg(feature = "sql")]
    if let Command::Schema { system } = arguments.command {
        return schema(system, out);
    }
    let url = std::env::var("SCALE_QUEUE_URL")
        .map_err(|_| "SCALE_QUEUE_URL is not set: expected the address of the queue's store")?;
    let app = arguments.app.ok_or("--app is missing, and SCALE_QUEUE_APP is not set")?;
    let queue = Queue::connect(&url, &app).await?;
    let done = |yes: bool| Ok::<_, Failure>(yes);
    match arguments.command {
        Command::Queues => {
            for name in queue.queues().await? {
                let stats = queue.stats(&name).await?;
                out.line(&counts(&name, &stats), json!({ "queue": name, "stats": stats }))?;
            }
        }
        Command::Jobs { queue: name, state, offset, limit } => {
            let state = match state {
                JobState::Waiting => State::Waiting,
                JobState::Scheduled => State::Scheduled,
                JobState::Blocked => State::Blocked,
                JobState::Leased => State::Leased,
            };
            for job in queue.jobs(&name, state, offset, limit).await? {
                let id = job.id.map_or_else(|| "undecodable".to_owned(), |id| id.to_string());
                let text = format!("{id}  {}  {}  failed {}", job.name, job.payload, job.failed);
                out.line(&text, serde_json::to_value(&job)?)?;
            }
        }
        Command::Dead { queue: name, offset, limit } => {
            for dead in queue.dead(&name, offset, limit).await? {
                let id = dead.id.map_or_else(|| "undecodable".to_owned(), |id| id.to_string());
                let text = format!("{id}  {}  {}  {}", dead.name, dead.payload, dead.reason);
                out.line(&text, described(&dead))?;
            }
        }
        Command::Retry { queue: name, which: Which { id: None, .. }, .. } => {
            let count = queue.revive_all(&name).await?;
            out.line(&format!("{count} jobs wait again"), json!({ "count": count }))?;
        }
        Command::Retry { queue: name, which: Which { id: Some(id), .. }, payload } => {
            let Some(dead) = find(&queue, &name, id).await? else { return done(false) };
            return done(match payload {
                Some(payload) => queue.revive_with(&name, &dead, &payload).await?,
                None => queue.revive(&name, &dead).await?,
            });
        }
        Command::Forget { queue: name, which: Which { id: None, .. }, yes } => {
            let count = if yes {
                queue.forget_all(&name).await?
            } else {
                usize::try_from(queue.stats(&name).await?.dead)?
            };
            out.removed(count, yes)?;
        }
        Command::Forget { queue: name, which: Which { id: Some(id), .. }, yes } => {
            let Some(dead) = find(&queue, &name, id).await? else { return done(false) };
            if yes && !queue.forget(&name, &dead).await? {
                return done(false);
            }
            out.removed(1, yes)?;
        }
        Command::Cancel { queue: name, id } => return done(queue.cancel(&name, id).await?),
        Command::Pause { queue: name } => queue.pause(&name).await?,
        Command::Resume { queue: name } => queue.resume(&name).await?,
        Command::Drain { queue: name, yes } => {
            let count = if yes {
                queue.drain(&name).await?
            } else {
                let stats = queue.stats(&name).await?;
                usize::try_from(stats.waiting + stats.blocked + stats.scheduled)?
            };
            out.removed(count, yes)?;
        }
        Command::Workers => {
            for worker in queue.workers().await? {
                let text = format!(
                    "{}  {}  {} of {}{}",
                    worker.id,
                    worker.queues.join(","),
                    worker.running,
                    worker.concurrency,
                    if worker.quiet { "  quiet" } else { "" }
                );
                out.line(&text, serde_json::to_value(&worker)?)?;
            }
        }
        Command::Schedules => {
            for schedule in queue.schedules().await? {
                let text = format!("{}  {}  {}", schedule.name, schedule.rule, schedule.job);
                out.line(&text, serde_json::to_value(&schedule)?)?;
            }
        }
        Command::Batches => {
            for batch in queue.batches(0, 1_000).await? {
                let status = batch.status;
                let text = format!(
                    "{}  {} of {} done, {} dead",
                    batch.id, status.done, status.total, status.dead
                );
                out.line(&text, serde_json::to_value(&batch)?)?;
            }
        }
        Command::Quiet { worker, off } => {
            queue.set_quiet(&worker, !off).await?;
            return done(queue.workers().await?.iter().any(|known| known.id == worker));
        }
        Command::Tail { queue: name } => loop {
            match queue.stats(&name).await {
                Ok(stats) => {
                    out.line(&counts(&name, &stats), json!({ "queue": name, "stats": stats }))?;
                }
                // It may answer the next time.
                Err(error) => writeln!(std::io::stderr(), "scale-queue: {error}")?,
            }
            tokio::time::sleep(Duration::from_secs(1)).await;
        },
        Command::Check => out.line("ok", json!({ "ok": true }))?,
        #[cfg(feature = "sql")]
        Command::Schema { .. } => {}
    }
    done(true)
}

#[cfg(feature = "sql")]
fn schema(system: Database, out: &mut Output<impl Write>) -> Result<bool, Failure> {
    use scale_queue::store::{System, migrations};

    let system = match system {
        Database::Postgres => System::Postgres,
        Database::Mysql => System::MySql,
        Database::Sqlite => System::Sqlite,
    };
    for (name, sql) in migrations(system) {
        let text = format!("-- {name}\n{sql}");
        for line in if out.json { vec![""] } else { text.lines().collect() } {
            out.line(line, json!({ "name": name, "sql": sql }))?;
        }
    }
    Ok(true)
}

/// Finds a dead job by its id.
async fn find(queue: &Queue, name: &str, id: JobId) -> Result<Option<Dead>, Failure> {
    let mut offset = 0;
    loop {
        let page = queue.dead(name, offset, 1_000).await?;
        if page.is_empty() {
            return Ok(None);
        }
        offset += page.len();
        if let Some(dead) = page.into_iter().find(|dead| dead.id == Some(id)) {
            return Ok(Some(dead));
        }
    }
}

fn counts(name: &str, stats: &Stats) -> String {
    let Stats { waiting, scheduled, blocked, leased, dead, done_total, failed_total, .. } = *stats;
    let lag = Duration::from_millis(stats.lag_ms);
    let paused = if stats.paused { "  paused" } else { "" };
    format!(
        "{name}  waiting {waiting}  scheduled {scheduled}  blocked {blocked}  running {leased}  \
         dead {dead}  done {done_total}  failed {failed_total}  lag {lag:?}{paused}"
    )
}

fn described(dead: &Dead) -> Value {
    json!({
        "id": dead.id,
        "name": dead.name,
        "payload": dead.payload,
        "failed": dead.failed,
        "failures": dead.failures,
        "reason": dead.reason,
        "died_ms": dead.died_ms,
    })
}

/// Returns whether a character can control a terminal, or change the order of what it shows.
fn is_unsafe(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{61c}' | '\u{200e}' | '\u{200f}')
        || matches!(c, '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// Replaces what a job's content could do to a terminal, or to the lines of a list.
fn plain(text: &str) -> String {
    text.chars().map(|c| if is_unsafe(c) { '\u{fffd}' } else { c }).collect()
}

/// Escapes the same characters in JSON, where they stand in strings only.
fn escaped(json: &str) -> String {
    let unit = |c: char| if is_unsafe(c) { format!("\\u{:04x}", c as u32) } else { c.to_string() };
    json.chars().map(unit).collect()
}

struct Output<W> {
    json: bool,
    to: W,
}

impl<W: Write> Output<W> {
    #[expect(clippy::needless_pass_by_value, reason = "each caller makes it here")]
    fn line(&mut self, text: &str, value: Value) -> std::io::Result<()> {
        let line = if self.json { escaped(&value.to_string()) } else { plain(text) };
        writeln!(self.to, "{line}")
    }

    fn removed(&mut self, count: usize, yes: bool) -> std::io::Result<()> {
        let text = if yes {
            format!("{count} jobs removed")
        } else {
            format!("{count} jobs would be removed; add --yes to remove them")
        };
        self.line(&text, json!({ "count": count, "removed": yes }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_jobs_content_controls_no_terminal() {
        let hostile = "a\nid-2  forged\u{1b}[31m\u{9b}31m\u{7f}\u{202e}txt";
        let line = plain(hostile);
        assert!(line.starts_with("a\u{fffd}id-2") && !line.chars().any(is_unsafe), "{line:?}");
        let value = json!({ "reason": hostile });
        let text = escaped(&value.to_string());
        assert!(!text.chars().any(is_unsafe), "{text:?}");
        assert_eq!(serde_json::from_str::<Value>(&text).ok(), Some(value));
    }
}
