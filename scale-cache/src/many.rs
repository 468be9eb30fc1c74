//! Many keys at once, and one load for those that nobody has.

use std::collections::HashMap;
use std::fmt::Display;
use std::future::Future;
use std::hash::Hash;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::oneshot;

use crate::error::Error;
use crate::space::Space;

/// Keys whose values turn out to be missing so close together are loaded together.
const GATHER: Duration = Duration::from_millis(2);

type Cause = Arc<dyn std::error::Error + Send + Sync>;
type Waiting<K, V> = Vec<(K, oneshot::Sender<Result<Option<V>, Cause>>)>;

/// Collects keys to be loaded, and loads them when no more are to be expected.
struct Batch<K, V, F> {
    waiting: Mutex<Waiting<K, V>>,
    load: F,
}

/// Why a key has no value: its own loader must say something.
#[derive(Debug, thiserror::Error)]
#[error("there is none")]
struct Absent;

/// What the batch's load said, for each of its keys.
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
        let first = {
            let mut waiting = self.waiting.lock();
            waiting.push((key, sender));
            waiting.len() == 1
        };
        if first {
            let this = Arc::clone(&self);
            // A task of its own: whoever was first may be dropped.
            tokio::spawn(async move {
                tokio::time::sleep(GATHER).await;
                this.run().await;
            });
        }
        match value.await {
            Ok(Ok(Some(value))) => Ok(value),
            Ok(Ok(None)) => Err(Absent.into()),
            Ok(Err(cause)) => Err(Shared(cause).into()),
            Err(_) => Err("the loader panicked".into()),
        }
    }

    async fn run(&self) {
        let waiting = std::mem::take(&mut *self.waiting.lock());
        let keys = waiting.iter().map(|(key, _)| key.clone()).collect();
        match (self.load)(keys).await {
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
    /// The values of many keys, in their order. Those that nobody has are loaded together, as a rule by one call: each key is still loaded once
    /// for all who ask meanwhile, on all servers, and fenced against its own invalidations. A key that is not in the loader's answer
    /// has no value, and is asked for again next time; to remember that there is none, cache an `Option`.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), scale_cache::Error> {
    /// # let cache = scale_cache::Cache::memory();
    /// use std::collections::HashMap;
    /// let names = cache.space::<String>("name");
    /// let found = names
    ///     .load_many([7, 8, 9], |missing: Vec<u32>| async move {
    ///         // select id, name from users where id = any($1)
    ///         Ok::<_, std::io::Error>(missing.into_iter().filter(|id| *id != 9).map(|id| (id, format!("user {id}"))).collect::<HashMap<_, _>>())
    ///     })
    ///     .await?;
    /// assert_eq!(found[1].as_deref().map(String::as_str), Some("user 8"));
    /// assert!(found[2].is_none());
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// As of [`get_or_load`](Space::get_or_load), if any key's load failed.
    pub async fn load_many<K, F, Fut, E>(&self, keys: impl IntoIterator<Item = K>, load: F) -> Result<Vec<Option<Arc<V>>>, Error>
    where
        K: Display + Eq + Hash + Clone + Send + 'static,
        F: Fn(Vec<K>) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<HashMap<K, V>, E>> + Send + 'static,
        E: Into<Box<dyn std::error::Error + Send + Sync>> + Send + 'static,
    {
        let batch = Arc::new(Batch { waiting: Mutex::new(Vec::new()), load });
        let loads: Vec<_> = keys
            .into_iter()
            .map(|key| {
                let (batch, name) = (Arc::clone(&batch), key.clone());
                self.get_or_load(key, move |_| batch.value(name))
            })
            .collect();
        let all = futures_util::future::join_all(loads).await;
        all.into_iter()
            .map(|value| match value {
                Ok(value) => Ok(Some(value)),
                Err(Error::Load(cause)) if cause.is::<Absent>() => Ok(None),
                Err(error) => Err(error),
            })
            .collect()
    }
}
