//! Builder of one push, and how a job becomes an entry of a store.

mod after_commit;
pub(crate) mod coalesce;
pub(crate) mod target;

use std::borrow::Cow;
use std::future::{Future, IntoFuture};
use std::pin::Pin;
use std::time::Duration;

pub use self::after_commit::AfterCommit;
use crate::error::Error;
use crate::format::{Body, Envelope, Extra, LazyOptions, MAX_SIZE};
pub use crate::job::Priority;
use crate::job::{Job, JobId};
use crate::limit::{LONGEST, bounded_key};
use crate::options::{self, UNIQUE_FOR, each_option};
pub use crate::options::{IntoPush, PushOptions, WithOptions};
use crate::queue::{Queue, checked};
use crate::store::{Debounce, Entry};

/// Maximum number of tags of a job, and bytes of each.
const MOST_TAGS: usize = 8;
const LONGEST_TAG: usize = 64;

/// Builder of a push: set options, then `.await` it. Nothing is stored before.
#[must_use = "a push does nothing until awaited"]
#[derive(Debug)]
pub struct Push<'q, J> {
    queue: &'q Queue,
    job: J,
    options: PushOptions,
}

/// Result of a push.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Pushed {
    /// Id of the stored job, or of the job that already holds the same unique key.
    pub id: JobId,
    /// True if the job was stored. `false` if a job with the same unique key existed.
    pub is_new: bool,
}

impl<'q, J: Job> Push<'q, J> {
    pub(crate) fn new(queue: &'q Queue, job: J, options: PushOptions) -> Self {
        Self { queue, job, options }
    }

    /// Keeps the result for that time, if nothing else is set. Returns the queue too.
    pub(crate) fn keeping_result(mut self, time: Duration) -> (&'q Queue, Self) {
        if J::KEEP_RESULT.is_none() {
            self.options.keep_result.get_or_insert(time);
        }
        (self.queue, self)
    }
}

macro_rules! set_in_options {
    ($(
        $(#[$about:meta])*
        fn $name:ident($self:ident $(, $value:ident: $type:ty)*) $body:block
    )*) => {
        impl<J: Job> Push<'_, J> {
            $($(#[$about])* pub fn $name(mut $self $(, $value: $type)*) -> Self {
                $self.options = $self.options.$name($($value),*);
                $self
            })*
        }
    };
}

each_option!(set_in_options);

impl<'q, J: Job> IntoFuture for Push<'q, J> {
    type Output = Result<Pushed, Error>;
    type IntoFuture = Pin<Box<dyn Future<Output = Self::Output> + Send + 'q>>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(async move {
            let job = self.queue.encoded(&self.job, &self.options)?;
            self.queue.push_entry(&job.queue, job.id, job.entry).await
        })
    }
}

/// A job as it is pushed.
#[derive(Debug)]
pub(crate) struct Encoded {
    pub(crate) queue: Cow<'static, str>,
    pub(crate) id: JobId,
    pub(crate) entry: Entry,
}

impl Queue {
    /// Encodes a job with its options as a store entry.
    pub(crate) fn encoded<J: Job>(&self, job: &J, options: &PushOptions) -> Result<Encoded, Error> {
        let queue = match &options.queue {
            Some(queue) => Cow::Owned(checked(queue)?.to_owned()),
            None => Cow::Borrowed(checked(J::QUEUE)?),
        };
        let unique = job.unique_key().map(bounded_key);
        let mut envelope = self.envelope(job, unique.clone(), options)?;
        let delay = options.delay_from(envelope.pushed_ms);
        let life = options.unique_life();
        // The key of a debounced job belongs to the scheduled job, not to one that waits or runs.
        if unique.is_some() && options.debounce.is_none() {
            if options.unique_until_start || J::UNIQUE_UNTIL_START {
                envelope.body.options.unique_until_start = true;
            }
            envelope.body.extra.unique_ms = (life != UNIQUE_FOR).then(|| millis_of(life));
        }
        let mut entry = Entry { bytes: Vec::new(), delay, ..Entry::default() };
        if let Some((wait, at_most)) = options.debounce {
            let key = unique.ok_or(Error::Setting("a debounced job needs a unique key"))?;
            envelope.body.unique = None;
            entry.delay = wait.min(at_most).min(LONGEST);
            entry.debounce = Some(Debounce { key, at_most: at_most.min(LONGEST) });
        } else {
            // No store's clock supports longer times.
            entry.unique = unique.map(|key| (key, life.min(LONGEST)));
        }
        entry.bytes = envelope.encode();
        Ok(Encoded { queue, id: envelope.id, entry })
    }

    /// Encodes a job with its options, without a delay.
    pub(crate) fn envelope<J: Job>(
        &self,
        job: &J,
        unique: Option<String>,
        options: &PushOptions,
    ) -> Result<Envelope, Error> {
        let payload = self.payload(job)?;
        let pushed_ms = self.store().now_ms();
        let expires_in = options.expires_from(pushed_ms);
        let delay =
            options.debounce.map_or_else(|| options.delay_from(pushed_ms), |(wait, _)| wait);
        if expires_in.is_some_and(|expires_in| expires_in <= delay && !delay.is_zero()) {
            return Err(Error::Setting("a job expires before its delay is over"));
        }
        let mut metadata = self.metadata();
        options.metadata.iter().cloned().for_each(|entry| options::set(&mut metadata, entry));
        let size = payload.len() + size_of_metadata(&metadata);
        if size > MAX_SIZE {
            return Err(Error::TooLarge { job: J::NAME, size });
        }
        let extra = Extra {
            metadata,
            attempts: options.attempts,
            timeout_ms: options.timeout.map(millis_of),
            ..Extra::default()
        };
        // Set one by one, so that a job without options allocates and compares nothing.
        let mut stored = LazyOptions::default();
        if let Some(time) = expires_in {
            stored.expires_ms = Some(pushed_ms.saturating_add(millis_of(time)));
        }
        if let Some(time) = options.retry_for.or(J::RETRY_FOR) {
            stored.retry_until_ms = Some(pushed_ms.saturating_add(millis_of(time)));
        }
        if let Some(time) = options.keep_result.or(J::KEEP_RESULT) {
            stored.keep_result_ms = Some(millis_of(time));
        }
        if let Some(group) = job.group() {
            if options.debounce.is_some() {
                return Err(Error::Setting("a debounced job cannot have a group"));
            }
            stored.group = Some(group);
            stored.begins_ms =
                (!delay.is_zero()).then(|| pushed_ms.saturating_add(millis_of(delay)));
        }
        let tags = job.tags();
        if !tags.is_empty() || !options.tags.is_empty() {
            stored.tags = checked_tags(tags.into_iter().chain(options.tags.iter().cloned()))?;
        }
        let group = job.limits().into_iter().next().map(|limit| limit.key);
        let body = Body {
            name: J::NAME.into(),
            payload,
            unique,
            extra,
            options: stored,
            ..Body::default()
        };
        let priority = options.priority.unwrap_or(J::PRIORITY);
        Ok(Envelope {
            id: JobId::new(),
            failed: 0,
            suspect: false,
            pushed_ms,
            priority,
            group,
            body,
        })
    }

    /// Encodes and encrypts a job.
    pub(crate) fn payload<J: Job>(&self, job: &J) -> Result<Vec<u8>, Error> {
        let payload =
            serde_json::to_vec(job).map_err(|source| Error::Encode { job: J::NAME, source })?;
        if payload.len() > MAX_SIZE {
            return Err(Error::TooLarge { job: J::NAME, size: payload.len() });
        }
        match self.encryption() {
            Some(encryption) => encryption
                .encrypt(J::NAME, &payload)
                .map_err(|source| Error::Encryption { job: J::NAME, source }),
            None => Ok(payload),
        }
    }
}

/// Returns the number of bytes of metadata.
pub(crate) fn size_of_metadata(metadata: &[(String, String)]) -> usize {
    metadata.iter().map(|(key, value)| key.len() + value.len()).sum()
}

/// Checks the tags of a job, and removes duplicates.
fn checked_tags(tags: impl Iterator<Item = String>) -> Result<Vec<String>, Error> {
    let mut checked = Vec::new();
    for tag in tags {
        if !(1..=LONGEST_TAG).contains(&tag.len()) {
            return Err(Error::Setting("a tag is invalid: expected 1 to 64 bytes"));
        }
        if !checked.contains(&tag) {
            checked.push(tag);
        }
    }
    if checked.len() > MOST_TAGS {
        return Err(Error::Setting("a job has too many tags: expected at most 8"));
    }
    Ok(checked)
}

/// Returns a duration in ms, the largest number if it is longer.
pub(crate) fn millis_of(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}
