//! Several databases, each with its own primary and replicas, that share the rows of one application by key.
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
//! sqlx::query("insert into orders (customer) values ($1)").bind(customer).execute(shards.of(&customer)).await?;
//!
//! // All of them at once, the newest 20 of all.
//! let newest = shards
//!     .merged(20, |a: &(i64,), b| b.cmp(a), |db| async move {
//!         sqlx::query_as("select id from orders order by id desc limit 20").fetch_all(&db).await
//!     })
//!     .await?;
//! # Ok(()) }
//! ```
//!
//! # One more shard, while the site runs
//!
//! 1. Every process is told of it with [`Shards::grow`]: it is known, but nobody is sent there yet.
//! 2. One process walks over the keys of the old shards ([`Db::chunked`](crate::Db::chunked) finds them) and asks [`Shards::moves_to`]: one key in
//!    `n` belongs to the new one. For each it copies the rows, stops that key's writes for as long as the last look takes (a row lock on the
//!    account will do), and calls [`Shards::place`]. Others learn of it from a table of yours, through the same call.
//! 3. When all are moved, [`Shards::settle`]: the hash alone says where keys live, and the exceptions are forgotten.
//!
//! | when | then |
//! | --- | --- |
//! | processes disagree for a while on where a key lives | one of them finds no rows or writes to the old place: that is why its writes stop while it moves |
//! | a shard is down | its keys fail, others go on; [`Shards::on_all`] says which failed, [`Shards::merged`] fails as a whole |
//! | a name is given twice, or none is given | refused with [`Error::Shards`] |
//! | the order in which shards are named changes | only [exceptions](Shards::place) are by name; for keys placed by hash the order plays no part |

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

/// Databases by name, and which keys live where. Cloning costs one reference count, and clones see each other's changes.
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
    /// Shards by name. A name is for ever: the hash is made of it.
    ///
    /// # Errors
    /// [`Error::Shards`] for none, or a name given twice.
    pub fn new(shards: impl IntoIterator<Item = (impl Into<String>, Db<DB>)>) -> Result<Self, Error> {
        let (names, dbs): (Vec<String>, Vec<_>) = shards.into_iter().map(|(name, db)| (name.into(), db)).unzip();
        let hashing = names.len();
        Self::of_parts(names, dbs, hashing)
    }

    fn of_parts(names: Vec<String>, dbs: Vec<Db<DB>>, hashing: usize) -> Result<Self, Error> {
        if names.is_empty() {
            return Err(Error::Shards("there is none".into()));
        }
        if let Some((n, name)) = names.iter().enumerate().find(|(n, name)| names[..*n].contains(name)) {
            return Err(Error::Shards(format!("`{name}`, number {n}, has another's name")));
        }
        let placement = ArcSwap::from_pointee(Placement::new(&names, hashing));
        Ok(Self(Arc::new(Inner { names, dbs, placement })))
    }

    /// These shards and one more, to which no key is sent before it is [placed](Self::place) there or all is [settled](Self::settle).
    /// Exceptions are taken over.
    ///
    /// # Errors
    /// [`Error::Shards`] if the name is taken, or the last shard that was added is not settled yet.
    pub fn grow(&self, name: impl Into<String>, db: Db<DB>) -> Result<Self, Error> {
        if self.is_growing() {
            return Err(Error::Shards("one shard at a time: settle the last one first".into()));
        }
        let (mut names, mut dbs) = (self.0.names.clone(), self.0.dbs.clone());
        names.push(name.into());
        dbs.push(db);
        let old = self.0.placement.load_full();
        let grown = Self::of_parts(names, dbs, self.0.names.len())?;
        grown.0.placement.rcu(|new| old.taken_over_by(new));
        Ok(grown)
    }

    /// The database that holds a key.
    pub fn of<K: ShardKey + ?Sized>(&self, key: &K) -> &Db<DB> {
        &self.0.dbs[self.number(key)]
    }

    /// Its name.
    pub fn name_of<K: ShardKey + ?Sized>(&self, key: &K) -> &str {
        &self.0.names[self.number(key)]
    }

    fn number<K: ShardKey + ?Sized>(&self, key: &K) -> usize {
        key.with_bytes(|key| self.0.placement.load().of(key))
    }

    /// A shard by name.
    pub fn get(&self, name: &str) -> Option<&Db<DB>> {
        Some(&self.0.dbs[self.0.names.iter().position(|n| n == name)?])
    }

    /// All shards, in the order given.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Db<DB>)> {
        self.0.names.iter().map(String::as_str).zip(&self.0.dbs)
    }

    /// Where a key has to move for the shard that was added to get its share; `None` if it is in its place.
    pub fn moves_to<K: ShardKey + ?Sized>(&self, key: &K) -> Option<&str> {
        let placement = self.0.placement.load();
        let (now, then) = key.with_bytes(|key| (placement.of(key), placement.at_last(key)));
        (self.is_growing() && now != then).then(|| self.0.names[then].as_str())
    }

    /// From now on the key lives on that shard, whatever the hash says: after its rows were moved there, or for a customer so large as to
    /// have a shard of their own.
    ///
    /// # Errors
    /// [`Error::Shards`] if there is no such shard.
    pub fn place<K: ShardKey + ?Sized>(&self, key: &K, shard: &str) -> Result<(), Error> {
        self.place_all([(key, shard)])
    }

    /// [`place`](Self::place) for many at once, as a process does at its start with what its table says.
    ///
    /// # Errors
    /// [`Error::Shards`] if a shard does not exist; none is placed then.
    pub fn place_all<'k, K, N>(&self, keys: impl IntoIterator<Item = (&'k K, N)>) -> Result<(), Error>
    where
        K: ShardKey + ?Sized + 'k,
        N: AsRef<str>,
    {
        let mut numbers = Vec::new();
        for (key, name) in keys {
            let name = name.as_ref();
            let number = self.0.names.iter().position(|n| n == name);
            numbers.push((key, number.ok_or_else(|| Error::Shards(format!("`{name}` is not one of them")))?));
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

    /// Every shard takes its share by hash from now on.
    pub fn settle(&self) {
        self.0.placement.rcu(|old| {
            let mut new = Placement::clone(old);
            new.settle();
            new
        });
    }

    /// Returns whether a shard was added and not settled yet.
    pub fn is_growing(&self) -> bool {
        self.0.placement.load().is_growing()
    }

    /// Returns the number of keys that live elsewhere than the hash says.
    pub fn exceptions(&self) -> usize {
        self.0.placement.load().exceptions()
    }

    /// Asks all shards at once. The answers come in the shards' order, failures among them.
    pub async fn on_all<T, F>(&self, ask: impl Fn(Db<DB>) -> F) -> Vec<(&str, T)>
    where
        F: Future<Output = T>,
    {
        let answers = futures_util::future::join_all(self.0.dbs.iter().map(|db| ask(db.clone()))).await;
        self.0.names.iter().map(String::as_str).zip(answers).collect()
    }

    /// Asks all shards for their rows in one order, and returns the first `limit` of all. Each shard should be asked for `limit` at most.
    ///
    /// # Errors
    /// The first shard's that failed.
    pub async fn merged<T, E, F>(
        &self,
        limit: usize,
        order: impl Fn(&T, &T) -> Ordering,
        ask: impl Fn(Db<DB>) -> F,
    ) -> Result<Vec<T>, E>
    where
        F: Future<Output = Result<Vec<T>, E>>,
    {
        let lists = futures_util::future::try_join_all(self.0.dbs.iter().map(|db| ask(db.clone()))).await?;
        let mut all: Vec<T> = lists.into_iter().flatten().collect();
        // Sorted runs one after the other: the stable sort merges them, and keeps the shards' order among equals.
        all.sort_by(order);
        all.truncate(limit);
        Ok(all)
    }
}
