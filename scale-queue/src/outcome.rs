//! What comes of an attempt, and what is done about it. Pure: no store, no clock.

use std::error::Error;
use std::fmt;
use std::time::Duration;

use crate::retry::Retry;

/// Any error a handler may return.
pub type BoxError = Box<dyn Error + Send + Sync>;

/// An error that ends a job: no further attempt, straight to the dead set.
///
/// ```
/// async fn handler() -> Result<(), scale_queue::worker::BoxError> {
///     Err(scale_queue::Discard::because("the address does not exist").into())
/// }
/// ```
#[derive(Debug)]
pub struct Discard(String);

impl Discard {
    /// With the reason that the dead set will show.
    pub fn because(reason: impl Into<String>) -> Self {
        Self(reason.into())
    }
}

impl fmt::Display for Discard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Error for Discard {}

/// An "error" that is none: try again later, without counting this attempt. For a partner that says when to come back.
#[derive(Debug)]
pub struct Later {
    delay: Duration,
    /// The job has its turn then.
    turn: bool,
}

impl Later {
    /// Not before that time has passed.
    pub fn after(delay: Duration) -> Self {
        Self { delay, turn: false }
    }

    pub(crate) fn turn(delay: Duration, turn: bool) -> Self {
        Self { delay, turn }
    }
}

impl fmt::Display for Later {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "again in {:?}", self.delay)
    }
}

impl Error for Later {}

/// How an attempt ended.
#[derive(Debug)]
pub(crate) enum Ending {
    Done,
    Failed(BoxError),
    TimedOut(Duration),
    Panicked(String),
    /// The worker shuts down, or has lost the job's lease.
    Cancelled,
    /// Its batch was cancelled before it began.
    Skipped,
}

/// What is done about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    Done,
    /// Another attempt after the delay; `counted` says whether this one was one.
    Again {
        delay: Duration,
        counted: bool,
        /// It has its turn then.
        turn: bool,
        reason: String,
    },
    Dead {
        reason: String,
    },
    HandBack,
}

/// The longest reason kept, bytes.
const LONGEST_REASON: usize = 2_048;

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
        }
    }

    /// `failed` counts this attempt.
    pub(crate) fn verdict(self, retry: Retry, failed: u16, dice: f64) -> Verdict {
        let reason = match self {
            Self::Done | Self::Skipped => return Verdict::Done,
            Self::Cancelled => return Verdict::HandBack,
            Self::Failed(error) => match error.downcast::<Later>() {
                Ok(later) => {
                    let Later { delay, turn } = *later;
                    return Verdict::Again { delay, counted: false, turn, reason: String::new() };
                }
                Err(error) if error.is::<Discard>() => return Verdict::Dead { reason: cut(&error.to_string()) },
                Err(error) => chain(&*error),
            },
            Self::TimedOut(limit) => format!("took longer than {limit:?}"),
            Self::Panicked(words) => format!("panicked: {words}"),
        };
        let reason = cut(&reason);
        match retry.after(failed, dice) {
            Some(delay) => Verdict::Again { delay, counted: true, turn: false, reason },
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
        let again = Verdict::Again { delay: Duration::from_secs(1), counted: true, turn: false, reason: "no".into() };
        assert_eq!(failed("no"), again);
        assert_eq!(failed(Discard::because("never")), Verdict::Dead { reason: "never".into() });
        let later = Later::after(Duration::from_secs(9));
        assert_eq!(
            failed(later),
            Verdict::Again { delay: Duration::from_secs(9), counted: false, turn: false, reason: String::new() }
        );
        assert_eq!(Ending::Cancelled.verdict(Retry::never(), 1, 0.0), Verdict::HandBack);
        assert_eq!(Ending::Panicked("x".into()).verdict(Retry::never(), 1, 0.0), Verdict::Dead { reason: "panicked: x".into() });
    }

    #[test]
    fn a_megabyte_of_error_is_cut() {
        let Verdict::Again { reason, .. } = failed("é".repeat(500_000)) else { panic!() };
        assert!(reason.len() <= LONGEST_REASON);
        let Verdict::Again { reason, .. } = failed("a\0b") else { panic!() };
        assert_eq!(reason, "a b");
    }
}
