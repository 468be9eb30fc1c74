//! Pools of the nodes: setup and checks of their connections.

pub(crate) mod liveness;

use std::sync::Arc;
use std::time::Duration;

use futures_core::future::BoxFuture;
use parking_lot::Mutex;
use sqlx::pool::{PoolConnectionMetadata, PoolOptions};

use crate::backend::Backend;
use crate::cluster::capabilities;
use crate::cluster::node::{Node, ProbeState};
use crate::cluster::primary::PrimaryTracker;
use crate::config::Config;
use crate::dialect::Dialect;
use crate::error::Error;
use crate::pool::liveness::Liveness;
use crate::replica::Replica;

/// Application code that runs on each new connection.
pub(crate) type AfterConnect<DB> = Arc<
    dyn for<'c> Fn(
            &'c mut <DB as sqlx::Database>::Connection,
            PoolConnectionMetadata,
        ) -> BoxFuture<'c, Result<(), sqlx::Error>>
        + Send
        + Sync,
>;

/// Creates nodes from addresses.
pub(crate) struct Pools<DB: Backend> {
    pub(crate) dialect: Dialect,
    pub(crate) tracker: Arc<PrimaryTracker>,
    after_connect: Option<AfterConnect<DB>>,
}

/// Connection options of a driver.
type Options<DB> = <<DB as sqlx::Database>::Connection as sqlx::Connection>::Options;

impl<DB: Backend> Pools<DB> {
    /// Creates pools for nodes that must all be of the same system as the first.
    pub(crate) fn new(
        all: &[Replica],
        discover: Option<&str>,
        after_connect: Option<AfterConnect<DB>>,
    ) -> Result<Self, Error> {
        let first = all.first().and_then(dialect::<DB>);
        let dialect = first.ok_or_else(|| wrong::<DB>(all.first()))?;
        if let Some(other) = all.iter().find(|node| self::dialect::<DB>(node) != Some(dialect)) {
            return Err(wrong::<DB>(Some(other)));
        }
        if let Some(url) = discover.filter(|url| DB::dialect(url) != Some(dialect)) {
            return Err(wrong::<DB>(Some(&Replica::new(url))));
        }
        Ok(Self { dialect, tracker: Arc::default(), after_connect })
    }

    /// Creates the settings for nodes of existing pools.
    pub(crate) fn of_others(dialect: Dialect) -> Self {
        Self { dialect, tracker: Arc::default(), after_connect: None }
    }

    /// Creates the listed nodes. On SQLite these are one writer, and readers of the same file
    /// unless the database is in memory.
    pub(crate) fn listed(
        &self,
        config: &Config,
        all: &[Replica],
        listed_alone: bool,
    ) -> Result<Vec<Node<DB>>, Error> {
        if self.dialect != Dialect::Sqlite {
            return all
                .iter()
                .enumerate()
                .map(|(number, at)| self.node(config, number, at, false))
                .collect();
        }
        if all.len() > 1 || !listed_alone {
            return Err(Error::Address(
                "SQLite has no replicas: its readers share one file".into(),
            ));
        }
        let (writer, reader) = (
            all[0].clone().max_connections(1),
            Replica { max_connections: None, ..all[0].clone() },
        );
        let mut nodes = vec![self.node(config, 0, &writer, false)?];
        if !Self::is_in_memory(&reader)? {
            nodes.push(self.node(config, 1, &reader, true)?);
        }
        Ok(nodes)
    }

    /// Creates a discovered node.
    pub(crate) fn found(
        &self,
        config: &Config,
        number: usize,
        at: &Replica,
    ) -> Result<Node<DB>, Error> {
        match DB::dialect(&at.url) {
            Some(theirs) if theirs == self.dialect => {
                let mut node = self.node(config, number, at, false)?;
                node.found = Some(at.url.clone());
                Ok(node)
            }
            _ => Err(wrong::<DB>(Some(at))),
        }
    }

    fn is_in_memory(at: &Replica) -> Result<bool, Error> {
        #[cfg(feature = "sqlite")]
        if let Some(options) = at
            .options
            .as_ref()
            .and_then(|o| o.of_driver.downcast_ref::<sqlx::sqlite::SqliteConnectOptions>())
        {
            return Ok(options.get_filename().to_string_lossy().contains(":sqlx-in-memory-"));
        }
        if at.url.contains(":memory:") || at.url.contains("mode=memory") {
            return Ok(true);
        }
        // SQLite would create a temporary file, a different one for each connection.
        let path = at.url.strip_prefix("sqlite:").unwrap_or_default().trim_start_matches('/');
        if at.options.is_none() && path.split('?').next().is_none_or(str::is_empty) {
            return Err(Error::Address(
                "no file name: expected `sqlite://shop.db?mode=rwc` or `sqlite::memory:`".into(),
            ));
        }
        Ok(false)
    }

    fn node(
        &self,
        config: &Config,
        number: usize,
        at: &Replica,
        reader: bool,
    ) -> Result<Node<DB>, Error> {
        if !(at.weight.is_finite() && at.weight > 0.0) {
            return Err(Error::Address(format!("node {number}'s weight is not positive")));
        }
        let dialect = self.dialect;
        let connections = at.max_connections.unwrap_or(config.max_connections).max(1);
        let greeting = dialect.greeting(reader, config.statement_timeout, config.lock_timeout);
        let (tracker, liveness, asked) =
            (Arc::clone(&self.tracker), Liveness::default(), Arc::<Mutex<ProbeState>>::default());
        let (doubted, left, told, own) =
            (liveness.clone(), liveness.clone(), Arc::clone(&asked), self.after_connect.clone());
        let patience = config.acquire_timeout;
        let options = PoolOptions::<DB>::new()
            .max_connections(connections)
            .min_connections(config.min_connections.min(connections))
            .acquire_timeout(config.acquire_timeout)
            // An in-memory database exists only in its connection, so that must stay open.
            .idle_timeout((dialect != Dialect::Sqlite).then_some(Duration::from_mins(10)))
            .max_lifetime((dialect != Dialect::Sqlite).then_some(Duration::from_mins(30)))
            .test_before_acquire(false)
            .before_acquire(move |connection, meta| {
                if !doubted.is_doubtful(meta.idle_for) {
                    return Box::pin(std::future::ready(Ok(true)));
                }
                Box::pin(async move { DB::ping(connection).await.map(|()| true) })
            })
            // sqlx pings returned connections that were left in the middle of an answer, without
            // any limit: a silent one would occupy its slot until TCP gives up. So such a
            // connection is pinged here, with a limit.
            .after_release(move |connection, _| {
                if !left.is_in_doubt() {
                    return Box::pin(std::future::ready(Ok(true)));
                }
                Box::pin(async move {
                    match tokio::time::timeout(patience, DB::ping(connection)).await {
                        Ok(answer) => answer.map(|()| true),
                        Err(_) => Err(sqlx::Error::Io(std::io::ErrorKind::TimedOut.into())),
                    }
                })
            })
            .after_connect(move |connection, meta| {
                let (greeting, tracker, told, own) =
                    (greeting.clone(), Arc::clone(&tracker), Arc::clone(&told), own.clone());
                Box::pin(async move {
                    DB::tell(connection, greeting).await?;
                    if dialect != Dialect::Sqlite {
                        let probe = capabilities::ask::<DB>(dialect, connection, &told).await?;
                        if tracker.is_over(number, &probe) {
                            return Err(Error::Leftover { node: number }.into());
                        }
                    }
                    match own {
                        Some(own) => own(connection, meta).await,
                        None => Ok(()),
                    }
                })
            });
        // sqlx's error text may contain the password.
        let unreadable = || {
            Error::Address(format!(
                "the host, port or options of node {number} cannot be read by the driver `{}`: \
                 expected scheme://user:password@host:port/database, with special characters of \
                 the password percent-encoded",
                DB::NAME
            ))
        };
        let pool = match &at.options {
            Some(theirs) => options.connect_lazy_with(
                theirs.of_driver.downcast_ref::<Options<DB>>().ok_or_else(unreadable)?.clone(),
            ),
            None if dialect != Dialect::Sqlite && !at.url.contains("://") => {
                return Err(unreadable());
            }
            None => options.connect_lazy(&at.url).map_err(|_| unreadable())?,
        };
        let place = if dialect == Dialect::Sqlite { "" } else { place(&at.url) };
        let mut node = Node::new(number, pool, liveness, asked, at.weight);
        node.place = place.into();
        Ok(node)
    }
}

/// Returns the host and port of an address: what is between the password and the path.
fn place(url: &str) -> &str {
    let rest = url.split_once("://").map_or("", |(_, rest)| rest);
    let rest = rest.rsplit_once('@').map_or(rest, |(_, rest)| rest);
    rest.split(['/', '?']).next().unwrap_or_default()
}

fn dialect<DB: Backend>(at: &Replica) -> Option<Dialect> {
    match &at.options {
        Some(options) if options.of_driver.is::<Options<DB>>() => options.dialect,
        Some(_) => None,
        None => DB::dialect(&at.url),
    }
}

fn wrong<DB: Backend>(at: Option<&Replica>) -> Error {
    if at.is_some_and(|at| at.options.is_some()) {
        return Error::Address(format!("connection options are not of the driver `{}`", DB::NAME));
    }
    // Only the scheme: the rest may contain a password.
    let scheme = at
        .and_then(|at| at.url.split_once(':'))
        .map(|(scheme, _)| scheme.chars().take(20).collect::<String>());
    match scheme.filter(|scheme| !scheme.is_empty()) {
        Some(scheme) => Error::Address(format!(
            "scheme `{scheme}` does not belong to the driver `{}`, or the other nodes have another",
            DB::NAME
        )),
        None => Error::Address("no scheme in the address".into()),
    }
}

#[cfg(all(test, feature = "postgres"))]
mod tests {
    use super::*;
    use crate::cluster::primary::Election;
    use sqlx::Postgres;

    /// Between two probe rounds a stale primary would be written to, at an address that is known.
    #[tokio::test]
    async fn the_pool_of_a_stale_primary_hands_out_no_connection() -> anyhow::Result<()> {
        let server = testkit::Postgres::start(0).await?;
        let config = Config::new(server.node(0).url());
        let all = [Replica::new(server.node(0).url())];
        let pools = Pools::<Postgres>::new(&all, None, None)?;
        let nodes = pools.listed(&config, &all, true)?;
        pools.tracker.accept(&Election::Primary { number: 0, timeline: 1, rivals: Vec::new() });
        drop(nodes[0].pool().acquire().await?);
        nodes[0].pool().close().await;
        // Another node was promoted.
        pools.tracker.accept(&Election::Primary { number: 1, timeline: 2, rivals: Vec::new() });
        let nodes = pools.listed(&config, &all, true)?;
        let error = nodes[0].pool().acquire().await.unwrap_err();
        assert!(
            matches!(error, sqlx::Error::PoolTimedOut | sqlx::Error::Configuration(_)),
            "{error}"
        );
        Ok(())
    }

    #[test]
    fn a_place_has_no_password() {
        assert_eq!(place("postgres://shop:se%40cret@db-1:5432/shop?sslmode=require"), "db-1:5432");
        assert_eq!(place("mysql://shop:p/w@[::1]/shop"), "[::1]");
        assert_eq!(place("postgres://replica"), "replica");
        assert_eq!(place("sqlite"), "");
    }

    #[test]
    fn an_address_is_read_whole_or_not_at_all() {
        for url in ["postgres:u:secret@h", "postgres://u:secret@h:zz/x", "postgres://u:sec#ret@h/x"]
        {
            let all = [Replica::new(url)];
            let made = Pools::<Postgres>::new(&all, None, None)
                .and_then(|pools| pools.listed(&Config::new(url), &all, true));
            let error = made.unwrap_err().to_string();
            assert!(error.contains("percent-encoded") && !error.contains("sec"), "{error}");
        }
    }
}
