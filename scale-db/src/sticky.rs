//! Read your own writes.
//!
//! Inside a *scope* (a request, a job) the first write makes the scope *dirty*: later reads of the scope go to the primary. At the end
//! [`mark`] asks the primary once how far it has written, and that [`Mark`] travels on, in a cookie ([`StickyLayer`]) or inside a
//! job: a scope opened with it reads only from nodes that have replayed that far.
//!
//! | when | then |
//! | --- | --- |
//! | nothing was written | nothing is asked, no cookie is set |
//! | the primary cannot say its position | the mark holds reads to the primary instead, until the cookie's [lifetime](StickyLayer::lifetime) after the last write |
//! | a mark knows of a fail-over that this process does not | the monitor looks first; a primary of before is not read from |
//! | the mark is malformed or forged | malformed is ignored; a forged one can only cost its sender reads from the primary |
//! | a scope is opened inside a scope | it needs what the outer one needs, and what it writes the outer one has written |
//! | a task is spawned, or a body streamed after its response's head | it has no scope, unless it [carries](carry) it; this crate's own tasks do |

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_core::Stream;
use http::header::{COOKIE, SET_COOKIE};
use http::{HeaderValue, Request, Response};
use parking_lot::Mutex;
use tower_layer::Layer;
use tower_service::Service;

use crate::backend::Backend;
use crate::db::Db;
use crate::failure::is_unseen;
use crate::position::Position;
use crate::watch;

tokio::task_local! {
    static SCOPE: Arc<Scope>;
}

/// The needs and writes of each database, by its handle's number.
#[derive(Debug, Default)]
pub(crate) struct Scope {
    own: Mutex<Vec<(usize, State)>>,
    /// The scopes around this one: what they need it needs, and what it writes they have written.
    outer: Vec<Arc<Scope>>,
}

/// Need of a scope: what it must see of a database. The later one asks for more.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Need {
    #[default]
    Nothing,
    /// A write that may have reached replicas.
    Write(Position),
    /// A write whose position is not known, of its own or of another scope.
    Primary,
}

#[derive(Clone, Copy, Debug, Default)]
struct State {
    need: Need,
    /// Write that it was told to see at least, whatever it has written since.
    told: Position,
    /// Something was written in this scope, not only in those before it.
    wrote: bool,
}

/// A write that a later scope must see. Printed and parsed as text, for cookies and jobs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Mark {
    /// Nodes that have replayed this far will do.
    At(Position),
    /// Only the primary will do.
    Primary,
}

impl Mark {
    /// Returns 33 bytes whose order is that of marks: for a cache's invalidation, which keeps the latest.
    pub fn to_bytes(self) -> [u8; 33] {
        let mut bytes = [FORMAT; 33];
        bytes[1..].copy_from_slice(&match self {
            Self::At(position) => position.to_bytes(),
            Self::Primary => [0xFF; 32],
        });
        bytes
    }

    /// Reads what [`to_bytes`](Self::to_bytes) wrote. What cannot be read asks for the primary: that is never wrong.
    pub fn from_bytes(bytes: &[u8]) -> Self {
        match bytes.split_first() {
            Some((&FORMAT, position)) if *position != [0xFF; 32] => {
                Position::from_bytes(position).map_or(Self::Primary, Self::At)
            }
            _ => Self::Primary,
        }
    }
}

/// The format of marks as bytes.
const FORMAT: u8 = 2;

/// The format of marks as text.
const VERSION: &str = "2.";

impl std::fmt::Display for Mark {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::At(position) => write!(f, "{VERSION}{position}"),
            Self::Primary => write!(f, "{VERSION}primary"),
        }
    }
}

impl std::str::FromStr for Mark {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        match text.strip_prefix(VERSION).ok_or(())? {
            "primary" => Ok(Self::Primary),
            position => position.parse().map(Self::At),
        }
    }
}

/// Runs a future in a scope of its own whose reads of `db` see what `mark` marks: for a job, or for a cache's loader that follows an
/// invalidation.
pub async fn seeing<DB: Backend, F: Future>(db: &Db<DB>, mark: Option<Mark>, future: F) -> F::Output {
    scope(mark.map(|mark| (db.0.id, mark)), future).await
}

/// Runs a future in a scope of its own, which must see what `seen` marks, and what a scope around it has written.
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

/// The same future in the scope in which this is called, wherever it runs: for tasks that are spawned, so that they read what their request
/// has written. [Recorded](crate::watch::record) as well, if that is going on.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() {
/// use scale_db::sticky;
///
/// let mails = sticky::scope(None, async { tokio::spawn(sticky::carry(async { 2 })).await }).await;
/// assert_eq!(mails.unwrap(), 2);
/// # }
/// ```
pub fn carry<F: Future>(future: F) -> impl Future<Output = F::Output> {
    let (scope, record) = (current(), watch::current());
    async move {
        match scope {
            Some(scope) => SCOPE.scope(scope, watch::recorded(record, future)).await,
            None => watch::recorded(record, future).await,
        }
    }
}

/// The same for a stream: for bodies that go on after their response's head.
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
    Carried { stream, scope: current(), record: watch::current() }
}

pin_project_lite::pin_project! {
    /// The stream of [`carry_stream`].
    #[derive(Debug)]
    pub struct Carried<S> {
        #[pin]
        stream: S,
        scope: Option<Arc<Scope>>,
        record: Option<watch::Recording>,
    }
}

impl<S: Stream> Stream for Carried<S> {
    type Item = S::Item;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<S::Item>> {
        let this = self.project();
        let poll = || watch::recorded_now(this.record.as_ref(), || this.stream.poll_next(cx));
        match this.scope {
            Some(scope) => SCOPE.sync_scope(Arc::clone(scope), poll),
            None => poll(),
        }
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        self.stream.size_hint()
    }
}

/// The scope there is.
pub(crate) fn current() -> Option<Arc<Scope>> {
    SCOPE.try_with(Arc::clone).ok()
}

/// Runs a future for several scopes at once: it needs what any of them needs.
pub(crate) async fn for_all<F: Future>(outer: Vec<Arc<Scope>>, future: F) -> F::Output {
    SCOPE.scope(Arc::new(Scope { own: Mutex::default(), outer }), future).await
}

/// Returns what the next scope must see, if this one wrote to `db` or was itself told to see something. Outside a scope: `None`.
pub async fn mark<DB: Backend>(db: &Db<DB>) -> Option<Mark> {
    let state = SCOPE.try_with(|scope| scope.get(db.0.id)).ok()?;
    match state {
        // Never less than what it was told: a mark of a newer primary is not forgotten.
        State { wrote: true, told, .. } => Some(match db.position().await {
            Ok(now) => Mark::At(now.max(told)),
            // Nothing was written: every way to a primary was refused.
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

/// The scope, if there is one, has written.
pub(crate) fn wrote(id: usize) {
    let _ = SCOPE.try_with(|scope| scope.wrote(id));
}

/// Returns what a read must see.
pub(crate) fn needed(id: usize) -> Need {
    SCOPE.try_with(|scope| scope.get(id).need).unwrap_or_default()
}

fn has_written(id: usize) -> bool {
    SCOPE.try_with(|scope| scope.get(id).wrote).unwrap_or_default()
}

/// Returns the write that this scope was told to see.
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

    /// Returns the strictest need, its own or that of a scope around it.
    fn get(&self, id: usize) -> State {
        let own = self.own.lock().iter().find(|(of, _)| *of == id).map(|(_, state)| *state).unwrap_or_default();
        let stricter =
            |a: State, b: State| State { need: a.need.max(b.need), told: a.told.max(b.told), wrote: a.wrote || b.wrote };
        self.outer.iter().map(|outer| outer.get(id)).fold(own, stricter)
    }

    fn wrote(&self, id: usize) {
        {
            let mut states = self.own.lock();
            match states.iter_mut().find(|(of, _)| *of == id) {
                Some((_, old)) => (old.need, old.wrote) = (Need::Primary, true),
                None => states.push((id, State { need: Need::Primary, told: Position::default(), wrote: true })),
            }
        }
        for outer in &self.outer {
            outer.wrote(id);
        }
    }
}

/// A tower layer that gives every request a scope and carries its mark to the client's next request in a cookie.
///
/// ```no_run
/// # async fn example() -> Result<(), scale_db::Error> {
/// let db = scale_db::Db::<sqlx::Postgres>::connect("postgres://primary/shop").await?;
/// let layer = scale_db::StickyLayer::new(db);
/// # Ok(()) }
/// ```
#[derive(Debug)]
pub struct StickyLayer<DB: Backend> {
    db: Db<DB>,
    cookie: Arc<str>,
    lifetime: Duration,
    secure: bool,
}

impl<DB: Backend> Clone for StickyLayer<DB> {
    fn clone(&self) -> Self {
        Self { db: self.db.clone(), cookie: Arc::clone(&self.cookie), lifetime: self.lifetime, secure: self.secure }
    }
}

impl<DB: Backend> StickyLayer<DB> {
    /// Cookie `scale_db`, kept for a minute: longer than any replica fit for reading lags.
    pub fn new(db: Db<DB>) -> Self {
        Self { db, cookie: "scale_db".into(), lifetime: Duration::from_mins(1), secure: true }
    }

    /// Another cookie name, for several databases in one application.
    pub fn cookie(mut self, name: &str) -> Self {
        self.cookie = name.into();
        self
    }

    /// Sets the time for which a client's reads are held to its last write.
    pub fn lifetime(mut self, lifetime: Duration) -> Self {
        self.lifetime = lifetime;
        self
    }

    /// Sends the cookie over plain HTTP too: for development only.
    pub fn insecure(mut self) -> Self {
        self.secure = false;
        self
    }

    fn read<B>(&self, request: &Request<B>) -> Option<Mark> {
        let cookies = request.headers().get_all(COOKIE);
        let pairs = cookies.iter().filter_map(|c| c.to_str().ok()).flat_map(|c| c.split(';'));
        pairs.filter_map(|pair| pair.trim().split_once('=')).find(|(name, _)| *name == &*self.cookie)?.1.parse().ok()
    }

    fn write(&self, mark: Mark) -> Option<HeaderValue> {
        let secure = if self.secure { "; Secure" } else { "" };
        let age = self.lifetime.as_secs();
        format!("{}={mark}; Max-Age={age}; Path=/; HttpOnly; SameSite=Lax{secure}", self.cookie).parse().ok()
    }
}

impl<DB: Backend, S> Layer<S> for StickyLayer<DB> {
    type Service = Sticky<DB, S>;

    fn layer(&self, inner: S) -> Self::Service {
        Sticky { layer: self.clone(), inner }
    }
}

/// The service of [`StickyLayer`].
#[derive(Debug)]
pub struct Sticky<DB: Backend, S> {
    layer: StickyLayer<DB>,
    inner: S,
}

impl<DB: Backend, S: Clone> Clone for Sticky<DB, S> {
    fn clone(&self) -> Self {
        Self { layer: self.layer.clone(), inner: self.inner.clone() }
    }
}

impl<DB, S, Req, Res> Service<Request<Req>> for Sticky<DB, S>
where
    DB: Backend,
    S: Service<Request<Req>, Response = Response<Res>>,
    S::Future: Send + 'static,
    S::Error: Send,
    Res: Send,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Req>) -> Self::Future {
        let layer = self.layer.clone();
        let id = layer.db.0.id;
        let scope = Scope::inside(layer.read(&request).map(|mark| (id, mark)), current());
        // The inner service's own code may run before its future does.
        let future = SCOPE.sync_scope(Arc::clone(&scope), || self.inner.call(request));
        Box::pin(SCOPE.scope(scope, async move {
            let mut response = future.await?;
            // A user who only reads is not held to the primary for ever.
            if has_written(id)
                && let Some(mark) = mark(&layer.db).await
                && let Some(cookie) = layer.write(mark)
            {
                response.headers_mut().append(SET_COOKIE, cookie);
            }
            Ok(response)
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(sequence: u64) -> Position {
        Position { era: 1, sequence, origin: 0 }
    }

    #[test]
    fn marks_travel_as_bytes_in_their_order() {
        let marks = [Mark::At(at(0)), Mark::At(at(0xFF)), Mark::At(at(0x100)), Mark::Primary];
        for pair in marks.windows(2) {
            assert!(pair[0] < pair[1] && pair[0].to_bytes() < pair[1].to_bytes());
        }
        assert_eq!(marks.map(|m| Mark::from_bytes(&m.to_bytes())), marks);
        assert_eq!(Mark::from_bytes(b"junk"), Mark::Primary);
    }

    #[test]
    fn marks_travel_as_text_and_bad_ones_are_refused() {
        for mark in [Mark::Primary, Mark::At(at(0x16_B374_D848))] {
            assert_eq!(mark.to_string().parse(), Ok(mark));
        }
        for bad in ["", "2.", "1.primary", "1.0/1", "2.x-y", "2.1", "primary"] {
            assert_eq!(bad.parse::<Mark>(), Err(()), "{bad}");
        }
    }

    #[tokio::test]
    async fn only_the_database_written_to_is_dirty() {
        assert_eq!(needed(1), Need::Nothing);
        scope(Some((1, Mark::At(at(5)))), async {
            assert_eq!((needed(1), needed(2)), (Need::Write(at(5)), Need::Nothing));
            wrote(2);
            assert_eq!((needed(1), needed(2)), (Need::Write(at(5)), Need::Primary));
        })
        .await;
    }

    #[tokio::test]
    async fn scopes_inside_of_each_other_need_and_write_alike() {
        scope(Some((1, Mark::At(at(5)))), async {
            scope(Some((1, Mark::At(at(3)))), async { assert_eq!(needed(1), Need::Write(at(5))) }).await;
            scope(Some((1, Mark::At(at(9)))), async { assert_eq!(needed(1), Need::Write(at(9))) }).await;
            assert_eq!(needed(1), Need::Write(at(5)), "what the inner one needs is its own");
            scope(None, async { wrote(2) }).await;
            assert_eq!((needed(1), needed(2)), (Need::Write(at(5)), Need::Primary));
            scope(None, async { assert_eq!(needed(2), Need::Primary) }).await;
        })
        .await;
        assert_eq!(needed(2), Need::Nothing);
    }

    #[tokio::test]
    async fn tasks_and_streams_carry_their_scope() {
        use futures_util::{StreamExt, stream};
        let (task, stream) = scope(None, async {
            let lone = tokio::spawn(async { needed(1) }).await.unwrap();
            assert_eq!(lone, Need::Nothing);
            let task = tokio::spawn(carry(async {
                tokio::task::yield_now().await;
                needed(1)
            }));
            let stream = carry_stream(stream::once(async { needed(1) }));
            wrote(1);
            (task, stream)
        })
        .await;
        assert_eq!((task.await.unwrap(), stream.collect::<Vec<_>>().await), (Need::Primary, vec![Need::Primary]));
    }
}
