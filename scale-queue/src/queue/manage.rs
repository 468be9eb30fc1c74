//! Management of queues: counts, lists, pausing, cancelling, draining, dead jobs.

use std::collections::HashSet;
use std::time::Duration;

use futures_util::future::try_join_all;

use crate::batch::{self, Member};
use crate::error::Error;
use crate::format::{Envelope, MAX_SIZE, tag_of, turn_of};
use crate::job::JobId;
use crate::options::UNIQUE_FOR;
use crate::queue::listing::{Dead, Listing};
use crate::queue::{Queue, checked};
use crate::store::{
    AfterDeath, Cancellation, Destination, End, Resolution, Sample, Settlement, State, Stats,
    WorkerId,
};

/// Maximum number of dead jobs in one answer.
const PAGE: usize = 1_000;
/// Number of dead jobs taken out concurrently.
const AT_ONCE: usize = 100;
/// Lease of the jobs that a drain removes, up to 1,000 at a time; after it expires they return to
/// the queue.
const DRAIN_LEASE: Duration = Duration::from_secs(30);

impl Queue {
    /// Returns the counts and the lag of a queue.
    pub async fn stats(&self, queue: &str) -> Result<Stats, Error> {
        self.store().stats(checked(queue)?).await
    }

    /// Returns the names of all queues that ever held a job.
    pub async fn queues(&self) -> Result<Vec<String>, Error> {
        self.store().queues().await
    }

    /// Pauses a queue for all workers. Running jobs continue; pushes are accepted.
    pub async fn pause(&self, queue: &str) -> Result<(), Error> {
        self.store().pause(checked(queue)?, true).await
    }

    /// Resumes a queue after [`pause`](Self::pause).
    pub async fn resume(&self, queue: &str) -> Result<(), Error> {
        self.store().pause(checked(queue)?, false).await
    }

    /// Returns a queue's counts of the last day by minute, or of the last 90 days by hour, the
    /// oldest first. Workers record a sample each minute; there is a gap where no worker ran.
    pub async fn history(&self, queue: &str, resolution: Resolution) -> Result<Vec<Sample>, Error> {
        let since = self.store().now_ms().saturating_sub(resolution.step_ms() * resolution.most());
        self.store().history_of(checked(queue)?, resolution, since).await
    }

    /// Returns dead jobs, the newest first, at most 1,000. If jobs are large, an answer may have
    /// fewer than `limit`; it is empty only if there are no more.
    pub async fn dead(&self, queue: &str, offset: usize, limit: usize) -> Result<Vec<Dead>, Error> {
        let queue = checked(queue)?;
        // More than any store keeps, and within the number type of every store.
        let offset = offset.min(i32::MAX as usize);
        let corpses = if limit == 0 {
            Vec::new()
        } else {
            self.store().dead(queue, offset, limit.min(PAGE)).await?
        };
        Ok(corpses.into_iter().map(|dead_job| Dead::new(self, dead_job)).collect())
    }

    /// Moves a dead job back to the waiting ones, with its attempts reset and its unique key held
    /// again. Its [expiry](crate::Push::expires_after) and its time for
    /// [retries](crate::Job::RETRY_FOR) no longer apply. Returns `false` if the job was not there
    /// any more, or if another job holds its unique key; then it stays dead.
    pub async fn revive(&self, queue: &str, dead: &Dead) -> Result<bool, Error> {
        self.take_dead(queue, dead, Fate::Again).await
    }

    /// Moves a dead job back to the waiting ones with another content, which must be the JSON of
    /// its type; the type itself is checked when the job runs. Otherwise like
    /// [`revive`](Self::revive): the job keeps its id, its unique key and its limits, even if those
    /// of the new content differ.
    ///
    /// # Errors
    /// [`Error::Payload`] if the content is no JSON, or larger than 1 MiB; [`Error::Payload`] also
    /// if the job cannot be decoded, or the payload not be encrypted; [`Error::Store`].
    pub async fn revive_with(
        &self,
        queue: &str,
        dead: &Dead,
        payload: &str,
    ) -> Result<bool, Error> {
        let wrong = |reason: String| Error::Payload(reason);
        serde_json::from_str::<serde::de::IgnoredAny>(payload)
            .map_err(|error| wrong(format!("the payload is no JSON: {error}")))?;
        if payload.len() > MAX_SIZE {
            let size = payload.len();
            return Err(wrong(format!("a payload of {size} bytes: at most 1 MiB is allowed")));
        }
        let mut envelope = Envelope::decode(&dead.dead_job.bytes)
            .map_err(|error| wrong(format!("the job cannot be edited: {error}")))?;
        if envelope.body.name == batch::START {
            return Err(wrong("the job that starts a batch cannot be edited".to_owned()));
        }
        envelope.body.payload = match self.encryption() {
            None => payload.as_bytes().to_vec(),
            Some(encryption) => encryption
                .encrypt(&envelope.body.name, payload.as_bytes())
                .map_err(|error| wrong(format!("the payload cannot be encrypted: {error}")))?,
        };
        envelope.begin_again();
        let then = AfterDeath::RetryAs(envelope.encode(), unique_of(&dead.dead_job.bytes));
        self.store()
            .take_dead(checked(queue)?, tag_of(&dead.dead_job.bytes), dead.died_ms, &then)
            .await
    }

    /// Removes a dead job permanently. Returns `false` if it was not there any more.
    pub async fn forget(&self, queue: &str, dead: &Dead) -> Result<bool, Error> {
        self.take_dead(queue, dead, Fate::Gone).await
    }

    /// Revives all jobs that are dead at the time of the call, 100 at a time, and returns their
    /// number. Jobs whose unique key is held by another job stay dead. If the call fails or is
    /// dropped on the way, the rest stay dead: call it again.
    pub async fn revive_all(&self, queue: &str) -> Result<usize, Error> {
        self.take_all_dead(queue, Fate::Again).await
    }

    /// Removes all jobs permanently that are dead at the time of the call; otherwise like
    /// [`revive_all`](Self::revive_all).
    pub async fn forget_all(&self, queue: &str) -> Result<usize, Error> {
        self.take_all_dead(queue, Fate::Gone).await
    }

    /// Cancels a job that is not dead. A job that has not begun will not begin; if the job is
    /// running, its handler's future is dropped. The job becomes dead with the reason `cancelled`,
    /// and can be revived. Returns `false` if the queue does not hold the job.
    ///
    /// Redis cannot search a list cheaply, so on Redis the answer is always `true`, and a waiting
    /// job is ended without a run when its turn comes, if that is within 30 days. Until then it
    /// holds its [unique key](crate::Job::unique_key): a push of the same key returns its id.
    pub async fn cancel(&self, queue: &str, id: JobId) -> Result<bool, Error> {
        match self.store().cancel(checked(queue)?, id.bytes()).await? {
            Cancellation::Unknown => Ok(false),
            Cancellation::Asked => Ok(true),
            Cancellation::Cancelled(bytes) => {
                let envelope = Envelope::decode(&bytes).ok();
                if let Some(member) = envelope.as_ref().and_then(Member::of) {
                    batch::count(&**self.store(), &member, End::Dead).await?;
                }
                Ok(true)
            }
        }
    }

    /// Returns jobs of one state, at most 1,000. If jobs are large, an answer may have fewer than
    /// `limit`; it is empty only if there are no more.
    pub async fn jobs(
        &self,
        queue: &str,
        state: State,
        offset: usize,
        limit: usize,
    ) -> Result<Vec<Listing>, Error> {
        let offset = offset.min(i32::MAX as usize);
        let listed = self.store().list(checked(queue)?, state, offset, limit.min(PAGE)).await?;
        Ok(listed.into_iter().map(|listed| Listing::new(self, listed)).collect())
    }

    /// Removes all waiting, blocked and scheduled jobs permanently, and returns their number. They
    /// do not run, and are not listed as dead. Running jobs continue. Removed jobs of a batch count
    /// as dead.
    ///
    /// Each portion of up to 1,000 jobs is first leased, then counted, then removed with its unique
    /// keys in one step. If this process dies on the way, the jobs that were not removed wait
    /// again.
    pub async fn drain(&self, queue: &str) -> Result<usize, Error> {
        let (queue, mut count) = (checked(queue)?, 0);
        let worker: WorkerId = format!("drain-{}", uuid::Uuid::now_v7().simple()).into();
        // Jobs pushed because the drain completed a batch are kept.
        let (mut followers, mut back) = (HashSet::new(), Vec::new());
        loop {
            let jobs = self.store().take_all(queue, &worker, DRAIN_LEASE).await?;
            let (stays, jobs): (Vec<_>, Vec<_>) =
                jobs.into_iter().partition(|job| followers.contains(tag_of(job)));
            back.extend(stays.iter().map(|job| Settlement {
                tag: tag_of(job).to_vec(),
                unique: None,
                // It may have no turn yet: then it is in line again.
                group: turn_of(job),
                to: Destination::Waiting,
            }));
            if jobs.is_empty() {
                for settled in
                    self.store().settle(queue, &worker, &back.iter().collect::<Vec<_>>()).await
                {
                    settled?;
                }
                self.store().leave(queue, &worker).await?;
                return Ok(count);
            }
            let mut settlements = Vec::with_capacity(jobs.len());
            for bytes in &jobs {
                let envelope = Envelope::decode(bytes).ok();
                let member = envelope.as_ref().and_then(Member::of);
                let group =
                    envelope.as_ref().and_then(|envelope| envelope.body.options.group.clone());
                let unique = envelope.and_then(|envelope| envelope.body.unique);
                if let Some(member) = member {
                    let pushed = batch::count(&**self.store(), &member, End::Dead).await?;
                    followers.extend(pushed.into_iter().map(|id| id.bytes().to_vec()));
                }
                settlements.push(Settlement {
                    tag: tag_of(bytes).to_vec(),
                    unique,
                    group,
                    to: Destination::Removed,
                });
            }
            let settlements: Vec<_> = settlements.iter().collect();
            for settled in self.store().settle(queue, &worker, &settlements).await {
                count += usize::from(settled?);
            }
        }
    }

    async fn take_dead(&self, queue: &str, dead: &Dead, fate: Fate) -> Result<bool, Error> {
        let revival = match fate {
            Fate::Gone => AfterDeath::Delete,
            Fate::Again => {
                let unique = unique_of(&dead.dead_job.bytes);
                match Envelope::decode(&dead.dead_job.bytes) {
                    // The job's own times and counts would end it at once.
                    Ok(mut envelope) if !envelope.body.options.is_empty() => {
                        envelope.begin_again();
                        AfterDeath::RetryAs(envelope.encode(), unique)
                    }
                    _ => AfterDeath::Retry(unique),
                }
            }
        };
        self.store()
            .take_dead(checked(queue)?, tag_of(&dead.dead_job.bytes), dead.died_ms, &revival)
            .await
    }

    async fn take_all_dead(&self, queue: &str, fate: Fate) -> Result<usize, Error> {
        let (mut count, mut skipped, mut newest) = (0, 0, None);
        loop {
            let page = self.dead(queue, skipped, AT_ONCE).await?;
            let Some(first) = page.first() else { return Ok(count) };
            // Jobs that died since the call are skipped; otherwise jobs that die at once would keep
            // this loop running.
            let newest = *newest.get_or_insert(first.died_ms);
            let (due, late): (Vec<_>, Vec<_>) =
                page.iter().partition(|dead| dead.died_ms <= newest);
            skipped += late.len();
            let done =
                try_join_all(due.into_iter().map(|dead| self.take_dead(queue, dead, fate))).await?;
            count += done.iter().filter(|done| **done).count();
            // Jobs that stay dead are skipped on the next page.
            skipped += done.iter().filter(|done| !**done).count();
        }
    }
}

/// Treatment of a dead job that is taken out.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Fate {
    Again,
    Gone,
}

/// Returns the unique key that a revived job holds again, and for how long.
fn unique_of(bytes: &[u8]) -> Option<(String, Duration)> {
    let body = Envelope::decode(bytes).ok()?.body;
    Some((body.unique?, body.extra.unique_ms.map_or(UNIQUE_FOR, Duration::from_millis)))
}
