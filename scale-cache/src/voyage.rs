//! One load, from the look into the second level to the value kept, whoever waits for it.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::time::{Instant, timeout};

use crate::cache::Inner;
use crate::entry::{Entry, Worth};
use crate::error::Error;
use crate::flight::{Ground, Outcome};
use crate::load::Load;
use crate::made::Made;
use crate::options::LONGEST;
use crate::options::Options;
use crate::shared::{Began, Glance, LEASE};
use crate::stamp::Cell;

/// A load under way, whoever waits for it.
pub(crate) struct Voyage {
    pub(crate) inner: Arc<Inner>,
    pub(crate) key: Arc<str>,
    pub(crate) space: Arc<Cell>,
    pub(crate) tags: Vec<Arc<str>>,
    pub(crate) options: Options,
    pub(crate) ground: Ground,
    /// The value at hand is fresh still: do not take it from the second level again.
    pub(crate) refresh: bool,
    pub(crate) old: Option<Arc<Entry>>,
    /// A value at hand that the second level should be asked about.
    pub(crate) unsure: Option<Arc<Entry>>,
}

impl Voyage {
    pub(crate) async fn sail<V, F, Fut, E>(self: Box<Self>, load: F) -> Outcome
    where
        V: Serialize + DeserializeOwned + Send + Sync + 'static,
        F: FnOnce(Load) -> Fut + Send + 'static,
        Fut: Future<Output = Result<V, E>> + Send + 'static,
        E: Into<Box<dyn std::error::Error + Send + Sync>> + Send + 'static,
    {
        let Self { inner, key, space, tags, options, ground, refresh, mut old, unsure } = *self;
        let token = fastrand::u64(1..u64::MAX >> 12);
        // The right to load, asked of the fleet. Without a second level, or with a broken one, everybody has it.
        let deadline = Instant::now() + options.hard_timeout.min(LONGEST);
        let mut begun = None;
        let mut pause = Duration::from_millis(5);
        let mut glance = Glance::new(&inner, &key);
        let mut bytes = None;
        if !refresh {
            // Who was here just before may have left it.
            let here = inner.here(&key).filter(|entry| entry.value.is::<V>() && inner.worth(entry) == Worth::Fresh);
            if let Some(entry) = here {
                return Ok(entry).into();
            }
            bytes = inner.get_shared(&key).await;
            // Redis is back, and nobody knows yet what it has lost.
            if let Some(entry) = unsure.as_ref().filter(|entry| !inner.is_whole() && inner.believes(entry, &ground.fence)) {
                return Ok(Arc::clone(entry)).into();
            }
        }
        while let Some(store) = &inner.shared {
            if let Some(found) = inner.admit::<V>(&glance, &space, bytes.take()).await {
                let is_new = old.as_ref().is_none_or(|old| found.fresh_until > old.fresh_until + Duration::from_millis(10));
                let worth = if glance.fence.stands() { inner.worth(&found) } else { Worth::Nothing };
                match worth {
                    Worth::Fresh if !refresh || is_new => {
                        metrics::counter!("scale_cache_hits_total", "level" => "2").increment(1);
                        if begun.is_some() {
                            inner.ask(store.release(&key, token)).await;
                        }
                        inner.keep(&key, &glance.fence, &found);
                        return Ok(found).into();
                    }
                    Worth::Stale | Worth::Fresh => old = Some(found),
                    Worth::Unsure | Worth::Nothing => {}
                }
            }
            if begun.is_some() || inner.pending.has_key(&key) {
                break;
            }
            glance = Glance::new(&inner, &key);
            match inner.ask(store.begin(&key, token, LEASE)).await {
                Some(answer) => {
                    begun = answer.won.then_some(answer.now_us);
                    bytes = answer.entry.filter(|_| inner.is_whole());
                }
                None => match unsure.filter(|entry| inner.believes(entry, &ground.fence)) {
                    Some(entry) => return Ok(entry).into(),
                    None => break,
                },
            }
            if begun.is_none() {
                // Somebody else loads: the value appears, or the right is free again.
                if Instant::now() >= deadline {
                    return inner.make_do(&key, &ground.fence, old, &options, Error::TimedOut(options.hard_timeout)).into();
                }
                tokio::time::sleep(pause.mul_f64(0.5 + fastrand::f64() / 2.0)).await;
                pause = (pause * 2).min(Duration::from_millis(100));
            }
        }
        metrics::counter!("scale_cache_misses_total").increment(1);
        // What the value depends on, as it is before the load begins.
        let stamps = inner.stamp_tags(&tags).await;
        let since = Instant::now();
        // Of a later moment than the ground's: whoever joined since then is told by the number.
        let began = Began { number: ground.number, era: ground.era, store_us: begun, ..inner.begin_here() };
        let context = Load::new(inner.versions.position(&tags));
        let loaded =
            timeout(options.hard_timeout, inner.keeping_lease(begun.map(|_| (&*key, token)), load(context.clone()))).await;
        let cost = since.elapsed();
        metrics::histogram!("scale_cache_load_seconds").record(cost.as_secs_f64());
        let value = match loaded {
            Ok(Ok(value)) => value,
            failed => {
                if let (Some(store), Some(_)) = (&inner.shared, begun) {
                    inner.ask(store.release(&key, token)).await;
                }
                let error = match failed {
                    Ok(Err(error)) => Error::Load(error.into().into()),
                    _ => Error::TimedOut(options.hard_timeout),
                };
                return inner.make_do(&key, &ground.fence, old, &options, error).into();
            }
        };
        let said = context.said();
        let late = inner.stamp_late(&said.tags, began).await;
        let overtaken = late.is_none();
        let ttl = said.ttl.unwrap_or(options.ttl);
        let keep = !overtaken && !ttl.is_zero();
        let stamps = stamps.and(late.unwrap_or_default());
        let made = Made::new(value, stamps, &options, ttl, cost);
        let mut made = match made.and_then(|mut made| made.check::<V>(inner.strict).map(|()| made)) {
            Ok(made) => made,
            Err(error) => {
                if let (Some(store), Some(_)) = (&inner.shared, begun) {
                    inner.ask(store.release(&key, token)).await;
                }
                return Err(error).into();
            }
        };
        made.entry = Entry { era: ground.era, since, ..made.entry };
        let entry = Arc::new(made.entry.clone());
        let mut current = true;
        if let (Some(store), Some(_)) = (&inner.shared, begun) {
            match made.shared(store.now_us(), inner.compress_over).filter(|_| keep) {
                // Refused: removed meanwhile, or somebody else's by now. Then it is nothing to keep here either.
                Some((bytes, kept)) => current = inner.ask(store.fill(&key, token, &bytes, kept)).await != Some(false),
                None => drop(inner.ask(store.release(&key, token)).await),
            }
        }
        if keep && current {
            inner.keep(&key, &ground.fence, &entry);
        }
        Outcome { result: Ok(entry), overtaken }
    }
}
