//! Many keys at once, with one load for those that are missing.

use std::collections::HashMap;
use std::fmt::Display;
use std::future::Future;
use std::hash::Hash;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use parking_lot::Mutex;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::oneshot;

use super::Space;
use crate::core::single_flight::{Chain, chain, within};
use crate::error::Error;

/// Longest wait of keys that are known to be missing for keys whose state is still unknown: another
/// process may be loading those.
const GATHER: Duration = Duration::from_millis(20);

type Cause = Arc<dyn std::error::Error + Send + Sync>;
type Waiting<K, V> = Vec<(K, oneshot::Sender<Result<Option<V>, Cause>>)>;

/// Collects keys to be loaded, and loads them when no more keys can be missing.
struct Batch<K, V, F> {
    state: Mutex<State<K, V>>,
    load: F,
}

struct State<K, V> {
    waiting: Waiting<K, V>,
    /// Chains of the loads that wait.
    chains: Vec<Chain>,
    /// Number of keys whose state is still unknown.
    open: usize,
}

/// Error for a key that is not in the batch's result; the key's own load must return something.
#[derive(Debug, thiserror::Error)]
#[error("the batch returned no value for the key")]
struct Absent;

/// Error of the batch's load, for each of its keys.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
struct Shared(Cause);

impl<K, V, F, Fut, E> Batch<K, V, F>
where
    K: Eq + Hash + Clone + Send + 'static,
    V: Send + 'static,
    F: Fn(Vec<K>) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Result<HashMap<K, V>, E>> + Send + 'static,
    E: Into<Box<dyn std::error::Error + Send + Sync>> + Send + 'static,
{
    async fn value(self: Arc<Self>, key: K) -> Result<V, Box<dyn std::error::Error + Send + Sync>> {
        let (sender, value) = oneshot::channel();
        let (first, last) = {
            let mut state = self.state.lock();
            state.waiting.push((key, sender));
            state.chains.extend(chain());
            state.open = state.open.saturating_sub(1);
            (state.waiting.len() == 1, state.open == 0)
        };
        if first || last {
            self.start(if last { Duration::ZERO } else { GATHER });
        }
        match value.await {
            Ok(Ok(Some(value))) => Ok(value),
            Ok(Ok(None)) => Err(Absent.into()),
            Ok(Err(cause)) => Err(Shared(cause).into()),
            Err(_) => Err("the batch loader panicked".into()),
        }
    }

    /// Records that a key was found without this batch.
    fn answered(self: &Arc<Self>) {
        let due = {
            let mut state = self.state.lock();
            state.open = state.open.saturating_sub(1);
            state.open == 0 && !state.waiting.is_empty()
        };
        if due {
            self.start(Duration::ZERO);
        }
    }

    /// Starts the load in its own task: the first and the last caller may be dropped.
    fn start(self: &Arc<Self>, wait: Duration) {
        let this = Arc::clone(self);
        tokio::spawn(async move {
            if !wait.is_zero() {
                tokio::time::sleep(wait).await;
            }
            this.run().await;
        });
    }

    async fn run(&self) {
        let (waiting, chains) = {
            let mut state = self.state.lock();
            (std::mem::take(&mut state.waiting), std::mem::take(&mut state.chains))
        };
        if waiting.is_empty() {
            return;
        }
        let keys = waiting.iter().map(|(key, _)| key.clone()).collect();
        match within(chains, async { (self.load)(keys).await }).await {
            Ok(mut found) => {
                for (key, sender) in waiting {
                    let _ = sender.send(Ok(found.remove(&key)));
                }
            }
            Err(error) => {
                let cause: Cause = error.into().into();
                for (_, sender) in waiting {
                    let _ = sender.send(Err(Arc::clone(&cause)));
                }
            }
        }
    }
}

impl<V> Space<V>
where
    V: Serialize + DeserializeOwned + Send + Sync + 'static,
{
    /// Returns the values of many keys, in their order. Missing keys are loaded together, normally
    /// by one call. Each key is still loaded once for all concurrent callers, on all servers, and
    /// fenced against its own invalidations. A key that is not in the loader's result has no value,
    /// and is loaded again next time; to cache the absence of a value, cache an `Option`.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), scale_cache::Error> {
    /// # let cache = scale_cache::Cache::memory();
    /// use std::collections::HashMap;
    /// let names = cache.space::<String>("name");
    /// let found = names
    ///     .load_many([7, 8, 9], |missing: Vec<u32>| async move {
    ///         // select id, name from users where id = any($1)
    ///         let found = missing.into_iter().filter(|id| *id != 9);
    ///         let users: HashMap<_, _> = found.map(|id| (id, format!("user {id}"))).collect();
    ///         Ok::<_, std::io::Error>(users)
    ///     })
    ///     .await?;
    /// assert_eq!(found[1].as_deref().map(String::as_str), Some("user 8"));
    /// assert!(found[2].is_none());
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// The same as those of [`get_or_load`](Space::get_or_load), if the load of any key failed.
    pub async fn load_many<K, F, Fut, E>(
        &self,
        keys: impl IntoIterator<Item = K>,
        load: F,
    ) -> Result<Vec<Option<Arc<V>>>, Error>
    where
        K: Display + Eq + Hash + Clone + Send + 'static,
        F: Fn(Vec<K>) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<HashMap<K, V>, E>> + Send + 'static,
        E: Into<Box<dyn std::error::Error + Send + Sync>> + Send + 'static,
    {
        let keys: Vec<K> = keys.into_iter().collect();
        let mut places: HashMap<K, usize> = HashMap::with_capacity(keys.len());
        let places: Vec<usize> = keys
            .iter()
            .map(|key| {
                let next = places.len();
                *places.entry(key.clone()).or_insert(next)
            })
            .collect();
        let mut distinct: Vec<K> = Vec::new();
        for (key, place) in keys.into_iter().zip(&places) {
            if *place == distinct.len() {
                distinct.push(key);
            }
        }
        let batch = Arc::new(Batch {
            state: Mutex::new(State {
                waiting: Vec::new(),
                chains: Vec::new(),
                open: distinct.len(),
            }),
            load,
        });
        let loads = distinct.into_iter().map(|key| {
            let (batch, name, came) =
                (Arc::clone(&batch), key.clone(), Arc::new(AtomicBool::new(false)));
            async move {
                let (ours, told) = (Arc::clone(&batch), Arc::clone(&came));
                let value = self.get_or_load(key, move |_| {
                    told.store(true, Relaxed);
                    ours.value(name)
                });
                let value = value.await;
                if !came.load(Relaxed) {
                    batch.answered();
                }
                value
            }
        });
        let all = futures_util::future::join_all(loads).await;
        let all = places.into_iter().map(|place| all[place].clone());
        all.map(|value| match value {
            Ok(value) => Ok(Some(value)),
            Err(Error::Load(cause)) if cause.is::<Absent>() => Ok(None),
            Err(error) => Err(error),
        })
        .collect()
    }
}
