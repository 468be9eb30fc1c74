//! Calls to L2 with time-out and circuit breaker, and validation of what it returns.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use serde::de::DeserializeOwned;
use tokio::time::{Instant, timeout};

use crate::core::{Core, events, tag_versions};
use crate::error::Error;
use crate::format::{Head, decoded, fingerprint, unpacked};
use crate::policy::entry::{Entry, weight};
use crate::policy::fences::Fence;
use crate::policy::versions::{Agreement, Cell};

/// Duration of a load lease. A process that loads renews it three times as often; if it expires,
/// another process may load.
pub(crate) const LEASE: Duration = Duration::from_secs(3);
/// Fence and era as read before the second level is asked. Ordering: `remove` adds the key to the
/// pending invalidations before it bumps the fence; a read loads the fence before it checks the
/// pending ones. One of the two therefore sees the other.
pub(crate) struct ReadSnapshot {
    pub(crate) fence: Fence,
    era: u64,
    since: Instant,
}

impl ReadSnapshot {
    pub(crate) fn new(core: &Core, key: &Arc<str>) -> Self {
        Self { fence: core.local.watch(key), era: core.versions.era(), since: Instant::now() }
    }

    /// Returns whether no events may have been missed since.
    pub(crate) fn is_current(&self, core: &Core) -> bool {
        self.era == core.versions.era()
    }
}

impl Core {
    /// Returns milliseconds since 1970, by the second level's clock if there is one. Changes of
    /// this machine's clock have no effect.
    #[cfg(feature = "http")]
    pub(crate) fn now_ms(&self) -> u64 {
        self.l2.as_ref().map_or_else(crate::clock::steady_us, |store| store.now_us()) / 1_000
    }

    /// Calls the second level, with the time-out and through the circuit breaker.
    pub(crate) async fn ask<T>(
        &self,
        question: impl Future<Output = Result<T, Error>>,
    ) -> Option<T> {
        self.ask_within(self.store_timeout, question).await
    }

    /// Sends an invalidation to the second level, with the longer time-out that its replicas may
    /// need.
    pub(crate) async fn tell<T>(&self, word: impl Future<Output = Result<T, Error>>) -> Option<T> {
        self.ask_within(self.invalidation_timeout, word).await
    }

    async fn ask_within<T>(
        &self,
        limit: Duration,
        question: impl Future<Output = Result<T, Error>>,
    ) -> Option<T> {
        if !self.breaker.allows(self.now_ns()) {
            return None;
        }
        events::subscribe(self);
        let late = |_| Err(Error::store("the store did not answer in time"));
        self.record_outcome(timeout(limit, question).await.unwrap_or_else(late))
    }

    /// Returns the time of the circuit breaker.
    fn now_ns(&self) -> u64 {
        self.started.elapsed().as_nanos() as u64
    }

    /// Records the outcome of a call for the circuit breaker.
    fn record_outcome<T>(&self, answer: Result<T, Error>) -> Option<T> {
        match answer {
            Ok(answer) => {
                self.breaker.succeeded();
                Some(answer)
            }
            // The store answers: a refused command says nothing about other commands.
            Err(Error::Refused(error)) => {
                tracing::warn!(%error, "the cache's second level refused a command");
                metrics::counter!("scale_cache_store_errors_total").increment(1);
                self.breaker.succeeded();
                None
            }
            Err(error) => {
                tracing::debug!(
                    %error,
                    store_timeout = ?self.store_timeout,
                    "the call to the cache's second level failed: continuing without it",
                );
                metrics::counter!("scale_cache_store_errors_total").increment(1);
                self.breaker.failed(self.now_ns());
                None
            }
        }
    }

    /// Renews the load lease while something loads.
    pub(crate) async fn keeping_lease<T>(
        &self,
        lease: Option<(&str, u64)>,
        load: impl Future<Output = T>,
    ) -> T {
        let (Some((key, token)), Some(store)) = (lease, &self.l2) else { return load.await };
        let renew = async {
            loop {
                tokio::time::sleep(LEASE / 3).await;
                // A removal may have ended the lease: then the store refuses the value, but the
                // waiting callers still get it.
                let _ = self.ask(store.renew(key, token, LEASE)).await;
            }
        };
        tokio::select! {
            biased;
            value = load => value,
            () = renew => unreachable!("the renewal never ends"),
        }
    }

    /// Returns an entry's bytes in the second level. Take a [`ReadSnapshot`] first.
    pub(crate) async fn get_shared(&self, key: &str) -> Option<Vec<u8>> {
        let store = self.l2.as_ref().filter(|_| !self.pending.has_key(key))?;
        events::subscribe(self);
        let bytes = if self.gets_in_time {
            // The path of every hit in L2: it needs no second timer.
            if self.breaker.allows(self.now_ns()) {
                self.record_outcome(store.get(key).await)?
            } else {
                None
            }
        } else {
            self.ask(store.get(key)).await?
        };
        bytes.filter(|_| self.is_whole())
    }

    /// Returns whether the content of the second level may be used; if not, starts its repair. Call
    /// this after an answer of the store.
    pub(crate) fn is_whole(&self) -> bool {
        let is_whole = self.l2.as_ref().is_none_or(|store| store.is_whole());
        if !is_whole {
            events::examine(self);
        }
        is_whole
    }

    /// Decodes bytes from the second level as an entry, if its tag versions agree with the current
    /// ones.
    pub(crate) async fn admit<V>(
        &self,
        snapshot: &ReadSnapshot,
        space: &Arc<Cell>,
        bytes: Option<Vec<u8>>,
    ) -> Option<Arc<Entry>>
    where
        V: DeserializeOwned + Send + Sync + 'static,
    {
        let (store, bytes) = (self.l2.as_ref()?, bytes?);
        let Some((head, payload)) =
            Head::read(&bytes).filter(|(head, _)| head.fingerprint == fingerprint::<V>())
        else {
            metrics::counter!("scale_cache_unreadable_total").increment(1);
            return None;
        };
        let now_us = store.now_us();
        let left = |until: u64| Duration::from_micros(until.saturating_sub(now_us));
        let stamps = self.versions.stamps_of(head.tags, [&self.everything, space]);
        // A tag that the store had expired may have a version there that is unknown here.
        let newer = stamps.newer();
        if !newer.is_empty() && !tag_versions::resolve(self, &newer).await {
            return None;
        }
        // Without the subscription the known versions prove nothing: the versions are read from the
        // same store as the bytes.
        let doubtful = if !self.subscription.is_up() {
            stamps.tags().cloned().collect()
        } else if stamps.agree() != Agreement::Same {
            self.versions.stamp(stamps.tags().cloned()).err().unwrap_or_default()
        } else {
            Vec::new()
        };
        if !tag_versions::resolve(self, &doubtful).await {
            return None;
        }
        if stamps.agree() != Agreement::Same {
            return None;
        }
        let payload = unpacked(head.compressed, payload);
        let Some(Ok(value)) = payload.as_deref().map(decoded::<V>) else {
            metrics::counter!("scale_cache_unreadable_total").increment(1);
            return None;
        };
        let entry = Entry {
            value: Arc::new(value),
            stamps,
            era: snapshot.era,
            made: snapshot
                .since
                .checked_sub(Duration::from_micros(now_us.saturating_sub(head.made_us)))
                .unwrap_or(snapshot.since),
            since: snapshot.since,
            fresh_until: snapshot.since + left(head.fresh_until_us),
            kept_until: snapshot.since + left(head.kept_until_us),
            cost: head.cost,
            weight: weight(payload.map_or(0, |p| p.len())),
        };
        Some(Arc::new(entry))
    }
}
