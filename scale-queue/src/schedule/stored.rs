//! Schedules at run time: stored ones, pauses, and runs on request.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::rule::{Rule, StoredRule};
use super::{Make, Task};
use crate::chain::Follower;
use crate::error::Error;
use crate::format::{Link, bytes};
#[cfg(doc)]
use crate::job::Job;
use crate::job::JobId;
use crate::limit::{LONGEST, bounded_key};
use crate::options::IntoPush;
use crate::queue::{Queue, checked};
use crate::registry::{ScheduleStatus, note_of_pause};

/// Kind of registry entries of stored schedules.
const KIND: &str = "stored_schedule";
/// Maximum number of stored schedules.
const MOST: usize = 1_000;
/// Maximum bytes of a schedule's name.
const LONGEST_NAME: usize = 200;
/// Time for which a request to run a schedule is kept.
const REQUESTED: Duration = Duration::from_hours(1);

/// A stored schedule.
#[derive(Serialize, Deserialize)]
struct Stored {
    rule: StoredRule,
    /// Encoded [`Link`] of the job.
    #[serde(with = "bytes")]
    link: Vec<u8>,
    /// Drawn when the schedule was created: a schedule that is removed and created again is another
    /// one, whose runs are not those of the first.
    created: JobId,
    changed_ms: u64,
}

impl Stored {
    fn link(&self) -> Option<Link> {
        rmp_serde::from_slice(&self.link).ok()
    }

    fn task(&self, name: &str) -> Option<Task> {
        let (rule, link) = (Rule::of(&self.rule).ok()?, self.link()?);
        let about = ScheduleStatus {
            name: String::new(),
            rule: rule.to_string(),
            job: link.name.clone(),
            queue: link.queue.clone(),
            next_ms: 0,
            paused: false,
        };
        let make: Make = Arc::new(move |queue| {
            Ok(link.clone().entry(Follower {
                id: JobId::new(),
                pushed_ms: queue.store().now_ms(),
                then: Vec::new(),
                metadata: queue.metadata(),
                once: None,
                place: None,
                node: None,
            }))
        });
        let key = format!("schedule:{name}/{}", self.created);
        let begins = Timestamp::from_millisecond(self.changed_ms as i64).ok()?;
        Some(Task { name: name.to_owned(), key, rule, begins, make, about })
    }
}

/// Returns the stored schedules, each with its version.
pub(super) async fn load(queue: &Queue) -> Result<Vec<(String, Task)>, Error> {
    let entries = queue.store().registered(KIND, 0, MOST).await?;
    let tasks = entries.into_iter().filter_map(|(name, about)| {
        let Ok(stored) = rmp_serde::from_slice::<Stored>(&about) else {
            tracing::warn!(schedule = name, "a stored schedule cannot be read; it does not run");
            return None;
        };
        let version = format!("{}/{}", stored.created, stored.changed_ms);
        Some((version, stored.task(&name)?))
    });
    Ok(tasks.collect())
}

async fn find(queue: &Queue, name: &str) -> Result<Option<Stored>, Error> {
    let entries = queue.store().registered(KIND, 0, MOST).await?;
    let entry = entries.into_iter().find(|(known, _)| known == name);
    entry.map(|(_, about)| rmp_serde::from_slice(&about).map_err(Error::store)).transpose()
}

fn note_of_request(name: &str) -> String {
    bounded_key(format!("schedule_run:{name}"))
}

/// Returns the id of a request to run a schedule.
pub(super) async fn request(queue: &Queue, name: &str) -> Result<Option<String>, Error> {
    let note = queue.store().read_note(&note_of_request(name)).await?;
    Ok(note.and_then(|note| String::from_utf8(note).ok()).filter(|id| !id.is_empty()))
}

/// Removes a request whose job is pushed, unless there is another one by now.
pub(super) async fn fulfil(queue: &Queue, name: &str, id: &str) -> Result<(), Error> {
    if request(queue, name).await?.as_deref() == Some(id) {
        queue.store().put_note(&note_of_request(name), b"", Duration::from_secs(1)).await?;
    }
    Ok(())
}

impl Queue {
    /// Stores a schedule, or changes it. Every running [`Scheduler`](crate::Scheduler) follows
    /// within 7 s. A stored schedule takes the place of one in code with the same name. At most
    /// 1,000 are stored.
    ///
    /// The job is encoded now, so each run has the same content. Its
    /// [`unique_key`](Job::unique_key) is ignored.
    ///
    /// ```
    /// # use scale_queue::{Job, Queue, schedule::Rule};
    /// # use serde::{Deserialize, Serialize};
    /// # #[derive(Serialize, Deserialize)] struct Report { team: u32 }
    /// # impl Job for Report { const NAME: &'static str = "report"; }
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let queue = Queue::memory();
    /// let rule = Rule::cron("0 9 * * MON", "Europe/Zurich")?;
    /// queue.put_schedule("report-of-team-7", &rule, Report { team: 7 }).await?;
    /// queue.pause_schedule("report-of-team-7", true).await?;
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// [`Error::Setting`] for more schedules, a name that is empty, longer than 200 bytes or has
    /// control characters, and a debounced job; the errors of [`push`](Self::push).
    pub async fn put_schedule<P: IntoPush>(
        &self,
        name: &str,
        rule: &Rule,
        job: P,
    ) -> Result<(), Error> {
        let (job, options) = job.into_push();
        if options.debounce.is_some() {
            return Err(Error::Setting("the job of a schedule cannot be debounced"));
        }
        if !(1..=LONGEST_NAME).contains(&name.len()) || name.contains(char::is_control) {
            return Err(Error::Setting(
                "the name of a schedule: expected 1 to 200 bytes without control characters",
            ));
        }
        let link = Link::of(self, &job, &options)?;
        checked(&link.queue)?;
        let known = find(self, name).await?;
        if known.is_none() && self.store().registered(KIND, MOST - 1, 1).await?.len() == 1 {
            return Err(Error::Setting("more than 1,000 stored schedules"));
        }
        let before_ms = known.as_ref().map_or(0, |known| known.changed_ms);
        let stored = Stored {
            rule: rule.stored(),
            link: rmp_serde::to_vec(&link).map_err(Error::store)?,
            created: known.map_or_else(JobId::new, |known| known.created),
            // Each change is another version, also within a millisecond.
            changed_ms: self.store().now_ms().max(before_ms + 1),
        };
        let about = rmp_serde::to_vec(&stored).map_err(Error::store)?;
        self.store().register(KIND, name, &about, LONGEST).await
    }

    /// Removes a stored schedule, and ends its pause. Returns `false` if there is none of this
    /// name; one in code stays.
    ///
    /// # Errors
    /// [`Error::Store`].
    pub async fn remove_schedule(&self, name: &str) -> Result<bool, Error> {
        let is_known = find(self, name).await?.is_some();
        self.store().deregister(KIND, name).await?;
        if is_known {
            self.pause_schedule(name, false).await?;
        }
        Ok(is_known)
    }

    /// Pauses a schedule, stored or in code, or lets it run again. Runs during the pause are left
    /// out.
    ///
    /// # Errors
    /// [`Error::Store`].
    pub async fn pause_schedule(&self, name: &str, paused: bool) -> Result<(), Error> {
        let value = if paused { b"1" } else { b"0" };
        self.store().put_note(&note_of_pause(name), value, LONGEST).await
    }

    /// Pushes the job of a schedule now, also of a paused one. The job of a schedule in code is
    /// pushed by a running scheduler that has it, within 7 s, once for all requests in that time;
    /// if none has it, the request is forgotten after an hour.
    ///
    /// # Errors
    /// [`Error::Store`].
    pub async fn run_schedule(&self, name: &str) -> Result<(), Error> {
        let id = JobId::new().to_string();
        let Some(stored) = find(self, name).await? else {
            return self.store().put_note(&note_of_request(name), id.as_bytes(), REQUESTED).await;
        };
        let Some(task) = stored.task(name) else {
            return Err(Error::Setting("the stored schedule cannot be read by this version"));
        };
        let (queue, entry) = (task.make)(self)?;
        self.target().push(&queue, &[entry]).await.map(drop)
    }
}
