//! What comes of an attempt, and what is done about it. Pure: no store, no clock.

use std::error::Error;
use std::fmt;
use std::time::Duration;

use crate::retry::Retry;

/// Any error a handler may return.
pub type BoxError = Box<dyn Error + Send + Sync>;

/// An error that ends a job: no further attempt, straight to the dead set.
///
/// It is recognised anywhere in a chain of causes: inside `anyhow::Error`, behind `thiserror`'s `#[from]`, `#[source]` and
/// `#[error(transparent)]`, in a `Box<dyn Error + Send + Sync>`, in an `io::Error`.
///
/// ```
/// async fn handler() -> Result<(), scale_queue::worker::BoxError> {
///     Err(scale_queue::Discard::because("the address does not exist").into())
/// }
/// ```
#[derive(Debug)]
pub struct Discard(DiscardCause);

/// The cause of every [`Discard`]. A wrapper may hide the type of the error it holds, but passes on that error's `source`.
#[derive(Debug)]
struct DiscardCause(String);

impl Discard {
    /// With the reason that the dead set will show.
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

/// An error that runs the job again after a delay, without counting this attempt: for a partner that says when to come back. Like
/// [`Discard`], it is recognised anywhere in a chain of causes.
#[derive(Debug)]
pub struct Later(LaterCause);

#[derive(Debug)]
struct LaterCause(Duration);

impl Later {
    /// Not before that time has passed.
    pub fn after(delay: Duration) -> Self {
        Self(LaterCause(delay))
    }
}

impl fmt::Display for Later {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl Error for Later {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        Some(&self.0)
    }
}

impl fmt::Display for LaterCause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "again in {:?}", self.0)
    }
}

impl Error for LaterCause {}

/// The first error of that type in a chain of causes, the error itself included.
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

/// Causes that are looked through: a chain that leads back to itself must not hold a worker.
const MOST_CAUSES: usize = 100;

/// How an attempt ended.
#[derive(Debug)]
pub(crate) enum Ending {
    Done,
    Failed(BoxError),
    TimedOut(Duration),
    Panicked(String),
    /// It was told to stop: the worker shuts down, or has lost the job's lease or permit.
    Cancelled,
    /// Its batch was cancelled before it began.
    Skipped,
    /// It did not begin: a limit has no room. It waits in that limit's line.
    Blocked(Blocked),
    /// It did not begin: the store did not say whether its limits let it.
    Unadmitted,
    /// It did not begin: its payload does not fit the type.
    Unfit(String),
}

/// A line that a job waits in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Blocked {
    /// The name of the line.
    pub(crate) line: String,
    /// When to try again, should nothing wake it.
    pub(crate) retry_in: Duration,
    /// Of a rate: a place comes free so often.
    pub(crate) pace: Option<Duration>,
    /// Of permits: the key, and how many there are.
    pub(crate) permits: Option<(String, u32)>,
}

/// What is done about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    Done,
    /// Another attempt after the delay: this one has failed.
    Retry {
        delay: Duration,
        reason: String,
    },
    /// Another attempt after the delay: this one does not count.
    Defer(Duration),
    Block(Blocked),
    /// Its payload cannot be read here: another worker may be newer.
    Unfit(String),
    Dead {
        reason: String,
    },
    HandBack,
}

/// The longest reason kept, bytes.
const LONGEST_REASON: usize = 2_048;
/// How long a job waits whose limits could not be asked.
const UNADMITTED: Duration = Duration::from_secs(1);

impl Ending {
    /// The word for it in metrics.
    pub(crate) fn label(&self) -> &'static str {
        match self {
            Self::Done => "done",
            Self::Failed(_) => "failed",
            Self::TimedOut(_) => "timed_out",
            Self::Panicked(_) => "panicked",
            Self::Cancelled => "cancelled",
            Self::Skipped => "skipped",
            Self::Blocked(_) => "blocked",
            Self::Unadmitted => "unadmitted",
            Self::Unfit(_) => "unfit",
        }
    }

    /// `failed` counts this attempt.
    pub(crate) fn verdict(self, retry: Retry, failed: u16, dice: f64) -> Verdict {
        let reason = match self {
            Self::Done | Self::Skipped => return Verdict::Done,
            Self::Cancelled => return Verdict::HandBack,
            Self::Blocked(blocked) => return Verdict::Block(blocked),
            Self::Unadmitted => return Verdict::Defer(UNADMITTED.mul_f64(0.5 + dice)),
            Self::Unfit(reason) => return Verdict::Unfit(cut(&reason)),
            Self::Failed(error) => {
                if let Some(LaterCause(delay)) = find(&*error) {
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

/// The error and its causes, in one line.
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

/// Short, and without the zero bytes that some databases refuse in a text: a reason must never be why a job cannot be settled.
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
        assert_eq!(failed("no"), Verdict::Retry { delay: Duration::from_secs(1), reason: "no".into() });
        assert_eq!(failed(Discard::because("never")), Verdict::Dead { reason: "never".into() });
        assert_eq!(failed(Later::after(Duration::from_secs(9))), Verdict::Defer(Duration::from_secs(9)));
        assert_eq!(Ending::Cancelled.verdict(Retry::never(), 1, 0.0), Verdict::HandBack);
        assert_eq!(Ending::Panicked("x".into()).verdict(Retry::never(), 1, 0.0), Verdict::Dead { reason: "panicked: x".into() });
        assert!(
            matches!(Ending::Unadmitted.verdict(Retry::never(), 1, 0.0), Verdict::Defer(_)),
            "a blip of the store kills nobody"
        );
    }

    /// Every way in which an error of ours reaches the worker inside another one.
    #[derive(Debug, thiserror::Error)]
    enum Wrapped {
        #[error("from: {0}")]
        From(#[from] Discard),
        #[error(transparent)]
        Transparent(#[from] Later),
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
            ("source in source", Wrapped::Source { cause: Wrapped::Source { cause: error() }.into() }.into()),
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
            assert!(matches!(&verdict, Verdict::Dead { reason } if reason.ends_with("never")), "{wrapper}: {verdict:?}");
        }
        assert_eq!(failed(Wrapped::from(Discard::because("never"))), Verdict::Dead { reason: "from: never".into() });
        assert_eq!(failed(anyhow::Error::from(Discard::because("never"))), Verdict::Dead { reason: "never".into() });
        let question_mark = || -> anyhow::Result<()> { Err(Discard::because("never"))? };
        assert_eq!(failed(question_mark().unwrap_err()), Verdict::Dead { reason: "never".into() });
    }

    #[test]
    fn a_later_is_recognised_in_every_wrapper() {
        let delay = Duration::from_secs(9);
        for (wrapper, error) in wrappers(|| Later::after(delay).into()) {
            assert_eq!(failed(error), Verdict::Defer(delay), "{wrapper}");
        }
        assert_eq!(failed(Wrapped::from(Later::after(delay))), Verdict::Defer(delay));
        assert_eq!(failed(anyhow::Error::from(Later::after(delay))), Verdict::Defer(delay));
    }

    #[test]
    fn a_megabyte_of_error_is_cut() {
        let Verdict::Retry { reason, .. } = failed("é".repeat(500_000)) else { panic!() };
        assert!(reason.len() <= LONGEST_REASON);
        let Verdict::Retry { reason, .. } = failed("a\0b") else { panic!() };
        assert_eq!(reason, "a b");
    }
}
