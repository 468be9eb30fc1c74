//! Jobs that have ended.

use async_trait::async_trait;
use redis::AsyncCommands;
use scale_common::clock::millis;

use super::RedisStore;
use super::calls::{allowance, failed};
use crate::error::Error;
use crate::store::{EndedStore, EndingJob, PAGE_BYTES, within};

#[async_trait]
impl EndedStore for RedisStore {
    async fn keep_ended(&self, queue: &str, job: &EndingJob) -> Result<(), Error> {
        let mut call = self.keyed(&self.scripts.keep_ended, queue, &["ended", "records"]);
        for tag in &job.tags {
            call.key(self.tagged_key(queue, tag));
        }
        call.arg(&job.tag).arg(&job.record).arg(job.most.max(1)).arg(millis(job.age));
        call.arg(self.tagged_key(queue, ""));
        for tag in &job.tags {
            call.arg(tag);
        }
        let allowance = allowance(job.record.len());
        call.invoke_async(&mut self.server.allowing(allowance)).await.map_err(failed)
    }

    async fn ended(
        &self,
        queue: &str,
        tag: Option<&str>,
        offset: usize,
        limit: usize,
    ) -> Result<Vec<(u64, Vec<u8>)>, Error> {
        let key = tag.map_or_else(|| self.key(queue, "ended"), |tag| self.tagged_key(queue, tag));
        let (first, last) = (offset as isize, (offset + limit) as isize - 1);
        let times: Vec<(Vec<u8>, u64)> =
            self.server.clone().zrevrange_withscores(key, first, last).await.map_err(failed)?;
        let jobs: Vec<_> = times.iter().map(|(job, _)| job.clone()).collect();
        let records = self.values(&self.key(queue, "records"), &jobs, PAGE_BYTES).await?;
        let found = records.into_iter().filter_map(|(job, value)| {
            let (_, ended_ms) = times.iter().find(|(known, _)| *known == job)?;
            Some((*ended_ms, record_in(&value)?.to_vec()))
        });
        Ok(within(found.collect(), PAGE_BYTES, |(_, record)| record.len()))
    }
}

impl RedisStore {
    fn tagged_key(&self, queue: &str, tag: &str) -> String {
        self.key(queue, &format!("tagged:{tag}"))
    }
}

/// Returns the record behind the tags: see `keep_ended.lua`.
fn record_in(value: &[u8]) -> Option<&[u8]> {
    let mut rest = value;
    loop {
        let (length, after) = rest.split_first()?;
        match length {
            0 => return Some(after),
            length => rest = after.get(usize::from(*length)..)?,
        }
    }
}
