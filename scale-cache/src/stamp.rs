//! Versions: what an entry remembers, what is true now, and whether the two agree. Pure: no I/O.
//!
//! Everything that can be invalidated but by its key has a *cell* with its present version: each tag, and each keyspace (for `clear`). An
//! entry holds on to the cells it depends on and to their versions *as they were before its load began*. It is valid while they are the
//! same. So invalidating costs one store to a cell, however many entries depend on it, and a load that began before an invalidation
//! cannot bring back what it removed, whenever it ends. (Keys have a [fence](crate::fence) instead.)
//!
//! A tag's version is the time of its last invalidation by the store's clock, µs; so it can be compared with when a load began, too,
//! for tags that a loader only learns of while loading.
//!
//! Beside that, each invalidation that is heard of takes the next number of this process. A load knows the number at which it began.

use std::collections::HashMap;
use std::hash::BuildHasher;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};

use foldhash::fast::RandomState;
use parking_lot::{Mutex, RwLock};

use crate::store::{Position, Version};

/// The tag of everything; with a space's name behind it, of all in the space.
pub(crate) const ALL: &str = "\0";
/// Begins other tags of the cache's own.
pub(crate) const OWN: &str = "\u{1}";

/// A tag as a user names it, which must not be one of the cache's own, even if it comes from a request.
pub(crate) fn named(tag: Arc<str>) -> Arc<str> {
    if tag.starts_with(ALL) || tag.starts_with(OWN) { format!("{OWN}{OWN}{tag}").into() } else { tag }
}

/// Not known: the store must be asked.
const UNKNOWN: u64 = 0;
/// Set in versions made here while the store cannot be told: no version of the store's ever has it.
const LOCAL: u64 = 1 << 63;
/// Known from before a gap in the news: the store must be asked. What disagrees with it was invalid then already.
const DOUBTED: u64 = 1 << 62;
/// Set beside `LOCAL` in versions made here because the store could not be asked: any word of the store's replaces it, and it is asked again
/// as soon as it answers.
const ASSUMED: u64 = 1 << 61;

/// The present version of one tag.
#[derive(Debug)]
pub(crate) struct Cell {
    tag: Arc<str>,
    version: AtomicU64,
    /// The number of the last invalidation heard of: who comes after one must not join a load from before it.
    bumped: AtomicU64,
    /// The number at which its version was learned, or last changed.
    known_since: AtomicU64,
    /// What a database must have replayed.
    position: Mutex<Option<Position>>,
}

impl Cell {
    /// The latest position stays. Set before the version: a load that sees the version must see the position.
    fn require(&self, position: Option<&Position>) {
        if let Some(position) = position {
            let mut latest = self.position.lock();
            if latest.as_ref().is_none_or(|latest| position > latest) {
                *latest = Some(Arc::clone(position));
            }
        }
    }

    /// A version never goes back; one that is in doubt is settled by any that is not older, and one made here and not yet told by none of
    /// the store's, unless it is in doubt or was only assumed.
    fn raise(&self, version: u64) {
        let raised = |now: u64| match now & !DOUBTED {
            known if now & ASSUMED != 0 || (now & DOUBTED != 0 && known & LOCAL != 0) => Some(version),
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

/// What an entry depends on.
#[derive(Clone, Debug, Default)]
pub(crate) struct Stamps(Box<[(Arc<Cell>, u64)]>);

/// Whether they still hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Agreement {
    Same,
    Changed,
    /// Some version is not known.
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

    /// The tags of which a later version is written here than is known.
    pub(crate) fn newer(&self) -> Vec<Arc<str>> {
        let is_newer = |cell: &Cell, then: u64| cell.version().is_some_and(|now| now & LOCAL == 0 && now < then);
        self.0.iter().filter(|(cell, then)| is_newer(cell, *then)).map(|(cell, _)| Arc::clone(&cell.tag)).collect()
    }

    /// Tags and versions, to be stored; `None` if some version is only known here.
    pub(crate) fn shareable(&self) -> Option<Vec<(Arc<str>, u64)>> {
        self.0.iter().map(|(cell, v)| (v & LOCAL == 0).then(|| (Arc::clone(&cell.tag), *v))).collect()
    }

    /// Stamps of one version, as the store has it.
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

const SHARDS: usize = 64;
/// Tags remembered by a shard; beyond it, it forgets those that nothing depends on.
const SHARD_LIMIT: usize = 4_096;

/// Tags by name.
#[derive(Debug)]
struct Shard {
    cells: HashMap<Arc<str>, Arc<Cell>, RandomState>,
    /// At so many those that nothing depends on are looked for.
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
    /// Changes whenever news may have been missed. Held for reading while an answer of the store is taken in.
    era: RwLock<u64>,
    /// A copy of it for the quick look.
    era_now: AtomicU64,
    local: AtomicU64,
    /// The number of the last invalidation heard of, or version learned.
    number: AtomicU64,
    /// The number at which tags were last forgotten.
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

    /// A tag's cell, made if there is none.
    pub(crate) fn cell(&self, tag: &str) -> Arc<Cell> {
        let mut shard = self.shards[(self.hash(tag) >> 40) as usize % SHARDS].lock();
        if let Some(cell) = shard.cells.get(tag) {
            return Arc::clone(cell);
        }
        if shard.cells.len() >= shard.limit {
            self.forgotten.store(self.next_number(), SeqCst);
            // Entries and spaces hold on to theirs; their number is bounded by that of the entries.
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

    /// The present versions of these tags; the second part are those that must be asked for first.
    pub(crate) fn stamp(&self, tags: impl IntoIterator<Item = Arc<str>>) -> Result<Stamps, Vec<Arc<str>>> {
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

    /// The present versions of these tags, where the store cannot be asked: what is not known is assumed. What is loaded with them is of use
    /// here, and only until it can.
    pub(crate) fn assume(&self, tags: impl IntoIterator<Item = Arc<str>>) -> Stamps {
        let version = |tag: Arc<str>| {
            let cell = self.cell(&tag);
            let assumed = LOCAL | ASSUMED | self.local.fetch_add(1, SeqCst);
            let unsure = |now: u64| (now == UNKNOWN || now & DOUBTED != 0).then_some(assumed);
            let version = cell.version.fetch_update(SeqCst, SeqCst, unsure).map_or_else(|now| now, |_| assumed);
            (cell, version)
        };
        Stamps(tags.into_iter().map(version).collect())
    }

    /// Stamps as they were written down somewhere else; of `known` cells no lock is asked.
    pub(crate) fn stamps_of<'t>(&self, written: impl IntoIterator<Item = (&'t str, u64)>, known: [&Arc<Cell>; 2]) -> Stamps {
        let cell = |tag: &str| known.into_iter().find(|cell| *cell.tag == *tag).cloned().unwrap_or_else(|| self.cell(tag));
        Stamps(written.into_iter().map(|(tag, version)| (cell(tag), version)).collect())
    }

    /// The number of the last invalidation of these tags heard of.
    pub(crate) fn bumped<'t>(&self, tags: impl IntoIterator<Item = &'t Arc<str>>) -> u64 {
        tags.into_iter().map(|tag| self.cell(tag).bumped.load(SeqCst)).max().unwrap_or_default()
    }

    /// The number of the last invalidation heard of, whatever it was of.
    pub(crate) fn number(&self) -> u64 {
        self.number.load(SeqCst)
    }

    fn next_number(&self) -> u64 {
        self.number.fetch_add(1, SeqCst) + 1
    }

    /// A tag's version, if it was known at that number already and has been the same since.
    pub(crate) fn known_since(&self, tag: &str, number: u64) -> Option<Stamps> {
        let cell = self.cell(tag);
        let version = cell.version()?;
        let unchanged = cell.known_since.load(SeqCst) <= number && cell.bumped.load(SeqCst) <= number;
        (unchanged && cell.version.load(SeqCst) == version).then(|| Stamps([(cell, version)].into()))
    }

    /// What the store says a tag's version is, asked in `era`. Never goes back, and says nothing about an era that has passed.
    ///
    /// `false`: the store says an older version than is remembered here. It has lost an invalidation, as in a fail-over.
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

    /// The version the store gives a tag whose last invalidation it had lost: new, so nothing older agrees with it.
    pub(crate) fn accept(&self, era: u64, tag: &str, version: &Version) {
        let now = self.era.read();
        if *now == era {
            let settled = |known: u64| (known & DOUBTED != 0).then_some(version.at_us);
            let cell = self.cell(tag);
            cell.known_since.store(self.next_number(), SeqCst);
            let _ = cell.version.fetch_update(SeqCst, SeqCst, settled);
        }
    }

    /// News: a tag was invalidated somewhere.
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

    /// What a database must have replayed to be read for a value with these tags.
    pub(crate) fn position<'t>(&self, tags: impl IntoIterator<Item = &'t Arc<str>>) -> Option<Position> {
        tags.into_iter().filter_map(|tag| self.cell(tag).position.lock().clone()).max()
    }

    /// A version made here: above all of the store's, so that nothing the store says is believed until [`told`](Self::told).
    pub(crate) fn invalidate_here(&self, tag: &str, position: Option<&Position>) -> u64 {
        let version = LOCAL | self.local.fetch_add(1, SeqCst);
        self.bump(tag, version, position);
        version
    }

    /// The same once more, of a tag that was forgotten meanwhile.
    pub(crate) fn remember(&self, tag: &str, here: u64, position: Option<&Position>) {
        self.bump(tag, here, position);
    }

    /// The store knows now of what was invalidated here: its version counts, unless another one was made here meanwhile.
    pub(crate) fn told(&self, tag: &Arc<str>, here: u64, theirs: u64) {
        let cell = self.cell(tag);
        let number = self.next_number();
        cell.known_since.store(number, SeqCst);
        let _ = cell.version.compare_exchange(here, theirs, SeqCst, SeqCst);
        cell.bumped.fetch_max(number, SeqCst);
    }

    /// Invalidates a tag in a process on its own.
    pub(crate) fn invalidate_alone(&self, tag: &str, position: Option<&Position>) {
        self.bump(tag, self.local.fetch_add(1, SeqCst) + 1, position);
    }

    /// Gives a tag seen for the first time a version, in a process on its own.
    pub(crate) fn settle_alone(&self, tag: &str) {
        let cell = self.cell(tag);
        if cell.version.compare_exchange(UNKNOWN, self.local.load(SeqCst), SeqCst, SeqCst).is_ok() {
            // In a process on its own a tag that nobody has invalidated has been the same for as long as any is remembered.
            cell.known_since.store(self.forgotten.load(SeqCst), SeqCst);
        }
    }

    /// The tags of spaces, and of everything.
    pub(crate) fn own_tags(&self) -> Vec<Arc<str>> {
        let own = |shard: &Mutex<Shard>| -> Vec<Arc<str>> {
            shard.lock().cells.keys().filter(|tag| tag.starts_with(ALL)).cloned().collect()
        };
        self.shards.iter().flat_map(own).collect()
    }

    pub(crate) fn era(&self) -> u64 {
        self.era_now.load(SeqCst)
    }

    /// News may have been missed: nothing that is known counts any more, but for tags to be kept, of which the store does not know yet.
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
        // Nor does not being able to ask make it valid, over as many gaps as there may be.
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
        assert!(versions.shards.iter().map(|s| s.lock().cells.len()).sum::<usize>() <= SHARDS * SHARD_LIMIT);
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
        assert!(versions.known_since("t", number).is_none(), "it was invalidated since, and nobody remembers");
    }
}
