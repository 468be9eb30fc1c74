//! Outcome of an attempt, and the decision that follows. Pure: no store, no clock.

use std::error::Error;
use std::fmt;
use std::time::Duration;

use crate::retry::Retry;

/// Any error a handler may return.
pub type BoxError = Box<dyn Error + Send + Sync>;

/// Error that ends a job: it becomes dead at once, without further attempts.
///
/// It is recognized anywhere in a chain of causes: inside `anyhow::Error`, behind `thiserror`'s
/// `#[from]`, `#[source]` and `#[error(transparent)]`, in a `Box<dyn Error + Send + Sync>`, in an
/// `io::Error`.
///
/// ```
/// async fn handler() -> Result<(), scale_queue::worker::BoxError> {
///     Err(scale_queue::outcome::Discard::because("the address does not exist").into())
/// }
/// ```
#[derive(Debug)]
pub struct Discard(DiscardCause);

/// Cause of every [`Discard`]. A wrapper may hide the type of the error it contains, but still
/// returns that error's `source`.
#[derive(Debug)]
struct DiscardCause(String);

impl Discard {
    /// Creates the error with the reason that is shown with the dead job.
    pub fn because(reason: impl Into<String>) -> Self {
        Self(DiscardCause(reason.into()))
    }
}

impl fmt::Display for Discard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.0)
    }
}

impl Error for Discard {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        Some(&self.0)
    }
}

impl fmt::Display for DiscardCause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Error for DiscardCause {}

/// Error that runs the job again after a delay, without counting this attempt, for example for an
/// API that answers with `Retry-After`. Like [`Discard`], it is recognized anywhere in a chain of
/// causes.
#[derive(Debug)]
pub struct Snooze(SnoozeCause);

#[derive(Debug)]
struct SnoozeCause(Duration);

impl Snooze {
    /// Runs the job again after this delay.
    pub fn after(delay: Duration) -> Self {
        Self(SnoozeCause(delay))
    }
}

impl fmt::Display for Snooze {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl Error for Snooze {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        Some(&self.0)
    }
}

impl fmt::Display for SnoozeCause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "again in {:?}", self.0)
    }
}

impl Error for SnoozeCause {}

/// Finds the first error of type `T` in a chain of causes, the error itself included.
fn find<'e, T: Error + 'static>(error: &'e (dyn Error + 'static)) -> Option<&'e T> {
    let mut next = Some(error);
    for _ in 0..MOST_CAUSES {
        let error = next?;
        if let Some(found) = error.downcast_ref() {
            return Some(found);
        }
        next = error.source();
    }
    None
}

/// Maximum number of causes searched: a cyclic chain must not block a worker.
const MOST_CAUSES: usize = 100;

/// Outcome of an attempt.
#[derive(Debug)]
pub(crate) enum Ending {
    Done,
    Failed(BoxError),
    TimedOut(Duration),
    Panicked(String),
    /// The attempt was cancelled: the worker shuts down, or has lost the job's lease or permit.
    Cancelled,
    /// The job did not begin: its batch was cancelled before.
    Skipped,
    /// The job did not begin: it has expired.
    Expired,
    /// The job did not begin: a limit has no room. The job waits in that limit's line.
    Blocked(Blocked),
    /// The job did not begin: the store did not answer whether its limits have room.
    Unadmitted,
    /// The job did not begin: its payload cannot be parsed as the job's type.
    Unfit(String),
}

/// Line in which a job waits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Blocked {
    /// Name of the line.
    pub(crate) line: String,
    /// Delay until the next try if no wake-up arrives before.
    pub(crate) retry_in: Duration,
    /// Interval between two free slots of a rate limit.
    pub(crate) pace: Option<Duration>,
    /// Key and number of permits of a concurrency limit.
    pub(crate) permits: Option<(String, u32)>,
}

/// Decision about a job after an attempt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    Done,
    /// Remove the job: it has expired.
    Expired,
    /// This attempt has failed: run the job again after the delay.
    Retry {
        delay: Duration,
        reason: String,
    },
    /// Run the job again after the delay, without counting this attempt.
    Defer(Duration),
    Block(Blocked),
    /// The payload cannot be parsed here; a newer worker may be able to.
    Unfit(String),
    Dead {
        reason: String,
    },
    HandBack,
}

/// Maximum length of a stored reason, in bytes.
const LONGEST_REASON: usize = 2_048;
/// Delay of a job whose limits could not be checked.
const UNADMITTED: Duration = Duration::from_secs(1);

impl Ending {
    /// Returns the label value for metrics.
    pub(crate) fn label(&self) -> &'static str {
        match self {
            Self::Done => "done",
            Self::Failed(_) => "failed",
            Self::TimedOut(_) => "timed_out",
            Self::Panicked(_) => "panicked",
            Self::Cancelled => "cancelled",
            Self::Skipped => "skipped",
            Self::Expired => "expired",
            Self::Blocked(_) => "blocked",
            Self::Unadmitted => "unadmitted",
            Self::Unfit(_) => "unfit",
        }
    }

    /// Decides what happens to the job. `failed` includes this attempt.
    pub(crate) fn verdict(self, retry: Retry, failed: u16, dice: f64) -> Verdict {
        let reason = match self {
            Self::Done | Self::Skipped => return Verdict::Done,
            Self::Expired => return Verdict::Expired,
            Self::Cancelled => return Verdict::HandBack,
            Self::Blocked(blocked) => return Verdict::Block(blocked),
            Self::Unadmitted => return Verdict::Defer(UNADMITTED.mul_f64(0.5 + dice)),
            Self::Unfit(reason) => return Verdict::Unfit(cut(&reason)),
            Self::Failed(error) => {
                if let Some(SnoozeCause(delay)) = find(&*error) {
                    return Verdict::Defer(*delay);
                }
                let reason = chain(&*error);
                if find::<DiscardCause>(&*error).is_some() {
                    return Verdict::Dead { reason: cut(&reason) };
                }
                reason
            }
            Self::TimedOut(limit) => format!("took longer than {limit:?}"),
            Self::Panicked(words) => format!("panicked: {words}"),
        };
        let reason = cut(&reason);
        match retry.after(failed, dice) {
            Some(delay) => Verdict::Retry { delay, reason },
            None => Verdict::Dead { reason },
        }
    }
}

/// Formats the error and its causes in one line.
fn chain(error: &(dyn Error + Send + Sync)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(next) = cause.filter(|_| text.len() < LONGEST_REASON) {
        let words = next.to_string();
        if !text.ends_with(&words) {
            text = format!("{text}: {words}");
        }
        cause = next.source();
    }
    text
}

/// Shortens a reason, and replaces zero bytes, which some databases reject in text: a reason must
/// never be the cause that a job cannot be settled.
fn cut(text: &str) -> String {
    text[..text.floor_char_boundary(LONGEST_REASON)].replace('\0', " ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failed(error: impl Into<BoxError>) -> Verdict {
        Ending::Failed(error.into()).verdict(Retry::exponential(3), 1, 1.0)
    }

    #[test]
    fn each_ending_has_its_verdict() {
        assert_eq!(
            failed("no"),
            Verdict::Retry { delay: Duration::from_secs(1), reason: "no".into() }
        );
        assert_eq!(failed(Discard::because("never")), Verdict::Dead { reason: "never".into() });
        assert_eq!(
            failed(Snooze::after(Duration::from_secs(9))),
            Verdict::Defer(Duration::from_secs(9))
        );
        assert_eq!(Ending::Cancelled.verdict(Retry::never(), 1, 0.0), Verdict::HandBack);
        assert_eq!(
            Ending::Panicked("x".into()).verdict(Retry::never(), 1, 0.0),
            Verdict::Dead { reason: "panicked: x".into() }
        );
        assert!(
            matches!(Ending::Unadmitted.verdict(Retry::never(), 1, 0.0), Verdict::Defer(_)),
            "a short failure of the store makes no job dead"
        );
    }

    /// Ways in which an error of this crate reaches the worker inside another error.
    #[derive(Debug, thiserror::Error)]
    enum Wrapped {
        #[error("from: {0}")]
        From(#[from] Discard),
        #[error(transparent)]
        Transparent(#[from] Snooze),
        #[error("with a source")]
        Source {
            #[source]
            cause: BoxError,
        },
        #[error(transparent)]
        Anyhow(#[from] anyhow::Error),
    }

    fn wrappers(error: impl Fn() -> BoxError) -> Vec<(&'static str, BoxError)> {
        let boxed = |error: BoxError| anyhow::Error::from_boxed(error);
        vec![
            ("box", error()),
            ("anyhow", boxed(error()).into()),
            ("anyhow with context", boxed(error()).context("a mail").context("an order").into()),
            ("source", Wrapped::Source { cause: error() }.into()),
            (
                "source in source",
                Wrapped::Source { cause: Wrapped::Source { cause: error() }.into() }.into(),
            ),
            ("anyhow in an error", Wrapped::Anyhow(boxed(error())).into()),
            ("io::Error", std::io::Error::other(error()).into()),
            ("io::Error in anyhow", anyhow::Error::new(std::io::Error::other(error())).into()),
            ("Arc", std::sync::Arc::new(Wrapped::Source { cause: error() }).into()),
        ]
    }

    #[test]
    fn a_discard_is_recognised_in_every_wrapper() {
        for (wrapper, error) in wrappers(|| Discard::because("never").into()) {
            let verdict = failed(error);
            assert!(
                matches!(&verdict, Verdict::Dead { reason } if reason.ends_with("never")),
                "{wrapper}: {verdict:?}"
            );
        }
        assert_eq!(
            failed(Wrapped::from(Discard::because("never"))),
            Verdict::Dead { reason: "from: never".into() }
        );
        assert_eq!(
            failed(anyhow::Error::from(Discard::because("never"))),
            Verdict::Dead { reason: "never".into() }
        );
        let question_mark = || -> anyhow::Result<()> { Err(Discard::because("never"))? };
        assert_eq!(failed(question_mark().unwrap_err()), Verdict::Dead { reason: "never".into() });
    }

    #[test]
    fn a_later_is_recognised_in_every_wrapper() {
        let delay = Duration::from_secs(9);
        for (wrapper, error) in wrappers(|| Snooze::after(delay).into()) {
            assert_eq!(failed(error), Verdict::Defer(delay), "{wrapper}");
        }
        assert_eq!(failed(Wrapped::from(Snooze::after(delay))), Verdict::Defer(delay));
        assert_eq!(failed(anyhow::Error::from(Snooze::after(delay))), Verdict::Defer(delay));
    }

    #[test]
    fn a_megabyte_of_error_is_cut() {
        let Verdict::Retry { reason, .. } = failed("é".repeat(500_000)) else { panic!() };
        assert!(reason.len() <= LONGEST_REASON);
        let Verdict::Retry { reason, .. } = failed("a\0b") else { panic!() };
        assert_eq!(reason, "a b");
    }
}
