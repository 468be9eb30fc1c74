//! Passwords: slow to guess, and no way to bring a server down.
//!
//! argon2id (RFC 9106) with the numbers of OWASP's "Password Storage Cheat Sheet": 19 MiB, two passes, one lane. Hashing runs on
//! threads of its own, as many at once as were allowed and, on Linux, at a low priority; its memory is taken once and reused, since filling
//! 19 MiB anew costs as much as the hash.

mod breaches;
#[cfg(feature = "foreign-hashes")]
mod foreign;
mod phc;
mod rules;
mod threads;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::{Duration, Instant};

use argon2::{Algorithm, Argon2, Block, Params, Version};
use parking_lot::Mutex;
#[cfg(feature = "foreign-hashes")]
use sha2::{Digest, Sha256};
use tokio::sync::{Semaphore, oneshot};

pub use self::breaches::{BreachedPasswords, breaches};
#[cfg(feature = "foreign-hashes")]
use self::foreign::Foreign;
use self::phc::Phc;
pub use self::rules::Rules;
use self::threads::Threads;
use super::error::Error;
use super::{random, same};

/// Longer ones are nobody's: hashing a megabyte is a way to attack (CVE-2013-1443).
pub const LONGEST: usize = 1_024;
const SALT: usize = 16;
const HASH: usize = 32;

/// What a hash costs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cost {
    /// Memory, KiB.
    pub memory: u32,
    /// Passes over it.
    pub passes: u32,
    /// Lanes.
    pub lanes: u32,
}

impl Default for Cost {
    /// OWASP's: 19 MiB, 2, 1.
    fn default() -> Self {
        Self { memory: 19_456, passes: 2, lanes: 1 }
    }
}

impl Cost {
    fn params(self) -> Result<Params, Error> {
        Params::new(self.memory, self.passes, self.lanes, Some(HASH))
            .map_err(|_| Error::Setting("argon2 does not take this cost"))
    }

    /// As many passes over that much memory (KiB) as fit into a time on this machine, but no less than OWASP asks for. Takes a few times
    /// that long; run it when you choose, not when you start.
    ///
    /// # Errors
    /// [`Error::Setting`] for memory that argon2 does not take.
    pub fn calibrate(memory: u32, target: Duration) -> Result<Self, Error> {
        let cost = Self { memory: memory.max(Self::default().memory), passes: 2, lanes: 1 };
        let mut blocks = vec![Block::default(); cost.params()?.block_count()];
        let mut took = |passes: u32| -> Result<Duration, Error> {
            let argon2 = Argon2::new(Algorithm::Argon2id, Version::V0x13, Self { passes, ..cost }.params()?);
            let start = Instant::now();
            let hashed = argon2.hash_password_into_with_memory(b"calibration", &[0; SALT], &mut [0; HASH], &mut blocks);
            hashed.map_err(|_| Error::Setting("argon2 does not take this cost"))?;
            Ok(start.elapsed())
        };
        took(1)?;
        let one = took(2)? / 2;
        let passes = (target.as_secs_f64() / one.as_secs_f64().max(1e-6)) as u32;
        Ok(Self { passes: passes.clamp(2, 100), ..cost })
    }
}

/// What came of a comparison.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verified {
    /// Wrong, or there is nothing to compare with.
    No,
    /// Right.
    Yes {
        /// Store this instead: the cost or the pepper has changed since.
        rehashed: Option<String>,
    },
}

impl Verified {
    /// Whether it is right.
    pub fn is_yes(&self) -> bool {
        matches!(self, Self::Yes { .. })
    }
}

/// Hashes and verifies. Cloning costs one reference count; have one in a process.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), scale_session::auth::Error> {
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
    /// By key id; the last one is for new hashes.
    peppers: Vec<(String, Vec<u8>)>,
    at_once: usize,
    permits: Semaphore,
    waiting: AtomicUsize,
    queue: usize,
    /// Memory that nobody hashes in just now.
    memory: Mutex<Vec<Vec<Block>>>,
    threads: Arc<Threads>,
    /// Kinds of hashes that accounts were seen to have, and how often.
    #[cfg(feature = "foreign-hashes")]
    seen: Mutex<Vec<(Kind, u64)>>,
}

/// What verifying an account's hash costs.
#[cfg(feature = "foreign-hashes")]
#[derive(Clone, Debug, PartialEq, Eq)]
enum Kind {
    Own,
    Foreign(Foreign),
}

/// Kinds that are told apart, and how often all are seen before the oldest sightings count half.
#[cfg(feature = "foreign-hashes")]
const KINDS: usize = 8;
#[cfg(feature = "foreign-hashes")]
const SEEN: u64 = 100_000;

/// A hash as it is stored.
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
    /// Without peppers: they are secrets.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Passwords").field("cost", &self.0.cost).field("at_once", &self.0.at_once).finish_non_exhaustive()
    }
}

impl Default for Passwords {
    fn default() -> Self {
        Self::new()
    }
}

impl Passwords {
    /// OWASP's cost; as many at once as there are processors but one, which is left to all else, so memory stays below
    /// `processors × 19 MiB`; 20 times as many may wait.
    pub fn new() -> Self {
        let at_once = std::thread::available_parallelism().map_or(1, |n| n.get().saturating_sub(1).max(1));
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

    /// What a hash costs from now on. Older ones are verified as they were made, and hashed anew when they fit.
    ///
    /// # Errors
    /// [`Error::Setting`] for numbers that argon2 does not take.
    pub fn cost(self, cost: Cost) -> Result<Self, Error> {
        cost.params()?;
        Ok(self.with(|p| p.cost = cost))
    }

    /// A secret that goes into each hash and lies nowhere near them, so that stolen hashes alone are of no use. The last one given is for
    /// new hashes; keep the older ones until all are hashed anew. The id goes into the hash and is no secret.
    ///
    /// # Errors
    /// [`Error::Setting`] for an id that is not made of up to 8 letters and digits, or a secret of less than 16 bytes.
    pub fn pepper(self, id: &str, secret: &[u8]) -> Result<Self, Error> {
        if id.is_empty() || id.len() > 8 || !id.bytes().all(|b| b.is_ascii_alphanumeric()) {
            return Err(Error::Setting("a pepper's id is made of up to 8 letters and digits"));
        }
        if secret.len() < 16 {
            return Err(Error::Setting("a pepper has at least 16 bytes"));
        }
        Ok(self.with(|p| p.peppers.push((id.to_owned(), secret.to_owned()))))
    }

    /// How many at once, each with its memory, and how many may wait for that.
    pub fn at_once(self, hashes: usize, waiting: usize) -> Self {
        self.with(|p| (p.at_once, p.queue) = (hashes.max(1), waiting))
    }

    /// A hash to store, as a PHC string.
    ///
    /// # Errors
    /// [`Error::Busy`]; [`Error::Password`] if it is longer than 1,024 bytes.
    pub async fn hash(&self, password: &str) -> Result<String, Error> {
        if password.len() > LONGEST {
            return Err(Error::Password("is longer than 1,024 bytes"));
        }
        let password = password.to_owned();
        self.run(move |inner, blocks| inner.make(&password, blocks)).await?
    }

    /// Whether a password fits what is stored; `None` if there is no such account, or it has no password. Takes the same time for all. While
    /// accounts have hashes of another system, use [`verify_for`](Self::verify_for).
    ///
    /// # Errors
    /// [`Error::Busy`].
    pub async fn verify(&self, password: &str, stored: Option<&str>) -> Result<Verified, Error> {
        self.verify_for("", password, stored).await
    }

    /// The same for the name that was typed in. With feature `foreign-hashes` what is stored may come from Laravel, Rails, Django or ASP.NET;
    /// once it fits, [`Verified::Yes`] has a hash of ours to store instead. Such hashes cost what they cost: so a name without an account
    /// takes as long as one of the kinds of hashes that accounts were seen to have, the same for a name each time, and one kind for as many
    /// names as accounts have it.
    ///
    /// # Errors
    /// [`Error::Busy`].
    pub async fn verify_for(&self, account: &str, password: &str, stored: Option<&str>) -> Result<Verified, Error> {
        // Too long, too, is an answer that takes its time.
        let (password, fits) = if password.len() > LONGEST { ("", false) } else { (password, true) };
        let (password, stored, account) = (password.to_owned(), stored.and_then(Stored::read), account.to_owned());
        self.run(move |inner, blocks| {
            let stored = match stored {
                #[cfg(feature = "foreign-hashes")]
                Some(Stored::Foreign(foreign)) => {
                    inner.saw(Kind::Foreign(foreign.of_nobody()));
                    let fits = foreign.fits(&password, blocks) && fits;
                    // What was typed beyond what it read may be wrong, and is not kept.
                    let rehashed = (fits && foreign.reads_all(&password)).then(|| inner.make(&password, blocks)).transpose()?;
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

    /// Runs on a thread that gives way to all others, with a place and memory of its own. A caller that goes away leaves both when the work
    /// is done.
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
        let permit = inner.permits.acquire().await.map_err(|_| Error::Busy { retry_after: Duration::from_secs(2) })?;
        drop(waiting);
        permit.forget();
        let place = Place(Arc::clone(inner));
        let (done, outcome) = oneshot::channel();
        let hash = move || {
            let inner = &place.0;
            let mut blocks = inner.memory.lock().pop().unwrap_or_default();
            let start = Instant::now();
            let result = work(inner, &mut blocks);
            metrics::histogram!("scale_session_password_seconds").record(start.elapsed().as_secs_f64());
            // What an older or imported hash took is not kept.
            let own = inner.cost.params().map_or(0, |params| params.block_count());
            inner.memory.lock().push(if blocks.len() > own { Vec::new() } else { blocks });
            let _ = done.send(result);
            place
        };
        inner.threads.run(Box::new(hash)).map_err(|_| Error::Busy { retry_after: Duration::from_secs(2) })?;
        outcome.await.map_err(|_| Error::Busy { retry_after: Duration::from_secs(2) })
    }
}

/// A place among those who wait.
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

/// A place among those who hash, free again even if one panics.
struct Place(Arc<Inner>);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.permits.add_permits(1);
    }
}

#[cfg(feature = "foreign-hashes")]
impl Inner {
    /// An account has a hash of this kind.
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

    /// The kind that a name without an account is taken for.
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
    /// The id and the secret of new hashes.
    fn newest(&self) -> (Option<&str>, &[u8]) {
        self.peppers.last().map_or((None, &[]), |(id, secret)| (Some(id), secret))
    }

    /// The secret of that id; `None` if it is not known.
    fn pepper_of(&self, id: Option<&str>) -> Option<Vec<u8>> {
        match id {
            None => Some(Vec::new()),
            Some(id) => self.peppers.iter().find(|(known, _)| known == id).map(|(_, secret)| secret.clone()),
        }
    }

    fn make(&self, password: &str, blocks: &mut Vec<Block>) -> Result<String, Error> {
        let (id, secret) = self.newest();
        let salt = random::<SALT>()?;
        let hash = compute(self.cost, secret, password, &salt, blocks)?;
        Ok(Phc { cost: self.cost, pepper: id.map(str::to_owned), salt: salt.to_vec(), hash: hash.to_vec() }.write())
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
    let argon2 = Argon2::new_with_secret(secret.as_ref(), Algorithm::Argon2id, Version::V0x13, params);
    let argon2 = argon2.map_err(|_| Error::Setting("argon2 does not take this pepper"))?;
    let mut hash = [0; HASH];
    let hashed = argon2.hash_password_into_with_memory(password.as_bytes(), salt, &mut hash, &mut blocks[..count]);
    hashed.map_err(|_| Error::Stored("password"))?;
    Ok(hash)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Fast enough to be tested.
    const CHEAP: Cost = Cost { memory: 64, passes: 1, lanes: 1 };

    fn cheap() -> Passwords {
        Passwords::new().cost(CHEAP).unwrap()
    }

    #[tokio::test]
    async fn hashes_are_phc_strings_with_owasps_numbers() {
        let stored = Passwords::new().hash("x").await.unwrap();
        assert!(stored.starts_with("$argon2id$v=19$m=19456,t=2,p=1$"), "{stored}");
        assert_ne!(stored, Passwords::new().hash("x").await.unwrap(), "salted");
        // As the reference implementation makes it (its own test: argon2id, 2 passes, 64 MiB, 1 lane).
        let known = "$argon2id$v=19$m=65536,t=2,p=1$c29tZXNhbHQ$CTFhFdXPJO1aFaMaO6Mm5c8y7cJHAph8ArZWb2GRPPc";
        let passwords = Passwords::new();
        assert!(matches!(passwords.verify("password", Some(known)).await.unwrap(), Verified::Yes { rehashed: Some(_) }));
        assert_eq!(passwords.verify("passwore", Some(known)).await.unwrap(), Verified::No);
        // And with memory that has been used for another one.
        let own = "$argon2id$v=19$m=19456,t=2,p=1$MDEyMzQ1Njc4OWFiY2RlZg$gy5SuVm5Z7Vw7keB9se9p87QGcomaseB/S2U1OhTsM0";
        for _ in 0..3 {
            let verified = passwords.verify("correct horse battery staple", Some(own)).await.unwrap();
            assert_eq!(verified, Verified::Yes { rehashed: None });
        }
        assert!(passwords.0.memory.lock().iter().all(|blocks| blocks.len() <= 19_456), "an import's memory is not kept");
    }

    #[tokio::test]
    async fn passwords_are_taken_as_they_are() {
        let passwords = cheap();
        let odd = " Pässwörd\t\u{1F511} with spaces ";
        let stored = passwords.hash(odd).await.unwrap();
        assert!(passwords.verify(odd, Some(&stored)).await.unwrap().is_yes());
        for other in [odd.trim(), &odd.to_lowercase(), &odd[..odd.len() - 1], "", &"x".repeat(1 << 20)] {
            assert!(!passwords.verify(other, Some(&stored)).await.unwrap().is_yes(), "{other:.20}");
        }
        let long = "x".repeat(LONGEST);
        let stored = passwords.hash(&long).await.unwrap();
        assert!(!passwords.verify(&long[1..], Some(&stored)).await.unwrap().is_yes(), "nothing is cut off");
        assert!(matches!(passwords.hash(&"x".repeat(LONGEST + 1)).await, Err(Error::Password(_))));
    }

    #[tokio::test]
    async fn a_new_cost_or_pepper_is_taken_over_when_a_password_fits() {
        let old = cheap();
        let first = old.hash("secret").await.unwrap();
        assert_eq!(old.verify("secret", Some(&first)).await.unwrap(), Verified::Yes { rehashed: None });
        let peppered = cheap().pepper("a1", &[1; 32]).unwrap();
        let Verified::Yes { rehashed: Some(second) } = peppered.verify("secret", Some(&first)).await.unwrap() else { panic!() };
        assert!(second.contains(",keyid=a1$"));
        assert_eq!(peppered.verify("secret", Some(&second)).await.unwrap(), Verified::Yes { rehashed: None });
        // Stolen hashes without the pepper, or with another one of the name, are of no use.
        for other in [cheap(), cheap().pepper("a1", &[2; 32]).unwrap()] {
            assert_eq!(other.verify("secret", Some(&second)).await.unwrap(), Verified::No);
        }
        let rotated = peppered.pepper("b2", &[3; 32]).unwrap();
        let Verified::Yes { rehashed: Some(third) } = rotated.verify("secret", Some(&second)).await.unwrap() else { panic!() };
        assert!(third.contains("keyid=b2"));
        let dearer = rotated.cost(Cost { passes: 3, ..CHEAP }).unwrap();
        assert!(matches!(dearer.verify("secret", Some(&third)).await.unwrap(), Verified::Yes { rehashed: Some(_) }));
    }

    /// Counted in hashes, not in seconds: what takes time is the hash.
    #[tokio::test]
    async fn nobody_takes_as_long_as_somebody() {
        let passwords = cheap();
        let stored = passwords.hash("secret").await.unwrap();
        for stored in [
            None,
            Some(""),
            Some("$2b$12$bcrypt"),
            Some("$argon2id$v=19$m=64,t=1,p=1,keyid=gone$c2FsdHNhbHQ$AAAA"),
            Some(&stored),
        ] {
            let before = passwords.0.memory.lock().pop();
            assert!(!passwords.verify("guess", stored).await.unwrap().is_yes());
            // Memory was taken and filled, whatever there was to compare with.
            let blocks = passwords.0.memory.lock().last().map_or(0, Vec::len);
            assert!(blocks >= CHEAP.params().unwrap().block_count(), "{stored:?}");
            drop(before);
        }
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_storm_is_bounded_in_memory_and_the_rest_is_told_at_once() {
        let passwords = Passwords::new().cost(Cost { memory: 4_096, passes: 1, lanes: 1 }).unwrap().at_once(2, 10);
        let tasks: Vec<_> = (0..500)
            .map(|n| {
                let passwords = passwords.clone();
                tokio::spawn(async move { passwords.hash(&format!("password {n}")).await })
            })
            .collect();
        let (mut done, mut busy) = (0, 0);
        for (n, task) in tasks.into_iter().enumerate() {
            // Some go away half way.
            if n % 7 == 0 {
                task.abort();
            }
            match task.await {
                Ok(Ok(_)) => done += 1,
                Ok(Err(Error::Busy { .. })) => busy += 1,
                Ok(other) => panic!("{other:?}"),
                Err(_) => {}
            }
        }
        assert!(done >= 2 && busy > 0, "{done} {busy}");
        assert!(passwords.0.memory.lock().len() <= 2, "memory for two");
        assert_eq!(passwords.0.waiting.load(SeqCst), 0);
        while passwords.0.permits.available_permits() < 2 {
            tokio::task::yield_now().await;
        }
        passwords.hash("afterwards").await.unwrap();
    }

    #[test]
    fn calibration_keeps_to_owasp_at_least() {
        let cost = Cost::calibrate(1, Duration::from_millis(1)).unwrap();
        assert_eq!(cost, Cost { memory: 19_456, passes: 2, lanes: 1 });
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn hashes_one_after_the_other_share_a_thread_even_if_one_panics() {
        let passwords = Passwords::new().at_once(1, 10);
        let mut threads = std::collections::HashSet::new();
        for _ in 0..20 {
            threads.insert(passwords.run(|_, _| std::thread::current().id()).await.unwrap());
        }
        assert_eq!(threads.len(), 1);
        let broken: Result<(), _> = passwords.run(|_, _| panic!("a bug")).await;
        assert!(matches!(broken, Err(Error::Busy { .. })));
        assert!(threads.insert(passwords.run(|_, _| std::thread::current().id()).await.unwrap()), "that one is gone");
    }

    #[cfg(feature = "foreign-hashes")]
    #[tokio::test]
    async fn accounts_of_another_system_move_in() {
        let passwords = cheap();
        for stored in foreign::tests::MADE {
            let verified = passwords.verify_for("ann", "Pässwörd 1", Some(stored)).await.unwrap();
            let Verified::Yes { rehashed: Some(own) } = verified else { panic!("{stored}: {verified:?}") };
            assert!(own.starts_with("$argon2id$v=19$m=64,"), "{own}");
            assert_eq!(passwords.verify_for("ann", "Pässwörd 1", Some(&own)).await.unwrap(), Verified::Yes { rehashed: None });
            assert_eq!(passwords.verify_for("ann", "wrong", Some(stored)).await.unwrap(), Verified::No);
        }
        // What asks for too much is nobody's.
        let dear = "$2y$31$.n6Yy84.NdvagA8W2oq0LOvCvmdEo9TOXGNOpYE7KJ93Gw2JRs/2.";
        assert_eq!(passwords.verify_for("ann", "Pässwörd 1", Some(dear)).await.unwrap(), Verified::No);
    }

    /// Names without an account cost what accounts cost, each the same each time, in the proportion seen.
    #[cfg(feature = "foreign-hashes")]
    #[tokio::test]
    async fn the_cost_of_a_name_tells_nothing() {
        let passwords = cheap();
        let own = passwords.hash("secret").await.unwrap();
        for n in 0..40 {
            let stored = if n % 4 == 0 { own.as_str() } else { foreign::tests::MADE[0] };
            passwords.verify_for("somebody", "guess", Some(stored)).await.unwrap();
        }
        let is_foreign = |n: u32| matches!(passwords.0.kind_of(&format!("nobody{n}")), Some(Kind::Foreign(_)));
        let foreign = (0..1_000).filter(|n| is_foreign(*n)).count();
        assert!((650..850).contains(&foreign), "{foreign} of 1,000, where three in four accounts have such a hash");
        assert_eq!((0..1_000).filter(|n| is_foreign(*n)).count(), foreign, "each time the same");
        assert_eq!(passwords.verify_for("nobody1", "guess", None).await.unwrap(), Verified::No);
    }
}
