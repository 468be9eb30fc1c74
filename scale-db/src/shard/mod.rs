//! Sharding: several databases, each with its own primary and replicas, share the rows of one
//! application by key.
//!
//! ```no_run
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! use scale_db::{Db, shard::Shards};
//! use sqlx::Postgres;
//!
//! let shards = Shards::<Postgres>::new([
//!     ("eu-1", Db::connect("postgres://eu-1/shop").await?),
//!     ("eu-2", Db::connect("postgres://eu-2/shop").await?),
//! ])?;
//! let customer = 42_i64;
//! sqlx::query("insert into orders (customer) values ($1)")
//!     .bind(customer)
//!     .execute(shards.of(&customer)).await?;
//!
//! // All shards concurrently: the newest 20 rows of all.
//! let newest = shards
//!     .merged(20, |a: &(i64,), b| b.cmp(a), |db| async move {
//!         sqlx::query_as("select id from orders order by id desc limit 20").fetch_all(&db).await
//!     })
//!     .await?;
//! # Ok(()) }
//! ```
//!
//! # Adding a shard without downtime
//!
//! 1. Call [`Shards::grow`] in every process: the shard is known, but no key is sent to it yet.
//! 2. In one process, walk over the keys of the old shards ([`Db::chunked`](crate::Db::chunked)
//!    finds them) and call [`Shards::moves_to`] for each: one key in `n` belongs to the new shard.
//!    For such a key, copy its rows, stop its writes during the final check (a row lock on the
//!    account is enough), and call [`Shards::place`]. Other processes learn of the move from a
//!    table of yours, through the same call.
//! 3. When all are moved, call [`Shards::settle`]: from then on only the hash determines where keys
//!    live, and the exceptions are dropped.
//!
//! | when | then |
//! | --- | --- |
//! | processes temporarily disagree on the shard of a key | one of them finds no rows, or writes to the old shard: that is why writes of a key stop while it moves |
//! | a shard is down | its keys fail, others work; [`Shards::on_all`] returns which failed, [`Shards::merged`] fails as a whole |
//! | a name is given twice, or none is given | [`Error::Shards`] |
//! | the order of the shards changes | no effect: [exceptions](Shards::place) are by name, and the hash does not depend on the order |

mod placement;

use std::cmp::Ordering;
use std::fmt;
use std::future::Future;
use std::sync::Arc;

use arc_swap::ArcSwap;

use self::placement::Placement;
pub use self::placement::ShardKey;
use crate::backend::Backend;
use crate::db::Db;
use crate::error::Error;

/// Databases by name, and the placement of keys. Cloning costs one reference count, and clones
/// share changes.
pub struct Shards<DB: Backend>(Arc<Inner<DB>>);

struct Inner<DB: Backend> {
    names: Vec<String>,
    dbs: Vec<Db<DB>>,
    placement: ArcSwap<Placement>,
}

impl<DB: Backend> Clone for Shards<DB> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<DB: Backend> fmt::Debug for Shards<DB> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shards").field("names", &self.0.names).finish_non_exhaustive()
    }
}

impl<DB: Backend> Shards<DB> {
    /// Creates shards by name. A name must never change, because the hash includes it.
    ///
    /// # Errors
    /// [`Error::Shards`] for no shard, or a name given twice.
    pub fn new(
        shards: impl IntoIterator<Item = (impl Into<String>, Db<DB>)>,
    ) -> Result<Self, Error> {
        let (names, dbs): (Vec<String>, Vec<_>) =
            shards.into_iter().map(|(name, db)| (name.into(), db)).unzip();
        let hashing = names.len();
        Self::of_parts(names, dbs, hashing)
    }

    fn of_parts(names: Vec<String>, dbs: Vec<Db<DB>>, hashing: usize) -> Result<Self, Error> {
        if names.is_empty() {
            return Err(Error::Shards("no shard given: expected at least one".into()));
        }
        if let Some((n, name)) =
            names.iter().enumerate().find(|(n, name)| names[..*n].contains(name))
        {
            return Err(Error::Shards(format!(
                "`{name}`, number {n}, has the name of an earlier shard"
            )));
        }
        let placement = ArcSwap::from_pointee(Placement::new(&names, hashing));
        Ok(Self(Arc::new(Inner { names, dbs, placement })))
    }

    /// Returns these shards and one more, to which no key is sent before it is
    /// [placed](Self::place) there or the shards are [settled](Self::settle). Exceptions are kept.
    ///
    /// # Errors
    /// [`Error::Shards`] if the name is taken, or the last added shard is not settled yet.
    pub fn grow(&self, name: impl Into<String>, db: Db<DB>) -> Result<Self, Error> {
        if self.is_growing() {
            return Err(Error::Shards("the last added shard is not settled yet".into()));
        }
        let (mut names, mut dbs) = (self.0.names.clone(), self.0.dbs.clone());
        names.push(name.into());
        dbs.push(db);
        let old = self.0.placement.load_full();
        let grown = Self::of_parts(names, dbs, self.0.names.len())?;
        grown.0.placement.rcu(|new| old.taken_over_by(new));
        Ok(grown)
    }

    /// Returns the database that holds a key.
    pub fn of<K: ShardKey + ?Sized>(&self, key: &K) -> &Db<DB> {
        &self.0.dbs[self.number(key)]
    }

    /// Returns the name of the shard that holds a key.
    pub fn name_of<K: ShardKey + ?Sized>(&self, key: &K) -> &str {
        &self.0.names[self.number(key)]
    }

    fn number<K: ShardKey + ?Sized>(&self, key: &K) -> usize {
        key.with_bytes(|key| self.0.placement.load().of(key))
    }

    /// Returns a shard by name.
    pub fn get(&self, name: &str) -> Option<&Db<DB>> {
        Some(&self.0.dbs[self.0.names.iter().position(|n| n == name)?])
    }

    /// Returns all shards, in the order given.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Db<DB>)> {
        self.0.names.iter().map(String::as_str).zip(&self.0.dbs)
    }

    /// Returns the shard to which a key has to move so that the added shard gets its share; `None`
    /// if the key is in its place.
    pub fn moves_to<K: ShardKey + ?Sized>(&self, key: &K) -> Option<&str> {
        let placement = self.0.placement.load();
        let (now, then) = key.with_bytes(|key| (placement.of(key), placement.at_last(key)));
        (self.is_growing() && now != then).then(|| self.0.names[then].as_str())
    }

    /// Places a key on a shard, whatever its hash: after its rows were moved there, or for a
    /// customer that is large enough for a shard of its own.
    ///
    /// # Errors
    /// [`Error::Shards`] if the shard does not exist.
    pub fn place<K: ShardKey + ?Sized>(&self, key: &K, shard: &str) -> Result<(), Error> {
        self.place_all([(key, shard)])
    }

    /// Places many keys at once, for example all from a table when a process starts. See
    /// [`place`](Self::place).
    ///
    /// # Errors
    /// [`Error::Shards`] if a shard does not exist; then no key is placed.
    pub fn place_all<'k, K, N>(
        &self,
        keys: impl IntoIterator<Item = (&'k K, N)>,
    ) -> Result<(), Error>
    where
        K: ShardKey + ?Sized + 'k,
        N: AsRef<str>,
    {
        let mut numbers = Vec::new();
        for (key, name) in keys {
            let name = name.as_ref();
            let number = self.0.names.iter().position(|n| n == name);
            numbers.push((
                key,
                number.ok_or_else(|| Error::Shards(format!("no shard is named `{name}`")))?,
            ));
        }
        self.0.placement.rcu(|old| {
            let mut new = Placement::clone(old);
            for (key, number) in &numbers {
                key.with_bytes(|key| new.put(key, *number));
            }
            new
        });
        Ok(())
    }

    /// Gives every shard its share by hash from now on.
    pub fn settle(&self) {
        self.0.placement.rcu(|old| {
            let mut new = Placement::clone(old);
            new.settle();
            new
        });
    }

    /// Returns whether a shard was added and is not settled yet.
    pub fn is_growing(&self) -> bool {
        self.0.placement.load().is_growing()
    }

    /// Returns the number of keys that are not placed by their hash.
    pub fn exceptions(&self) -> usize {
        self.0.placement.load().exceptions()
    }

    /// Runs a request on all shards concurrently. Returns the results in the order of the shards,
    /// including failures.
    pub async fn on_all<T, F>(&self, ask: impl Fn(Db<DB>) -> F) -> Vec<(&str, T)>
    where
        F: Future<Output = T>,
    {
        let answers =
            futures_util::future::join_all(self.0.dbs.iter().map(|db| ask(db.clone()))).await;
        self.0.names.iter().map(String::as_str).zip(answers).collect()
    }

    /// Runs a request on all shards, whose rows must be in one order, and returns the first `limit`
    /// rows of all. Each shard should return at most `limit` rows.
    ///
    /// # Errors
    /// The error of the first shard that failed.
    pub async fn merged<T, E, F>(
        &self,
        limit: usize,
        order: impl Fn(&T, &T) -> Ordering,
        ask: impl Fn(Db<DB>) -> F,
    ) -> Result<Vec<T>, E>
    where
        F: Future<Output = Result<Vec<T>, E>>,
    {
        let lists =
            futures_util::future::try_join_all(self.0.dbs.iter().map(|db| ask(db.clone()))).await?;
        let mut all: Vec<T> = lists.into_iter().flatten().collect();
        // The list consists of sorted runs: the stable sort merges them, and keeps the order of
        // shards among equal rows.
        all.sort_by(order);
        all.truncate(limit);
        Ok(all)
    }
}
