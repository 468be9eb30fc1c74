//! Sessions that come back after a store has lost data: measured, so that the tables in the docs
//! are correct.
#![cfg(all(feature = "redis", feature = "auth"))]
#![allow(clippy::unwrap_used)]

mod common;

use std::time::Duration;

use anyhow::Result;
use common::{action, send};
use scale_session::auth::token::Keys;
use scale_session::auth::{OneTimeStore, Tokens};
use scale_session::{Config, SessionLayer};
use testkit::Redis;

const MANY: usize = 200;

fn sign_in(user: String) -> common::Action {
    action(move |s| {
        let user = user.clone();
        async move { Ok(s.sign_in(&user, "browser").await.map(|()| String::new())?) }
    })
}

fn who() -> common::Action {
    action(|s| async move { Ok(s.user().await?.unwrap_or_else(|| "nobody".into())) })
}

/// Creates sessions, half of which are revoked, and used tokens. Returns the cookies of the revoked
/// sessions, the cookies of the others, and the tokens.
async fn fill(
    layer: &SessionLayer,
    tokens: &Tokens,
) -> Result<(Vec<String>, Vec<String>, Vec<String>)> {
    let (mut revoked, mut live, mut used) = (Vec::new(), Vec::new(), Vec::new());
    for n in 0..MANY {
        let cookie = send(layer, None, sign_in(format!("user{n}"))).await.2.unwrap();
        send(layer, Some(&cookie), who()).await;
        if n % 2 == 0 {
            layer.revoke_all_of(&format!("user{n}")).await?;
            revoked.push(cookie);
        } else {
            live.push(cookie);
        }
        let token = tokens.make("reset", "ann", &[], Duration::from_hours(1))?;
        assert!(tokens.redeem("reset", &token, &[]).await?.is_some());
        used.push(token);
    }
    Ok((revoked, live, used))
}

async fn signed_in(layer: &SessionLayer, cookies: &[String]) -> usize {
    let mut count = 0;
    for cookie in cookies {
        count += usize::from(send(layer, Some(cookie), who()).await.1.starts_with("user"));
    }
    count
}

async fn good(tokens: &Tokens, used: &[String]) -> Result<usize> {
    let mut count = 0;
    for token in used {
        count += usize::from(tokens.peek("reset", token, &[]).await?.is_some());
    }
    Ok(count)
}

/// A Redis that evicts keys restores no session that was ended: when the owner's record is evicted,
/// the sessions are lost with it. Used tokens are valid again: the one-time store needs a Redis
/// that refuses writes when its memory is full, or a database.
#[tokio::test]
async fn eviction_ends_sessions_and_brings_back_none() -> Result<()> {
    let server =
        Redis::start_with(&["--maxmemory", "4mb", "--maxmemory-policy", "allkeys-random"]).await?;
    let layer = SessionLayer::connect(&server.url(), "a", Config::default()).await?;
    let tokens =
        Tokens::new(Keys::new(&[7; 32])?, &OneTimeStore::connect(&server.url(), "a").await?);
    let (revoked, live, used) = fill(&layer, &tokens).await?;
    assert_eq!(
        (
            signed_in(&layer, &revoked).await,
            signed_in(&layer, &live).await,
            good(&tokens, &used).await?
        ),
        (0, MANY / 2, 0)
    );
    let filler = "x".repeat(10_000);
    let before: usize = server.command(&["DBSIZE"]).await?.trim().parse()?;
    for n in 0..600 {
        server.command(&["SET", &format!("filler:{n}"), &filler]).await?;
    }
    let evicted: String = server.command(&["INFO", "stats"]).await?;
    let evicted: usize = evicted
        .lines()
        .find_map(|line| line.strip_prefix("evicted_keys:")?.trim().parse().ok())
        .unwrap_or(0);
    assert!(evicted > before / 2, "{evicted} of {before}");
    assert_eq!(signed_in(&layer, &revoked).await, 0, "no session that was ended comes back");
    assert!(signed_in(&layer, &live).await < MANY / 2);
    assert!(good(&tokens, &used).await? > 0, "the docs say that they come back");
    Ok(())
}

/// A Redis with snapshots alone that crashes loses the changes after the last snapshot: ends of
/// sessions, uses of tokens. With an append-only file that is synced at every write, it loses
/// nothing.
#[tokio::test]
async fn a_crash_undoes_what_was_not_written() -> Result<()> {
    for (arguments, forgets) in [
        (&["--appendonly", "no", "--save", ""][..], true),
        (&["--appendonly", "yes", "--appendfsync", "always"], false),
    ] {
        let server = Redis::start_with(arguments).await?;
        let layer = SessionLayer::connect(&server.url(), "a", Config::default()).await?;
        let tokens =
            Tokens::new(Keys::new(&[7; 32])?, &OneTimeStore::connect(&server.url(), "a").await?);
        let cookie = send(&layer, None, sign_in("user".into())).await.2.unwrap();
        send(&layer, Some(&cookie), who()).await;
        if forgets {
            server.command(&["SAVE"]).await?;
        }
        let token = tokens.make("reset", "ann", &[], Duration::from_hours(1))?;
        assert!(tokens.redeem("reset", &token, &[]).await?.is_some());
        layer.revoke_all_of("user").await?;
        server.kill()?;
        server.restart().await?;
        // Each has a connection of its own.
        let back = testkit::eventually("the sessions' link to heal", async || {
            layer.devices_of("user").await.ok()
        })
        .await?;
        let still_good = async || good(&tokens, std::slice::from_ref(&token)).await.ok();
        let good =
            testkit::eventually("the one-time store's connection to recover", still_good).await?;
        assert_eq!((back.len(), good), if forgets { (1, 1) } else { (0, 0) });
    }
    Ok(())
}
