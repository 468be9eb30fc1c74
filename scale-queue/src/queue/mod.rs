//! Handle of an application's queues.
//!
//! | module | methods of [`Queue`] |
//! | --- | --- |
//! | this one | connecting, settings |
//! | [`push`] | pushes: of one job, of many jobs, in a transaction |
//! | [`manage`] | counts, lists, pausing, cancelling, draining, dead jobs |
//! | [`listing`] | jobs as the lists show them |

pub(crate) mod listing;
mod manage;
pub(crate) mod push;

use std::sync::Arc;

use scale_common::coalesce::Coalescer;

use crate::builder::QueueBuilder;
use crate::encryption::PayloadEncryption;
use crate::error::Error;
use crate::format::Body;
use crate::job::JobId;
use crate::push::coalesce::Pushes;
use crate::push::target::Target;
use crate::store::{MemoryStore, Store};

/// Handle of all queues of one application. Cloning costs a few reference counts.
///
/// ```
/// # use scale_queue::{Job, Queue};
/// # use serde::{Deserialize, Serialize};
/// # #[derive(Serialize, Deserialize)] struct SendReceipt { order: i64 }
/// # impl Job for SendReceipt { const NAME: &'static str = "send-receipt"; }
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), scale_queue::Error> {
/// use std::time::Duration;
///
/// let queue = Queue::connect("memory:", "shop").await?; // or "redis://…"
/// queue.push(SendReceipt { order: 7 }).await?;
/// queue.push(SendReceipt { order: 8 }).to("low").delay(Duration::from_mins(10)).await?;
/// assert_eq!(queue.stats("default").await?.waiting, 1);
/// # Ok(()) }
/// ```
#[derive(Clone, Debug)]
pub struct Queue {
    target: Target,
    pushes: Arc<Coalescer<Pushes>>,
    carry: Option<Carry>,
    encryption: Option<PayloadEncryption>,
    /// Store of a [`FakeQueue`](crate::testing::FakeQueue).
    #[cfg(feature = "testing")]
    fake: Option<Arc<MemoryStore>>,
}

#[derive(Clone)]
struct Carry(Arc<dyn Fn() -> Vec<(String, String)> + Send + Sync>);

impl std::fmt::Debug for Carry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Carry")
    }
}

impl Queue {
    /// Creates a handle of queues in the given store.
    pub fn new(store: impl Store) -> Self {
        Self::of(Arc::new(store))
    }

    pub(crate) fn of(store: Arc<dyn Store>) -> Self {
        let target = Target::new(store);
        Self {
            pushes: Pushes::to(target.clone()),
            target,
            carry: None,
            encryption: None,
            #[cfg(feature = "testing")]
            fake: None,
        }
    }

    /// Creates the handle of a fake queue.
    #[cfg(feature = "testing")]
    pub(crate) fn faked(store: Arc<MemoryStore>) -> Self {
        Self { fake: Some(Arc::clone(&store)), ..Self::of(store) }
    }

    /// Waits for the end of a new job, if this is a fake queue that runs jobs inline.
    pub(crate) async fn run_inline(&self, queue: &str, id: JobId) {
        #[cfg(feature = "testing")]
        if let Some(fake) = &self.fake {
            fake.run_inline(queue, id.bytes()).await;
        }
        #[cfg(not(feature = "testing"))]
        let _ = (queue, id);
    }

    /// Creates a handle of queues in the memory of this process; jobs are lost when it ends.
    pub fn memory() -> Self {
        Self::new(MemoryStore::new())
    }

    /// Creates a handle of queues in Redis, shared by all handles with the same Redis and `app`.
    #[cfg(feature = "redis")]
    pub fn redis(redis: scale_redis::Redis, app: &str) -> Self {
        Self::new(crate::store::RedisStore::new(redis, app))
    }

    /// Connects to the store that the address names: `memory:`; with feature `redis` any address of
    /// `scale-redis`; with features `postgres`, `mysql` and `sqlite` a database. The tables of an
    /// SQLite file are created if missing; on a server they must exist, see
    /// [`QueueBuilder::migrate`].
    ///
    /// # Errors
    /// [`Error::Address`] for any other address; `Error::Schema` if a server has no tables or those
    /// of another version; [`Error::Store`] if the store cannot be reached.
    pub async fn connect(url: &str, app: &str) -> Result<Self, Error> {
        Self::builder(url, app).connect().await
    }

    /// Configures queues in a database, through the application's own pool: a `PgPool`, a
    /// `MySqlPool` or an `SqlitePool`. [`connect`](QueueBuilder::connect) then checks the tables.
    ///
    /// ```no_run
    /// # async fn example(pool: sqlx::PgPool) -> Result<(), scale_queue::Error> {
    /// use scale_queue::Queue;
    ///
    /// scale_queue::store::migrate(&pool).await?; // next to the application's own migrations
    /// let queue = Queue::with_pool(pool, "shop").connect().await?;
    /// # Ok(()) }
    /// ```
    #[cfg(feature = "sql")]
    pub fn with_pool(pool: impl Into<scale_sql::Database>, app: &str) -> QueueBuilder {
        QueueBuilder::new("", app).on(pool.into())
    }

    /// Creates a handle of queues in PostgreSQL, through the application's own pool.
    ///
    /// # Errors
    /// The errors of [`connect`](Self::connect).
    #[cfg(feature = "postgres")]
    pub async fn postgres(pool: sqlx::PgPool, app: &str) -> Result<Self, Error> {
        Self::with_pool(pool, app).connect().await
    }

    /// Creates a handle of queues in MySQL or MariaDB, through the application's own pool.
    ///
    /// # Errors
    /// The errors of [`connect`](Self::connect).
    #[cfg(feature = "mysql")]
    pub async fn mysql(pool: sqlx::MySqlPool, app: &str) -> Result<Self, Error> {
        Self::with_pool(pool, app).connect().await
    }

    /// Creates a handle of queues in an SQLite file, through the application's own pool. The tables
    /// are created if missing.
    ///
    /// # Errors
    /// The errors of [`connect`](Self::connect).
    #[cfg(feature = "sqlite")]
    pub async fn sqlite(pool: sqlx::SqlitePool, app: &str) -> Result<Self, Error> {
        Self::with_pool(pool, app).connect().await
    }

    /// Returns a builder with settings: timeouts, number of replicas that must have a push,
    /// durability of an SQLite file.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), scale_queue::Error> {
    /// use std::time::Duration;
    /// let queue = scale_queue::Queue::builder("memory:", "shop")
    ///     .response_timeout(Duration::from_secs(2))
    ///     .connect().await?;
    /// # Ok(()) }
    /// ```
    pub fn builder(url: &str, app: &str) -> QueueBuilder {
        QueueBuilder::new(url, app)
    }

    /// Adds metadata to every job pushed through this handle. The job's handler finds it in
    /// [`Context::metadata`](crate::Context::metadata). Examples are a trace context, a tenant, a
    /// language.
    ///
    /// ```
    /// # let queue = scale_queue::Queue::memory();
    /// let parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    /// let queue = queue.propagating(|| vec![("traceparent".into(), parent.into())]);
    /// ```
    pub fn propagating(
        mut self,
        what: impl Fn() -> Vec<(String, String)> + Send + Sync + 'static,
    ) -> Self {
        self.carry = Some(Carry(Arc::new(what)));
        self
    }

    pub(crate) fn metadata(&self) -> Vec<(String, String)> {
        #[cfg_attr(not(feature = "opentelemetry"), expect(unused_mut))]
        let mut metadata = self.carry.as_ref().map_or_else(Vec::new, |carry| (carry.0)());
        #[cfg(feature = "opentelemetry")]
        crate::trace::carry(&mut metadata);
        metadata
    }

    pub(crate) fn with_encryption(mut self, encryption: PayloadEncryption) -> Self {
        self.encryption = Some(encryption);
        self
    }

    pub(crate) fn encryption(&self) -> Option<&PayloadEncryption> {
        self.encryption.as_ref()
    }

    /// Formats the payload of a job for display.
    pub(crate) fn shown_payload(&self, job: &Body) -> String {
        if self.encryption.is_some() {
            "encrypted".into()
        } else if job.name == crate::batch::START {
            // It is no text.
            "a batch or workflow that a transaction has pushed".into()
        } else {
            String::from_utf8_lossy(&job.payload).into_owned()
        }
    }

    /// Lets pushes go to an outbox while the store takes none.
    #[cfg(all(feature = "sql", feature = "redis"))]
    pub(crate) fn with_failover(mut self, failover: Arc<crate::failover::Failover>) -> Self {
        self.target = self.target.with_failover(failover);
        self.pushes = Pushes::to(self.target.clone());
        self
    }

    pub(crate) fn target(&self) -> &Target {
        &self.target
    }

    pub(crate) fn store(&self) -> &Arc<dyn Store> {
        self.target.store()
    }
}

/// Checks a queue's name, which becomes part of keys, labels and addresses.
pub(crate) fn checked(queue: &str) -> Result<&str, Error> {
    let fine = (1..=64).contains(&queue.len())
        && queue.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b))
        // Browsers remove these from an address.
        && !matches!(queue, "." | "..");
    if fine { Ok(queue) } else { Err(Error::Name(queue.chars().take(64).collect())) }
}
