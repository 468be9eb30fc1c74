//! Log lines of jobs, kept for the dashboard.
//!
//! | when | then |
//! | --- | --- |
//! | a worker [keeps logs](crate::Worker::keep_logs) | lines of [`Context::log`] are kept, and with the layer `JobLogs` (feature `logs`) the events of `tracing` that a handler emits |
//! | the job runs | new lines are stored every 2 s, and before its end is stored |
//! | the worker dies | lines of the last 2 s are lost |
//! | the job runs again | its lines are added to those of earlier attempts |
//! | a job has more than 64 KiB of lines | the oldest are removed |
//! | the queue is [encrypted](Queue::encrypted) | the lines are encrypted too |
//! | the worker does not keep logs | [`Context::log`] does nothing |

use std::collections::VecDeque;
use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::{BoxFuture, OptionFuture};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::time::{Instant, interval_at};

use crate::context::Context;
use crate::encryption::PayloadEncryption;
use crate::error::Error;
use crate::job::JobId;
use crate::limit::LONGEST;
use crate::queue::Queue;
use crate::store::Store;

/// Maximum bytes of a job's lines.
const LARGEST: usize = 64 * 1024;
/// Bytes counted for a line beside its text.
const OVERHEAD: usize = 24;
/// Maximum bytes of a line.
const LONGEST_LINE: usize = 4 * 1024;
/// Time between two writes while a job runs.
const WRITE: Duration = Duration::from_secs(2);

/// A line of a job's log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct LogLine {
    /// Time of the line: ms since 1970, by the store's clock.
    pub at_ms: u64,
    /// Number of the attempt.
    pub attempt: u16,
    /// Text, cut to 4 KiB.
    pub text: String,
}

tokio::task_local! {
    /// Log of the job that the current task runs.
    static CURRENT: Arc<JobLog>;
}

/// Log of one attempt.
pub(crate) struct JobLog {
    store: Arc<dyn Store>,
    encryption: Option<PayloadEncryption>,
    job: String,
    id: JobId,
    attempt: u16,
    life: Duration,
    state: Mutex<Lines>,
}

#[derive(Default)]
struct Lines {
    lines: VecDeque<LogLine>,
    bytes: usize,
    /// Number of lines that were added, and of those that are stored.
    added: u64,
    stored: u64,
    /// True if the lines of earlier attempts have been read.
    is_read: bool,
}

impl std::fmt::Debug for JobLog {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("JobLog").field("id", &self.id).finish_non_exhaustive()
    }
}

impl Lines {
    fn push(&mut self, line: LogLine) {
        self.bytes += line.text.len() + OVERHEAD;
        self.lines.push_back(line);
        while self.bytes > LARGEST
            && let Some(oldest) = self.lines.pop_front()
        {
            self.bytes -= oldest.text.len() + OVERHEAD;
        }
    }

    /// Adds lines before the others.
    fn add_earlier(&mut self, earlier: Vec<LogLine>) {
        let later = std::mem::take(&mut self.lines);
        self.bytes = 0;
        earlier.into_iter().chain(later).for_each(|line| self.push(line));
    }
}

impl JobLog {
    pub(crate) fn new(context: &Context, job: &str, life: Duration) -> Arc<Self> {
        Arc::new(Self {
            store: Arc::clone(&context.store),
            encryption: context.run.holder.encryption.clone(),
            job: job.to_owned(),
            id: context.id,
            attempt: context.attempt,
            life: life.min(LONGEST),
            state: Mutex::default(),
        })
    }

    fn add(&self, text: &str) {
        let text = text.get(..text.floor_char_boundary(LONGEST_LINE)).unwrap_or_default();
        let mut state = self.state.lock();
        state.added += 1;
        let (at_ms, attempt) = (self.store.now_ms(), self.attempt);
        state.push(LogLine { at_ms, attempt, text: text.to_owned() });
    }

    /// Runs a handler, and stores its lines meanwhile.
    pub(crate) async fn keep<T>(self: Arc<Self>, work: impl Future<Output = T>) -> T {
        let mut work = pin!(CURRENT.scope(Arc::clone(&self), work));
        let mut write = interval_at(Instant::now() + WRITE, WRITE);
        write.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        // The handler goes on while lines are stored.
        let mut writing: OptionFuture<BoxFuture<'_, ()>> = None.into();
        loop {
            tokio::select! {
                biased;
                done = &mut work => return done,
                Some(()) = &mut writing => writing = None.into(),
                _ = write.tick() => writing = Some(self.store_lines().boxed()).into(),
            }
        }
    }

    /// Stores the lines, if there are new ones. A failure is only logged.
    pub(crate) async fn store_lines(&self) {
        {
            let state = self.state.lock();
            if state.added == state.stored {
                return;
            }
        }
        let stored = tokio::time::timeout(WRITE, self.try_store()).await;
        let stored = stored.unwrap_or_else(|_| Err(Error::store("it does not answer")));
        if let Err(error) = stored {
            tracing::warn!(
                %error, id = %self.id, job = self.job,
                "could not store the log lines of a job; the next write tries again",
            );
        }
    }

    async fn try_store(&self) -> Result<(), Error> {
        if !self.state.lock().is_read {
            let earlier = read(&*self.store, self.encryption.as_ref(), &self.job, self.id).await?;
            let mut state = self.state.lock();
            state.is_read = true;
            state.add_earlier(earlier);
        }
        let (lines, added) = {
            let state = self.state.lock();
            (rmp_serde::to_vec(&state.lines).map_err(Error::store)?, state.added)
        };
        let lines = match &self.encryption {
            None => lines,
            Some(encryption) => encryption.encrypt(&self.job, &lines).map_err(Error::Store)?,
        };
        self.store.put_note(&key(self.id), &lines, self.life).await?;
        // Lines that were added meanwhile are stored by the next write.
        self.state.lock().stored = added;
        Ok(())
    }
}

fn key(id: JobId) -> String {
    format!("log:{id}")
}

async fn read(
    store: &dyn Store,
    encryption: Option<&PayloadEncryption>,
    job: &str,
    id: JobId,
) -> Result<Vec<LogLine>, Error> {
    let Some(lines) = store.read_note(&key(id)).await? else { return Ok(Vec::new()) };
    let lines = match encryption {
        None => lines,
        Some(encryption) => encryption.decrypt(job, &lines).map_err(Error::Store)?,
    };
    rmp_serde::from_slice(&lines).map_err(Error::store)
}

impl Queue {
    /// Returns the log lines of a job, the oldest first; none if its worker does not
    /// [keep logs](crate::Worker::keep_logs), or if they are forgotten.
    ///
    /// # Errors
    /// [`Error::Store`]; also if the lines cannot be decrypted.
    pub async fn log(&self, job: &str, id: JobId) -> Result<Vec<LogLine>, Error> {
        read(&**self.store(), self.encryption(), job, id).await
    }
}

impl Context {
    /// Adds a line to the job's log, if the worker [keeps logs](crate::Worker::keep_logs).
    ///
    /// ```
    /// # use scale_queue::{Context, Job, Queue, Worker};
    /// # use serde::{Deserialize, Serialize};
    /// # use std::time::Duration;
    /// # #[derive(Serialize, Deserialize)] struct Import { file: u32 }
    /// # impl Job for Import { const NAME: &'static str = "import"; }
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), scale_queue::Error> {
    /// # let queue = Queue::memory();
    /// let worker = Worker::new(&queue).keep_logs(Duration::from_hours(24));
    /// let worker = worker.handle(|job: Import, context: Context| async move {
    ///     context.log(&format!("reads file {}", job.file));
    /// });
    /// let pushed = queue.push(Import { file: 7 }).await?;
    /// # tokio::spawn(worker.run(std::future::pending::<()>()));
    /// # while queue.stats("default").await?.done_total == 0 { tokio::task::yield_now().await; }
    /// let lines = queue.log(Import::NAME, pushed.id).await?;
    /// assert_eq!(lines[0].text, "reads file 7");
    /// # Ok(()) }
    /// ```
    pub fn log(&self, line: &str) {
        // Of this job only: a task may hold the contexts of several.
        if let Some(log) = &self.log {
            log.add(line);
        }
    }
}

/// Layer of `tracing` that adds the events of a handler to the log of its job. Events of tasks that
/// the handler spawns are not added.
///
/// ```
/// use scale_queue::log::JobLogs;
/// use tracing_subscriber::layer::SubscriberExt;
///
/// let subscriber = tracing_subscriber::registry().with(JobLogs::new());
/// # let _ = subscriber;
/// ```
#[cfg(feature = "logs")]
#[derive(Clone, Copy, Debug, Default)]
pub struct JobLogs(());

#[cfg(feature = "logs")]
impl JobLogs {
    /// Creates the layer. Use a filter of `tracing-subscriber` to choose events.
    pub fn new() -> Self {
        Self::default()
    }
}

#[cfg(feature = "logs")]
impl<S: tracing::Subscriber> tracing_subscriber::Layer<S> for JobLogs {
    fn on_event(&self, event: &tracing::Event<'_>, _: tracing_subscriber::layer::Context<'_, S>) {
        // Outside of handlers there is none.
        let _ = CURRENT.try_with(|log| {
            let mut text = Text(event.metadata().level().to_string());
            event.record(&mut text);
            log.add(&text.0);
        });
    }
}

/// Text of an event: its level, its message, then its fields.
#[cfg(feature = "logs")]
struct Text(String);

#[cfg(feature = "logs")]
impl tracing::field::Visit for Text {
    fn record_debug(&mut self, field: &tracing::field::Field, value: &dyn std::fmt::Debug) {
        use std::fmt::Write;
        // Writing to a string cannot fail.
        let _ = match field.name() {
            "message" => write!(self.0, " {value:?}"),
            name => write!(self.0, " {name}={value:?}"),
        };
    }

    fn record_str(&mut self, field: &tracing::field::Field, value: &str) {
        if field.name() == "message" {
            self.0.push(' ');
            self.0.push_str(value);
        } else {
            self.record_debug(field, &value);
        }
    }
}
