//! Registry of live workers, schedules and batches. Each re-registers every minute; entries expire
//! after 150 s.

use std::time::Duration;

use futures_util::future::try_join_all;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::batch::BatchStatus;
use crate::error::Error;
use crate::queue::Queue;
use crate::store::Store;

/// Heartbeat interval.
pub(crate) const HEARTBEAT_INTERVAL: Duration = Duration::from_mins(1);
/// Shortest heartbeat interval, used when something has changed.
pub(crate) const MIN_HEARTBEAT_INTERVAL: Duration = Duration::from_secs(10);
/// Time for which a registration is kept.
const REGISTRATION_TTL: Duration = Duration::from_secs(150);
/// Maximum number of entries in one answer.
const PAGE_SIZE: usize = 1_000;

/// Kinds of entries.
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
            Self::Worker | Self::Schedule => REGISTRATION_TTL,
            Self::Batch => crate::batch::HELD,
        }
    }
}

/// A live worker.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct WorkerStatus {
    /// Id of the worker: its [name](crate::Worker::name) and a random suffix drawn at its start.
    #[serde(default)]
    pub id: String,
    /// Queues that the worker serves.
    pub queues: Vec<String>,
    /// Maximum number of jobs that the worker runs at a time.
    pub concurrency: usize,
    /// Number of jobs that were running at the last heartbeat, up to a minute ago.
    pub running: usize,
    /// Time of the start: ms since 1970.
    pub started_ms: u64,
    /// Process id on the worker's machine.
    pub process: u32,
    /// True if the worker was [quiet](crate::Worker::quiet) at the last heartbeat.
    #[serde(default)]
    pub quiet: bool,
}

/// A schedule that at least one process runs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct ScheduleStatus {
    /// Name of the schedule.
    #[serde(default)]
    pub name: String,
    /// Rule of the schedule, as readable text.
    pub rule: String,
    /// Name of the job that the schedule pushes.
    pub job: String,
    /// Queue to which it is pushed.
    pub queue: String,
    /// Time of the next run: ms since 1970. For a schedule that fires often, it may be in the past
    /// already.
    pub next_ms: u64,
    /// True if the schedule is [paused](Queue::pause_schedule).
    #[serde(default)]
    pub paused: bool,
}

/// A batch that is not forgotten yet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct BatchListing {
    /// Id or [name](crate::Batch::named) of the batch.
    pub id: String,
    /// Time of the push: ms since 1970.
    pub pushed_ms: u64,
    /// Progress of the batch.
    #[serde(flatten)]
    pub status: BatchStatus,
}

/// Registered details of a batch.
#[derive(Serialize, Deserialize)]
pub(crate) struct Pushed {
    pub(crate) pushed_ms: u64,
}

/// Registers an entry. A failure is only logged, because nothing depends on the registry.
pub(crate) async fn register(
    store: &dyn Store,
    kind: Kind,
    name: &str,
    about: &(impl Serialize + Sync),
) {
    let Ok(about) = serde_json::to_vec(about) else { return };
    if let Err(error) = store.register(kind.name(), name, &about, kind.life()).await {
        tracing::debug!(
            %error, kind = kind.name(), name,
            "could not register; listings may lack the entry",
        );
    }
}

pub(crate) async fn deregister(store: &dyn Store, kind: Kind, name: &str) {
    if let Err(error) = store.deregister(kind.name(), name).await {
        tracing::debug!(
            %error, kind = kind.name(), name,
            "could not deregister; it stays in listings until its entry expires",
        );
    }
}

/// Returns the key of the note that says whether a schedule is paused.
#[cfg(feature = "schedule")]
pub(crate) fn note_of_pause(name: &str) -> String {
    crate::limit::bounded_key(format!("schedule_paused:{name}"))
}

#[cfg(feature = "schedule")]
pub(crate) async fn is_paused(queue: &Queue, name: &str) -> Result<bool, Error> {
    let note = queue.store().read_note(&note_of_pause(name)).await?;
    Ok(note.is_some_and(|note| note == b"1"))
}

impl Queue {
    async fn present<T: DeserializeOwned>(
        &self,
        kind: Kind,
        offset: usize,
        limit: usize,
    ) -> Result<Vec<(String, T)>, Error> {
        let present = self
            .store()
            .registered(kind.name(), offset.min(i32::MAX as usize), limit.min(PAGE_SIZE))
            .await?;
        // Entries of another version may not be readable.
        Ok(present
            .into_iter()
            .filter_map(|(name, about)| Some((name, serde_json::from_slice(&about).ok()?)))
            .collect())
    }

    /// Returns the live workers, by name, at most 1,000. A worker that was killed is listed for up
    /// to another 150 s.
    pub async fn workers(&self) -> Result<Vec<WorkerStatus>, Error> {
        let present = self.present::<WorkerStatus>(Kind::Worker, 0, PAGE_SIZE).await?;
        let mut workers: Vec<_> =
            present.into_iter().map(|(id, about)| WorkerStatus { id, ..about }).collect();
        workers.sort_unstable_by(|a, b| a.id.cmp(&b.id));
        Ok(workers)
    }

    /// Returns the schedules that at least one process runs, by name, at most 1,000.
    pub async fn schedules(&self) -> Result<Vec<ScheduleStatus>, Error> {
        let present = self.present::<ScheduleStatus>(Kind::Schedule, 0, PAGE_SIZE).await?;
        let mut schedules: Vec<_> =
            present.into_iter().map(|(name, about)| ScheduleStatus { name, ..about }).collect();
        schedules.sort_unstable_by(|a, b| a.name.cmp(&b.name));
        #[cfg(feature = "schedule")]
        for schedule in &mut schedules {
            schedule.paused = is_paused(self, &schedule.name).await?;
        }
        Ok(schedules)
    }

    /// Returns the batches of the last 7 days, the newest first. At most 10,000 are remembered, and
    /// one answer has at most 1,000.
    pub async fn batches(&self, offset: usize, limit: usize) -> Result<Vec<BatchListing>, Error> {
        let present = self.present::<Pushed>(Kind::Batch, offset, limit).await?;
        let listing = async |(id, Pushed { pushed_ms }): (String, Pushed)| {
            let status = self.batch_status(&id).await?;
            Ok::<_, Error>(status.map(|status| BatchListing { id, pushed_ms, status }))
        };
        Ok(try_join_all(present.into_iter().map(listing)).await?.into_iter().flatten().collect())
    }
}
