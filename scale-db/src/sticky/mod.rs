//! Read your own writes.
//!
//! Inside a *scope* (a request, a job), the first write makes the scope *dirty*: its later reads go
//! to the primary. At the end, [`mark`] asks the primary once for its write position. This [`Mark`]
//! is passed on, in a cookie ([`StickyLayer`]) or inside a job. A scope opened with a mark reads
//! only from nodes that have replayed up to it.
//!
//! | when | then |
//! | --- | --- |
//! | nothing was written | the primary is not asked, and no cookie is set |
//! | the primary has no ordered position | the mark keeps reads on the primary instead, until the cookie's [lifetime](StickyLayer::lifetime) after the last write |
//! | a mark is from after a failover that this process has not seen | the monitor probes first; a stale primary is not read from |
//! | a mark is malformed or forged | a malformed one is ignored; a forged one only moves its sender's reads to the primary |
//! | a scope is opened inside a scope | it has the needs of the outer one, and its writes count for the outer one |
//! | a task is spawned, or a body is streamed after its response's head | it has no scope, unless the scope is [carried](carry); this crate's own tasks carry it |

mod layer;
mod mark;

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures_core::Stream;
use parking_lot::Mutex;

pub use self::layer::{Sticky, StickyLayer};
pub use self::mark::Mark;
use crate::backend::Backend;
use crate::db::Db;
use crate::failure::is_unseen;
use crate::observe;
use crate::position::Position;

tokio::task_local! {
    static SCOPE: Arc<Scope>;
}

/// Needs and writes of a scope for each database, by the number of its handle.
#[derive(Debug, Default)]
pub(crate) struct Scope {
    own: Mutex<Vec<(usize, State)>>,
    /// Enclosing scopes: this scope has their needs, and its writes count for them.
    outer: Vec<Arc<Scope>>,
}

/// Requirement of a scope on reads of a database; ordered from weak to strict.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Need {
    #[default]
    Nothing,
    /// A known write, which replicas may have.
    Write(Position),
    /// A write with an unknown position, of this scope or of another.
    Primary,
}

#[derive(Clone, Copy, Debug, Default)]
struct State {
    need: Need,
    /// Position that the scope's mark requires, whatever it has written since.
    told: Position,
    /// True if this scope wrote, not only earlier ones.
    wrote: bool,
}

/// Runs a future in its own scope, in which reads of `db` see the write of `mark`: for a job, or
/// for a cache's loader after an invalidation.
pub async fn seeing<DB: Backend, F: Future>(
    db: &Db<DB>,
    mark: Option<Mark>,
    future: F,
) -> F::Output {
    scope(mark.map(|mark| (db.0.id, mark)), future).await
}

/// Runs a future in its own scope, which must see the write of `seen` and the writes of enclosing
/// scopes.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() {
/// let answer = scale_db::sticky::scope(None, async { 42 }).await;
/// assert_eq!(answer, 42);
/// # }
/// ```
pub async fn scope<F: Future>(seen: Option<(usize, Mark)>, future: F) -> F::Output {
    SCOPE.scope(Scope::inside(seen, current()), future).await
}

/// Returns the future so that it runs in the current scope, wherever it is polled: for spawned
/// tasks, so that they see their request's writes. If a [recording](crate::observe::record) is
/// active, it is carried too.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() {
/// use scale_db::sticky;
///
/// let mails = async { tokio::spawn(sticky::carry(async { 2 })).await };
/// assert_eq!(sticky::scope(None, mails).await.unwrap(), 2);
/// # }
/// ```
pub fn carry<F: Future>(future: F) -> impl Future<Output = F::Output> {
    let (scope, record) = (current(), observe::current());
    async move {
        match scope {
            Some(scope) => SCOPE.scope(scope, observe::recorded(record, future)).await,
            None => observe::recorded(record, future).await,
        }
    }
}

/// Returns the stream so that it runs in the current scope: for bodies that are streamed after
/// their response's head.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() {
/// use futures_util::{StreamExt, stream};
/// use scale_db::sticky;
///
/// let rows = sticky::scope(None, async { sticky::carry_stream(stream::iter([1, 2])) }).await;
/// assert_eq!(rows.collect::<Vec<_>>().await, [1, 2]);
/// # }
/// ```
pub fn carry_stream<S: Stream>(stream: S) -> Carried<S> {
    Carried { stream, scope: current(), record: observe::current() }
}

pin_project_lite::pin_project! {
    /// Stream of [`carry_stream`].
    #[derive(Debug)]
    pub struct Carried<S> {
        #[pin]
        stream: S,
        scope: Option<Arc<Scope>>,
        record: Option<observe::Recording>,
    }
}

impl<S: Stream> Stream for Carried<S> {
    type Item = S::Item;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<S::Item>> {
        let this = self.project();
        let poll = || observe::recorded_now(this.record.as_ref(), || this.stream.poll_next(cx));
        match this.scope {
            Some(scope) => SCOPE.sync_scope(Arc::clone(scope), poll),
            None => poll(),
        }
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        self.stream.size_hint()
    }
}

/// Returns the current scope.
pub(crate) fn current() -> Option<Arc<Scope>> {
    SCOPE.try_with(Arc::clone).ok()
}

/// Runs a future with the needs of several scopes.
pub(crate) async fn for_all<F: Future>(outer: Vec<Arc<Scope>>, future: F) -> F::Output {
    SCOPE.scope(Arc::new(Scope { own: Mutex::default(), outer }), future).await
}

/// Returns the mark for the next scope, if this one wrote to `db` or has a need itself. Returns
/// `None` outside of a scope.
pub async fn mark<DB: Backend>(db: &Db<DB>) -> Option<Mark> {
    let state = SCOPE.try_with(|scope| scope.get(db.0.id)).ok()?;
    match state {
        // Never less than the mark that it got, so that a newer primary is not forgotten.
        State { wrote: true, told, .. } => Some(match db.position().await {
            Ok(now) => Mark::At(now.max(told)),
            // Nothing was written, because every primary was rejected.
            Err(error) if is_unseen(&error) => Mark::At(told),
            Err(_) => Mark::Primary,
        }),
        State { need: Need::Nothing, .. } => None,
        State { need: Need::Write(position), .. } => Some(Mark::At(position)),
        State { need: Need::Primary, .. } => Some(Mark::Primary),
    }
}

/// Identifies a database within this process, for [`scope`].
pub fn id<DB: Backend>(db: &Db<DB>) -> usize {
    db.0.id
}

/// Marks the current scope, if any, as dirty.
pub(crate) fn wrote(id: usize) {
    let _ = SCOPE.try_with(|scope| scope.wrote(id));
}

/// Returns the need of a read.
pub(crate) fn needed(id: usize) -> Need {
    SCOPE.try_with(|scope| scope.get(id).need).unwrap_or_default()
}

fn has_written(id: usize) -> bool {
    SCOPE.try_with(|scope| scope.get(id).wrote).unwrap_or_default()
}

/// Returns the position required by the mark of the current scope.
pub(crate) fn told(id: usize) -> Position {
    SCOPE.try_with(|scope| scope.get(id).told).unwrap_or_default()
}

impl Scope {
    fn inside(seen: Option<(usize, Mark)>, outer: Option<Arc<Self>>) -> Arc<Self> {
        let state = |mark| State {
            need: match mark {
                Mark::At(position) => Need::Write(position),
                Mark::Primary => Need::Primary,
            },
            told: match mark {
                Mark::At(position) => position,
                Mark::Primary => Position::default(),
            },
            wrote: false,
        };
        let own = seen.map(|(id, mark)| (id, state(mark))).into_iter().collect();
        Arc::new(Self { own: Mutex::new(own), outer: outer.into_iter().collect() })
    }

    /// Returns the strictest need of this scope and the enclosing ones.
    fn get(&self, id: usize) -> State {
        let own = self
            .own
            .lock()
            .iter()
            .find(|(of, _)| *of == id)
            .map(|(_, state)| *state)
            .unwrap_or_default();
        let stricter = |a: State, b: State| State {
            need: a.need.max(b.need),
            told: a.told.max(b.told),
            wrote: a.wrote || b.wrote,
        };
        self.outer.iter().map(|outer| outer.get(id)).fold(own, stricter)
    }

    fn wrote(&self, id: usize) {
        {
            let mut states = self.own.lock();
            match states.iter_mut().find(|(of, _)| *of == id) {
                Some((_, old)) => (old.need, old.wrote) = (Need::Primary, true),
                None => states.push((
                    id,
                    State { need: Need::Primary, told: Position::default(), wrote: true },
                )),
            }
        }
        for outer in &self.outer {
            outer.wrote(id);
        }
    }
}

#[cfg(test)]
mod tests;
