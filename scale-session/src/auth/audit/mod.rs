//! What happened, in an order and in words that nobody can change unseen.
//!
//! Records form a chain: each holds an HMAC-SHA-256 over itself and the one before it, under a key that the database does not have. (After
//! Schneier and Kelsey, *Secure Audit Logs to Support Computer Forensics*, 1999; the chain is theirs, the key here does not evolve.)
//!
//! | somebody who can write to the table | is found out by |
//! | --- | --- |
//! | edits a record, or its time, or swaps two | [`verify`](AuditLog::verify): its seal does not fit |
//! | drops one, or puts one in between | the next one's number or seal does not fit |
//! | drops the last ones, or all | an *anchor*: a [`Head`] that was kept elsewhere ([`AuditLog::head`], printed, mailed, in another account's storage) |
//! | puts an old copy of the table back | the same |
//!
//! | when | then |
//! | --- | --- |
//! | two processes append at once | one after the other: the chain has no branches |
//! | an append returns `Ok` | the record is stored as safely as the database is |
//! | it returns [`Error::Ledger`] | the record may or may not be there; decide whether what it is about may go on |
//! | the key changes ([`Keys::older`]) | new records are sealed with the new one, old ones are still verified |
//!
//! Who has the key and the table can write a chain anew: keep the key with the other secrets, and anchor now and then.

mod memory;
#[cfg(any(feature = "postgres", feature = "sqlite"))]
mod sql;

use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use data_encoding::HEXLOWER;

pub use self::memory::MemoryAudit;
#[cfg(any(feature = "postgres", feature = "sqlite"))]
pub use self::sql::SqlAudit;
use super::error::Error;
pub use super::seal::Keys;
use super::seal::now_ms;

const VERSION: u8 = 1;
/// A text is cut after so many bytes.
const LONGEST: usize = 4_096;
/// Records read at a time.
const PAGE: usize = 1_000;

/// Something that happened, to be written down.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Event {
    /// Who did it.
    pub actor: String,
    /// What: a word of the application's.
    pub action: String,
    /// To what or whom.
    pub object: String,
    /// What else is worth knowing. No secrets: it stands there as it is.
    pub details: String,
}

impl Event {
    /// Somebody did something.
    pub fn new(actor: impl Into<String>, action: impl Into<String>) -> Self {
        Self { actor: actor.into(), action: action.into(), ..Self::default() }
    }

    /// To what or whom.
    pub fn to(mut self, object: impl Into<String>) -> Self {
        self.object = object.into();
        self
    }

    /// What else is worth knowing.
    pub fn details(mut self, details: impl Into<String>) -> Self {
        self.details = details.into();
        self
    }
}

/// Something that happened, as it was written down.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Record {
    /// 1 is the first.
    pub number: u64,
    /// When: ms since 1970, by the clock of the server that wrote it.
    pub at_ms: u64,
    /// What.
    pub event: Event,
    /// Over all of that and the record before it.
    pub seal: Seal,
}

/// Which key, and its HMAC.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Seal {
    pub(crate) key: [u8; 4],
    pub(crate) mac: [u8; 32],
}

/// Where the chain ends. As text it can be kept anywhere.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Head {
    /// The last record's number; 0 for an empty log.
    pub number: u64,
    pub(crate) seal: Seal,
}

impl fmt::Display for Head {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{VERSION}.{}.{}.{}", self.number, HEXLOWER.encode(&self.seal.key), HEXLOWER.encode(&self.seal.mac))
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
        read().ok_or(Error::Stored("anchor of the audit log"))
    }
}

/// What is wrong with a log.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Tampered {
    /// This record is not what was written, or not after the one before it.
    Record(u64),
    /// A record is missing before this one.
    Missing(u64),
    /// The log ends before the anchor.
    Truncated {
        /// The last record there.
        ends: u64,
        /// The anchor's.
        anchor: u64,
    },
    /// The anchor's record is another than it was.
    Anchor(u64),
}

impl fmt::Display for Tampered {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Record(number) => write!(f, "record {number} is not what was written"),
            Self::Missing(number) => write!(f, "a record is missing before {number}"),
            Self::Truncated { ends, anchor } => write!(f, "the log ends at {ends}, the anchor is {anchor}"),
            Self::Anchor(number) => write!(f, "record {number} is another than the anchor's"),
        }
    }
}

/// Makes the next record of what it is given.
pub type Sealer<'a> = dyn Fn(&Head) -> Result<Record, Error> + Send + Sync + 'a;

/// Where records are kept. Nothing removes or changes one.
#[async_trait]
pub trait Store: Send + Sync + fmt::Debug + 'static {
    /// Gives the last record's head to `seal`, and stores what comes of it: nobody else's in between.
    async fn append(&self, seal: &Sealer<'_>) -> Result<Head, Error>;

    /// Records after that number, in order.
    async fn page(&self, after: u64, limit: usize) -> Result<Vec<Record>, Error>;

    /// The last record's head.
    async fn head(&self) -> Result<Head, Error>;
}

/// An audit log. Cloning copies its keys.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use scale_session::auth::{AuditLog, audit::{Event, Keys}};
///
/// let log = AuditLog::memory(Keys::new(&[7; 32])?); // or AuditLog::connect("postgres://…", "shop", keys)
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
    /// In a store of your choice.
    pub fn new(store: impl Store, keys: Keys) -> Self {
        Self { app: String::new(), store: Arc::new(store), keys }
    }

    /// Of this process, gone with it.
    pub fn memory(keys: Keys) -> Self {
        Self::new(MemoryAudit::default(), keys)
    }

    /// The log of `app` in a Postgres or SQLite database: the table `scale_audit`, made if it is not there. The role that the application connects as
    /// needs to insert and select, nothing else.
    ///
    /// # Errors
    /// [`Error::Setting`] for an address that is none; [`Error::Ledger`] if nobody answers there.
    #[cfg(any(feature = "postgres", feature = "sqlite"))]
    pub async fn connect(url: &str, app: &str, keys: Keys) -> Result<Self, Error> {
        Ok(Self { app: app.into(), ..Self::new(SqlAudit::connect(url, app).await?, keys) })
    }

    /// Writes down what happened.
    ///
    /// # Errors
    /// [`Error::Ledger`]; [`Error::Setting`] if there is no key.
    pub async fn append(&self, event: Event) -> Result<Head, Error> {
        let event = cut(event);
        let at_ms = now_ms();
        let seal = |last: &Head| {
            let number = last.number + 1;
            let seal = self.seal(last, number, at_ms, &event, None)?;
            Ok(Record { number, at_ms, event: event.clone(), seal })
        };
        let head = self.store.append(&seal).await?;
        tracing::info!(target: "audit", number = head.number, action = event.action, "written down");
        Ok(head)
    }

    /// The end of the chain: an anchor, if kept where whoever writes to the table cannot reach.
    ///
    /// # Errors
    /// [`Error::Ledger`].
    pub async fn head(&self) -> Result<Head, Error> {
        self.store.head().await
    }

    /// Records after that number, in order: 1,000 at most.
    ///
    /// # Errors
    /// [`Error::Ledger`].
    pub async fn records(&self, after: u64, limit: usize) -> Result<Vec<Record>, Error> {
        self.store.page(after, limit.min(PAGE)).await
    }

    /// Reads all of it, and says how many records are as they were written, or what is the first that is not. Without an anchor, missing
    /// ones at the end are not found.
    ///
    /// # Errors
    /// [`Error::Ledger`] if it cannot be read.
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
        let expected = self.seal(last, *number, *at_ms, event, Some(seal.key));
        let fits = match expected {
            Ok(expected) => super::same(&expected.mac, &seal.mac),
            // Sealed with a key that nobody has.
            Err(Error::Setting(_)) => false,
            Err(error) => return Err(error),
        };
        Ok(if fits { Ok(()) } else { Err(Tampered::Record(*number)) })
    }

    /// With the newest key, or the one named.
    fn seal(&self, last: &Head, number: u64, at_ms: u64, event: &Event, key: Option<[u8; 4]>) -> Result<Seal, Error> {
        let (number, at_ms) = (number.to_be_bytes(), at_ms.to_be_bytes());
        let Event { actor, action, object, details } = event;
        let texts = [actor, action, object, details].map(String::as_bytes);
        let app = self.app.as_bytes();
        let parts =
            [&[VERSION][..], app, &last.seal.key, &last.seal.mac, &number, &at_ms, texts[0], texts[1], texts[2], texts[3]];
        let (key, mac) = self.keys.mac("audit", &parts, key)?;
        Ok(Seal { key, mac })
    }
}

/// Bounded, and without the zero bytes that some databases refuse in a text.
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

    /// The same records, in a store of their own, after somebody was at them.
    async fn tampered(log: &AuditLog, change: impl FnOnce(&mut Vec<Record>)) -> AuditLog {
        let mut records = Vec::new();
        while let Some(page) = Some(log.records(records.len() as u64, PAGE).await.unwrap()).filter(|page| !page.is_empty()) {
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
        assert_eq!(found(&log, head, 999_999, TRUNCATE).await, Tampered::Truncated { ends: 999_999, anchor: 1_000_000 });
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
        let both = AuditLog { keys: Keys::new(&[9; 32]).unwrap().older(&[7; 32]).unwrap(), ..old.clone() };
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
