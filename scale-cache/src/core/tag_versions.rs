//! Versions of tags: those known here, or as the store reports them.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;

use crate::clock::since_boot;
use crate::core::Core;
use crate::policy::versions::Stamps;

/// Start of a load, for tags that are known only with the value.
#[derive(Clone, Copy)]
pub(crate) struct LoadStart {
    /// Number of the last invalidation received.
    pub(crate) number: u64,
    pub(crate) era: u64,
    /// Time by [`since_boot`].
    pub(crate) at: Duration,
    /// Time by the store's clock, in µs, if known.
    pub(crate) store_us: Option<u64>,
}

/// Returns the versions of these tags, asking the store for unknown ones. If the store does not
/// answer, assumes local versions.
pub(crate) async fn current(core: &Core, tags: &[Arc<str>]) -> Stamps {
    loop {
        match core.versions.stamp(tags.iter().cloned()) {
            Ok(stamps) => return stamps,
            Err(unknown) if resolve(core, &unknown).await => {}
            Err(_) => return core.versions.assume(tags.iter().cloned()),
        }
    }
}

/// Asks the store for the versions of tags. Returns `false` if the store does not answer.
pub(crate) async fn resolve(core: &Core, unknown: &[Arc<str>]) -> bool {
    let Some(store) = &core.l2 else {
        for tag in unknown {
            core.versions.settle_alone(tag);
        }
        return true;
    };
    let era = core.versions.era();
    let answers = join_all(unknown.iter().map(|tag| async move {
        if let Some((here, position)) = core.pending.version_of(tag) {
            core.versions.remember(tag, here, position.as_ref());
            return true;
        }
        match core.ask(store.version(tag)).await {
            Some((version, _)) if core.versions.learn(era, tag, &version) => true,
            // The store has lost an invalidation that is known here: it is repeated.
            Some(_) => {
                match core.ask(store.invalidate(tag, core.versions.position([tag]).as_ref())).await
                {
                    Some(version) => {
                        core.versions.accept(era, tag, &version);
                        true
                    }
                    None => false,
                }
            }
            None => false,
        }
    }))
    .await;
    answers.into_iter().all(|known| known)
}

/// Returns the current state as the start of a load.
pub(crate) fn begin(core: &Core) -> LoadStart {
    let store_us = core.l2.as_ref().map(|store| store.now_us());
    LoadStart {
        number: core.versions.number(),
        era: core.versions.era(),
        at: since_boot(),
        store_us,
    }
}

/// Returns the versions of tags that became known during a load; `None` if one of them was
/// invalidated after the start of the load, or if that cannot be excluded.
pub(crate) async fn known_since(
    core: &Core,
    tags: &[Arc<str>],
    began: LoadStart,
) -> Option<Stamps> {
    let mut all = Stamps::default();
    for stamps in join_all(tags.iter().map(|tag| one_known_since(core, tag, began))).await {
        all = all.and(stamps?);
    }
    Some(all)
}

async fn one_known_since(core: &Core, tag: &Arc<str>, began: LoadStart) -> Option<Stamps> {
    let Some(store) = &core.l2 else {
        core.versions.settle_alone(tag);
        return core.versions.known_since(tag, began.number);
    };
    if let Some(stamps) = core.versions.known_since(tag, began.number) {
        return Some(stamps);
    }
    // The version at that time was not known: it is the current one if the last change was
    // before.
    let Some((version, now_us)) = core.ask(store.version(tag)).await else {
        // The store does not answer. As for other tags then, the value may be used here until
        // the store answers.
        let is_quiet = !core.subscription.is_up() && core.versions.bumped([tag]) <= began.number;
        return is_quiet.then(|| core.versions.assume([Arc::clone(tag)]));
    };
    let is_known = core.versions.learn(began.era, tag, &version);
    let elapsed = since_boot().saturating_sub(began.at);
    // Clocks differ slightly in speed.
    let then = now_us.saturating_sub((elapsed + elapsed / 1_000).as_micros() as u64 + 1_000);
    // A clock that was set in the meantime is detected by the time that the store returned
    // before.
    let was_before =
        began.store_us.is_none_or(|then| version.at_us <= then) || !store.has_one_clock();
    let cell = core.versions.cell(tag);
    let is_good = is_known
        && core.versions.era() == began.era
        && version.at_us <= then
        && was_before
        && cell.version() == Some(version.at_us);
    is_good.then(|| Stamps::of(cell, version.at_us))
}
