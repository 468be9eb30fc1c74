//! A log of events in which every later change can be detected.
//!
//! Records form a chain: each contains an HMAC-SHA-256 over itself and the previous record, under a
//! key that is not in the database. (After Schneier and Kelsey, *Secure Audit Logs to Support
//! Computer Forensics*, 1999; the chain is theirs, but the key here does not evolve.)
//!
//! | a change by an attacker who can write to the table | is detected by |
//! | --- | --- |
//! | a record or its time is edited, or two records are swapped | [`verify`](AuditLog::verify): the HMAC does not match |
//! | a record is removed or inserted | the number or HMAC of the next record does not match |
//! | the last records, or all, are removed | an *anchor*: a [`Head`] that is kept elsewhere ([`AuditLog::head`], printed, mailed, in another account's storage) |
//! | the table is replaced by an old copy | the same |
//!
//! | when | then |
//! | --- | --- |
//! | two processes append at once | one after the other: the chain has no branches |
//! | an append returns `Ok` | the record is as durable as the database |
//! | an append returns [`Error::OneTimeStore`] | the record may or may not exist; decide whether the recorded action may continue |
//! | the key changes ([`Keys::older`]) | new records are authenticated with the new key, old ones are still verified |
//!
//! An attacker with both the key and the table can write a new chain: keep the key with the other
//! secrets, and keep anchors regularly.

mod memory;
#[cfg(feature = "sql")]
mod sql;

use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use data_encoding::HEXLOWER;

pub use self::memory::MemoryAudit;
#[cfg(feature = "sql")]
pub use self::sql::SqlAudit;
#[cfg(feature = "sql")]
pub(crate) use self::sql::Texts;
use super::error::Error;
pub use super::signed_token::Keys;
use super::signed_token::now_ms;

const VERSION: u8 = 1;
/// Maximum length of a text, in bytes; longer texts are cut off.
const LONGEST: usize = 4_096;
/// Maximum number of records per read.
const PAGE: usize = 1_000;

/// An event to be recorded.
#[must_use]
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Event {
    /// Actor of the event.
    pub actor: String,
    /// Action, in the application's own terms.
    pub action: String,
    /// Object of the action: a thing or a person.
    pub object: String,
    /// Details. No secrets: details are stored as they are.
    pub details: String,
}

impl Event {
    /// Creates an event from an actor and an action.
    pub fn new(actor: impl Into<String>, action: impl Into<String>) -> Self {
        Self { actor: actor.into(), action: action.into(), ..Self::default() }
    }

    /// Sets the object of the action.
    pub fn to(mut self, object: impl Into<String>) -> Self {
        self.object = object.into();
        self
    }

    /// Sets the details.
    pub fn details(mut self, details: impl Into<String>) -> Self {
        self.details = details.into();
        self
    }
}

/// A recorded event.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Record {
    /// Number of the record; the first is 1.
    pub number: u64,
    /// Time in ms since 1970, by the clock of the server that wrote the record.
    pub at_ms: u64,
    /// Event that is recorded.
    pub event: Event,
    /// HMAC over all of these and the previous record.
    pub seal: Seal,
}

/// Key id and HMAC of a record.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Seal {
    pub(crate) key: [u8; 4],
    pub(crate) mac: [u8; 32],
}

/// End of the chain. Its text form can be kept elsewhere as an anchor.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Head {
    /// Number of the last record; 0 for an empty log.
    pub number: u64,
    pub(crate) seal: Seal,
}

impl fmt::Display for Head {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{VERSION}.{}.{}.{}",
            self.number,
            HEXLOWER.encode(&self.seal.key),
            HEXLOWER.encode(&self.seal.mac)
        )
    }
}

impl std::str::FromStr for Head {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let read = || {
            let mut parts = text.strip_prefix("1.")?.split('.');
            let number = parts.next()?.parse().ok()?;
            let key = HEXLOWER.decode(parts.next()?.as_bytes()).ok()?.try_into().ok()?;
            let mac = HEXLOWER.decode(parts.next()?.as_bytes()).ok()?.try_into().ok()?;
            parts.next().is_none().then_some(Self { number, seal: Seal { key, mac } })
        };
        read().ok_or(Error::Stored("audit log anchor"))
    }
}

/// Manipulation found in a log.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Tampered {
    /// This record was changed, or does not follow the previous one.
    Record(u64),
    /// A record is missing before this one.
    Missing(u64),
    /// The log ends before the anchor.
    Truncated {
        /// Number of the last record.
        ends: u64,
        /// Number of the anchor's record.
        anchor: u64,
    },
    /// The record with the anchor's number differs from the anchor.
    Anchor(u64),
}

impl fmt::Display for Tampered {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Record(number) => write!(f, "record {number} was changed"),
            Self::Missing(number) => write!(f, "a record is missing before {number}"),
            Self::Truncated { ends, anchor } => {
                write!(f, "the log ends at record {ends}, before the anchor at record {anchor}")
            }
            Self::Anchor(number) => write!(f, "record {number} differs from the anchor"),
        }
    }
}

/// Creates the next record from the current head.
pub type Sealer<'a> = dyn Fn(&Head) -> Result<Record, Error> + Send + Sync + 'a;

/// Store of records. It neither removes nor changes records.
#[async_trait]
pub trait Store: Send + Sync + fmt::Debug + 'static {
    /// Passes the current head to `seal`, and stores the returned record. No other record is
    /// appended in between.
    async fn append(&self, seal: &Sealer<'_>) -> Result<Head, Error>;

    /// Returns records after that number, in order.
    async fn page(&self, after: u64, limit: usize) -> Result<Vec<Record>, Error>;

    /// Returns the current head.
    async fn head(&self) -> Result<Head, Error>;
}

/// An audit log. A clone copies its keys.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use scale_session::auth::{AuditLog, audit::{Event, Keys}};
///
/// // or AuditLog::connect("postgres://…", "shop", keys)
/// let log = AuditLog::memory(Keys::new(&[7; 32])?);
/// log.append(Event::new("ann", "role.grant").to("ben").details("admin")).await?;
/// let anchor = log.head().await?.to_string(); // keep it elsewhere
///
/// log.append(Event::new("ben", "order.refund").to("order 7")).await?;
/// assert_eq!(log.verify(Some(anchor.parse()?)).await?, Ok(2));
/// # Ok(()) }
/// ```
#[derive(Clone, Debug)]
pub struct AuditLog {
    app: String,
    store: Arc<dyn Store>,
    keys: Keys,
}

impl AuditLog {
    /// Keeps the log in the given store.
    pub fn new(store: impl Store, keys: Keys) -> Self {
        Self { app: String::new(), store: Arc::new(store), keys }
    }

    /// Keeps the log in the memory of this process.
    pub fn memory(keys: Keys) -> Self {
        Self::new(MemoryAudit::default(), keys)
    }

    /// Keeps the log of `app` in a PostgreSQL, MySQL, MariaDB or SQLite database, in the table
    /// `scale_audit`. In an SQLite file the table is created if it is missing. On a server the
    /// table must exist, see [`migrate`](crate::store::migrate). The application's database role
    /// needs only the rights to insert and select.
    ///
    /// # Errors
    /// [`Error::Setting`] for an unsupported address; [`Error::OneTimeStore`] if the database does
    /// not answer.
    #[cfg(feature = "sql")]
    pub async fn connect(url: &str, app: &str, keys: Keys) -> Result<Self, Error> {
        Ok(Self { app: app.into(), ..Self::new(SqlAudit::connect(url, app).await?, keys) })
    }

    /// Does the same through the application's own pool: a `PgPool`, a `MySqlPool` or an
    /// `SqlitePool`.
    ///
    /// # Errors
    /// The same as those of [`connect`](Self::connect).
    #[cfg(feature = "sql")]
    pub async fn with_pool(
        pool: impl Into<scale_sql::Database>,
        app: &str,
        keys: Keys,
    ) -> Result<Self, Error> {
        Ok(Self { app: app.into(), ..Self::new(SqlAudit::with_pool(pool, app).await?, keys) })
    }

    /// Appends an event to the log.
    ///
    /// # Errors
    /// [`Error::OneTimeStore`]; [`Error::Setting`] if there is no key.
    pub async fn append(&self, event: Event) -> Result<Head, Error> {
        let event = cut(event);
        let at_ms = now_ms();
        let seal = |last: &Head| {
            let number = last.number + 1;
            let seal = self.chain(last, number, at_ms, &event, None)?;
            Ok(Record { number, at_ms, event: event.clone(), seal })
        };
        let head = self.store.append(&seal).await?;
        tracing::info!(
            target: "audit", number = head.number, action = event.action, "event recorded",
        );
        Ok(head)
    }

    /// Returns the end of the chain. Kept where writers of the table have no access, it is an
    /// anchor.
    ///
    /// # Errors
    /// [`Error::OneTimeStore`].
    pub async fn head(&self) -> Result<Head, Error> {
        self.store.head().await
    }

    /// Returns records after that number, in order: 1,000 at most.
    ///
    /// # Errors
    /// [`Error::OneTimeStore`].
    pub async fn records(&self, after: u64, limit: usize) -> Result<Vec<Record>, Error> {
        self.store.page(after, limit.min(PAGE)).await
    }

    /// Reads the whole log. Returns the number of records, or the first manipulation found. Without
    /// an anchor, missing records at the end are not detected.
    ///
    /// # Errors
    /// [`Error::OneTimeStore`] if the log cannot be read.
    pub async fn verify(&self, anchor: Option<Head>) -> Result<Result<u64, Tampered>, Error> {
        let mut last = Head::default();
        loop {
            let page = self.store.page(last.number, PAGE).await?;
            if page.is_empty() {
                break;
            }
            for record in page {
                if let Err(tampered) = self.follows(&last, &record)? {
                    return Ok(Err(tampered));
                }
                last = Head { number: record.number, seal: record.seal };
                if anchor.is_some_and(|anchor| anchor.number == last.number && anchor != last) {
                    return Ok(Err(Tampered::Anchor(last.number)));
                }
            }
        }
        let missing = anchor.filter(|anchor| anchor.number > last.number);
        Ok(match missing {
            Some(anchor) => Err(Tampered::Truncated { ends: last.number, anchor: anchor.number }),
            None => Ok(last.number),
        })
    }

    fn follows(&self, last: &Head, record: &Record) -> Result<Result<(), Tampered>, Error> {
        if record.number != last.number + 1 {
            return Ok(Err(Tampered::Missing(record.number)));
        }
        let Record { number, at_ms, event, seal } = record;
        let expected = self.chain(last, *number, *at_ms, event, Some(seal.key));
        let fits = match expected {
            Ok(expected) => super::same(&expected.mac, &seal.mac),
            // The key that authenticated the record is unknown.
            Err(Error::Setting(_)) => false,
            Err(error) => return Err(error),
        };
        Ok(if fits { Ok(()) } else { Err(Tampered::Record(*number)) })
    }

    /// Computes the HMAC of a record, with the newest key or the given one.
    fn chain(
        &self,
        last: &Head,
        number: u64,
        at_ms: u64,
        event: &Event,
        key: Option<[u8; 4]>,
    ) -> Result<Seal, Error> {
        let (number, at_ms) = (number.to_be_bytes(), at_ms.to_be_bytes());
        let Event { actor, action, object, details } = event;
        let texts = [actor, action, object, details].map(String::as_bytes);
        let app = self.app.as_bytes();
        let parts = [
            &[VERSION][..],
            app,
            &last.seal.key,
            &last.seal.mac,
            &number,
            &at_ms,
            texts[0],
            texts[1],
            texts[2],
            texts[3],
        ];
        let (key, mac) = self.keys.mac("audit", &parts, key)?;
        Ok(Seal { key, mac })
    }
}

/// Limits the lengths of the texts and replaces zero bytes, which some databases refuse.
fn cut(event: Event) -> Event {
    let cut = |text: String| text[..text.floor_char_boundary(LONGEST)].replace('\0', " ");
    let Event { actor, action, object, details } = event;
    Event { actor: cut(actor), action: cut(action), object: cut(object), details: cut(details) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys() -> Keys {
        Keys::new(&[7; 32]).unwrap()
    }

    fn event(n: usize) -> Event {
        Event::new(format!("user {}", n % 97), "order.refund").to(format!("order {n}")).details("x")
    }

    async fn log(count: usize) -> (AuditLog, Head) {
        let log = AuditLog::memory(keys());
        for n in 0..count {
            log.append(event(n)).await.unwrap();
        }
        let head = log.head().await.unwrap();
        (log, head)
    }

    /// Returns the same records in another store, after a manipulation.
    async fn tampered(log: &AuditLog, change: impl FnOnce(&mut Vec<Record>)) -> AuditLog {
        let mut records = Vec::new();
        while let Some(page) = Some(log.records(records.len() as u64, PAGE).await.unwrap())
            .filter(|page| !page.is_empty())
        {
            records.extend(page);
        }
        change(&mut records);
        AuditLog::new(MemoryAudit::from(records), keys())
    }

    type Change = fn(&mut Vec<Record>, usize);

    async fn found(log: &AuditLog, head: Head, place: usize, change: Change) -> Tampered {
        let log = tampered(log, |records| change(records, place)).await;
        log.verify(Some(head)).await.unwrap().unwrap_err()
    }

    const EDIT: Change = |r, at| r[at].event.details = "y".into();
    const DROP: Change = |r, at| drop(r.remove(at));
    const SWAP: Change = |r, at| {
        let (a, b) = (r[at].event.clone(), r[at + 1].event.clone());
        (r[at].event, r[at + 1].event) = (b, a);
    };
    const TRUNCATE: Change = |r, at| r.truncate(at);

    #[tokio::test]
    async fn of_a_million_records_any_change_is_found() {
        let (log, head) = log(1_000_000).await;
        assert_eq!(found(&log, head, 777_776, EDIT).await, Tampered::Record(777_777));
        assert_eq!(
            found(&log, head, 999_999, TRUNCATE).await,
            Tampered::Truncated { ends: 999_999, anchor: 1_000_000 }
        );
    }

    #[tokio::test]
    async fn every_kind_of_change_is_found_at_every_place() {
        const COUNT: usize = 60;
        let (log, head) = log(COUNT).await;
        let border: Change = |r, at| {
            let border = std::mem::take(&mut r[at].event.details);
            r[at].event.object.push_str(&border);
        };
        let renumbered: Change = |r, at| {
            r.remove(at);
            r[at..].iter_mut().for_each(|record| record.number -= 1);
        };
        let doubled: Change = |r, at| r.insert(at, r[at].clone());
        for place in 0..COUNT - 1 {
            let (this, next) = (place as u64 + 1, place as u64 + 2);
            for (change, expected) in [
                (EDIT, Tampered::Record(this)),
                (SWAP, Tampered::Record(this)),
                (DROP, Tampered::Missing(next)),
                (TRUNCATE, Tampered::Truncated { ends: place as u64, anchor: COUNT as u64 }),
                (border, Tampered::Record(this)),
                (renumbered, Tampered::Record(this)),
                (doubled, Tampered::Missing(this)),
                (|r, at| r[at].at_ms += 1, Tampered::Record(this)),
                (|r, at| r[at].seal.mac[31] ^= 1, Tampered::Record(this)),
                (|r, at| r[at].seal.key[0] ^= 1, Tampered::Record(this)),
            ] as [(Change, Tampered); 10]
            {
                assert_eq!(found(&log, head, place, change).await, expected, "at {place}");
            }
        }
    }

    #[tokio::test]
    async fn a_chain_written_anew_is_not_the_anchors() {
        let (_, anchor) = log(5).await;
        let (other, _) = log(4).await;
        other.append(event(99)).await.unwrap();
        other.append(event(100)).await.unwrap();
        assert_eq!(other.verify(None).await.unwrap(), Ok(6), "it is whole");
        assert_eq!(other.verify(Some(anchor)).await.unwrap(), Err(Tampered::Anchor(5)));
        let stranger = AuditLog { keys: Keys::new(&[8; 32]).unwrap(), ..other };
        assert_eq!(stranger.verify(None).await.unwrap(), Err(Tampered::Record(1)), "another key");
    }

    #[tokio::test]
    async fn keys_change_and_texts_are_bounded() {
        let (old, _) = log(3).await;
        let both =
            AuditLog { keys: Keys::new(&[9; 32]).unwrap().older(&[7; 32]).unwrap(), ..old.clone() };
        let long = Event::new("é".repeat(5_000), "a\0b");
        both.append(long).await.unwrap();
        assert_eq!(both.verify(None).await.unwrap(), Ok(4));
        assert_eq!(old.verify(None).await.unwrap(), Err(Tampered::Record(4)));
        let record = both.records(3, 1).await.unwrap().remove(0);
        assert!(record.event.actor.len() <= LONGEST && record.event.action == "a b");
    }

    #[test]
    fn anchors_are_texts() {
        let head = Head { number: 7, seal: Seal { key: [1; 4], mac: [2; 32] } };
        assert_eq!(head.to_string().parse::<Head>().unwrap(), head);
        for bad in ["", "1.7", "2.7.01010101.00", "1.x.01010101.02", "1.7.01010101.02"] {
            assert!(bad.parse::<Head>().is_err(), "{bad}");
        }
    }
}
