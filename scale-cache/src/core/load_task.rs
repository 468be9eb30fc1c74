//! Runs one load of a key: checks L2, takes the fleet-wide lease, calls the loader, stores the
//! result.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::time::{Instant, timeout};

use crate::core::l2_client::{LEASE, ReadSnapshot};
use crate::core::new_entry::NewEntry;
use crate::core::single_flight::{FlightTerms, Outcome};
use crate::core::tag_versions::LoadStart;
use crate::core::{Core, tag_versions};
use crate::error::Error;
use crate::load_context::LoadContext;
use crate::options::LONGEST;
use crate::options::Options;
use crate::policy::entry::{Entry, Validity};
use crate::policy::versions::Cell;

/// A load in progress. Any number of callers may wait for it.
pub(crate) struct LoadTask {
    pub(crate) core: Arc<Core>,
    pub(crate) key: Arc<str>,
    pub(crate) space: Arc<Cell>,
    pub(crate) tags: Vec<Arc<str>>,
    pub(crate) options: Options,
    pub(crate) terms: FlightTerms,
    /// `true` if the current value is still fresh, so that it must not be taken from L2 again.
    pub(crate) refresh: bool,
    pub(crate) old: Option<Arc<Entry>>,
    /// A current value that must be revalidated in L2.
    pub(crate) unsure: Option<Arc<Entry>>,
}

impl LoadTask {
    pub(crate) async fn run<V, F, Fut, E>(self: Box<Self>, load: F) -> Outcome
    where
        V: Serialize + DeserializeOwned + Send + Sync + 'static,
        F: FnOnce(LoadContext) -> Fut + Send + 'static,
        Fut: Future<Output = Result<V, E>> + Send + 'static,
        E: Into<Box<dyn std::error::Error + Send + Sync>> + Send + 'static,
    {
        let Self { core, key, space, tags, options, terms, refresh, mut old, unsure } = *self;
        let token = fastrand::u64(1..u64::MAX >> 12);
        // The load lease of the fleet. Without a second level, or with one that fails, every
        // process may load.
        let deadline = Instant::now() + options.hard_timeout.min(LONGEST);
        let mut begun = None;
        let mut pause = Duration::from_millis(5);
        let mut snapshot = ReadSnapshot::new(&core, &key);
        let mut bytes = None;
        if !refresh {
            // A load that has just ended may have stored the value.
            let here = core
                .local
                .get(&key)
                .filter(|entry| entry.value.is::<V>() && core.validity(entry) == Validity::Fresh);
            if let Some(entry) = here {
                return Ok(entry).into();
            }
            bytes = core.get_shared(&key).await;
            // Redis has returned, and its losses are not known yet.
            if let Some(entry) = unsure
                .as_ref()
                .filter(|entry| !core.is_whole() && core.believes(entry, &terms.fence))
            {
                return Ok(Arc::clone(entry)).into();
            }
        }
        while let Some(store) = &core.l2 {
            if let Some(found) = core.admit::<V>(&snapshot, &space, bytes.take()).await {
                let is_new = old.as_ref().is_none_or(|old| {
                    found.fresh_until > old.fresh_until + Duration::from_millis(10)
                });
                let validity =
                    if snapshot.fence.stands() { core.validity(&found) } else { Validity::Invalid };
                match validity {
                    Validity::Fresh if !refresh || is_new => {
                        metrics::counter!("scale_cache_hits_total", "level" => "2").increment(1);
                        if begun.is_some() {
                            core.ask(store.release(&key, token)).await;
                        }
                        core.local.insert(&key, &snapshot.fence, &found);
                        return Ok(found).into();
                    }
                    Validity::Stale | Validity::Fresh => old = Some(found),
                    Validity::MustRevalidate | Validity::Invalid => {}
                }
            }
            if begun.is_some() || core.pending.has_key(&key) {
                break;
            }
            snapshot = ReadSnapshot::new(&core, &key);
            match core.ask(store.begin(&key, token, LEASE)).await {
                Some(answer) => {
                    begun = answer.won.then_some(answer.now_us);
                    bytes = answer.entry.filter(|_| core.is_whole());
                }
                None => match unsure.filter(|entry| core.believes(entry, &terms.fence)) {
                    Some(entry) => return Ok(entry).into(),
                    None => break,
                },
            }
            if begun.is_none() {
                // Another process loads: the value appears, or the lease becomes free again.
                if Instant::now() >= deadline {
                    return core
                        .make_do(
                            &key,
                            &terms.fence,
                            old,
                            &options,
                            Error::TimedOut(options.hard_timeout),
                        )
                        .into();
                }
                tokio::time::sleep(pause.mul_f64(0.5 + fastrand::f64() / 2.0)).await;
                pause = (pause * 2).min(Duration::from_millis(100));
            }
        }
        metrics::counter!("scale_cache_misses_total").increment(1);
        // Tag versions, as they are before the load begins.
        let stamps = tag_versions::current(&core, &tags).await;
        let since = Instant::now();
        // Later than `terms`: callers that joined in between are distinguished by the number.
        let began = LoadStart {
            number: terms.number,
            era: terms.era,
            store_us: begun,
            ..tag_versions::begin(&core)
        };
        let context = LoadContext::new(core.versions.position(&tags));
        let loaded = timeout(
            options.hard_timeout,
            core.keeping_lease(begun.map(|_| (&*key, token)), load(context.clone())),
        )
        .await;
        let cost = since.elapsed();
        metrics::histogram!("scale_cache_load_seconds").record(cost.as_secs_f64());
        let value = match loaded {
            Ok(Ok(value)) => value,
            failed => {
                if let (Some(store), Some(_)) = (&core.l2, begun) {
                    core.ask(store.release(&key, token)).await;
                }
                let error = match failed {
                    Ok(Err(error)) => Error::Load(error.into().into()),
                    _ => Error::TimedOut(options.hard_timeout),
                };
                return core.make_do(&key, &terms.fence, old, &options, error).into();
            }
        };
        let said = context.said();
        let late = tag_versions::known_since(&core, &said.tags, began).await;
        let overtaken = late.is_none();
        let ttl = said.ttl.unwrap_or(options.ttl);
        let keep = !overtaken && !ttl.is_zero();
        let stamps = stamps.and(late.unwrap_or_default());
        let made = NewEntry::new(value, stamps, &options, ttl, cost);
        let mut made = match made.and_then(|mut made| made.check::<V>(core.strict).map(|()| made)) {
            Ok(made) => made,
            Err(error) => {
                if let (Some(store), Some(_)) = (&core.l2, begun) {
                    core.ask(store.release(&key, token)).await;
                }
                return Err(error).into();
            }
        };
        made.entry = Entry { era: terms.era, since, ..made.entry };
        let entry = Arc::new(made.entry.clone());
        let mut current = true;
        if let (Some(store), Some(_)) = (&core.l2, begun) {
            match made.shared(store.now_us(), core.compress_over).filter(|_| keep) {
                // The store refuses the value if the key was removed or another process holds the
                // lease by now. Then the value is not kept here either.
                Some((bytes, kept)) => {
                    current = core.ask(store.fill(&key, token, &bytes, kept)).await != Some(false);
                }
                None => drop(core.ask(store.release(&key, token)).await),
            }
        }
        if keep && current {
            core.local.insert(&key, &terms.fence, &entry);
        }
        Outcome { result: Ok(entry), overtaken }
    }
}
