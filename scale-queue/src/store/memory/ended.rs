//! Jobs that have ended.

use async_trait::async_trait;

use super::MemoryStore;
use crate::error::Error;
use crate::store::{EndedStore, EndingJob, Store};

#[async_trait]
impl EndedStore for MemoryStore {
    async fn keep_ended(&self, queue: &str, job: &EndingJob) -> Result<(), Error> {
        let now_ms = self.now_ms();
        let oldest = now_ms.saturating_sub(job.age.as_millis() as u64);
        self.with(queue, |lane| {
            lane.kept.retain(|(at_ms, known)| known.tag != job.tag && *at_ms >= oldest);
            lane.kept.push_back((now_ms, job.clone()));
            let over = lane.kept.len().saturating_sub(job.most.max(1));
            lane.kept.drain(..over);
        });
        Ok(())
    }

    async fn ended(
        &self,
        queue: &str,
        tag: Option<&str>,
        offset: usize,
        limit: usize,
    ) -> Result<Vec<(u64, Vec<u8>)>, Error> {
        Ok(self.with(queue, |lane| {
            let has_tag = |job: &EndingJob| tag.is_none_or(|tag| job.tags.iter().any(|t| t == tag));
            let found = lane.kept.iter().rev().filter(|(_, job)| has_tag(job));
            found
                .skip(offset)
                .take(limit)
                .map(|(at_ms, job)| (*at_ms, job.record.clone()))
                .collect()
        }))
    }
}
