//! Payloads that whoever reads the store must not read: sealed on their way in, opened by the worker.

use std::sync::Arc;

use crate::outcome::BoxError;
use crate::queue::Queue;

/// What payloads pass on their way into a store and out of it: encryption, as a rule.
///
/// Payloads alone are sealed. Names of jobs and queues, [unique keys](crate::Job::unique_key), keys of [limits](crate::Job::limits), errors
/// and what is [carried](Queue::carrying) stay readable.
///
/// ```
/// # use scale_queue::{Queue, Seal, worker::BoxError};
/// use chacha20poly1305::aead::{Aead, Payload};
/// use chacha20poly1305::{KeyInit, XChaCha20Poly1305, XNonce};
///
/// struct Encrypted(XChaCha20Poly1305);
///
/// impl Seal for Encrypted {
///     fn seal(&self, job: &str, payload: &[u8]) -> Result<Vec<u8>, BoxError> {
///         let mut sealed = vec![0; 24];
///         getrandom::fill(&mut sealed)?;
///         let nonce = XNonce::try_from(&sealed[..])?;
///         // Bound to the job's name: what one kind of job was given is of no use to another.
///         let message = Payload { msg: payload, aad: job.as_bytes() };
///         sealed.extend(self.0.encrypt(&nonce, message).map_err(|e| e.to_string())?);
///         Ok(sealed)
///     }
///
///     fn open(&self, job: &str, sealed: &[u8]) -> Result<Vec<u8>, BoxError> {
///         let (nonce, sealed) = sealed.split_at_checked(24).ok_or("too short")?;
///         let message = Payload { msg: sealed, aad: job.as_bytes() };
///         Ok(self.0.decrypt(&XNonce::try_from(nonce)?, message).map_err(|_| "not sealed with this key")?)
///     }
/// }
///
/// let key = [7; 32]; // from where passwords to databases are
/// let queue = Queue::memory().sealed(Encrypted(XChaCha20Poly1305::new(&key.into())));
/// ```
pub trait Seal: Send + Sync + 'static {
    /// What is stored in place of a payload, the job's JSON.
    ///
    /// # Errors
    /// The push fails with [`Error::Seal`](crate::Error::Seal), and nothing is stored.
    fn seal(&self, job: &str, payload: &[u8]) -> Result<Vec<u8>, BoxError>;

    /// The payload again.
    ///
    /// # Errors
    /// The attempt has failed: a worker that does not have the newest key yet leaves the job to one that has.
    fn open(&self, job: &str, sealed: &[u8]) -> Result<Vec<u8>, BoxError>;
}

#[derive(Clone)]
pub(crate) struct Sealer(pub(crate) Arc<dyn Seal>);

impl std::fmt::Debug for Sealer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Sealer")
    }
}

impl Queue {
    /// Payloads pass this seal: when they are pushed through this handle, and when a [`Worker`](crate::Worker) made with it takes them.
    /// Lists and the dashboard do not show them.
    pub fn sealed(self, seal: impl Seal) -> Self {
        self.with_sealer(Sealer(Arc::new(seal)))
    }
}
