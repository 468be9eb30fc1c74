//! Costs of sign-ins and revocations on Redis. What they do is in the contract of the stores.
#![cfg(feature = "redis")]
#![allow(clippy::unwrap_used)]

mod common;

use std::time::Duration;

use anyhow::Result;
use common::{Action, action, send};
use scale_session::{Config, SessionLayer};

fn sign_in(user: &'static str, device: &'static str) -> Action {
    action(move |s| async move { Ok(s.sign_in(user, device).await.map(|()| String::new())?) })
}

fn who() -> Action {
    action(|s| async move {
        let (user, pending) = (s.user().await?, s.pending_user().await?);
        Ok(user.or(pending.map(|p| format!("{p}?"))).unwrap_or_else(|| "nobody".into()))
    })
}

async fn signed_in(layer: &SessionLayer, user: &'static str, device: &'static str) -> String {
    send(layer, None, sign_in(user, device)).await.2.unwrap()
}

/// Returns the cookie of a sign-in, after the browser has sent it once.
async fn seen(layer: &SessionLayer, user: &'static str, device: &'static str) -> String {
    let cookie = signed_in(layer, user, device).await;
    assert_eq!(is(layer, &cookie).await, user);
    cookie
}

async fn is(layer: &SessionLayer, cookie: &str) -> String {
    send(layer, Some(cookie), who()).await.1
}

async fn calls(server: &testkit::Redis) -> Result<u64> {
    let stats = server.command(&["INFO", "commandstats"]).await?;
    let count = |line: &str| line.split("calls=").nth(1)?.split(',').next()?.parse::<u64>().ok();
    Ok(stats.lines().filter(|line| !line.contains("_info:")).filter_map(count).sum())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ending_all_costs_the_same_for_one_and_for_ten_thousand() -> Result<()> {
    let server = testkit::Redis::start().await?;
    let layer = SessionLayer::connect(&server.url(), "test", Config::default()).await?;
    layer.revoke_all_of("warm").await?; // the script is known from here on
    let mut costs = Vec::new();
    for (user, sessions) in [("one", 1_usize), ("many", 10_000)] {
        for chunk in (0..sessions).collect::<Vec<_>>().chunks(100) {
            futures_util::future::join_all(chunk.iter().map(|_| seen(&layer, user, "x"))).await;
        }
        assert_eq!(layer.devices_of(user).await?.len(), sessions.min(1_000));
        let before = calls(&server).await?;
        layer.revoke_all_of(user).await?;
        costs.push(calls(&server).await? - before);
        assert!(layer.devices_of(user).await?.is_empty());
    }
    assert_eq!(costs[0], costs[1], "commands");
    Ok(())
}

#[tokio::test]
async fn a_signed_session_is_one_round_trip_and_leaves_nothing_behind() -> Result<()> {
    let server = testkit::Redis::start().await?;
    let config = Config::default()
        .idle_timeout(Duration::from_secs(3))
        .absolute_timeout(Duration::from_secs(4));
    let layer = SessionLayer::connect(&server.url(), "test", config).await?;
    let cookie = signed_in(&layer, "ann", "x").await;
    is(&layer, &cookie).await;
    // Number of commands that the server has received, including this one.
    let reads = async || -> Result<u64> {
        let stats = server.command(&["INFO", "stats"]).await?;
        let line = stats
            .lines()
            .find_map(|line| line.strip_prefix("total_reads_processed:"))
            .unwrap_or_default()
            .to_owned();
        Ok(line.trim().parse()?)
    };
    let (before, again) = (reads().await?, reads().await?);
    assert_eq!(is(&layer, &cookie).await, "ann");
    assert_eq!(reads().await? - again, again - before + 1);
    // The index and the owner's counters expire by themselves.
    testkit::eventually("all keys to expire", async || {
        (server.command(&["DBSIZE"]).await.ok()? == "0").then_some(())
    })
    .await?;
    // A session whose owner's counters are lost is not accepted.
    let cookie = signed_in(&layer, "ben", "x").await;
    let keys = server.command(&["KEYS", "*owner"]).await?;
    server.command(&["DEL", keys.trim()]).await?;
    assert_eq!(is(&layer, &cookie).await, "nobody");
    Ok(())
}
