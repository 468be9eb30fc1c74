//! A pool for each node, with what its connections are told and asked.

use std::sync::Arc;
use std::time::Duration;

use futures_core::future::BoxFuture;
use parking_lot::Mutex;
use sqlx::pool::{PoolConnectionMetadata, PoolOptions};

use crate::alive::Alive;
use crate::backend::Backend;
use crate::capabilities;
use crate::config::Config;
use crate::dialect::Dialect;
use crate::error::Error;
use crate::node::{Asked, Node};
use crate::reign::Reign;
use crate::replica::Replica;

/// The application's own word to each new connection.
pub(crate) type AfterConnect<DB> = Arc<
    dyn for<'c> Fn(&'c mut <DB as sqlx::Database>::Connection, PoolConnectionMetadata) -> BoxFuture<'c, Result<(), sqlx::Error>>
        + Send
        + Sync,
>;

/// Makes nodes of addresses.
pub(crate) struct Pools<DB: Backend> {
    pub(crate) dialect: Dialect,
    pub(crate) reign: Arc<Reign>,
    after_connect: Option<AfterConnect<DB>>,
}

/// A driver's options for connections.
type Options<DB> = <<DB as sqlx::Database>::Connection as sqlx::Connection>::Options;

impl<DB: Backend> Pools<DB> {
    /// For nodes that are all of one system: that of the first.
    pub(crate) fn new(all: &[Replica], discover: Option<&str>, after_connect: Option<AfterConnect<DB>>) -> Result<Self, Error> {
        let first = all.first().and_then(dialect::<DB>);
        let dialect = first.ok_or_else(|| wrong::<DB>(all.first()))?;
        if let Some(other) = all.iter().find(|node| self::dialect::<DB>(node) != Some(dialect)) {
            return Err(wrong::<DB>(Some(other)));
        }
        if let Some(url) = discover.filter(|url| DB::dialect(url) != Some(dialect)) {
            return Err(wrong::<DB>(Some(&Replica::new(url))));
        }
        Ok(Self { dialect, reign: Arc::default(), after_connect })
    }

    /// For pools that there are already.
    pub(crate) fn of_others(dialect: Dialect) -> Self {
        Self { dialect, reign: Arc::default(), after_connect: None }
    }

    /// Makes the nodes that are listed: on SQLite one writer, and readers of the same file beside it, unless it only lives in memory.
    pub(crate) fn listed(&self, config: &Config, all: &[Replica], listed_alone: bool) -> Result<Vec<Node<DB>>, Error> {
        if self.dialect != Dialect::Sqlite {
            return all.iter().enumerate().map(|(number, at)| self.node(config, number, at, false)).collect();
        }
        if all.len() > 1 || !listed_alone {
            return Err(Error::Address("SQLite has no replicas: its readers share the file".into()));
        }
        let (writer, reader) = (all[0].clone().max_connections(1), Replica { max_connections: None, ..all[0].clone() });
        let mut nodes = vec![self.node(config, 0, &writer, false)?];
        if !Self::is_in_memory(&reader)? {
            nodes.push(self.node(config, 1, &reader, true)?);
        }
        Ok(nodes)
    }

    /// Makes a node that was not listed.
    pub(crate) fn found(&self, config: &Config, number: usize, at: &Replica) -> Result<Node<DB>, Error> {
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
        if let Some(options) = at.options.as_ref().and_then(|o| o.of_driver.downcast_ref::<sqlx::sqlite::SqliteConnectOptions>())
        {
            return Ok(options.get_filename().to_string_lossy().contains(":sqlx-in-memory-"));
        }
        if at.url.contains(":memory:") || at.url.contains("mode=memory") {
            return Ok(true);
        }
        // SQLite makes a file of its own of it, another for each connection.
        let path = at.url.strip_prefix("sqlite:").unwrap_or_default().trim_start_matches('/');
        if at.options.is_none() && path.split('?').next().is_none_or(str::is_empty) {
            return Err(Error::Address("it names no file: write `sqlite://shop.db?mode=rwc`, or `sqlite::memory:`".into()));
        }
        Ok(false)
    }

    fn node(&self, config: &Config, number: usize, at: &Replica, reader: bool) -> Result<Node<DB>, Error> {
        if !(at.weight.is_finite() && at.weight > 0.0) {
            return Err(Error::Address(format!("node {number}'s weight is not above zero")));
        }
        let dialect = self.dialect;
        let connections = at.max_connections.unwrap_or(config.max_connections).max(1);
        let greeting = dialect.greeting(reader, config.statement_timeout, config.lock_timeout);
        let (reign, alive, asked) = (Arc::clone(&self.reign), Alive::default(), Arc::<Mutex<Asked>>::default());
        let (doubted, left, told, own) = (alive.clone(), alive.clone(), Arc::clone(&asked), self.after_connect.clone());
        let patience = config.acquire_timeout;
        let options = PoolOptions::<DB>::new()
            .max_connections(connections)
            .min_connections(config.min_connections.min(connections))
            .acquire_timeout(config.acquire_timeout)
            // A connection in memory is the database itself.
            .idle_timeout((dialect != Dialect::Sqlite).then_some(Duration::from_mins(10)))
            .max_lifetime((dialect != Dialect::Sqlite).then_some(Duration::from_mins(30)))
            .test_before_acquire(false)
            .before_acquire(move |connection, meta| {
                if !doubted.is_doubtful(meta.idle_for) {
                    return Box::pin(std::future::ready(Ok(true)));
                }
                Box::pin(async move { DB::ping(connection).await.map(|()| true) })
            })
            // A connection that was left in the middle is asked whether it lives when it goes back, by sqlx without any limit: one that is
            // silent would keep its place for as long as TCP hopes.
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
                let (greeting, reign, told, own) = (greeting.clone(), Arc::clone(&reign), Arc::clone(&told), own.clone());
                Box::pin(async move {
                    DB::tell(connection, greeting).await?;
                    if dialect != Dialect::Sqlite {
                        let probe = capabilities::ask::<DB>(dialect, connection, &told).await?;
                        if reign.is_over(number, &probe) {
                            return Err(Error::Leftover { node: number }.into());
                        }
                    }
                    match own {
                        Some(own) => own(connection, meta).await,
                        None => Ok(()),
                    }
                })
            });
        // sqlx's words may hold the password.
        let unreadable = || Error::Address(format!("node {number}'s address cannot be read by the driver `{}`", DB::NAME));
        let pool = match &at.options {
            Some(theirs) => {
                options.connect_lazy_with(theirs.of_driver.downcast_ref::<Options<DB>>().ok_or_else(unreadable)?.clone())
            }
            None => options.connect_lazy(&at.url).map_err(|_| unreadable())?,
        };
        Ok(Node::new(number, pool, alive, asked, at.weight))
    }
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
        return Error::Address(format!("its options are not those of the driver `{}`", DB::NAME));
    }
    // The scheme alone: the rest may hold a password.
    let scheme = at.and_then(|at| at.url.split_once(':')).map(|(scheme, _)| scheme.chars().take(20).collect::<String>());
    match scheme.filter(|scheme| !scheme.is_empty()) {
        Some(scheme) => {
            Error::Address(format!("`{scheme}:` is no address of the driver `{}`, or of another system than the first", DB::NAME))
        }
        None => Error::Address("it has no scheme".into()),
    }
}
