//! Payload encryption: payloads are encrypted before they are stored, and decrypted by the worker.
//! A reader of the store cannot read them.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use serde::de::{DeserializeOwned, Error as _};

use crate::outcome::{BoxError, words_of};
use crate::queue::Queue;

/// Encrypts payloads before they are stored, and decrypts them in workers.
///
/// Only payloads are encrypted. Names of jobs and queues, [unique keys](crate::Job::unique_key),
/// keys of [limits](crate::Job::limits), errors and [metadata](Queue::propagating) stay readable.
///
/// ```
/// # use scale_queue::Queue;
/// # use scale_queue::encryption::PayloadCipher;
/// # use scale_queue::worker::BoxError;
/// use chacha20poly1305::aead::{Aead, Payload};
/// use chacha20poly1305::{KeyInit, XChaCha20Poly1305, XNonce};
///
/// struct Encrypted(XChaCha20Poly1305);
///
/// impl PayloadCipher for Encrypted {
///     fn encrypt(&self, job: &str, payload: &[u8]) -> Result<Vec<u8>, BoxError> {
///         let mut message = vec![0; 24];
///         getrandom::fill(&mut message)?;
///         let nonce = XNonce::try_from(&message[..])?;
///         // The job's name is authenticated: a payload is of no use to another job type.
///         let bound = Payload { msg: payload, aad: job.as_bytes() };
///         message.extend(self.0.encrypt(&nonce, bound).map_err(|e| e.to_string())?);
///         Ok(message)
///     }
///
///     fn decrypt(&self, job: &str, message: &[u8]) -> Result<Vec<u8>, BoxError> {
///         let (nonce, message) = message.split_at_checked(24).ok_or("too short")?;
///         let bound = Payload { msg: message, aad: job.as_bytes() };
///         let payload = self.0.decrypt(&XNonce::try_from(nonce)?, bound);
///         Ok(payload.map_err(|_| "not encrypted with this key")?)
///     }
/// }
///
/// let key = [7; 32]; // in practice: from where the database passwords are kept
/// let queue = Queue::memory().encrypted(Encrypted(XChaCha20Poly1305::new(&key.into())));
/// ```
pub trait PayloadCipher: Send + Sync + 'static {
    /// Returns the bytes to store instead of a payload. The payload is the job's JSON.
    ///
    /// # Errors
    /// If it fails, the push fails with [`Error::Encryption`](crate::Error::Encryption), and
    /// nothing is stored.
    fn encrypt(&self, job: &str, payload: &[u8]) -> Result<Vec<u8>, BoxError>;

    /// Returns the payload of an encrypted message.
    ///
    /// # Errors
    /// If it fails, the attempt has failed, as after an error of the handler. If this worker does
    /// not have the newest key yet, a later attempt on another worker can succeed.
    fn decrypt(&self, job: &str, message: &[u8]) -> Result<Vec<u8>, BoxError>;
}

#[derive(Clone)]
pub(crate) struct PayloadEncryption(Arc<dyn PayloadCipher>);

impl PayloadEncryption {
    pub(crate) fn encrypt(&self, job: &str, payload: &[u8]) -> Result<Vec<u8>, BoxError> {
        caught(|| self.0.encrypt(job, payload))
    }

    pub(crate) fn decrypt(&self, job: &str, message: &[u8]) -> Result<Vec<u8>, BoxError> {
        caught(|| self.0.decrypt(job, message))
    }
}

/// Runs the application's cipher; a panic is an error.
fn caught<T>(run: impl FnOnce() -> Result<T, BoxError>) -> Result<T, BoxError> {
    catch_unwind(AssertUnwindSafe(run)).unwrap_or_else(|panic| Err(words_of(&*panic).into()))
}

/// Parses JSON. The error of a secret text does not show values of it: errors are stored, and
/// written to logs.
pub(crate) fn parse<T: DeserializeOwned>(
    json: &[u8],
    is_secret: bool,
) -> Result<T, serde_json::Error> {
    serde_json::from_slice(json).map_err(|error| if is_secret { unshown() } else { error })
}

fn unshown() -> serde_json::Error {
    serde_json::Error::custom("it has another type; what it has is encrypted, and not shown")
}

impl std::fmt::Debug for PayloadEncryption {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("PayloadEncryption")
    }
}

impl Queue {
    /// Sets the cipher of payloads. Payloads are encrypted when they are pushed through this
    /// handle, and decrypted when a [`Worker`](crate::Worker) made with this handle takes them.
    /// Lists and the dashboard do not show them.
    pub fn encrypted(self, cipher: impl PayloadCipher) -> Self {
        self.with_encryption(PayloadEncryption(Arc::new(cipher)))
    }
}
