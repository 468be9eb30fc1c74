//! Encrypted payloads.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use parking_lot::Mutex;
use scale_queue::encryption::PayloadCipher;
use scale_queue::status::State;
use scale_queue::worker::BoxError;
use scale_queue::{Job, Queue, Retry, Worker};
use serde::{Deserialize, Serialize};
use testkit::eventually;

use crate::common::running;

/// Not a cipher, but enough to show which payloads have passed it.
pub(crate) struct Turned(u8);

impl PayloadCipher for Turned {
    fn encrypt(&self, job: &str, payload: &[u8]) -> Result<Vec<u8>, BoxError> {
        if payload.len() > 1_000 {
            return Err("too much for this cipher".into());
        }
        Ok([&[self.0], job.as_bytes(), payload].concat().iter().map(|byte| byte ^ 0xA5).collect())
    }

    fn decrypt(&self, job: &str, encrypted: &[u8]) -> Result<Vec<u8>, BoxError> {
        let bytes: Vec<u8> = encrypted.iter().map(|byte| byte ^ 0xA5).collect();
        let payload =
            bytes.strip_prefix(&[self.0]).and_then(|rest| rest.strip_prefix(job.as_bytes()));
        payload.map(<[u8]>::to_vec).ok_or_else(|| "not encrypted with this key".into())
    }
}

#[derive(Serialize, Deserialize)]
pub(crate) struct Secret {
    text: String,
}

impl Job for Secret {
    const NAME: &'static str = "secret";
    const QUEUE: &'static str = "secrets";
    const RETRY: Retry =
        Retry::exponential(3).first(Duration::from_millis(1)).longest(Duration::from_millis(1));
}

pub(crate) async fn an_encrypted_payload_is_read_by_its_workers_alone(queue: &Queue) -> Result<()> {
    let secret = || Secret { text: "4929-8765".into() };
    let (encrypted, other) =
        (queue.clone().encrypted(Turned(1)), queue.clone().encrypted(Turned(2)));
    encrypted.push(secret()).await?;
    encrypted.chain().then(secret()).then(secret()).push().await?;
    encrypted.push_many([secret()]).await?;
    let much = encrypted.push(Secret { text: "x".repeat(2_000) }).await.unwrap_err();
    assert_eq!(much.to_string(), "job `secret` cannot be encrypted: too much for this cipher");
    for (handle, shown) in [(&encrypted, true), (queue, false)] {
        let listed = handle.jobs("secrets", State::Waiting, 0, 10).await?;
        assert_eq!(listed.len(), 3);
        assert!(
            listed
                .iter()
                .all(|job| !job.payload.contains("4929") && (job.payload == "encrypted") == shown),
            "{listed:?}"
        );
    }
    let read = Arc::new(Mutex::new(Vec::new()));
    let worker = |queue: &Queue| {
        let read = Arc::clone(&read);
        Worker::new(queue).queues(["secrets"]).handle(move |job: Secret| {
            read.lock().push(job.text);
            async { Ok::<(), std::io::Error>(()) }
        })
    };
    // With another key, the job fails like any other; with the right key it continues.
    let workers = running([worker(&other)]);
    let dead = eventually("the dead", async || {
        queue.dead("secrets", 0, 10).await.ok().filter(|dead| dead.len() == 3)
    })
    .await?;
    assert!(
        dead.iter().all(|dead| dead.reason == "not encrypted with this key" && dead.failed == 3),
        "{dead:?}"
    );
    workers.stop().await?;
    assert!(read.lock().is_empty());
    assert_eq!(queue.revive_all("secrets").await?, 3);
    let workers = running([worker(&encrypted)]);
    eventually("all to be read, the chain to its end", async || {
        (read.lock().len() == 4).then_some(())
    })
    .await?;
    assert!(read.lock().iter().all(|text| text == "4929-8765"));
    workers.stop().await
}
