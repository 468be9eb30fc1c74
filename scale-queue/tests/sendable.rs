//! Futures of connecting, migrating and pushing are `Send`, so they can be spawned.
#![cfg(all(feature = "postgres", feature = "mysql", feature = "sqlite"))]

use scale_queue::relay::Relay;
use scale_queue::store::{Database, Enlist, migrate};
use scale_queue::{Error, Job, Queue};

fn sendable<T>(_: &(impl Future<Output = T> + Send)) {}

#[derive(serde::Serialize, serde::Deserialize)]
struct Note;

impl Job for Note {
    const NAME: &'static str = "note";
}

#[allow(dead_code, reason = "that it compiles is the test")]
async fn all(pool: sqlx::PgPool, database: Database, queue: Queue) -> Result<(), Error> {
    sendable(&Queue::connect("memory:", "test"));
    sendable(&Queue::postgres(pool.clone(), "test"));
    sendable(&Queue::with_pool(database.clone(), "test").migrate(true).connect());
    sendable(&migrate(&pool));
    sendable(&Relay::migrate(database));
    let mut tx = pool.begin().await.map_err(|_| Error::Empty)?;
    sendable(&queue.push_in(&mut *tx, Note));
    async fn generic(queue: &Queue, connection: &mut impl Enlist) -> Result<(), Error> {
        queue.push_in(connection, Note).await.map(drop)
    }
    sendable(&generic(&queue, &mut *tx));
    Ok(())
}

#[tokio::test]
async fn a_queue_is_connected_in_a_task_of_its_own() {
    let spawned = tokio::spawn(async { Queue::connect("sqlite::memory:", "test").await.map(drop) });
    assert!(matches!(spawned.await, Ok(Ok(()))));
}
