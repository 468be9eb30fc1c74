//! Futures that connect and migrate are `Send`, so that they can be spawned.
#![cfg(all(feature = "auth", feature = "postgres", feature = "mysql", feature = "sqlite"))]

use scale_session::auth::{OneTimeStore, Records};
use scale_session::store::{Database, migrate};
use scale_session::{Config, SessionLayer};

fn sendable<T>(_: &(impl Future<Output = T> + Send)) {}

#[allow(dead_code, reason = "that it compiles is the test")]
fn all(pool: &sqlx::PgPool, database: &Database) {
    sendable(&SessionLayer::connect("memory:", "test", Config::default()));
    sendable(&SessionLayer::with_pool(pool, "test", Config::default()));
    sendable(&OneTimeStore::with_pool(database.clone(), "test"));
    sendable(&Records::connect("memory:", "test"));
    sendable(&migrate(pool));
}

#[tokio::test]
async fn sessions_are_connected_in_a_task_of_its_own() {
    let connect = async {
        SessionLayer::connect("sqlite::memory:", "test", Config::default()).await.map(drop)
    };
    assert!(matches!(tokio::spawn(connect).await, Ok(Ok(()))));
}
