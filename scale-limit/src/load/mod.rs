//! Load shedding: how many requests a service processes at once, and which requests are refused
//! when more arrive.
//!
//! A quota says what a client may do, but not what the servers can do. [`LoadShed`] finds that out
//! from latencies: when requests take longer than others of their class did under light load, and
//! get faster once fewer are processed, too many are being processed. Beyond that number requests
//! wait for a moment, the important ones first. Requests that wait too long are answered 503 with
//! `Retry-After`, while there is still time for an alternative.
//!
//! | guarantee | how |
//! | --- | --- |
//! | admitted requests are answered about as fast as usual | concurrency follows latency (`AdaptiveConcurrency`) |
//! | the queue does not fill with requests whose clients have given up | under overload the newest request goes first, and waiting ends after half the time that a request takes under light load (1 ms at least) |
//! | important requests go first | [`Priority`]: strict in the queue; [`Priority::Critical`] is not queued at all |
//! | only work counts | health checks, failures, refusals and responses marked with [`NoWork`] are not samples; each request is compared with its own class |
//! | within a twentieth of the best fixed limit | in five scenarios of a service (`tests/overload.rs`): a mix that turns slow, a quiet night, stalls, a slow dependency, a denied client that keeps asking |
//! | a dropped request leaves nothing behind | the next request in the queue takes its place |
//!
//! A request counts as processed until the head of its response is available, also while its
//! handler waits for the client: a client that sends a body very slowly holds a place. Limit the
//! time that a body may take (`tower_http::timeout::RequestBodyTimeoutLayer`), or let the proxy
//! buffer it first, as nginx does by default and HAProxy with `option http-buffer-request`; and
//! limit how many requests a client may have [at once](crate::Policy::concurrency).
//!
//! Blocking work on the executor's own threads delays requests in the executor, before any layer
//! sees them: move such work to other threads (`spawn_blocking`), so that load can be shed.

mod adaptive;
mod queue;
mod shed;

pub use self::adaptive::AdaptiveConcurrency;
pub use self::queue::Priority;
pub use self::shed::{LoadShed, NoWork, Shed, ShedFuture};
