//! Who and what is there: workers, schedules, batches. Each says so itself, from time to time; one that dies without a word is listed for
//! another two minutes and a half.

use std::time::Duration;

use futures_util::future::try_join_all;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::batch::BatchStatus;
use crate::error::Error;
use crate::queue::Queue;
use crate::store::Store;

/// How often something says at the least that it is there.
pub(crate) const EVERY: Duration = Duration::from_mins(1);
/// How often at the most, because something has changed.
pub(crate) const SOONEST: Duration = Duration::from_secs(10);
/// How long it is believed.
const LIFE: Duration = Duration::from_secs(150);
/// Of one answer.
const PAGE: usize = 1_000;

/// What can be there.
#[derive(Clone, Copy)]
pub(crate) enum Kind {
    Worker,
    Schedule,
    Batch,
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Self::Worker => "worker",
            Self::Schedule => "schedule",
            Self::Batch => "batch",
        }
    }

    fn life(self) -> Duration {
        match self {
            Self::Worker | Self::Schedule => LIFE,
            Self::Batch => crate::batch::LIFE,
        }
    }
}

/// A worker that is there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct WorkerStatus {
    /// Its identity: its [name](crate::Worker::name) and what was drawn at its start.
    #[serde(default)]
    pub id: String,
    /// The queues it works on.
    pub queues: Vec<String>,
    /// Jobs it runs at a time, at most.
    pub concurrency: usize,
    /// Jobs it ran when it last said so, up to a minute ago.
    pub running: usize,
    /// When it began: ms since 1970.
    pub started_ms: u64,
    /// Its process's number on its machine.
    pub process: u32,
}

/// A schedule that some process keeps.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct ScheduleStatus {
    /// What it is called.
    #[serde(default)]
    pub name: String,
    /// When it fires, for people to read.
    pub rule: String,
    /// The job it pushes.
    pub job: String,
    /// Into which queue.
    pub queue: String,
    /// When it fires next: ms since 1970. Of one that fires often it may be in the past by now.
    pub next_ms: u64,
}

/// A batch that is remembered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct BatchListing {
    /// Its id or [name](crate::Batch::named).
    pub id: String,
    /// When it was pushed: ms since 1970.
    pub pushed_ms: u64,
    /// How far it is.
    #[serde(flatten)]
    pub status: BatchStatus,
}

/// What is said of a batch.
#[derive(Serialize, Deserialize)]
pub(crate) struct Pushed {
    pub(crate) pushed_ms: u64,
}

/// Nobody depends on it: a failure is a matter for the log.
pub(crate) async fn announce(store: &dyn Store, kind: Kind, name: &str, about: &(impl Serialize + Sync)) {
    let Ok(about) = serde_json::to_vec(about) else { return };
    if let Err(error) = store.announce(kind.name(), name, &about, kind.life()).await {
        tracing::debug!(%error, kind = kind.name(), name, "could not say that it is there");
    }
}

pub(crate) async fn withdraw(store: &dyn Store, kind: Kind, name: &str) {
    if let Err(error) = store.withdraw(kind.name(), name).await {
        tracing::debug!(%error, kind = kind.name(), name, "could not say that it is gone");
    }
}

impl Queue {
    async fn present<T: DeserializeOwned>(&self, kind: Kind, offset: usize, limit: usize) -> Result<Vec<(String, T)>, Error> {
        let present = self.store().present(kind.name(), offset.min(i32::MAX as usize), limit.min(PAGE)).await?;
        // What another version has said may not be readable.
        Ok(present.into_iter().filter_map(|(name, about)| Some((name, serde_json::from_slice(&about).ok()?))).collect())
    }

    /// The workers that are there, by name: 1,000 at most. One that was killed is listed for another two minutes and a half.
    pub async fn workers(&self) -> Result<Vec<WorkerStatus>, Error> {
        let present = self.present::<WorkerStatus>(Kind::Worker, 0, PAGE).await?;
        let mut workers: Vec<_> = present.into_iter().map(|(id, about)| WorkerStatus { id, ..about }).collect();
        workers.sort_unstable_by(|a, b| a.id.cmp(&b.id));
        Ok(workers)
    }

    /// The schedules that some process keeps, by name: 1,000 at most.
    pub async fn schedules(&self) -> Result<Vec<ScheduleStatus>, Error> {
        let present = self.present::<ScheduleStatus>(Kind::Schedule, 0, PAGE).await?;
        let mut schedules: Vec<_> = present.into_iter().map(|(name, about)| ScheduleStatus { name, ..about }).collect();
        schedules.sort_unstable_by(|a, b| a.name.cmp(&b.name));
        Ok(schedules)
    }

    /// Batches that are remembered, the newest first: those of the last 7 days, 10,000 of them; of these 1,000 at most an answer.
    pub async fn batches(&self, offset: usize, limit: usize) -> Result<Vec<BatchListing>, Error> {
        let present = self.present::<Pushed>(Kind::Batch, offset, limit).await?;
        let listing = async |(id, Pushed { pushed_ms }): (String, Pushed)| {
            let status = self.batch_status(&id).await?;
            Ok::<_, Error>(status.map(|status| BatchListing { id, pushed_ms, status }))
        };
        Ok(try_join_all(present.into_iter().map(listing)).await?.into_iter().flatten().collect())
    }
}
