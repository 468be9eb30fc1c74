//! Versions: compares the tag versions of an entry with the current ones. Pure: no I/O.
//!
//! Each tag, and each keyspace (for `clear`), has a *cell* with its current version. An entry
//! refers to the cells it depends on, and remembers their versions *as they were before its load
//! began*. The entry is valid while the versions are the same. So an invalidation costs one store
//! to a cell, for any number of dependent entries, and a load that began before an invalidation
//! cannot restore what it removed, whenever the load ends. (Keys have a
//! [fence](crate::policy::fences) instead.)
//!
//! A tag's version is the time of its last invalidation by the store's clock, in µs. So it can also
//! be compared with the start of a load, for tags that become known only during the load.
//!
//! In addition, each invalidation that this process receives gets its next number. A load knows the
//! number at which it began.

use std::collections::HashMap;
use std::hash::BuildHasher;
use std::sync::Arc;

use foldhash::fast::RandomState;

use super::sync::Ordering::SeqCst;
use super::sync::{AtomicU64, Mutex, RwLock};
use crate::store::{Position, Version};

/// Tag of everything; followed by a space's name, the tag of everything in the space.
pub(crate) const GLOBAL_TAG: &str = "\0";
/// Prefix of other tags reserved for the cache.
pub(crate) const RESERVED_PREFIX: &str = "\u{1}";

/// Returns a user's tag in a form that never equals a reserved tag, even if it comes from a
/// request.
pub(crate) fn named(tag: Arc<str>) -> Arc<str> {
    if tag.starts_with(GLOBAL_TAG) || tag.starts_with(RESERVED_PREFIX) {
        format!("{RESERVED_PREFIX}{RESERVED_PREFIX}{tag}").into()
    } else {
        tag
    }
}

/// Unknown version: the store must be asked.
const UNKNOWN: u64 = 0;
/// Flag of local versions, made while the store is unavailable: versions of the store never have
/// it.
const LOCAL: u64 = 1 << 63;
/// Flag of versions from before a gap in the events: the store must be asked. Entries that disagree
/// with the version were already invalid.
const DOUBTED: u64 = 1 << 62;
/// Flag of local versions that were assumed because the store did not answer. Provisional: any
/// version that the store reports replaces it, and the store is asked again as soon as it answers.
const ASSUMED: u64 = 1 << 61;

/// Current version of one tag.
#[derive(Debug)]
pub(crate) struct Cell {
    tag: Arc<str>,
    version: AtomicU64,
    /// Number of the last invalidation received: a caller that arrives after it must not join a
    /// load from before it.
    bumped: AtomicU64,
    /// Number at which the version was learned, or last changed.
    known_since: AtomicU64,
    /// Position that a database must have replayed.
    position: Mutex<Option<Position>>,
}

impl Cell {
    /// Raises the required position. Call this before the version changes: a load that sees the
    /// version must see the position.
    fn require(&self, position: Option<&Position>) {
        if let Some(position) = position {
            let mut latest = self.position.lock();
            if latest.as_ref().is_none_or(|latest| position > latest) {
                *latest = Some(Arc::clone(position));
            }
        }
    }

    /// Raises the version, which never goes back. A doubted version is replaced by any version that
    /// is not older. A pending local version is not replaced by the store's, unless it is doubted
    /// or was only assumed.
    fn raise(&self, version: u64) {
        let raised = |now: u64| match now & !DOUBTED {
            known if now & ASSUMED != 0 || (now & DOUBTED != 0 && known & LOCAL != 0) => {
                Some(version)
            }
            known => (version >= known).then_some(version),
        };
        let _ = self.version.fetch_update(SeqCst, SeqCst, raised);
    }

    pub(crate) fn tag(&self) -> &Arc<str> {
        &self.tag
    }

    pub(crate) fn version(&self) -> Option<u64> {
        Some(self.version.load(SeqCst)).filter(|v| *v != UNKNOWN && v & (DOUBTED | ASSUMED) == 0)
    }
}

/// Tag versions that an entry depends on.
#[derive(Clone, Debug, Default)]
pub(crate) struct Stamps(Box<[(Arc<Cell>, u64)]>);

/// Result of comparing an entry's tag versions with the current ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Agreement {
    Same,
    Changed,
    /// Some version is unknown.
    Unknown,
}

impl Stamps {
    pub(crate) fn agree(&self) -> Agreement {
        let mut agreement = Agreement::Same;
        for (cell, then) in &self.0 {
            match cell.version.load(SeqCst) {
                UNKNOWN => agreement = Agreement::Unknown,
                now if now == *then => {}
                now if now == *then | DOUBTED => agreement = Agreement::Unknown,
                _ => return Agreement::Changed,
            }
        }
        agreement
    }

    /// Returns the tags whose version in the entry is later than the known one.
    pub(crate) fn newer(&self) -> Vec<Arc<str>> {
        let is_newer = |cell: &Cell, then: u64| {
            cell.version().is_some_and(|now| now & LOCAL == 0 && now < then)
        };
        self.0
            .iter()
            .filter(|(cell, then)| is_newer(cell, *then))
            .map(|(cell, _)| Arc::clone(&cell.tag))
            .collect()
    }

    /// Returns tags and versions for storage; `None` if some version is local.
    pub(crate) fn shareable(&self) -> Option<Vec<(Arc<str>, u64)>> {
        self.0
            .iter()
            .map(|(cell, v)| (v & LOCAL == 0).then(|| (Arc::clone(&cell.tag), *v)))
            .collect()
    }

    /// Creates stamps of a single version of the store.
    pub(crate) fn of(cell: Arc<Cell>, version: u64) -> Self {
        Self([(cell, version)].into())
    }

    pub(crate) fn and(self, other: Self) -> Self {
        Self(self.0.into_iter().chain(other.0).collect())
    }

    pub(crate) fn tags(&self) -> impl Iterator<Item = &Arc<str>> {
        self.0.iter().map(|(cell, _)| &cell.tag)
    }
}

const SHARDS: usize = if cfg!(loom) { 1 } else { 64 };
/// Maximum number of tags per shard; beyond it, unused tags are removed.
const SHARD_LIMIT: usize = 4_096;

/// Tags by name.
#[derive(Debug)]
struct Shard {
    cells: HashMap<Arc<str>, Arc<Cell>, RandomState>,
    /// Number of tags at which unused ones are removed.
    limit: usize,
}

impl Default for Shard {
    fn default() -> Self {
        Self { cells: HashMap::default(), limit: SHARD_LIMIT }
    }
}
/// All cells of this process.
#[derive(Debug)]
pub(crate) struct Versions {
    shards: Box<[Mutex<Shard>]>,
    hasher: RandomState,
    /// Era: changes whenever events may have been missed. Held for reading while an answer of the
    /// store is processed.
    era: RwLock<u64>,
    /// Copy of the era for lock-free reads.
    era_now: AtomicU64,
    local: AtomicU64,
    /// Number of the last invalidation received, or version learned.
    number: AtomicU64,
    /// Number at which tags were last removed.
    forgotten: AtomicU64,
}

impl Default for Versions {
    fn default() -> Self {
        Self {
            shards: (0..SHARDS).map(|_| Mutex::default()).collect(),
            hasher: RandomState::default(),
            era: RwLock::new(1),
            era_now: AtomicU64::new(1),
            local: AtomicU64::new(1),
            number: AtomicU64::new(1),
            forgotten: AtomicU64::new(0),
        }
    }
}

impl Versions {
    fn hash(&self, name: &str) -> u64 {
        self.hasher.hash_one(name)
    }

    /// Returns a tag's cell; creates it if it does not exist.
    pub(crate) fn cell(&self, tag: &str) -> Arc<Cell> {
        let mut shard = self.shards[(self.hash(tag) >> 40) as usize % SHARDS].lock();
        if let Some(cell) = shard.cells.get(tag) {
            return Arc::clone(cell);
        }
        if shard.cells.len() >= shard.limit {
            self.forgotten.store(self.next_number(), SeqCst);
            // Entries and spaces hold references to their cells, so the number of entries bounds
            // the number of cells in use.
            shard.cells.retain(|_, cell| Arc::strong_count(cell) > 1);
            shard.limit = SHARD_LIMIT.max(2 * shard.cells.len());
        }
        let tag: Arc<str> = tag.into();
        let cell = Arc::new(Cell {
            tag: Arc::clone(&tag),
            version: AtomicU64::new(UNKNOWN),
            bumped: AtomicU64::new(self.forgotten.load(SeqCst)),
            known_since: AtomicU64::new(u64::MAX),
            position: Mutex::default(),
        });
        shard.cells.insert(tag, Arc::clone(&cell));
        cell
    }

    /// Returns the current versions of these tags, or those tags that must be asked for first.
    pub(crate) fn stamp(
        &self,
        tags: impl IntoIterator<Item = Arc<str>>,
    ) -> Result<Stamps, Vec<Arc<str>>> {
        let (mut stamps, mut unknown) = (Vec::new(), Vec::new());
        for tag in tags {
            let cell = self.cell(&tag);
            match cell.version() {
                Some(version) => stamps.push((cell, version)),
                None => unknown.push(tag),
            }
        }
        if unknown.is_empty() { Ok(Stamps(stamps.into())) } else { Err(unknown) }
    }

    /// Returns the versions of these tags if the store does not answer: unknown ones are assumed. A
    /// value loaded with assumed versions may be used here only until the store answers.
    pub(crate) fn assume(&self, tags: impl IntoIterator<Item = Arc<str>>) -> Stamps {
        let version = |tag: Arc<str>| {
            let cell = self.cell(&tag);
            let assumed = LOCAL | ASSUMED | self.local.fetch_add(1, SeqCst);
            let unsure = |now: u64| (now == UNKNOWN || now & DOUBTED != 0).then_some(assumed);
            let version = cell
                .version
                .fetch_update(SeqCst, SeqCst, unsure)
                .map_or_else(|now| now, |_| assumed);
            (cell, version)
        };
        Stamps(tags.into_iter().map(version).collect())
    }

    /// Returns stamps that were stored elsewhere; the `known` cells need no lock.
    pub(crate) fn stamps_of<'t>(
        &self,
        written: impl IntoIterator<Item = (&'t str, u64)>,
        known: [&Arc<Cell>; 2],
    ) -> Stamps {
        let cell = |tag: &str| {
            known
                .into_iter()
                .find(|cell| *cell.tag == *tag)
                .cloned()
                .unwrap_or_else(|| self.cell(tag))
        };
        Stamps(written.into_iter().map(|(tag, version)| (cell(tag), version)).collect())
    }

    /// Returns the number of the last invalidation received of these tags.
    pub(crate) fn bumped<'t>(&self, tags: impl IntoIterator<Item = &'t Arc<str>>) -> u64 {
        tags.into_iter().map(|tag| self.cell(tag).bumped.load(SeqCst)).max().unwrap_or_default()
    }

    /// Returns the number of the last invalidation received of any tag.
    pub(crate) fn number(&self) -> u64 {
        self.number.load(SeqCst)
    }

    fn next_number(&self) -> u64 {
        self.number.fetch_add(1, SeqCst) + 1
    }

    /// Returns a tag's version, if it was known at that number and has not changed since.
    pub(crate) fn known_since(&self, tag: &str, number: u64) -> Option<Stamps> {
        let cell = self.cell(tag);
        let version = cell.version()?;
        let unchanged =
            cell.known_since.load(SeqCst) <= number && cell.bumped.load(SeqCst) <= number;
        (unchanged && cell.version.load(SeqCst) == version)
            .then(|| Stamps([(cell, version)].into()))
    }

    /// Learns the store's version of a tag, which was requested in `era`. A version never goes
    /// back, and an answer of an earlier era is ignored.
    ///
    /// Returns `false` if the store's version is older than the known one: the store has lost an
    /// invalidation, for example in a failover.
    pub(crate) fn learn(&self, era: u64, tag: &str, version: &Version) -> bool {
        let now = self.era.read();
        if *now != era {
            return true;
        }
        let cell = self.cell(tag);
        cell.require(version.position.as_ref());
        if cell.version().is_none() {
            cell.known_since.store(self.next_number(), SeqCst);
        }
        cell.raise(version.at_us);
        cell.version().is_some()
    }

    /// Accepts the store's new version of a tag whose last invalidation it had lost: no older entry
    /// agrees with it.
    pub(crate) fn accept(&self, era: u64, tag: &str, version: &Version) {
        let now = self.era.read();
        if *now == era {
            let settled = |known: u64| (known & DOUBTED != 0).then_some(version.at_us);
            let cell = self.cell(tag);
            cell.known_since.store(self.next_number(), SeqCst);
            let _ = cell.version.fetch_update(SeqCst, SeqCst, settled);
        }
    }

    /// Records an invalidation by another process.
    pub(crate) fn invalidated(&self, tag: &str, version: &Version) {
        self.bump(tag, version.at_us, version.position.as_ref());
    }

    fn bump(&self, tag: &str, version: u64, position: Option<&Position>) {
        let cell = self.cell(tag);
        cell.require(position);
        let number = self.next_number();
        cell.known_since.store(number, SeqCst);
        cell.raise(version);
        cell.bumped.fetch_max(number, SeqCst);
    }

    /// Returns the position that a database must have replayed to be read for a value with these
    /// tags.
    pub(crate) fn position<'t>(
        &self,
        tags: impl IntoIterator<Item = &'t Arc<str>>,
    ) -> Option<Position> {
        tags.into_iter().filter_map(|tag| self.cell(tag).position.lock().clone()).max()
    }

    /// Creates a local version, which is above all versions of the store, so that none of them is
    /// accepted until [`told`](Self::told).
    pub(crate) fn invalidate_here(&self, tag: &str, position: Option<&Position>) -> u64 {
        let version = LOCAL | self.local.fetch_add(1, SeqCst);
        self.bump(tag, version, position);
        version
    }

    /// Restores a local version of a tag that was removed in the meantime.
    pub(crate) fn remember(&self, tag: &str, here: u64, position: Option<&Position>) {
        self.bump(tag, here, position);
    }

    /// Records that the store has received a local invalidation: the store's version counts, unless
    /// there is another local one by now.
    pub(crate) fn told(&self, tag: &Arc<str>, here: u64, theirs: u64) {
        let cell = self.cell(tag);
        let number = self.next_number();
        cell.known_since.store(number, SeqCst);
        let _ = cell.version.compare_exchange(here, theirs, SeqCst, SeqCst);
        cell.bumped.fetch_max(number, SeqCst);
    }

    /// Invalidates a tag in a process without a store.
    pub(crate) fn invalidate_alone(&self, tag: &str, position: Option<&Position>) {
        self.bump(tag, self.local.fetch_add(1, SeqCst) + 1, position);
    }

    /// Gives a new tag a version, in a process without a store.
    pub(crate) fn settle_alone(&self, tag: &str) {
        let cell = self.cell(tag);
        if cell.version.compare_exchange(UNKNOWN, self.local.load(SeqCst), SeqCst, SeqCst).is_ok() {
            // Without a store, a tag that was not invalidated has had the same version for as long
            // as tags are remembered.
            cell.known_since.store(self.forgotten.load(SeqCst), SeqCst);
        }
    }

    /// Returns the tags of spaces, and the global tag.
    pub(crate) fn own_tags(&self) -> Vec<Arc<str>> {
        let own = |shard: &Mutex<Shard>| -> Vec<Arc<str>> {
            shard.lock().cells.keys().filter(|tag| tag.starts_with(GLOBAL_TAG)).cloned().collect()
        };
        self.shards.iter().flat_map(own).collect()
    }

    pub(crate) fn era(&self) -> u64 {
        self.era_now.load(SeqCst)
    }

    /// Handles missed events: no known version counts any more, except for pending tags, which the
    /// store does not know yet.
    pub(crate) fn forget(&self, keep: &dyn Fn(&str) -> bool) {
        let mut era = self.era.write();
        *era += 1;
        self.era_now.store(*era, SeqCst);
        for shard in &self.shards {
            for (_, cell) in shard.lock().cells.iter().filter(|(tag, _)| !keep(tag)) {
                let doubted = |now: u64| (now != UNKNOWN).then_some(now | DOUBTED);
                let _ = cell.version.fetch_update(SeqCst, SeqCst, doubted);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tag(name: &str) -> Arc<str> {
        name.into()
    }

    fn at(at_us: u64) -> Version {
        Version { at_us, position: None }
    }

    #[test]
    fn an_answer_from_before_a_gap_is_not_believed() {
        let versions = Versions::default();
        let era = versions.era();
        versions.forget(&|_| false);
        versions.learn(era, "t", &at(5));
        assert!(versions.stamp([tag("t")]).is_err());
        versions.learn(versions.era(), "t", &at(5));
        assert!(versions.stamp([tag("t")]).is_ok());
    }

    #[test]
    fn an_answer_that_news_overtook_does_not_undo_them() {
        let versions = Versions::default();
        versions.learn(1, "t", &at(5));
        let stamps = versions.stamp([tag("t")]).unwrap();
        versions.invalidated("t", &at(9));
        versions.learn(1, "t", &at(5));
        assert_eq!(stamps.agree(), Agreement::Changed);
    }

    #[test]
    fn what_was_invalid_before_a_gap_stays_so_in_it() {
        let versions = Versions::default();
        versions.learn(1, "t", &at(5));
        let old = versions.stamp([tag("t")]).unwrap();
        versions.invalidated("t", &at(9));
        let new = versions.stamp([tag("t")]).unwrap();
        versions.forget(&|_| false);
        assert_eq!((old.agree(), new.agree()), (Agreement::Changed, Agreement::Unknown));
        // Unanswered calls do not make it valid either, over any number of gaps.
        versions.assume([tag("t")]);
        versions.forget(&|_| false);
        assert_eq!((old.agree(), new.agree()), (Agreement::Changed, Agreement::Changed));
        versions.learn(versions.era(), "t", &at(9));
        assert_eq!((old.agree(), new.agree()), (Agreement::Changed, Agreement::Same));
    }

    #[test]
    fn an_invalidation_that_the_store_lost_is_noticed() {
        let versions = Versions::default();
        versions.learn(1, "t", &at(5));
        let old = versions.stamp([tag("t")]).unwrap();
        versions.invalidated("t", &at(9));
        versions.forget(&|_| false);
        let era = versions.era();
        assert!(!versions.learn(era, "t", &at(5)), "the store has gone back");
        assert_eq!(old.agree(), Agreement::Changed);
        versions.accept(era, "t", &at(7));
        assert!(versions.stamp([tag("t")]).is_ok() && old.agree() == Agreement::Changed);
    }

    #[test]
    fn what_is_only_known_here_outlives_a_gap_and_the_stores_old_word() {
        let versions = Versions::default();
        versions.learn(1, "t", &at(5));
        let old = versions.stamp([tag("t")]).unwrap();
        let here = versions.invalidate_here("t", None);
        let new = versions.stamp([tag("t")]).unwrap();
        versions.forget(&|_| true);
        versions.learn(versions.era(), "t", &at(5));
        assert_eq!((old.agree(), new.agree()), (Agreement::Changed, Agreement::Same));
        assert_eq!(new.shareable(), None);
        versions.told(&tag("t"), here, 7);
        assert_eq!((old.agree(), new.agree()), (Agreement::Changed, Agreement::Changed));
    }

    #[test]
    fn what_was_assumed_gives_way_to_news_and_to_the_stores_answer() {
        let versions = Versions::default();
        for news in [true, false] {
            let assumed = versions.assume([tag("t")]);
            assert_eq!((assumed.agree(), assumed.shareable()), (Agreement::Same, None));
            assert!(versions.stamp([tag("t")]).is_err(), "the store is to be asked");
            if news {
                versions.invalidated("t", &at(5));
            } else {
                versions.learn(versions.era(), "t", &at(5));
            }
            assert_eq!(assumed.agree(), Agreement::Changed);
            assert!(versions.stamp([tag("t")]).is_ok());
            versions.forget(&|_| false);
        }
    }

    #[test]
    fn a_flood_of_tags_is_bounded_and_what_something_depends_on_stays() {
        let versions = Versions::default();
        versions.learn(1, "first", &at(5));
        let stamps = versions.stamp([tag("first")]).unwrap();
        for n in 0..SHARDS * SHARD_LIMIT * 2 {
            versions.cell(&tag(&n.to_string()));
        }
        assert_eq!(stamps.agree(), Agreement::Same);
        assert!(
            versions.shards.iter().map(|s| s.lock().cells.len()).sum::<usize>()
                <= SHARDS * SHARD_LIMIT
        );
        versions.invalidated("first", &at(9));
        assert_eq!(stamps.agree(), Agreement::Changed);
    }

    #[test]
    fn a_tag_that_was_forgotten_is_not_known_from_before() {
        let versions = Versions::default();
        versions.settle_alone("t");
        let number = versions.number();
        assert!(versions.known_since("t", number).is_some());
        versions.invalidate_alone("t", None);
        assert!(versions.known_since("t", number).is_none());
        for n in 0..SHARDS * SHARD_LIMIT * 2 {
            versions.cell(&tag(&n.to_string()));
        }
        versions.settle_alone("t");
        assert!(
            versions.known_since("t", number).is_none(),
            "invalidated since, and the cell was removed"
        );
    }
}
