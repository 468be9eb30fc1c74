//! Outcome of an attempt, and the decision that follows. Pure: no store, no clock.

use std::any::Any;
use std::error::Error;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use crate::retry::{Retry, RetryRules, Then};

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

/// Error that gives the job back without counting this attempt, because the worker is about to
/// stop. [`Context::checkpoint`](crate::Context::checkpoint) returns it; like [`Discard`], it is
/// recognized anywhere in a chain of causes.
#[derive(Debug, thiserror::Error)]
#[error("the worker stops; the job goes on from its last checkpoint")]
pub struct Interrupted(#[from] InterruptedCause);

#[derive(Debug, Default, thiserror::Error)]
#[error("interrupted")]
pub(crate) struct InterruptedCause(());

/// Finds the first error of type `T` in a chain of causes, the error itself included.
fn find<'e, T: Error + 'static>(error: &'e (dyn Error + 'static)) -> Option<&'e T> {
    causes(error).find_map(|cause| cause.downcast_ref())
}

/// Returns whether a condition holds for an error or one of its causes.
pub(crate) fn find_if(
    error: &(dyn Error + 'static),
    condition: impl FnMut(&(dyn Error + 'static)) -> bool,
) -> bool {
    causes(error).any(condition)
}

/// Returns the error and its causes.
fn causes<'e>(
    error: &'e (dyn Error + 'static),
) -> impl Iterator<Item = &'e (dyn Error + 'static)> + use<'e> {
    std::iter::successors(Some(error), |error: &&'e (dyn Error + 'static)| {
        // The source of an `io::Error` is that of the error in it.
        match error.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref) {
            Some(inner) => Some(inner as &(dyn Error + 'static)),
            None => (*error).source(),
        }
    })
    .take(MOST_CAUSES)
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
    /// A job of a group has its turn before its delay is over.
    Early(Duration),
    /// The job did not begin: the circuit of its type is open for this time.
    Paused(Duration),
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
        /// Rule that matched the error.
        rule: Option<&'static str>,
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

/// Facts on which a verdict depends, besides the attempt itself.
pub(crate) struct Policy<'p> {
    /// Policy for failures that no rule matches.
    pub(crate) retry: Retry,
    pub(crate) rules: &'p RetryRules,
    /// Earlier failed attempts.
    pub(crate) failed: u16,
    /// Earlier failed attempts that a rule matched, by its name.
    pub(crate) by_rule: &'p [(String, u16)],
    /// Time within which the job may be retried.
    pub(crate) time_left: Option<Duration>,
}

impl Policy<'_> {
    /// Returns the number of earlier failures that no rule matched.
    pub(crate) fn plain_failures(&self) -> u16 {
        plain_failures(self.failed, self.by_rule)
    }

    fn failures_of(&self, rule: &str) -> u16 {
        self.by_rule.iter().find(|(name, _)| name == rule).map_or(0, |(_, count)| *count)
    }
}

/// Returns the number of failures that no rule matched.
pub(crate) fn plain_failures(failed: u16, by_rule: &[(String, u16)]) -> u16 {
    by_rule.iter().fold(failed, |rest, (_, count)| rest.saturating_sub(*count))
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
            Self::Paused(_) => "paused",
            Self::Early(_) => "early",
            Self::Unadmitted => "unadmitted",
            Self::Unfit(_) => "unfit",
        }
    }

    /// Returns whether the attempt counts as a failure for the circuit of its type of job.
    pub(crate) fn is_failure(&self) -> bool {
        match self {
            Self::TimedOut(_) | Self::Panicked(_) => true,
            Self::Failed(error) => !find_if(&**error, |cause| {
                cause.is::<SnoozeCause>()
                    || cause.is::<DiscardCause>()
                    || cause.is::<InterruptedCause>()
            }),
            _ => false,
        }
    }

    /// Decides what happens to the job. Errors, retry rules and delays are the application's code:
    /// a panic there is a failure of this job, and of no other.
    pub(crate) fn judged(self, policy: &Policy<'_>, dice: f64) -> Verdict {
        let judge = |ending: Self| catch_unwind(AssertUnwindSafe(|| ending.verdict(policy, dice)));
        judge(self).unwrap_or_else(|panic| {
            let words = format!("{} (while its failure was judged)", words_of(&*panic));
            let reason = format!("panicked: {words}");
            judge(Self::Panicked(words)).unwrap_or(Verdict::Dead { reason })
        })
    }

    /// Decides what happens to the job.
    fn verdict(self, policy: &Policy<'_>, dice: f64) -> Verdict {
        let (mut retry, mut failed, mut rule) = (policy.retry, policy.plain_failures(), None);
        let reason = match self {
            Self::Done | Self::Skipped => return Verdict::Done,
            Self::Expired => return Verdict::Expired,
            Self::Early(delay) => return Verdict::Defer(delay),
            Self::Cancelled => return Verdict::HandBack,
            Self::Blocked(blocked) => return Verdict::Block(blocked),
            Self::Unadmitted => return Verdict::Defer(UNADMITTED.mul_f64(0.5 + dice)),
            // Spread over some time, so that not all jobs begin at once.
            Self::Paused(pause) => return Verdict::Defer(pause.mul_f64(1.0 + dice / 8.0)),
            Self::Unfit(reason) => return Verdict::Unfit(cut(&reason)),
            Self::Failed(error) => {
                if let Some(SnoozeCause(delay)) = find(&*error) {
                    return Verdict::Defer(*delay);
                }
                if find::<InterruptedCause>(&*error).is_some() {
                    return Verdict::HandBack;
                }
                let reason = chain(&*error);
                if find::<DiscardCause>(&*error).is_some() {
                    return Verdict::Dead { reason: cut(&reason) };
                }
                match policy.rules.find(&*error) {
                    Some(Then::Discard) => return Verdict::Dead { reason: cut(&reason) },
                    Some(Then::Retry(name, by_rule)) => {
                        (retry, failed) = (by_rule, policy.failures_of(name));
                        rule = Some(name);
                    }
                    None => {}
                }
                reason
            }
            Self::TimedOut(limit) => format!("took longer than {limit:?}"),
            Self::Panicked(words) => format!("panicked: {words}"),
        };
        let reason = cut(&reason);
        let in_time = |delay: &Duration| policy.time_left.is_none_or(|left| *delay <= left);
        match retry.after(failed.saturating_add(1), dice).filter(in_time) {
            Some(delay) => Verdict::Retry { delay, reason, rule },
            None => Verdict::Dead { reason },
        }
    }
}

/// Returns the message of a panic.
pub(crate) fn words_of(panic: &(dyn Any + Send)) -> String {
    let text = panic
        .downcast_ref::<&str>()
        .map(ToString::to_string)
        .or_else(|| panic.downcast_ref::<String>().cloned());
    text.unwrap_or_else(|| "without a message".into())
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
        verdict(Ending::Failed(error.into()), Retry::exponential(3))
    }

    fn verdict(ending: Ending, retry: Retry) -> Verdict {
        let rules = RetryRules::new();
        let policy = Policy { retry, rules: &rules, failed: 0, by_rule: &[], time_left: None };
        ending.verdict(&policy, 1.0)
    }

    #[derive(Debug, thiserror::Error)]
    #[error("busy")]
    struct Busy;

    /// Each rule counts its own failures, and the first that matches applies.
    #[test]
    fn rules_apply_by_kind_of_error() {
        let two = Retry::custom(2, |_| Duration::from_secs(7));
        let rules = RetryRules::new()
            .retry_on::<Busy>("busy", two)
            .discard_if(|error| error.to_string() == "gone")
            .retry_on::<std::io::Error>("network", Retry::custom(9, |_| Duration::from_secs(8)));
        let verdict = |error: BoxError, failed: u16, by_rule: &[(String, u16)]| {
            let time_left = Some(Duration::from_mins(1));
            let policy =
                Policy { retry: Retry::exponential(3), rules: &rules, failed, by_rule, time_left };
            Ending::Failed(error).verdict(&policy, 1.0)
        };
        let retry = |secs, reason: &str, rule| Verdict::Retry {
            delay: Duration::from_secs(secs),
            reason: reason.into(),
            rule,
        };
        let wrapped = || BoxError::from(std::io::Error::other(Busy));
        assert_eq!(verdict(wrapped(), 0, &[]), retry(7, "busy", Some("busy")), "a cause");
        let counted = [("busy".to_owned(), 1)];
        assert_eq!(verdict(Busy.into(), 1, &counted), Verdict::Dead { reason: "busy".into() });
        let network = || BoxError::from(std::io::Error::other("no"));
        assert_eq!(verdict(network(), 1, &counted), retry(8, "no", Some("network")));
        assert_eq!(verdict("gone".into(), 0, &[]), Verdict::Dead { reason: "gone".into() });
        let counted = [("busy".to_owned(), 1), ("network".to_owned(), 7)];
        assert_eq!(verdict("x".into(), 9, &counted), retry(2, "x", None), "the second plain one");
        assert!(matches!(verdict("x".into(), 10, &counted), Verdict::Dead { .. }));
        assert_eq!(
            verdict(Interrupted::from(InterruptedCause::default()).into(), 9, &[]),
            Verdict::HandBack
        );
    }

    #[test]
    fn no_retry_is_due_after_its_time() {
        let rules = RetryRules::new();
        let verdict = |left| {
            let retry = Retry::custom(9, |_| Duration::from_secs(7));
            let time_left = Some(Duration::from_secs(left));
            let policy = Policy { retry, rules: &rules, failed: 0, by_rule: &[], time_left };
            Ending::Failed("x".into()).verdict(&policy, 1.0)
        };
        assert!(matches!(verdict(7), Verdict::Retry { .. }));
        assert!(matches!(verdict(6), Verdict::Dead { .. }));
    }

    #[test]
    fn each_ending_has_its_verdict() {
        assert_eq!(
            failed("no"),
            Verdict::Retry { delay: Duration::from_secs(1), reason: "no".into(), rule: None }
        );
        assert_eq!(failed(Discard::because("never")), Verdict::Dead { reason: "never".into() });
        assert_eq!(
            failed(Snooze::after(Duration::from_secs(9))),
            Verdict::Defer(Duration::from_secs(9))
        );
        assert_eq!(verdict(Ending::Cancelled, Retry::never()), Verdict::HandBack);
        assert_eq!(
            verdict(Ending::Panicked("x".into()), Retry::never()),
            Verdict::Dead { reason: "panicked: x".into() }
        );
        assert!(
            matches!(verdict(Ending::Unadmitted, Retry::never()), Verdict::Defer(_)),
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
