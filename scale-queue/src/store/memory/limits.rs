//! Limits in the memory of one process.

use std::collections::HashMap;
use std::time::Duration;

use async_trait::async_trait;
use tokio::time::Instant;

use super::{MemoryStore, sweep};
use crate::error::Error;
use crate::limit::{LONGEST, line_of};
use crate::store::{Admission, LINE_RETRY, LimitStore, PermitRequest, RateRequest, WAKES};

#[derive(Debug, Default)]
pub(super) struct Limits {
    /// Holders of permits and the expiry of each, by key.
    permits: HashMap<String, HashMap<String, Instant>>,
    /// Time at which the next job is due if all jobs before it were evenly spaced (GCRA's
    /// theoretical arrival time), by key.
    rates: HashMap<String, Instant>,
}

#[async_trait]
impl LimitStore for MemoryStore {
    async fn acquire(&self, request: PermitRequest<'_>) -> Result<Admission, Error> {
        let (now, mut limits) = (self.clock.now(), self.limits.lock());
        let holders = limits.permits.entry(request.key.to_owned()).or_default();
        holders.retain(|_, until| *until > now);
        if !holders.contains_key(request.holder) && holders.len() >= request.most as usize {
            let first = holders.values().min().map_or(LINE_RETRY, |until| *until - now);
            return Ok(Admission::Later(first.min(LINE_RETRY) + Duration::from_millis(1)));
        }
        holders.insert(request.holder.to_owned(), now + request.life.min(LONGEST));
        let is_free = holders.len() < request.most as usize;
        drop(limits);
        if is_free {
            // More permits are free: the next job in line need not wait for the end of this one.
            self.wake_line(request.queue, &line_of(request.key));
        }
        Ok(Admission::Now)
    }

    async fn renew(&self, key: &str, holder: &str, life: Duration) -> Result<bool, Error> {
        let (now, mut limits) = (self.clock.now(), self.limits.lock());
        let until = limits
            .permits
            .get_mut(key)
            .and_then(|holders| holders.get_mut(holder))
            .filter(|until| **until > now);
        Ok(until.map(|until| *until = now + life.min(LONGEST)).is_some())
    }

    async fn release(&self, key: &str, holder: &str, order: &[String]) -> Result<(), Error> {
        {
            let mut limits = self.limits.lock();
            if let Some(holders) = limits.permits.get_mut(key) {
                holders.remove(holder);
                if holders.is_empty() {
                    limits.permits.remove(key);
                }
            }
        }
        let line = line_of(key);
        let queues = self.queues_of(&line);
        let first = order.iter().find(|queue| queues.contains(queue)).or(queues.first());
        if let Some(queue) = first {
            self.wake_line(queue, &line);
        }
        Ok(())
    }

    async fn wake_if_free(&self, key: &str, most: u32, queue: &str) -> Result<(), Error> {
        let now = self.clock.now();
        let taken = self
            .limits
            .lock()
            .permits
            .get(key)
            .map_or(0, |holders| holders.values().filter(|until| **until > now).count());
        for _ in 0..(most as usize).saturating_sub(taken).min(WAKES as usize) {
            self.wake_line(queue, &line_of(key));
        }
        Ok(())
    }

    async fn admit(&self, request: RateRequest<'_>) -> Result<Admission, Error> {
        let RateRequest { key, spacing, burst, before, .. } = request;
        let now = self.clock.now();
        let line = line_of(key);
        let waits = before.iter().any(|queue| self.is_due(queue, &line, spacing.min(LONGEST) / 2));
        let mut limits = self.limits.lock();
        sweep(&mut limits.rates, self.clock.now(), |next| *next);
        let spacing = spacing.min(LONGEST);
        let next = limits.rates.get(key).copied().unwrap_or(now).max(now);
        let wait = (next - now).saturating_sub(spacing.saturating_mul(burst.saturating_sub(1)));
        if !wait.is_zero() || waits {
            return Ok(Admission::Later(if wait.is_zero() {
                spacing
            } else {
                wait.max(Duration::from_millis(1))
            }));
        }
        limits.rates.insert(key.to_owned(), next + spacing);
        Ok(Admission::Now)
    }

    async fn refund(&self, key: &str, spacing: Duration) -> Result<(), Error> {
        if let Some(next) = self.limits.lock().rates.get_mut(key) {
            *next = next.checked_sub(spacing.min(LONGEST)).unwrap_or(*next);
        }
        Ok(())
    }
}
