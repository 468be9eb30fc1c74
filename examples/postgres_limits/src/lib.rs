//! Limits in a table of PostgreSQL, for a fleet without Redis.
//!
//! ```no_run
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! use postgres_limits::PostgresStore;
//! use scale_limit::Limiter;
//!
//! let pool = sqlx::PgPool::connect("postgres://localhost/shop").await?;
//! PostgresStore::create_table(&pool).await?;
//! let limiter = Limiter::with_store(PostgresStore::new(pool), "shop");
//! # Ok(()) }
//! ```

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::time::Duration;

use async_trait::async_trait;
use scale_limit::Error;
use scale_limit::store::{Change, KeyValueStore, Write};
use sqlx::{PgConnection, PgPool, Row};

/// A table that is not written to the log: after a crash of the server all limits start anew.
const TABLE: &str = "create unlogged table if not exists limits (
    key bytea primary key,
    state bytea not null,
    until timestamptz not null
)";
const INDEX: &str = "create index if not exists limits_until on limits (until)";
/// Locks the keys, in the same order in all transactions, so that no two deadlock. A key without a
/// row has no row to lock.
const LOCK: &str = "select pg_advisory_xact_lock(number) from (
    select distinct hashtextextended(encode(key, 'hex'), 7) as number
    from unnest($1::bytea[]) as given(key) order by number
) as numbers";
const READ: &str = "select key, state from limits where key = any($1)";
const NOW: &str = "select (extract(epoch from clock_timestamp()) * 1000000)::bigint";
const SET: &str = "insert into limits (key, state, until)
    values ($1, $2, now() + make_interval(secs => $3))
    on conflict (key) do update set state = excluded.state, until = excluded.until";
const REMOVE: &str = "delete from limits where key = $1";
/// Removes some states that do not matter any more, and none that another call holds.
const SWEEP: &str = "delete from limits where key in (
    select key from limits where until < now() limit 100 for update skip locked
)";

/// Share of the calls that sweep: one in that many.
const SWEEP_ONE_IN: u32 = 100;

/// Limits in the table `limits`.
#[derive(Clone, Debug)]
pub struct PostgresStore {
    pool: PgPool,
    calls: Arc<AtomicU32>,
}

impl PostgresStore {
    /// Uses this pool.
    pub fn new(pool: PgPool) -> Self {
        Self { pool, calls: Arc::default() }
    }

    /// Creates the table.
    ///
    /// # Errors
    /// An error of the database.
    pub async fn create_table(pool: &PgPool) -> Result<(), sqlx::Error> {
        // `if not exists` does not prevent that two processes create it at once.
        let mut transaction = pool.begin().await?;
        sqlx::query("select pg_advisory_xact_lock(7222100)").execute(&mut *transaction).await?;
        sqlx::query(TABLE).execute(&mut *transaction).await?;
        sqlx::query(INDEX).execute(&mut *transaction).await?;
        transaction.commit().await
    }

    async fn change(&self, keys: &[String], change: &mut Change<'_>) -> Result<(), sqlx::Error> {
        // Keys are any text, and a `text` of PostgreSQL has no zero byte.
        let names: Vec<&[u8]> = keys.iter().map(String::as_bytes).collect();
        let mut transaction = self.pool.begin().await?;
        sqlx::query(LOCK).bind(&names).execute(&mut *transaction).await?;
        let rows = sqlx::query(READ).bind(&names).fetch_all(&mut *transaction).await?;
        // Read after the locks were taken: a transaction that had them before is earlier.
        let now: i64 = sqlx::query_scalar(NOW).fetch_one(&mut *transaction).await?;
        let mut states = vec![None; keys.len()];
        for row in rows {
            let (key, state): (&[u8], Vec<u8>) = (row.try_get(0)?, row.try_get(1)?);
            if let Some(n) = names.iter().position(|name| *name == key) {
                states[n] = Some(state);
            }
        }
        let now = Duration::from_micros(u64::try_from(now).unwrap_or_default());
        for (name, write) in names.iter().zip(change.apply(now, &states)) {
            apply(&mut transaction, name, write).await?;
        }
        transaction.commit().await?;
        if self.calls.fetch_add(1, Relaxed).is_multiple_of(SWEEP_ONE_IN) {
            sqlx::query(SWEEP).execute(&self.pool).await?;
        }
        Ok(())
    }
}

async fn apply(
    transaction: &mut PgConnection,
    name: &[u8],
    write: Write,
) -> Result<(), sqlx::Error> {
    let query = match write {
        Write::Keep => return Ok(()),
        Write::Set { state, keep } => {
            sqlx::query(SET).bind(name).bind(state).bind(keep.as_secs_f64())
        }
        Write::Remove => sqlx::query(REMOVE).bind(name),
    };
    query.execute(transaction).await.map(drop)
}

#[async_trait]
impl KeyValueStore for PostgresStore {
    async fn update(&self, keys: &[String], change: &mut Change<'_>) -> Result<(), Error> {
        self.change(keys, change).await.map_err(|error| match error {
            sqlx::Error::Database(_) => Error::Refused(Box::new(error)),
            other => Error::Store(Box::new(other)),
        })
    }
}
