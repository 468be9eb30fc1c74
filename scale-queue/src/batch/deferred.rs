//! Start of a batch or a workflow by a job: a transaction of the application stores that job, and
//! each worker can run it.

use serde::{Deserialize, Serialize};

use super::definition::Definition;
#[cfg(feature = "sql")]
use super::definition::START;
use super::{end, register, start};
#[cfg(feature = "sql")]
use crate::error::Error;
#[cfg(feature = "sql")]
use crate::format::{Body, Envelope, MAX_SIZE};
#[cfg(feature = "sql")]
use crate::job::{JobId, Priority};
use crate::outcome::BoxError;
#[cfg(feature = "sql")]
use crate::push::Encoded;
#[cfg(feature = "sql")]
use crate::queue::Queue;
use crate::store::Store;
#[cfg(feature = "sql")]
use crate::store::{Enlist, Entry};
use crate::worker::Delivery;

#[derive(Serialize, Deserialize)]
struct Start {
    id: String,
    definition: Definition,
}

/// Pushes a batch or a workflow in a transaction of the application.
#[cfg(feature = "sql")]
pub(super) async fn push_in(
    queue: &Queue,
    connection: &mut impl Enlist,
    id: String,
    mut definition: Definition,
) -> Result<String, Error> {
    // A worker that serves the first job takes it.
    let to = definition.first().ok_or(Error::Empty)?.queue.clone();
    definition.metadata = queue.metadata();
    let metadata = definition.metadata.clone();
    let start = Start { id, definition };
    let payload = rmp_serde::to_vec(&start).map_err(Error::store)?;
    if payload.len() > MAX_SIZE {
        return Err(Error::TooLarge { job: START, size: payload.len() });
    }
    let mut body = Body { name: START.into(), payload, ..Body::default() };
    if let Some(encryption) = queue.encryption() {
        let encrypted = encryption.encrypt(START, &body.payload);
        body.payload = encrypted.map_err(|source| Error::Encryption { job: START, source })?;
    }
    body.extra.metadata = metadata;
    let envelope = Envelope {
        id: JobId::new(),
        failed: 0,
        suspect: false,
        pushed_ms: queue.store().now_ms(),
        priority: Priority::Normal,
        group: None,
        body,
    };
    let entry = Entry { bytes: envelope.encode(), ..Entry::default() };
    queue.enlist(connection, Encoded { queue: to.into(), id: envelope.id, entry }).await?;
    Ok(start.id)
}

/// Runs the job: pushes the batch.
pub(crate) async fn run(delivery: &Delivery) -> Result<(), BoxError> {
    let Start { id, definition } = rmp_serde::from_slice(&delivery.payload)?;
    let store: &dyn Store = &*delivery.context.store;
    let roots = start::prepare(store, id.clone(), definition, None).await?;
    register(store, &id).await;
    Ok(end::push(store, roots, &mut Vec::new()).await?)
}
