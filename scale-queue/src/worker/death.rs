//! Deaths of jobs, as the application hears of them.

use std::fmt;
use std::sync::Arc;

use crate::encryption::{PayloadEncryption, parse};
use crate::error::Error;
use crate::format::Envelope;
use crate::job::{Job, JobId};
use crate::outcome::BoxError;
use crate::push::Encoded;
use crate::queue::Queue;

/// A job that is about to be dead: see [`Worker::on_death`](crate::Worker::on_death).
#[derive(Clone)]
#[non_exhaustive]
pub struct Died {
    /// Id of the job.
    pub id: JobId,
    /// Name of the job.
    pub name: String,
    /// Queue of the job.
    pub queue: Arc<str>,
    /// Attempts that have failed.
    pub failed: u16,
    /// Reason why the job is dead.
    pub reason: String,
    /// Metadata of the job.
    pub metadata: Vec<(String, String)>,
    payload: Vec<u8>,
    encryption: Option<PayloadEncryption>,
}

impl fmt::Debug for Died {
    /// The payload is not shown: deaths are logged.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { id, name, queue, failed, reason, .. } = self;
        f.debug_struct("Died")
            .field("id", id)
            .field("name", name)
            .field("queue", queue)
            .field("failed", failed)
            .field("reason", reason)
            .finish_non_exhaustive()
    }
}

impl Died {
    pub(super) fn of(queue: &Queue, name: &Arc<str>, dead: &Envelope, reason: &str) -> Self {
        Self {
            id: dead.id,
            name: dead.body.name.clone(),
            queue: Arc::clone(name),
            failed: dead.failed,
            reason: reason.to_owned(),
            metadata: dead.body.extra.metadata.clone(),
            payload: dead.body.payload.clone(),
            encryption: queue.encryption().cloned(),
        }
    }

    /// Returns the job, if it is one of this type.
    ///
    /// # Errors
    /// If its payload cannot be decrypted, or does not fit the type.
    pub fn job<J: Job>(&self) -> Result<Option<J>, BoxError> {
        if self.name != J::NAME {
            return Ok(None);
        }
        let decrypted;
        let payload = match &self.encryption {
            Some(encryption) => {
                decrypted = encryption.decrypt(&self.name, &self.payload)?;
                &decrypted
            }
            None => &self.payload,
        };
        Ok(Some(parse(payload, self.encryption.is_some())?))
    }
}

/// Function that returns the job to be pushed at a death.
#[derive(Clone)]
pub(super) struct OnDeath(pub(super) Arc<Follow>);

type Follow = dyn Fn(&Queue, &Died) -> Result<Option<Encoded>, Error> + Send + Sync;

impl fmt::Debug for OnDeath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("OnDeath")
    }
}
