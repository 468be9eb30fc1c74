//! Password hashing that is slow to attack and bounded in its use of resources.
//!
//! Hashes with argon2id (RFC 9106) and the parameters of OWASP's "Password Storage Cheat Sheet": 19
//! MiB, two passes, one lane. Hashing runs on its own threads, with a limit on how many run at once
//! and, on Linux, at a low priority. Their memory is allocated once and reused, because the first
//! access to 19 MiB of new memory costs as much as the hash.

mod breaches;
mod cost;
#[cfg(feature = "foreign-hashes")]
mod foreign;
mod phc;
mod rules;
mod threads;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::{Duration, Instant};

use argon2::{Algorithm, Argon2, Block, Version};
use parking_lot::Mutex;
#[cfg(feature = "foreign-hashes")]
use sha2::{Digest, Sha256};
use tokio::sync::{Semaphore, oneshot};

pub use self::breaches::{BreachedPasswords, breaches};
pub use self::cost::Cost;
use self::cost::{HASH, SALT};
#[cfg(feature = "foreign-hashes")]
use self::foreign::Foreign;
use self::phc::Phc;
pub use self::rules::Rules;
use self::threads::Threads;
use super::error::Error;
use super::{random, same};

/// Maximum length of a password, in bytes: hashing a megabyte would be a means of attack
/// (CVE-2013-1443).
pub const LONGEST: usize = 1_024;

/// Result of a verification.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verified {
    /// The password is wrong, or there is no hash to compare with.
    No,
    /// The password is right.
    Yes {
        /// New hash to store instead of the old one: the cost or the pepper has changed.
        rehashed: Option<String>,
    },
}

impl Verified {
    /// Returns whether the password is right.
    pub fn is_yes(&self) -> bool {
        matches!(self, Self::Yes { .. })
    }
}

/// Hashes and verifies passwords. A clone costs one reference count; create one per process.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), scale_session::auth::Error> {
/// use scale_session::auth::Passwords;
///
/// let passwords = Passwords::new();
/// let stored = passwords.hash("correct horse battery staple").await?;
/// assert!(passwords.verify("correct horse battery staple", Some(&stored)).await?.is_yes());
/// assert!(!passwords.verify("guess", Some(&stored)).await?.is_yes());
/// // An account that does not exist: the same call, the same time.
/// assert!(!passwords.verify("guess", None).await?.is_yes());
/// # Ok(()) }
/// ```
#[derive(Clone)]
pub struct Passwords(Arc<Inner>);

struct Inner {
    cost: Cost,
    /// Peppers by key id; new hashes use the last one.
    peppers: Vec<(String, Vec<u8>)>,
    at_once: usize,
    permits: Semaphore,
    waiting: AtomicUsize,
    queue: usize,
    /// Memory that no hash is using at the moment.
    memory: Mutex<Vec<Vec<Block>>>,
    threads: Arc<Threads>,
    /// Kinds of hashes that accounts had, and how often.
    #[cfg(feature = "foreign-hashes")]
    seen: Mutex<Vec<(Kind, u64)>>,
}

/// Kind of a hash, by the cost of verifying it.
#[cfg(feature = "foreign-hashes")]
#[derive(Clone, Debug, PartialEq, Eq)]
enum Kind {
    Own,
    Foreign(Foreign),
}

/// Maximum number of kinds that are counted, and the number of counts at which all counts are
/// halved.
#[cfg(feature = "foreign-hashes")]
const KINDS: usize = 8;
#[cfg(feature = "foreign-hashes")]
const SEEN: u64 = 100_000;

/// A parsed hash.
enum Stored {
    Own(Phc),
    #[cfg(feature = "foreign-hashes")]
    Foreign(Foreign),
}

impl Stored {
    fn read(text: &str) -> Option<Self> {
        let own = Phc::read(text).map(Self::Own);
        #[cfg(feature = "foreign-hashes")]
        let own = own.or_else(|| Foreign::read(text).map(Self::Foreign));
        own
    }
}

impl std::fmt::Debug for Passwords {
    /// Omits the peppers, which are secrets.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Passwords")
            .field("cost", &self.0.cost)
            .field("at_once", &self.0.at_once)
            .finish_non_exhaustive()
    }
}

impl Default for Passwords {
    fn default() -> Self {
        Self::new()
    }
}

impl Passwords {
    /// Uses OWASP's cost. As many hashes run at once as there are processors, minus one for all
    /// other work, so memory stays below `processors × 19 MiB`. 20 times as many may wait.
    pub fn new() -> Self {
        let at_once =
            std::thread::available_parallelism().map_or(1, |n| n.get().saturating_sub(1).max(1));
        Self(Arc::new(Inner {
            cost: Cost::default(),
            peppers: Vec::new(),
            at_once,
            permits: Semaphore::new(at_once),
            waiting: AtomicUsize::new(0),
            queue: at_once * 20,
            memory: Mutex::default(),
            threads: Arc::default(),
            #[cfg(feature = "foreign-hashes")]
            seen: Mutex::default(),
        }))
    }

    fn with(self, change: impl FnOnce(&mut Inner)) -> Self {
        let old = &self.0;
        let mut inner = Inner {
            cost: old.cost,
            peppers: old.peppers.clone(),
            at_once: old.at_once,
            permits: Semaphore::new(0),
            waiting: AtomicUsize::new(0),
            queue: old.queue,
            memory: Mutex::default(),
            threads: Arc::default(),
            #[cfg(feature = "foreign-hashes")]
            seen: Mutex::default(),
        };
        change(&mut inner);
        inner.permits = Semaphore::new(inner.at_once);
        Self(Arc::new(inner))
    }

    /// Sets the cost of new hashes. Older hashes are verified with their own cost, and replaced
    /// after a match.
    ///
    /// # Errors
    /// [`Error::Setting`] for parameters that argon2 does not accept.
    pub fn cost(self, cost: Cost) -> Result<Self, Error> {
        cost.params()?;
        Ok(self.with(|p| p.cost = cost))
    }

    /// Adds a secret that goes into each hash and is stored apart from the hashes, so that stolen
    /// hashes alone are useless. New hashes use the last pepper added; keep the older ones until
    /// all hashes are replaced. The id is part of the hash and is not a secret.
    ///
    /// # Errors
    /// [`Error::Setting`] for an id that is not 1 to 8 letters and digits, or a secret of fewer
    /// than 16 bytes.
    pub fn pepper(self, id: &str, secret: &[u8]) -> Result<Self, Error> {
        if id.is_empty() || id.len() > 8 || !id.bytes().all(|b| b.is_ascii_alphanumeric()) {
            return Err(Error::Setting("a pepper id has 1 to 8 letters and digits"));
        }
        if secret.len() < 16 {
            return Err(Error::Setting("the pepper is too short: at least 16 bytes are needed"));
        }
        Ok(self.with(|p| p.peppers.push((id.to_owned(), secret.to_owned()))))
    }

    /// Sets how many hashes run at once, each with its own memory, and how many may wait.
    pub fn at_once(self, hashes: usize, waiting: usize) -> Self {
        self.with(|p| (p.at_once, p.queue) = (hashes.max(1), waiting))
    }

    /// Returns a hash to store, as a PHC string.
    ///
    /// # Errors
    /// [`Error::Busy`]; [`Error::Password`] if the password is longer than 1,024 bytes.
    pub async fn hash(&self, password: &str) -> Result<String, Error> {
        if password.len() > LONGEST {
            return Err(Error::Password("is longer than 1,024 bytes"));
        }
        let password = password.to_owned();
        self.run(move |inner, blocks| inner.make(&password, blocks)).await?
    }

    /// Verifies a password against a stored hash; `None` if the account does not exist or has no
    /// password. Takes the same time in all cases. While accounts have hashes of another system,
    /// use [`verify_for`](Self::verify_for).
    ///
    /// # Errors
    /// [`Error::Busy`].
    pub async fn verify(&self, password: &str, stored: Option<&str>) -> Result<Verified, Error> {
        self.verify_for("", password, stored).await
    }

    /// Does the same, given the account name that was entered. With feature `foreign-hashes` the
    /// stored hash may come from Laravel, Rails, Django or ASP.NET; after a match,
    /// [`Verified::Yes`] contains a new hash to store instead. Such hashes take their own time. So
    /// a name without an account takes as long as one of the kinds of hashes that accounts have:
    /// always the same kind for a name, and each kind for as large a share of names as of accounts.
    ///
    /// # Errors
    /// [`Error::Busy`].
    pub async fn verify_for(
        &self,
        account: &str,
        password: &str,
        stored: Option<&str>,
    ) -> Result<Verified, Error> {
        // A password that is too long takes the same time as well.
        let (password, fits) =
            if password.len() > LONGEST { ("", false) } else { (password, true) };
        let (password, stored, account) =
            (password.to_owned(), stored.and_then(Stored::read), account.to_owned());
        self.run(move |inner, blocks| {
            let stored = match stored {
                #[cfg(feature = "foreign-hashes")]
                Some(Stored::Foreign(foreign)) => {
                    inner.saw(Kind::Foreign(foreign.of_nobody()));
                    let fits = foreign.fits(&password, blocks) && fits;
                    // Bytes beyond those that the old hash covers may be wrong, so they must not go
                    // into a new hash.
                    let rehashed = (fits && foreign.reads_all(&password))
                        .then(|| inner.make(&password, blocks))
                        .transpose()?;
                    return Ok(if fits { Verified::Yes { rehashed } } else { Verified::No });
                }
                #[cfg(feature = "foreign-hashes")]
                None => {
                    if let Some(Kind::Foreign(nobody)) = inner.kind_of(&account) {
                        nobody.fits(&password, blocks);
                        return Ok(Verified::No);
                    }
                    None
                }
                #[cfg(not(feature = "foreign-hashes"))]
                None => None,
                Some(Stored::Own(phc)) => {
                    #[cfg(feature = "foreign-hashes")]
                    inner.saw(Kind::Own);
                    Some(phc)
                }
            };
            let _ = account;
            let secret = stored.as_ref().map(|phc| inner.pepper_of(phc.pepper.as_deref()));
            let (Some(phc), Some(Some(secret))) = (stored, secret) else {
                compute(inner.cost, inner.newest().1, &password, &[0; SALT], blocks)?;
                return Ok(Verified::No);
            };
            let hash = compute(phc.cost, secret, &password, &phc.salt, blocks)?;
            if !same(&hash, &phc.hash) || !fits {
                return Ok(Verified::No);
            }
            let current = phc.cost == inner.cost && phc.pepper.as_deref() == inner.newest().0;
            let rehashed = if current { None } else { Some(inner.make(&password, blocks)?) };
            Ok(Verified::Yes { rehashed })
        })
        .await?
    }

    /// Runs `work` on a low-priority thread, with its own permit and memory. If the caller is
    /// dropped, both are released when the work is done.
    async fn run<T, F>(&self, work: F) -> Result<T, Error>
    where
        T: Send + 'static,
        F: FnOnce(&Inner, &mut Vec<Block>) -> T + Send + 'static,
    {
        let inner = &self.0;
        let waiting = Waiting::begin(&inner.waiting);
        if inner.permits.available_permits() == 0 && waiting.number > inner.queue {
            metrics::counter!("scale_session_passwords_busy_total").increment(1);
            return Err(Error::Busy { retry_after: Duration::from_secs(2) });
        }
        let permit = inner
            .permits
            .acquire()
            .await
            .map_err(|_| Error::Busy { retry_after: Duration::from_secs(2) })?;
        drop(waiting);
        permit.forget();
        let place = Place(Arc::clone(inner));
        let (done, outcome) = oneshot::channel();
        let hash = move || {
            let inner = &place.0;
            let mut blocks = inner.memory.lock().pop().unwrap_or_default();
            let start = Instant::now();
            let result = work(inner, &mut blocks);
            metrics::histogram!("scale_session_password_seconds")
                .record(start.elapsed().as_secs_f64());
            // Does not keep the larger memory of an older or imported hash.
            let own = inner.cost.params().map_or(0, |params| params.block_count());
            inner.memory.lock().push(if blocks.len() > own { Vec::new() } else { blocks });
            let _ = done.send(result);
            place
        };
        inner
            .threads
            .run(Box::new(hash))
            .map_err(|_| Error::Busy { retry_after: Duration::from_secs(2) })?;
        outcome.await.map_err(|_| Error::Busy { retry_after: Duration::from_secs(2) })
    }
}

/// A position in the queue of waiting hashes.
struct Waiting<'w> {
    count: &'w AtomicUsize,
    number: usize,
}

impl<'w> Waiting<'w> {
    fn begin(count: &'w AtomicUsize) -> Self {
        Self { count, number: count.fetch_add(1, SeqCst) + 1 }
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.count.fetch_sub(1, SeqCst);
    }
}

/// Permit of a running hash, released even after a panic.
struct Place(Arc<Inner>);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.permits.add_permits(1);
    }
}

#[cfg(feature = "foreign-hashes")]
impl Inner {
    /// Counts an account with a hash of this kind.
    fn saw(&self, kind: Kind) {
        let mut seen = self.seen.lock();
        if let Some((_, count)) = seen.iter_mut().find(|(known, _)| *known == kind) {
            *count += 1;
        } else if seen.len() < KINDS {
            seen.push((kind, 1));
        }
        if seen.iter().map(|(_, count)| count).sum::<u64>() > SEEN {
            seen.iter_mut().for_each(|(_, count)| *count /= 2);
            seen.retain(|(_, count)| *count > 0);
        }
    }

    /// Returns the kind of hash that a name without an account is treated as having.
    fn kind_of(&self, account: &str) -> Option<Kind> {
        let seen = self.seen.lock();
        let all: u64 = seen.iter().map(|(_, count)| count).sum();
        let digest = Sha256::digest([b"account:", account.as_bytes()].concat());
        let mut place = u64::from_be_bytes(digest[..8].try_into().ok()?).checked_rem(all)?;
        let kind = seen.iter().find(|(_, count)| {
            let is_here = place < *count;
            place = place.saturating_sub(*count);
            is_here
        });
        kind.map(|(kind, _)| kind.clone())
    }
}

impl Inner {
    /// Returns the id and the secret of the pepper for new hashes.
    fn newest(&self) -> (Option<&str>, &[u8]) {
        self.peppers.last().map_or((None, &[]), |(id, secret)| (Some(id), secret))
    }

    /// Returns the secret of that pepper; `None` if the id is unknown.
    fn pepper_of(&self, id: Option<&str>) -> Option<Vec<u8>> {
        match id {
            None => Some(Vec::new()),
            Some(id) => {
                self.peppers.iter().find(|(known, _)| known == id).map(|(_, secret)| secret.clone())
            }
        }
    }

    fn make(&self, password: &str, blocks: &mut Vec<Block>) -> Result<String, Error> {
        let (id, secret) = self.newest();
        let salt = random::<SALT>()?;
        let hash = compute(self.cost, secret, password, &salt, blocks)?;
        Ok(Phc {
            cost: self.cost,
            pepper: id.map(str::to_owned),
            salt: salt.to_vec(),
            hash: hash.to_vec(),
        }
        .write())
    }
}

fn compute(
    cost: Cost,
    secret: impl AsRef<[u8]>,
    password: &str,
    salt: &[u8],
    blocks: &mut Vec<Block>,
) -> Result<[u8; HASH], Error> {
    let params = cost.params()?;
    let count = params.block_count();
    if blocks.len() < count {
        blocks.resize(count, Block::default());
    }
    let argon2 =
        Argon2::new_with_secret(secret.as_ref(), Algorithm::Argon2id, Version::V0x13, params);
    let argon2 = argon2.map_err(|_| Error::Setting("argon2 does not accept this pepper"))?;
    let mut hash = [0; HASH];
    let hashed = argon2.hash_password_into_with_memory(
        password.as_bytes(),
        salt,
        &mut hash,
        &mut blocks[..count],
    );
    hashed.map_err(|_| Error::Stored("password"))?;
    Ok(hash)
}

#[cfg(test)]
mod tests;
