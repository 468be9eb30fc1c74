//! Batch loading: concurrent look-ups by key become one query.
//!
//! This solves N+1 queries: a template that needs each order's customer asks a [`Loader`], and one
//! `where id = any($1)` answers all look-ups. The idea is that of Facebook's DataLoader. Create a
//! loader per request, because it caches what it has loaded. Its queries see the writes of the
//! requests that ask, and are [recorded](crate::observe::record) with them.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::future::Future;
use std::hash::Hash;
use std::sync::Arc;
use std::time::Duration;

use futures_core::future::BoxFuture;
use parking_lot::Mutex;
use tokio::sync::oneshot;

use crate::sticky::{self, Scope};

type Fetch<K, V> =
    dyn Fn(Vec<K>) -> BoxFuture<'static, Result<HashMap<K, V>, sqlx::Error>> + Send + Sync;
type Waiting<K, V> = HashMap<K, Vec<oneshot::Sender<Answer<V>>>>;
type Answer<V> = Result<Option<V>, Arc<sqlx::Error>>;

/// Maximum number of keys in one query.
const BATCH: usize = 1_000;
/// Time for which the first look-up of a batch waits for others.
const COLLECT_FOR: Duration = Duration::from_micros(500);

/// Collects look-ups into batches. Cloning costs one reference count; clones share their batches.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), std::sync::Arc<sqlx::Error>> {
/// use std::collections::HashMap;
/// use scale_db::Loader;
///
/// let customers = Loader::new(|ids: Vec<i64>| async move {
///     // select id, name from customers where id = any($1)
///     Ok(ids.into_iter().map(|id| (id, format!("customer {id}"))).collect::<HashMap<_, _>>())
/// });
/// let (a, b) = tokio::join!(customers.load(1), customers.load(2)); // one query
/// assert_eq!((a?, b?), (Some("customer 1".into()), Some("customer 2".into())));
/// # Ok(()) }
/// ```
pub struct Loader<K, V>(Arc<Inner<K, V>>);

struct Inner<K, V> {
    fetch: Box<Fetch<K, V>>,
    state: Mutex<State<K, V>>,
}

struct State<K, V> {
    known: HashMap<K, Option<V>>,
    waiting: Waiting<K, V>,
    /// Sticky scopes of the callers; the query sees the writes of all of them.
    scopes: Vec<Arc<Scope>>,
    /// True if a batch is being collected.
    gathering: bool,
    /// Number of running batches.
    flying: usize,
    /// Keys forgotten since the first of the running batches began: their values may have been read
    /// before.
    forgotten: HashSet<K>,
}

impl<K, V> Clone for Loader<K, V> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<K, V> fmt::Debug for Loader<K, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Loader")
    }
}

impl<K, V> Loader<K, V>
where
    K: Clone + Eq + Hash + Send + Sync + 'static,
    V: Clone + Send + Sync + 'static,
{
    /// Creates a loader. `fetch` returns the values of many keys; keys that it leaves out do not
    /// exist.
    pub fn new<F, Fut>(fetch: F) -> Self
    where
        F: Fn(Vec<K>) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<HashMap<K, V>, sqlx::Error>> + Send + 'static,
    {
        let state = State {
            known: HashMap::new(),
            waiting: HashMap::new(),
            scopes: Vec::new(),
            gathering: false,
            flying: 0,
            forgotten: HashSet::new(),
        };
        Self(Arc::new(Inner {
            fetch: Box::new(move |keys| Box::pin(fetch(keys))),
            state: Mutex::new(state),
        }))
    }

    /// Returns the value of a key; `None` if it does not exist. Look-ups made within half a
    /// millisecond share a query, and each key is loaded once.
    ///
    /// # Errors
    /// The error of the query, for all look-ups that shared it; the next look-up tries again.
    pub async fn load(&self, key: K) -> Answer<V> {
        let answer = {
            let mut state = self.0.state.lock();
            if let Some(known) = state.known.get(&key) {
                return Ok(known.clone());
            }
            let (sender, answer) = oneshot::channel();
            state.waiting.entry(key).or_default().push(sender);
            if let Some(scope) = sticky::current()
                .filter(|new| !state.scopes.iter().any(|old| Arc::ptr_eq(old, new)))
            {
                state.scopes.push(scope);
            }
            if !std::mem::replace(&mut state.gathering, true) {
                tokio::spawn(sticky::carry(self.clone().run()));
            }
            answer
        };
        answer.await.unwrap_or_else(|_| Err(Arc::new(sqlx::Error::WorkerCrashed)))
    }

    /// Returns the values of many keys, in their order.
    pub async fn load_many(
        &self,
        keys: impl IntoIterator<Item = K>,
    ) -> Result<Vec<Option<V>>, Arc<sqlx::Error>> {
        futures_util::future::try_join_all(keys.into_iter().map(|key| self.load(key))).await
    }

    /// Removes a key from the cache, after a write. A running batch does not cache it either.
    pub fn forget(&self, key: &K) {
        let mut state = self.0.state.lock();
        state.known.remove(key);
        if state.flying > 0 {
            state.forgotten.insert(key.clone());
        }
    }

    async fn run(self) {
        tokio::time::sleep(COLLECT_FOR).await;
        let (batch, scopes) = {
            let mut state = self.0.state.lock();
            state.gathering = false;
            state.flying += 1;
            (std::mem::take(&mut state.waiting), std::mem::take(&mut state.scopes))
        };
        let landed = RunningBatch(Arc::clone(&self.0));
        if scopes.is_empty() {
            self.fetch(batch).await;
        } else {
            sticky::for_all(scopes, self.fetch(batch)).await;
        }
        drop(landed);
    }

    async fn fetch(&self, mut batch: Waiting<K, V>) {
        let keys: Vec<K> = batch.keys().cloned().collect();
        for keys in keys.chunks(BATCH) {
            let fetched = (self.0.fetch)(keys.to_vec()).await;
            let (mut values, error) = match fetched {
                Ok(values) => (values, None),
                Err(error) => (HashMap::new(), Some(Arc::new(error))),
            };
            for key in keys {
                let value = values.remove(key);
                if error.is_none() {
                    let mut state = self.0.state.lock();
                    if !state.forgotten.contains(key) {
                        state.known.insert(key.clone(), value.clone());
                    }
                }
                for sender in batch.remove(key).unwrap_or_default() {
                    let _ = sender.send(error.clone().map_or_else(|| Ok(value.clone()), Err));
                }
            }
        }
    }
}

/// Guard that counts a batch as running until dropped, however it ends.
struct RunningBatch<K, V>(Arc<Inner<K, V>>);

impl<K, V> Drop for RunningBatch<K, V> {
    fn drop(&mut self) {
        let mut state = self.0.state.lock();
        state.flying -= 1;
        if state.flying == 0 {
            state.forgotten = HashSet::new();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

    #[tokio::test]
    async fn a_hundred_look_ups_are_one_query_and_a_failure_is_everybodys() {
        let queries = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&queries);
        let loader = Loader::new(move |keys: Vec<u32>| {
            let failing = counted.fetch_add(1, SeqCst) == 1;
            async move {
                if failing {
                    return Err(sqlx::Error::PoolTimedOut);
                }
                Ok(keys.into_iter().filter(|k| k % 2 == 0).map(|k| (k, k * 10)).collect())
            }
        });
        let all = loader.load_many((0..100).chain(0..100)).await.unwrap();
        assert_eq!((all[4], all[5], all[104], queries.load(SeqCst)), (Some(40), None, Some(40), 1));
        assert_eq!(loader.load(4).await.unwrap(), Some(40));
        assert_eq!(queries.load(SeqCst), 1, "remembered");
        assert!(loader.load(200).await.is_err());
        assert_eq!(loader.load(200).await.unwrap(), Some(2_000), "an error is not");
        loader.forget(&4);
        assert_eq!((loader.load(4).await.unwrap(), queries.load(SeqCst)), (Some(40), 4));
    }

    #[tokio::test]
    async fn what_is_forgotten_while_it_is_read_is_read_again() {
        let (queries, gate) =
            (Arc::new(AtomicUsize::new(0)), Arc::new(tokio::sync::Semaphore::new(0)));
        let (counted, closed) = (Arc::clone(&queries), Arc::clone(&gate));
        let loader = Loader::new(move |keys: Vec<u32>| {
            let (number, gate) = (counted.fetch_add(1, SeqCst), Arc::clone(&closed));
            async move {
                let _open = gate.acquire().await;
                Ok(keys.into_iter().map(|key| (key, number)).collect())
            }
        });
        let first = tokio::spawn({
            let loader = loader.clone();
            async move { loader.load_many([1, 2]).await.unwrap() }
        });
        while queries.load(SeqCst) == 0 {
            tokio::task::yield_now().await;
        }
        loader.forget(&1);
        gate.add_permits(1);
        assert_eq!(first.await.unwrap(), [Some(0), Some(0)]);
        assert_eq!(
            (loader.load(1).await.unwrap(), loader.load(2).await.unwrap()),
            (Some(1), Some(0))
        );
        assert_eq!(loader.load(1).await.unwrap(), Some(1), "remembered again");
    }
}
