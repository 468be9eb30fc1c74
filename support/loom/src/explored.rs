//! The cases.

use std::sync::Arc;

use loom::thread;

use crate::policy::fences::Fences;
use crate::policy::sync::Mutex;
use crate::policy::versions::{Agreement, Versions};
use crate::store::{Position, Version};

const TAG: &str = "t";

fn at(at_us: u64) -> Version {
    Version { at_us, position: None }
}

fn tag() -> [Arc<str>; 1] {
    [TAG.into()]
}

/// An answer of the store to a question from before a gap in the events is not believed, whenever
/// it arrives.
#[test]
fn no_version_is_known_by_an_answer_from_before_a_gap() {
    loom::model(|| {
        let versions = Arc::new(Versions::default());
        let era = versions.era();
        let theirs = Arc::clone(&versions);
        let gap = thread::spawn(move || theirs.forget(&|_| false));
        versions.learn(era, TAG, &at(5));
        gap.join().unwrap();
        assert!(versions.stamp(tag()).is_err());
    });
}

/// A load that sees a tag's new version sees the position that a database must have replayed.
#[test]
fn who_sees_a_version_sees_its_position() {
    loom::model(|| {
        let versions = Arc::new(Versions::default());
        versions.learn(versions.era(), TAG, &at(5));
        let theirs = Arc::clone(&versions);
        let invalidating = thread::spawn(move || {
            let position: Position = Arc::from(&b"1/A"[..]);
            theirs.invalidated(TAG, &Version { at_us: 7, position: Some(position) });
        });
        let stamps = versions.stamp(tag()).unwrap();
        let position = versions.position(&tag());
        invalidating.join().unwrap();
        let is_new = stamps.agree() == Agreement::Same;
        assert!(!is_new || position.is_some());
    });
}

/// A load that began before an invalidation never agrees with the version after it.
#[test]
fn an_invalidation_ends_what_was_stamped_before_it() {
    loom::model(|| {
        let versions = Arc::new(Versions::default());
        versions.learn(versions.era(), TAG, &at(5));
        let stamps = versions.stamp(tag()).unwrap();
        let theirs = Arc::clone(&versions);
        let invalidating = thread::spawn(move || theirs.invalidated(TAG, &at(7)));
        versions.learn(versions.era(), TAG, &at(5));
        invalidating.join().unwrap();
        assert_eq!(stamps.agree(), Agreement::Changed);
        assert!(versions.known_since(TAG, 0).is_none());
    });
}

/// Versions never go back, in whatever order they arrive.
#[test]
fn the_latest_of_two_versions_stays() {
    loom::model(|| {
        let versions = Arc::new(Versions::default());
        versions.learn(versions.era(), TAG, &at(5));
        let theirs = Arc::clone(&versions);
        let other = thread::spawn(move || theirs.invalidated(TAG, &at(9)));
        versions.invalidated(TAG, &at(7));
        other.join().unwrap();
        assert_eq!(versions.cell(TAG).version(), Some(9));
    });
}

/// A value is inserted under its fence, or not at all: none outlives a removal.
#[test]
fn no_value_outlives_the_removal_of_its_key() {
    loom::model(|| {
        let (fences, value) =
            (Arc::new(Fences::default()), Arc::new(Mutex::<Option<u8>>::default()));
        let key: Arc<str> = "k".into();
        let fence = fences.watch(&key);
        let removing = {
            let (fences, value) = (Arc::clone(&fences), Arc::clone(&value));
            thread::spawn(move || fences.bump("k", || *value.lock() = None))
        };
        let is_kept = fence.if_stands(|| *value.lock() = Some(1));
        removing.join().unwrap();
        assert_eq!(*value.lock(), None, "kept before: {is_kept}");
        assert!(!fence.stands());
    });
}

/// The last of several operations on a key forgets its fence, and none of them misses a move.
#[test]
fn a_fence_is_shared_until_the_last_one_is_dropped() {
    loom::model(|| {
        let fences = Arc::new(Fences::default());
        let key: Arc<str> = "k".into();
        let first = fences.watch(&key);
        let dropping = thread::spawn(move || drop(first));
        let second = fences.watch(&key);
        let third = second.clone();
        dropping.join().unwrap();
        fences.bump("k", || ());
        assert!(!second.stands() && !third.stands());
    });
}
