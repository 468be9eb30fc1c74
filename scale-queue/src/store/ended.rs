//! Jobs that have ended, kept for a while when a worker is asked to.

use std::time::Duration;

use async_trait::async_trait;

use crate::error::Error;

/// A job that ends, to be kept.
#[derive(Clone, Debug)]
pub struct EndingJob {
    /// Tag of the job.
    pub tag: Vec<u8>,
    /// Encoded record of its end; opaque to the store.
    pub record: Vec<u8>,
    /// Tags by which it is found.
    pub tags: Vec<String>,
    /// Maximum number of jobs kept per queue; the oldest are removed first.
    pub most: usize,
    /// Maximum age of a kept job.
    pub age: Duration,
}

/// Kept jobs. A part of every [`Store`](super::Store).
#[async_trait]
pub trait EndedStore: Send + Sync {
    /// Keeps a job that ends now; replaces an entry of the same job. Removes some of the jobs
    /// beyond the bounds, so there may be a few more than allowed.
    async fn keep_ended(&self, queue: &str, job: &EndingJob) -> Result<(), Error>;

    /// Returns kept jobs, or those with a tag, the newest first: when each ended, in ms since 1970,
    /// and its record.
    async fn ended(
        &self,
        queue: &str,
        tag: Option<&str>,
        offset: usize,
        limit: usize,
    ) -> Result<Vec<(u64, Vec<u8>)>, Error>;
}
