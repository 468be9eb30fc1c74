//! Connections and transactions held by the caller.

use std::fmt;

use futures_core::future::BoxFuture;
use sqlx::pool::PoolConnection;
use sqlx::{Acquire, Pool, SqlSafeStr, SqlStr, Transaction};
use tokio::sync::OwnedSemaphorePermit;

use crate::backend::Backend;
use crate::cluster::capabilities;
use crate::cluster::node::Node;
use crate::cluster::role::Role;
use crate::db::Db;
use crate::dialect::Dialect;
use crate::failure::is_broken;
use crate::position::Position;
use crate::sticky;

/// A read-only transaction. Dereferences to its connection, as sqlx's `Transaction` does, and ends
/// with `commit`, `rollback`, or when dropped.
pub struct Snapshot<DB: Backend> {
    tx: Transaction<'static, DB>,
    /// Permit to read from the primary, held as long as this transaction.
    _leave: Option<OwnedSemaphorePermit>,
}

impl<DB: Backend> Snapshot<DB> {
    /// Ends the transaction.
    pub async fn commit(self) -> Result<(), sqlx::Error> {
        self.tx.commit().await
    }

    /// Ends the transaction.
    pub async fn rollback(self) -> Result<(), sqlx::Error> {
        self.tx.rollback().await
    }
}

impl<DB: Backend> std::ops::Deref for Snapshot<DB> {
    type Target = DB::Connection;

    fn deref(&self) -> &DB::Connection {
        &self.tx
    }
}

impl<DB: Backend> std::ops::DerefMut for Snapshot<DB> {
    fn deref_mut(&mut self) -> &mut DB::Connection {
        &mut self.tx
    }
}

impl<DB: Backend> fmt::Debug for Snapshot<DB> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Snapshot")
    }
}

impl<DB: Backend> Db<DB> {
    /// Returns the pool of the current primary, for code that takes a pool (`PgListener`, session
    /// stores, other libraries). The pool does not follow a failover, and is closed when its
    /// connections stop answering: call this again then.
    ///
    /// # Errors
    /// [`Error::NoPrimary`](crate::Error::NoPrimary) inside `sqlx::Error::Configuration`.
    pub async fn primary_pool(&self) -> Result<Pool<DB>, sqlx::Error> {
        sticky::wrote(self.0.id);
        Ok(self.primary_node().await?.pool())
    }

    /// Returns the pools of the replicas that are currently usable.
    pub fn replica_pools(&self) -> Vec<Pool<DB>> {
        self.0
            .nodes
            .load()
            .iter()
            .filter(|node| node.is_fit_replica())
            .map(|node| node.pool())
            .collect()
    }

    /// Begins a transaction on the primary. It is rolled back when dropped before `commit`.
    ///
    /// # Errors
    /// [`Error::NoPrimary`](crate::Error::NoPrimary) inside `sqlx::Error::Configuration`, or the
    /// errors of sqlx.
    pub async fn begin(&self) -> Result<Transaction<'static, DB>, sqlx::Error> {
        let node = self.primary_node().await?;
        sticky::wrote(self.0.id);
        // An SQLite transaction that starts to write later fails at once if there is another
        // writer.
        let statement = if self.0.dialect == Dialect::Sqlite { "begin immediate" } else { "begin" };
        self.begin_on(&node, statement.into_sql_str()).await
    }

    /// Begins a transaction on the primary with the given statement, for example `begin isolation
    /// level serializable`.
    ///
    /// # Errors
    /// The errors of [`begin`](Self::begin); `sqlx::Error::BeginFailed` if the statement begins no
    /// transaction.
    pub async fn begin_with(
        &self,
        statement: impl SqlSafeStr,
    ) -> Result<Transaction<'static, DB>, sqlx::Error> {
        let node = self.primary_node().await?;
        sticky::wrote(self.0.id);
        self.begin_on(&node, statement.into_sql_str()).await
    }

    /// Begins a read-only transaction on a replica: one snapshot for several queries.
    ///
    /// # Errors
    /// [`Error::NoReplica`](crate::Error::NoReplica) if so configured, or the errors of sqlx.
    pub async fn begin_read(&self) -> Result<Snapshot<DB>, sqlx::Error> {
        let (node, leave) = match self.reader(0) {
            Some(node) => (node, None),
            None => self.primary_for_reading().await?,
        };
        let statement = match self.0.dialect {
            Dialect::Postgres => "begin read only",
            Dialect::MySql => "start transaction read only",
            // A read-only transaction does not wait for the writer.
            Dialect::Sqlite => "begin",
        };
        let tx = self.begin_on(&node, statement.into_sql_str()).await?;
        Ok(Snapshot { tx, _leave: leave })
    }

    async fn begin_on(
        &self,
        node: &Node<DB>,
        statement: SqlStr,
    ) -> Result<Transaction<'static, DB>, sqlx::Error> {
        let begin = || {
            let (pool, statement) = (node.pool(), statement.clone());
            Box::pin(self.within_deadline(node, async move { pool.begin_with(statement).await }))
        };
        match begin().await {
            // No statement has run yet; the next connection is pinged first.
            Err(error) if is_broken(&error) => {
                node.doubt();
                begin().await
            }
            begun => begun,
        }
        .inspect_err(|error| self.judge_write(node, error))
    }

    /// Returns a connection to the primary, for features that live on one connection (advisory
    /// locks, `LISTEN`, temporary tables).
    pub async fn acquire(&self) -> Result<PoolConnection<DB>, sqlx::Error> {
        let node = self.primary_node().await?;
        sticky::wrote(self.0.id);
        let acquire = || async {
            let mut connection = node.pool().acquire().await?;
            DB::ping(&mut connection).await.map(|()| connection)
        };
        match Box::pin(self.within_deadline(&node, acquire())).await {
            Err(error) if is_broken(&error) => {
                node.doubt();
                Box::pin(self.within_deadline(&node, acquire())).await
            }
            acquired => acquired,
        }
        .inspect_err(|error| self.judge_write(&node, error))
    }

    /// Returns the primary's current write position: a node at or past it shows every write that
    /// has returned before this call. One round trip.
    ///
    /// # Errors
    /// `sqlx::Error::Protocol` where positions have no order (MariaDB with several replication
    /// domains, MySQL without GTIDs, Aurora), or the errors of sqlx.
    pub async fn position(&self) -> Result<Position, sqlx::Error> {
        if self.0.dialect == Dialect::Sqlite {
            return Ok(Position::default());
        }
        let node = self.primary_node().await?;
        let ask = async {
            let mut connection = node.pool().acquire().await?;
            capabilities::ask::<DB>(self.0.dialect, &mut connection, &node.asked).await
        };
        let probe = Box::pin(self.within_deadline(&node, ask)).await?;
        let position = (probe.role == Role::Primary).then(|| probe.log.position()).flatten();
        position.ok_or_else(|| sqlx::Error::Protocol("the primary's position is unknown".into()))
    }

    /// Returns a source of connections to the primary without
    /// [timeouts](crate::Config::statement_timeout), for migrations and other long work. Each
    /// connection is closed after use.
    ///
    /// ```no_run
    /// # async fn example(
    /// #     db: scale_db::Db<sqlx::Postgres>,
    /// #     migrator: &sqlx::migrate::Migrator,
    /// # ) -> Result<(), sqlx::migrate::MigrateError> {
    /// // let migrator = sqlx::migrate!();
    /// migrator.run(db.unlimited()).await?;
    /// # Ok(()) }
    /// ```
    pub fn unlimited(&self) -> Unlimited<DB> {
        Unlimited { db: self.clone() }
    }
}

/// Source of connections to the primary without timeouts: from [`Db::unlimited`].
#[derive(Clone, Debug)]
pub struct Unlimited<DB: Backend> {
    db: Db<DB>,
}

impl<DB: Backend> Unlimited<DB> {
    async fn connect(db: Db<DB>) -> Result<PoolConnection<DB>, sqlx::Error> {
        let mut connection = db.acquire().await?;
        connection.close_on_drop();
        if let Some(statement) = db.0.dialect.without_limits() {
            DB::tell(&mut connection, statement.into()).await?;
        }
        Ok(connection)
    }
}

impl<'a, DB: Backend> Acquire<'a> for Unlimited<DB> {
    type Database = DB;
    type Connection = PoolConnection<DB>;

    fn acquire(self) -> BoxFuture<'a, Result<PoolConnection<DB>, sqlx::Error>> {
        Box::pin(Self::connect(self.db))
    }

    fn begin(self) -> BoxFuture<'a, Result<Transaction<'a, DB>, sqlx::Error>> {
        Box::pin(async move { Transaction::begin(Self::connect(self.db).await?, None).await })
    }
}

impl<'a, DB: Backend> Acquire<'a> for &Db<DB> {
    type Database = DB;
    type Connection = PoolConnection<DB>;

    fn acquire(self) -> BoxFuture<'a, Result<PoolConnection<DB>, sqlx::Error>> {
        let db = self.clone();
        Box::pin(async move { db.acquire().await })
    }

    fn begin(self) -> BoxFuture<'a, Result<Transaction<'a, DB>, sqlx::Error>> {
        let db = self.clone();
        Box::pin(async move { db.begin().await })
    }
}
