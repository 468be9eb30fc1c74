//! Options of a push: when and where a job runs, how often, and how it is kept unique.

use std::time::{Duration, SystemTime};

#[cfg(doc)]
use crate::error::Error;
use crate::job::{Job, Priority};
use crate::limit::LONGEST;

/// Maximum time for which a unique key is held, so that a job that never ends cannot block its key
/// forever.
pub(crate) const UNIQUE_FOR: Duration = Duration::from_hours(24);

/// Options of a push, for any number of jobs: see [`Job::with`].
#[derive(Clone, Debug, Default)]
#[must_use = "options do nothing until a job is pushed with them"]
pub struct PushOptions {
    pub(crate) queue: Option<String>,
    start: Start,
    expiry: Option<Expiry>,
    unique_for: Option<Duration>,
    pub(crate) unique_until_start: bool,
    /// Delay, and longest time since the first push.
    pub(crate) debounce: Option<(Duration, Duration)>,
    pub(crate) priority: Option<Priority>,
    pub(crate) attempts: Option<u16>,
    pub(crate) timeout: Option<Duration>,
    pub(crate) retry_for: Option<Duration>,
    pub(crate) keep_result: Option<Duration>,
    pub(crate) metadata: Vec<(String, String)>,
    pub(crate) tags: Vec<String>,
}

/// Time before which a job does not begin.
#[derive(Clone, Copy, Debug)]
enum Start {
    After(Duration),
    /// Ms since 1970.
    At(u64),
}

impl Default for Start {
    fn default() -> Self {
        Self::After(Duration::ZERO)
    }
}

/// Time after which a job does not begin any more.
#[derive(Clone, Copy, Debug)]
enum Expiry {
    After(Duration),
    /// Ms since 1970.
    At(u64),
}

/// A job with options, made by [`Job::with`].
#[derive(Clone, Debug)]
#[must_use = "a job does nothing until it is pushed"]
pub struct WithOptions<J> {
    pub(crate) job: J,
    pub(crate) options: PushOptions,
}

/// Anything that can be pushed: a job, or a job [with options](Job::with).
pub trait IntoPush {
    /// Type of the job.
    type Job: Job;

    /// Returns the job and its options.
    fn into_push(self) -> (Self::Job, PushOptions);
}

impl<J: Job> IntoPush for J {
    type Job = J;

    fn into_push(self) -> (J, PushOptions) {
        (self, PushOptions::default())
    }
}

impl<J: Job> IntoPush for WithOptions<J> {
    type Job = J;

    fn into_push(self) -> (J, PushOptions) {
        (self.job, self.options)
    }
}

/// Calls a macro with the definitions of all options, so that each is defined once, for
/// [`PushOptions`] and for [`Push`](crate::Push).
macro_rules! each_option {
    ($define:ident) => {
        $define! {
            /// Sets the queue, instead of the job's own.
            fn to(self, queue: &str) {
                self.queue = Some(queue.to_owned());
            }

            /// Delays the job by this time, by the store's clock. In a chain, the delay begins when
            /// the job before is done.
            fn delay(self, delay: Duration) {
                self.start = Start::After(delay);
            }

            /// Delays the job until this time. A time in the past means now.
            fn at(self, moment: std::time::SystemTime) {
                self.start = Start::At(unix_ms(moment));
            }

            /// Sets how long after its push the job may begin. A job that has not begun by then is
            /// removed without a run when its turn comes: it is not listed as dead, its chain ends,
            /// and in its batch it counts as dead. Later attempts of a job that has begun are
            /// bounded too.
            fn expires_after(self, time: Duration) {
                self.expiry = Some(Expiry::After(time));
            }

            /// Sets the time by which the job must have begun; otherwise like
            /// [`expires_after`](Self::expires_after).
            fn expires_at(self, moment: std::time::SystemTime) {
                self.expiry = Some(Expiry::At(unix_ms(moment)));
            }

            /// Sets how long the job's unique key is held at most. Default: a day.
            fn unique_for(self, time: Duration) {
                self.unique_for = Some(time);
            }

            /// Releases the job's unique key when its first attempt begins: see
            /// [`UNIQUE_UNTIL_START`](Job::UNIQUE_UNTIL_START).
            fn unique_until_start(self) {
                self.unique_until_start = true;
            }

            /// Runs one job for many pushes in a row: the job is due after `wait`, and a push with
            /// the same [unique key](Job::unique_key) before that replaces its content and begins
            /// the wait again. The job is due `at_most` after the first of these pushes. A push
            /// after the job is due, or while it runs, is a new job, so the last content always
            /// runs.
            ///
            /// For a job without a unique key the push fails with [`Error::Setting`]. In a chain or
            /// batch, this has no effect.
            ///
            /// ```
            /// # use scale_queue::{Job, Queue};
            /// # use std::time::Duration;
            /// # #[derive(serde::Serialize, serde::Deserialize)] struct Index { page: i64 }
            /// impl Job for Index {
            ///     const NAME: &'static str = "index";
            ///
            ///     fn unique_key(&self) -> Option<String> {
            ///         Some(self.page.to_string())
            ///     }
            /// }
            /// # #[tokio::main(flavor = "current_thread")]
            /// # async fn main() -> Result<(), scale_queue::Error> {
            /// # let queue = Queue::memory();
            /// for _keystroke in 0..10 {
            ///     let push = queue.push(Index { page: 7 });
            ///     push.debounce(Duration::from_secs(2), Duration::from_secs(30)).await?;
            /// }
            /// assert_eq!(queue.stats("default").await?.scheduled, 1);
            /// # Ok(()) }
            /// ```
            fn debounce(self, wait: Duration, at_most: Duration) {
                self.debounce = Some((wait, at_most));
            }

            /// Sets the priority among the waiting jobs of the queue, instead of
            /// [`PRIORITY`](Job::PRIORITY).
            fn priority(self, priority: crate::push::Priority) {
                self.priority = Some(priority);
            }

            /// Sets the total number of attempts, from 1 to 32,767, instead of that of
            /// [`RETRY`](Job::RETRY); the delays between attempts stay the same.
            fn attempts(self, attempts: u16) {
                self.attempts = Some(attempts.max(1));
            }

            /// Sets the timeout of each attempt, instead of [`TIMEOUT`](Job::TIMEOUT).
            fn timeout(self, timeout: Duration) {
                self.timeout = Some(timeout);
            }

            /// Sets how long after its push the job is retried, instead of
            /// [`RETRY_FOR`](Job::RETRY_FOR).
            fn retry_for(self, time: Duration) {
                self.retry_for = Some(time);
            }

            /// Keeps the result of the handler for this time, instead of
            /// [`KEEP_RESULT`](Job::KEEP_RESULT): see [`Queue::wait`](crate::Queue::wait).
            fn keep_result(self, time: Duration) {
                self.keep_result = Some(time);
            }

            /// Adds a tag to those of [`Job::tags`].
            fn tag(self, tag: &str) {
                self.tags.push(tag.to_owned());
            }

            /// Adds an entry to the job's [metadata](crate::Context::metadata). It replaces an
            /// entry of the same name, also one added by
            /// [`Queue::propagating`](crate::Queue::propagating).
            fn metadata(self, name: &str, value: &str) {
                set(&mut self.metadata, (name.to_owned(), value.to_owned()));
            }
        }
    };
}
pub(crate) use each_option;

macro_rules! set_in_place {
    ($(
        $(#[$about:meta])*
        fn $name:ident($self:ident $(, $value:ident: $type:ty)*) $body:block
    )*) => {
        impl PushOptions {
            $($(#[$about])* pub fn $name(mut $self $(, $value: $type)*) -> Self {
                $body
                $self
            })*
        }
    };
}

each_option!(set_in_place);

impl PushOptions {
    /// Creates options that change nothing.
    pub fn new() -> Self {
        Self::default()
    }

    /// Returns the delay of a push at that time.
    pub(crate) fn delay_from(&self, now_ms: u64) -> Duration {
        match self.start {
            // No store's clock supports longer times.
            Start::After(delay) => delay.min(LONGEST),
            Start::At(at) => Duration::from_millis(at.saturating_sub(now_ms)).min(LONGEST),
        }
    }

    /// Returns the time by which the job must have begun, if that was set as a time: ms since 1970.
    pub(crate) fn expires_at_ms(&self) -> Option<u64> {
        match self.expiry {
            Some(Expiry::At(at)) => Some(at),
            _ => None,
        }
    }

    /// Returns the time after a push at that time for which the job may begin.
    pub(crate) fn expires_from(&self, now_ms: u64) -> Option<Duration> {
        Some(match self.expiry? {
            Expiry::After(time) => time.min(LONGEST),
            Expiry::At(at) => Duration::from_millis(at.saturating_sub(now_ms)).min(LONGEST),
        })
    }

    pub(crate) fn unique_life(&self) -> Duration {
        self.unique_for.unwrap_or(UNIQUE_FOR)
    }
}

/// Sets an entry of metadata; replaces one of the same name.
pub(crate) fn set(metadata: &mut Vec<(String, String)>, entry: (String, String)) {
    match metadata.iter_mut().find(|(name, _)| *name == entry.0) {
        Some(known) => *known = entry,
        None => metadata.push(entry),
    }
}

fn unix_ms(moment: SystemTime) -> u64 {
    moment.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_millis() as u64
}
