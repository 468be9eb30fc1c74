//! A keyspace: one kind of value, its settings, its keys.

use std::any::Any;
use std::fmt::{Display, Write};
use std::future::Future;
use std::marker::PhantomData;
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::task::coop::consume_budget;

use crate::cache::{Cache, Look, Want};
use crate::entry::Worth;
use crate::error::Error;
use crate::hit::{Hit, Level};
use crate::load::Load;
use crate::options::Options;
use crate::pending::Reach;
use crate::stamp::{ALL, Cell, Versions};

/// All entries of one kind. Cloning costs a few reference counts.
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
/// let ann = users.get_or_load(7, |_| async { Ok::<_, std::io::Error>(User { name: "Ann".into() }) }).await?;
/// assert_eq!(ann.name, "Ann");
/// users.remove(7).await;
/// # Ok(()) }
/// ```
#[derive(Debug)]
pub struct Space<V> {
    pub(crate) cache: Cache,
    of: Arc<Of>,
    value: PhantomData<fn() -> V>,
}

/// What a space is, whatever its values are.
#[derive(Clone, Debug)]
pub(crate) struct Of {
    /// Begins its keys: its name, without a colon, and a colon. So no key is one of another space.
    prefix: Box<str>,
    /// The tag all its entries carry.
    cell: Arc<Cell>,
    options: Options,
}

impl Of {
    pub(crate) fn new(versions: &Versions, name: &str) -> Self {
        let prefix = format!("{}:", name.replace('%', "%25").replace(':', "%3A")).into();
        Self { prefix, cell: versions.cell(&format!("{ALL}{name}")), options: Options::default() }
    }
}

impl<V> Space<V> {
    pub(crate) fn new(cache: Cache, of: Arc<Of>) -> Self {
        Self { cache, of, value: PhantomData }
    }
}

impl<V> Clone for Space<V> {
    fn clone(&self) -> Self {
        Self::new(self.cache.clone(), Arc::clone(&self.of))
    }
}

impl<V> Space<V>
where
    V: Serialize + DeserializeOwned + Send + Sync + 'static,
{
    /// Its settings.
    pub fn options(self, options: Options) -> Self {
        let of = Of { options, ..(*self.of).clone() };
        Self::new(self.cache, Arc::new(of))
    }

    /// How long values are fresh. Default: five minutes.
    pub fn ttl(self, ttl: Duration) -> Self {
        let options = Options { ttl, ..self.of.options.clone() };
        self.options(options)
    }

    /// The value, if there is a fresh one.
    pub async fn get(&self, key: impl Display) -> Option<Arc<V>> {
        let mut whole = Key::default();
        let key = whole.write(&self.of.prefix, &key);
        let found = match self.cache.look(key) {
            Look::Fresh(value) | Look::Expiring(value) => {
                // A loop of hits lets others have their turn.
                consume_budget().await;
                Some(value)
            }
            Look::Nothing => self.cache.find::<V>(key, &self.of.cell).await.and_then(|entry| typed(Arc::clone(&entry.value))),
        };
        if found.is_some() {
            self.slide(key, &self.of.options);
        }
        found
    }

    /// The value with what is known of it: where it was found, how old it is, how long it is fresh. In the first level also one that has
    /// expired and is [kept for bad times](Options::stale_if_error).
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), scale_cache::Error> {
    /// # let users = scale_cache::Cache::memory().space::<String>("user");
    /// use scale_cache::Level;
    /// users.set(7, "Ann".to_owned()).await?;
    /// let hit = users.get_hit(7).await.expect("it was just set");
    /// assert!(hit.level == Level::First && !hit.is_stale && hit.age < hit.left);
    /// # Ok(()) }
    /// ```
    pub async fn get_hit(&self, key: impl Display) -> Option<Hit<V>> {
        let key = Key::new(&self.of.prefix, &key);
        let inner = &self.cache.0;
        let here = inner.here(key.as_str()).filter(|e| matches!(inner.worth(e), Worth::Fresh | Worth::Stale));
        match here {
            Some(entry) => Hit::of(&entry, Level::First),
            None => Hit::of(&*self.cache.find::<V>(key.as_str(), &self.of.cell).await?, Level::Second),
        }
    }

    /// Starts a value's TTL anew. `false`: there is none, or it has expired.
    pub async fn touch(&self, key: impl Display) -> bool {
        self.cache.0.touch(Key::new(&self.of.prefix, &key).as_str(), &self.of.options).await
    }

    /// Starts the TTL of a value just read anew, if it is [to slide](Options::sliding) and due.
    fn slide(&self, key: &str, options: &Options) {
        if self.cache.0.slides(key, options) {
            let (inner, key, options) = (Arc::clone(&self.cache.0), key.to_owned(), options.clone());
            tokio::spawn(async move { inner.touch(&key, &options).await });
        }
    }

    /// The values of many keys, in their order, for those that have a fresh one. What the first level lacks is asked of the second all at
    /// once.
    pub async fn get_many<K: Display>(&self, keys: impl IntoIterator<Item = K>) -> Vec<Option<Arc<V>>> {
        let gets: Vec<_> = keys.into_iter().map(|key| self.get(key)).collect();
        futures_util::future::join_all(gets).await
    }

    /// The value; loaded if there is none, once for all who ask meanwhile, on all servers. The loader runs in a task of its own.
    ///
    /// # Errors
    /// What the loader returned, as [`Error::Load`]; [`Error::TimedOut`]; [`Error::Panicked`]; [`Error::Cycle`], if the loader asks for the
    /// key it loads; [`Error::NoRuntime`] outside tokio. Never the second level's troubles.
    pub async fn get_or_load<F, Fut, E>(&self, key: impl Display, load: F) -> Result<Arc<V>, Error>
    where
        F: FnOnce(Load) -> Fut + Send + 'static,
        Fut: Future<Output = Result<V, E>> + Send + 'static,
        E: Into<Box<dyn std::error::Error + Send + Sync>> + Send + 'static,
    {
        self.get_or_load_with(key, &self.of.options, load).await
    }

    /// The same, with tags, TTL and so on for this key alone.
    pub async fn get_or_load_with<F, Fut, E>(&self, key: impl Display, options: &Options, load: F) -> Result<Arc<V>, Error>
    where
        F: FnOnce(Load) -> Fut + Send + 'static,
        Fut: Future<Output = Result<V, E>> + Send + 'static,
        E: Into<Box<dyn std::error::Error + Send + Sync>> + Send + 'static,
    {
        let mut whole = Key::default();
        let key = whole.write(&self.of.prefix, &key);
        let refresh = match self.cache.look(key) {
            Look::Fresh(value) => {
                consume_budget().await;
                self.slide(key, options);
                return Ok(value);
            }
            Look::Expiring(_) => true,
            Look::Nothing => false,
        };
        let value = self.cache.load(Want { key, space: &self.of.cell, options }, refresh, load).await?;
        // Two types under one key in one process: the program's mistake, but no reason to panic.
        typed(value)
            .ok_or_else(|| Error::Load(Arc::from(Box::<dyn std::error::Error + Send + Sync>::from("the key holds another type"))))
    }

    /// Stores a value, whatever is being loaded. Other processes hear of it at once.
    ///
    /// # Errors
    /// [`Error::Encode`].
    pub async fn set(&self, key: impl Display, value: V) -> Result<(), Error> {
        let key = Key::new(&self.of.prefix, &key);
        self.cache.put(Want { key: key.as_str(), space: &self.of.cell, options: &self.of.options }, value).await
    }

    /// Removes a value, on all servers; a load under way cannot bring it back.
    pub async fn remove(&self, key: impl Display) -> Reach {
        self.cache.drop_key(Key::new(&self.of.prefix, &key).as_str()).await
    }

    /// Invalidates all of the space, in one step.
    pub async fn clear(&self) -> Reach {
        self.cache.invalidate(Arc::clone(self.of.cell.tag()), None).await
    }
}

#[cfg(feature = "http")]
impl<V> Space<V> {
    pub(crate) fn cell(&self) -> &Arc<Cell> {
        &self.of.cell
    }

    /// A key as the cache knows it.
    pub(crate) fn full_key(&self, key: &str) -> String {
        Key::new(&self.of.prefix, &key).as_str().to_owned()
    }
}

fn typed<V: Send + Sync + 'static>(value: Arc<dyn Any + Send + Sync>) -> Option<Arc<V>> {
    value.downcast().ok()
}

/// A key with its space's name, without an allocation as long as it is short.
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

    /// In place: bytes that are moved as soon as they are written make a processor wait.
    fn write(&mut self, prefix: &str, key: &dyn Display) -> &str {
        // Nothing here can fail but a Display that says so itself.
        let _ = self.write_str(prefix).and_then(|()| write!(self, "{key}"));
        self.as_str()
    }

    fn as_str(&self) -> &str {
        match self {
            Self::Short(bytes, length) => std::str::from_utf8(&bytes[..*length]).unwrap_or_default(),
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

    #[test]
    fn keys_of_any_length_come_out_as_written() {
        for key in ["", "7", "ключ", &"x".repeat(58), &"x".repeat(59), &"ü".repeat(500)] {
            assert_eq!(Key::new("space:", &key).as_str(), format!("space:{key}"));
            assert_eq!(Key::new(":", &key).as_str(), format!(":{key}"));
        }
    }

    proptest::proptest! {
        #[test]
        fn no_key_is_one_of_another_space(a in "[a:%253A]{0,6}", b in "[a:%253A]{0,6}", one in "[a:%]{0,4}", two in "[a:%]{0,4}") {
            let versions = Versions::default();
            let whole = |space: &str, key: &str| Key::new(&Of::new(&versions, space).prefix, &key).as_str().to_owned();
            proptest::prop_assert_eq!((&a, &one) == (&b, &two), whole(&a, &one) == whole(&b, &two));
        }
    }
}
