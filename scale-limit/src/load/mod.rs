//! Load: how many requests a service works on at once, and whom it turns away when more come.
//!
//! A quota says what a client may; it does not know what the servers can. [`LoadShed`] finds that out by watching how long requests take:
//! when they take longer than others of their class did with little to do, and faster once fewer are worked on, too many are being worked
//! on. Beyond that number requests wait, for a moment and the important ones first; who waits longer is answered 503 with `Retry-After` while there is still time to do something
//! else.
//!
//! | promised | how |
//! | --- | --- |
//! | what is let in is answered about as fast as ever | the number at once follows latency (`AdaptiveConcurrency`) |
//! | the queue never holds answers that nobody waits for any more | under overload the newest goes first, and waiting ends after half the time a request takes when there is little to do (1 ms at least) |
//! | what matters goes first | [`Priority`]: strict in the queue; [`Priority::Critical`] does not queue at all |
//! | only work counts | health checks, failures, refusals and answers that say so ([`NoWork`]) are no samples; each request is compared with its own class |
//! | as good as the best fixed limit, but for a twentieth | in five days of a service that are rehearsed (`tests/overload.rs`): a mix that turns slow, a quiet night, stalls, a slow dependency, a denied client that asks on |
//! | a dropped request leaves nothing behind | its place goes to the next in line |
//!
//! A request is worked on until the head of its answer is there, also while its handler waits for the client: who sends a body drop by drop
//! holds a place. Bound the time that a body may take (`tower_http::timeout::RequestBodyTimeoutLayer`), or let the proxy take it in first, as
//! nginx does unless told otherwise and HAProxy with `option http-buffer-request`; and limit how many a client may have
//! [at once](crate::Policy::at_once).
//!
//! What a service does on the executor's own threads, without awaiting, the executor queues before any layer sees it: move such work to
//! threads of its own (`spawn_blocking`), and it can be shed.

mod adaptive;
mod queue;
mod shed;

pub use self::adaptive::AdaptiveConcurrency;
pub use self::queue::Priority;
pub use self::shed::{LoadShed, NoWork, Shed, ShedFuture};
