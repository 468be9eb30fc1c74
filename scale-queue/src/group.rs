//! Groups: jobs with the same key that take turns.
//!
//! | when | then |
//! | --- | --- |
//! | a job of a group is pushed | it joins its queue if fewer jobs of its group are there than may be [at once](Group::at_once); otherwise it waits in the group's line |
//! | a job is done, dead, cancelled, expired or removed | the first one in line joins the queue, behind the jobs that wait there |
//! | a job fails and is retried, is snoozed, waits for a limit, or its worker dies | it keeps its turn: none of its group overtakes it |
//! | the group is [ordered](Group::ordered) | its jobs run one at a time, in the order in which the store took their pushes |
//! | one group has many jobs | at most as many of them as may be at once are in the order of the queue: the jobs of other groups do not wait for the rest |
//! | a job has a delay | it keeps its place in line; its delay counts from its push |
//! | a dead job is revived | it joins the end of its line |
//! | a job is pushed in a transaction | its place in line is given with the push; other pushes to the group wait for the end of the transaction, workers do not |
//!
//! A [`Limit`](crate::Limit) bounds how many jobs of a key run or begin; it does not keep their
//! order over retries. A job can have both.

use serde::{Deserialize, Serialize};

use crate::limit::bounded_key;

/// Group of a job; see [`Job::group`](crate::Job::group).
///
/// ```
/// use scale_queue::Job;
/// use scale_queue::group::Group;
/// use serde::{Deserialize, Serialize};
///
/// #[derive(Serialize, Deserialize)]
/// struct Book { account: i64, cents: i64 }
///
/// impl Job for Book {
///     const NAME: &'static str = "book";
///
///     // The bookings of an account, one after the other, whatever happens.
///     fn group(&self) -> Option<Group> {
///         Some(Group::ordered(format!("account:{}", self.account)))
///     }
/// }
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Group {
    pub(crate) key: String,
    pub(crate) at_once: u32,
}

impl Group {
    /// Creates a group whose jobs run one at a time, in the order of their pushes.
    pub fn ordered(key: impl Into<String>) -> Self {
        Self::at_once(key, 1)
    }

    /// Creates a group of which that many jobs may be in the queue at once, so that groups share
    /// the workers fairly. All jobs of a group should have the same number.
    pub fn at_once(key: impl Into<String>, jobs: u32) -> Self {
        Self { key: bounded_key(key.into()), at_once: jobs.max(1) }
    }
}

/// Returns the name of the line in which jobs of a group wait.
pub(crate) fn line_of(key: &str) -> String {
    format!("group:{key}")
}
