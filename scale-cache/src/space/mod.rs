//! Keyspaces: one type of value, its settings, its keys.

mod load_many;

use std::any::Any;
use std::fmt::{Debug, Display, Write};
use std::future::Future;
use std::marker::PhantomData;
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::task::coop::consume_budget;

use crate::core::Core;
#[cfg(feature = "http")]
use crate::core::conditional_put::TagSnapshot;
use crate::core::keyspace::Keyspace;
use crate::core::lookup::{LocalRead, Lookup};
use crate::core::pending_invalidations::Reach;
use crate::error::{Carried, Error, LoadError};
use crate::load_context::LoadContext;
use crate::metadata::{Hit, Level};
use crate::options::Options;
use crate::policy::entry::Validity;
#[cfg(feature = "http")]
use crate::policy::versions::Stamps;

/// All entries of one kind. A clone costs a few reference counts.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), scale_cache::Error> {
/// use scale_cache::Cache;
/// use serde::{Deserialize, Serialize};
/// use std::time::Duration;
///
/// #[derive(Serialize, Deserialize)]
/// struct User { name: String }
///
/// let cache = Cache::memory();
/// let users = cache.space::<User>("user").ttl(Duration::from_mins(5));
/// let ann = users.get_or_load(
///     7, |_| async { Ok::<_, std::io::Error>(User { name: "Ann".into() }) },
/// ).await?;
/// assert_eq!(ann.name, "Ann");
/// users.remove(7).await;
/// # Ok(()) }
/// ```
#[derive(Debug)]
pub struct Space<V> {
    pub(crate) core: Arc<Core>,
    keyspace: Arc<Keyspace>,
    value: PhantomData<fn() -> V>,
}

impl<V> Space<V> {
    pub(crate) fn new(core: Arc<Core>, keyspace: Arc<Keyspace>) -> Self {
        Self { core, keyspace, value: PhantomData }
    }
}

impl<V> Clone for Space<V> {
    fn clone(&self) -> Self {
        Self::new(Arc::clone(&self.core), Arc::clone(&self.keyspace))
    }
}

impl<V> Space<V>
where
    V: Serialize + DeserializeOwned + Send + Sync + 'static,
{
    /// Sets the options of the space.
    pub fn options(self, options: Options) -> Self {
        let keyspace = Keyspace { options, ..(*self.keyspace).clone() };
        Self::new(self.core, Arc::new(keyspace))
    }

    /// Sets how long values are fresh. Default: five minutes.
    pub fn ttl(self, ttl: Duration) -> Self {
        let options = Options { ttl, ..self.keyspace.options.clone() };
        self.options(options)
    }

    /// Returns the value, if there is a fresh one.
    pub async fn get(&self, key: impl Display) -> Option<Arc<V>> {
        let mut whole = Key::default();
        let key = whole.write(&self.keyspace.prefix, &key);
        let found = match self.core.look(key) {
            LocalRead::Fresh(value) | LocalRead::Expiring(value) => {
                // A loop of hits must let other tasks run.
                consume_budget().await;
                Some(value)
            }
            LocalRead::Nothing => self
                .core
                .find::<V>(key, &self.keyspace.cell)
                .await
                .and_then(|entry| typed(Arc::clone(&entry.value))),
        };
        if found.is_some() {
            self.slide(key, &self.keyspace.options);
        }
        found
    }

    /// Returns the value with its metadata: the level, its age, and how long it stays fresh. From
    /// the first level also an expired value that is [kept for failed
    /// loads](Options::stale_if_error).
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), scale_cache::Error> {
    /// # let users = scale_cache::Cache::memory().space::<String>("user");
    /// use scale_cache::Level;
    /// users.set(7, "Ann".to_owned()).await?;
    /// let hit = users.get_hit(7).await.expect("the value was just set");
    /// assert!(hit.level == Level::First && !hit.is_stale && hit.age < hit.left);
    /// # Ok(()) }
    /// ```
    pub async fn get_hit(&self, key: impl Display) -> Option<Hit<V>> {
        let key = Key::new(&self.keyspace.prefix, &key);
        let core = &self.core;
        let here = core
            .local
            .get(key.as_str())
            .filter(|e| matches!(core.validity(e), Validity::Fresh | Validity::Stale));
        match here {
            Some(entry) => Hit::of(&entry, Level::First),
            None => Hit::of(
                &*self.core.find::<V>(key.as_str(), &self.keyspace.cell).await?,
                Level::Second,
            ),
        }
    }

    /// Restarts a value's TTL. Returns `false` if there is none, or it has expired.
    pub async fn touch(&self, key: impl Display) -> bool {
        self.core
            .touch(Key::new(&self.keyspace.prefix, &key).as_str(), &self.keyspace.options)
            .await
    }

    /// Restarts the TTL of a value that was just read, if it is [sliding](Options::sliding) and
    /// due.
    fn slide(&self, key: &str, options: &Options) {
        if self.core.slides(key, options) {
            let (core, key, options) = (Arc::clone(&self.core), key.to_owned(), options.clone());
            tokio::spawn(async move { core.touch(&key, &options).await });
        }
    }

    /// Returns the values of many keys, in their order, where fresh. Keys missing in the first
    /// level are requested from the second at the same time.
    pub async fn get_many<K: Display>(
        &self,
        keys: impl IntoIterator<Item = K>,
    ) -> Vec<Option<Arc<V>>> {
        let gets: Vec<_> = keys.into_iter().map(|key| self.get(key)).collect();
        futures_util::future::join_all(gets).await
    }

    /// Returns the value; loads it if there is none, once for all concurrent callers, on all
    /// servers. The loader runs in its own task.
    ///
    /// # Errors
    /// [`Error::Load`] with the loader's error; [`Error::TimedOut`]; [`Error::Panicked`];
    /// [`Error::Cycle`], if the loader requests the key that it loads; [`Error::NoRuntime`] outside
    /// of tokio. Failures of the second level are never returned.
    pub async fn get_or_load<F, Fut, E>(&self, key: impl Display, load: F) -> Result<Arc<V>, Error>
    where
        F: FnOnce(LoadContext) -> Fut + Send + 'static,
        Fut: Future<Output = Result<V, E>> + Send + 'static,
        E: Into<Box<dyn std::error::Error + Send + Sync>> + Send + 'static,
    {
        self.get_or_load_with(key, &self.keyspace.options, load).await
    }

    /// Does the same, with tags, TTL and other options for this key alone.
    pub async fn get_or_load_with<F, Fut, E>(
        &self,
        key: impl Display,
        options: &Options,
        load: F,
    ) -> Result<Arc<V>, Error>
    where
        F: FnOnce(LoadContext) -> Fut + Send + 'static,
        Fut: Future<Output = Result<V, E>> + Send + 'static,
        E: Into<Box<dyn std::error::Error + Send + Sync>> + Send + 'static,
    {
        let mut whole = Key::default();
        let key = whole.write(&self.keyspace.prefix, &key);
        let refresh = match self.core.look(key) {
            LocalRead::Fresh(value) => {
                consume_budget().await;
                self.slide(key, options);
                return Ok(value);
            }
            LocalRead::Expiring(_) => true,
            LocalRead::Nothing => false,
        };
        let value = self
            .core
            .load(Lookup { key, space: &self.keyspace.cell, options }, refresh, load)
            .await?;
        // Two types under one key in one process: a mistake of the program, but not worth a panic.
        typed(value).ok_or_else(|| {
            Error::Load(Arc::from(Box::<dyn std::error::Error + Send + Sync>::from(
                "the key has a value of another type",
            )))
        })
    }

    /// Does the same with a loader whose error is of any type, and returns that error: for an
    /// application whose own error is no [`std::error::Error`], or decides the answer.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() {
    /// # let users = scale_cache::Cache::memory().space::<String>("user");
    /// use scale_cache::{LoadContext, LoadError};
    ///
    /// #[derive(Debug, PartialEq)]
    /// enum AppError {
    ///     NotFound,
    ///     Unavailable,
    /// }
    ///
    /// let load = |_: LoadContext| async { Err(AppError::NotFound) };
    /// let error = match users.get_or_try_load(7, load).await {
    ///     Ok(_) => panic!("there is no user 7"),
    ///     Err(LoadError::Load(error)) => error,
    ///     Err(_) => AppError::Unavailable.into(),
    /// };
    /// assert_eq!(*error, AppError::NotFound);
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`LoadError::Load`] with the loader's error, which all that waited for it share;
    /// [`LoadError::Cache`] with the other errors of [`get_or_load`](Self::get_or_load).
    pub async fn get_or_try_load<F, Fut, E>(
        &self,
        key: impl Display,
        load: F,
    ) -> Result<Arc<V>, LoadError<E>>
    where
        F: FnOnce(LoadContext) -> Fut + Send + 'static,
        Fut: Future<Output = Result<V, E>> + Send + 'static,
        E: Debug + Send + Sync + 'static,
    {
        self.get_or_try_load_with(key, &self.keyspace.options, load).await
    }

    /// Does the same, with tags, TTL and other options for this key alone.
    pub async fn get_or_try_load_with<F, Fut, E>(
        &self,
        key: impl Display,
        options: &Options,
        load: F,
    ) -> Result<Arc<V>, LoadError<E>>
    where
        F: FnOnce(LoadContext) -> Fut + Send + 'static,
        Fut: Future<Output = Result<V, E>> + Send + 'static,
        E: Debug + Send + Sync + 'static,
    {
        let load = |context| async move { load(context).await.map_err(Carried::new) };
        self.get_or_load_with(key, options, load).await.map_err(LoadError::of)
    }

    /// Stores a value, regardless of loads in progress. Other processes are notified at once.
    ///
    /// # Errors
    /// [`Error::Encode`].
    pub async fn set(&self, key: impl Display, value: V) -> Result<(), Error> {
        let key = Key::new(&self.keyspace.prefix, &key);
        self.core
            .put(
                Lookup {
                    key: key.as_str(),
                    space: &self.keyspace.cell,
                    options: &self.keyspace.options,
                },
                value,
            )
            .await
    }

    /// Removes a value on all servers; a load in progress cannot restore it.
    pub async fn remove(&self, key: impl Display) -> Reach {
        self.core.drop_key(Key::new(&self.keyspace.prefix, &key).as_str()).await
    }

    /// Invalidates the whole space in one step.
    pub async fn clear(&self) -> Reach {
        self.core.invalidate(Arc::clone(self.keyspace.cell.tag()), None).await
    }
}

#[cfg(feature = "http")]
impl<V> Space<V> {
    /// Takes a snapshot before a value is fetched: the versions of these tags, and of those that
    /// all entries of the space have.
    #[cfg(feature = "http")]
    pub(crate) async fn note<const N: usize>(&self, tags: [Arc<str>; N]) -> TagSnapshot {
        let own = [Arc::clone(self.keyspace.cell.tag())];
        TagSnapshot::take(&self.core, own.into_iter().chain(tags)).await
    }

    /// Stores a value if none of its tags was invalidated since `snapshot`; see
    /// [`Core::put_if_current`].
    #[cfg(feature = "http")]
    pub(crate) async fn put_if_current(
        &self,
        snapshot: &TagSnapshot,
        key: &str,
        options: &Options,
        late: &[Arc<str>],
        value: Arc<V>,
    ) -> Option<Stamps>
    where
        V: Serialize + Send + Sync + 'static,
    {
        let key = self.full_key(key).into();
        snapshot.put(&self.core, key, options, late, value).await
    }

    /// Returns a key with its space's prefix.
    pub(crate) fn full_key(&self, key: &str) -> String {
        Key::new(&self.keyspace.prefix, &key).as_str().to_owned()
    }
}

fn typed<V: Send + Sync + 'static>(value: Arc<dyn Any + Send + Sync>) -> Option<Arc<V>> {
    value.downcast().ok()
}

/// A key with its space's prefix, without an allocation if it is short.
enum Key {
    Short([u8; Key::SHORT], usize),
    Long(String),
}

impl Key {
    const SHORT: usize = 64;

    fn new(prefix: &str, key: &dyn Display) -> Self {
        let mut this = Self::default();
        this.write(prefix, key);
        this
    }

    /// Writes in place: moving bytes that were just written would stall the processor.
    fn write(&mut self, prefix: &str, key: &dyn Display) -> &str {
        // Only a `Display` implementation can return an error here.
        let _ = self.write_str(prefix).and_then(|()| write!(self, "{key}"));
        self.as_str()
    }

    fn as_str(&self) -> &str {
        match self {
            Self::Short(bytes, length) => {
                std::str::from_utf8(&bytes[..*length]).unwrap_or_default()
            }
            Self::Long(text) => text,
        }
    }
}

impl Default for Key {
    fn default() -> Self {
        Self::Short([0; Self::SHORT], 0)
    }
}

impl Write for Key {
    fn write_str(&mut self, text: &str) -> std::fmt::Result {
        match self {
            Self::Short(bytes, length) => {
                if let Some(room) = bytes.get_mut(*length..*length + text.len()) {
                    room.copy_from_slice(text.as_bytes());
                    *length += text.len();
                } else {
                    let long = format!("{}{text}", self.as_str());
                    *self = Self::Long(long);
                }
            }
            Self::Long(long) => long.push_str(text),
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::versions::Versions;

    #[test]
    fn keys_of_any_length_come_out_as_written() {
        for key in ["", "7", "ключ", &"x".repeat(58), &"x".repeat(59), &"ü".repeat(500)] {
            assert_eq!(Key::new("space:", &key).as_str(), format!("space:{key}"));
            assert_eq!(Key::new(":", &key).as_str(), format!(":{key}"));
        }
    }

    proptest::proptest! {
        #[test]
        fn no_key_is_one_of_another_space(
            a in "[a:%253A]{0,6}",
            b in "[a:%253A]{0,6}",
            one in "[a:%]{0,4}",
            two in "[a:%]{0,4}",
        ) {
            let versions = Versions::default();
            let whole = |space: &str, key: &str| {
                Key::new(&Keyspace::new(&versions, space).prefix, &key).as_str().to_owned()
            };
            proptest::prop_assert_eq!((&a, &one) == (&b, &two), whole(&a, &one) == whole(&b, &two));
        }
    }
}
