//! Arbitrary names: each has a separate key, in process and in Redis.
#![allow(clippy::unwrap_used)]

use std::future::ready;

use anyhow::Result;
use scale_cache::{Cache, Options};

type Io = std::io::Error;

/// Spaces and keys that once shared a key, or could share one.
const NAMES: [(&str, &str); 14] = [
    ("a", "b:c"),
    ("a:b", "c"),
    ("a%3Ab", "c"),
    ("a", "{x}"),
    ("a", "(x)"),
    ("a", "%7Bx%7D"),
    ("a", ""),
    ("", "a:"),
    ("", "a:b:c"),
    ("", ":a"),
    (":", "a"),
    ("{", "}"),
    ("}", "{"),
    ("%", "%"),
];

async fn each_has_its_own(near: &Cache, far: &Cache) -> Result<()> {
    let long: Vec<String> = (0..3).map(|n| format!("{}{n}", "k".repeat(600))).collect();
    let names = || NAMES.into_iter().chain(long.iter().map(|key| ("long", key.as_str())));
    for (space, key) in names() {
        near.space::<String>(space).set(key, format!("{space}|{key}")).await?;
    }
    for cache in [near, far] {
        for (space, key) in names() {
            let found = cache.space::<String>(space).get(key).await;
            assert_eq!(found.as_deref(), Some(&format!("{space}|{key}")), "{space:?} {key:?}");
        }
    }
    // `clear` affects only its own space.
    near.space::<String>("a:b").clear().await;
    assert!(near.space::<String>("a:b").get("c").await.is_none());
    assert!(near.space::<String>("a").get("b:c").await.is_some());
    // A key without a space belongs to no space.
    let plain = near
        .get_or_load("user:7", &Options::default(), |_| ready(Ok::<_, Io>("plain".to_owned())))
        .await?;
    assert_eq!((plain.as_str(), near.space::<String>("user").get(7).await), ("plain", None));
    Ok(())
}

#[tokio::test]
async fn in_process() -> Result<()> {
    let cache = Cache::memory();
    each_has_its_own(&cache, &cache).await
}

#[cfg(feature = "redis")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn in_redis() -> Result<()> {
    let server = testkit::Redis::start().await?;
    let (near, far) = (
        Cache::connect(&server.url(), "test").await?,
        Cache::connect(&server.url(), "test").await?,
    );
    each_has_its_own(&near, &far).await?;
    // An application name with braces and colons is a separate application.
    let other = Cache::connect(&server.url(), "test:cache").await?;
    assert!(other.space::<String>("a").get("b:c").await.is_none());
    Ok(())
}
