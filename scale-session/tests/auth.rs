//! What must happen once, on every ledger, from several processes' handles at once.
#![cfg(feature = "auth")]
#![allow(clippy::unwrap_used)]

use std::future::Future;
use std::time::Duration;

use anyhow::Result;
use scale_session::auth::ledger::{Store, Turn};
use scale_session::auth::remember::Exchange;
use scale_session::auth::token::Keys;
use scale_session::auth::{Ledger, Remember, Tokens, Totp, recovery};

/// How many of 64 tasks, on two handles by turns, get a `true`.
async fn winners<F, Fut>(ledgers: [&Ledger; 2], one: F) -> Result<usize>
where
    F: Fn(Ledger) -> Fut,
    Fut: Future<Output = bool> + Send + 'static,
{
    let tasks: Vec<_> = (0..64).map(|n| tokio::spawn(one(ledgers[n % 2].clone()))).collect();
    let mut winners = 0;
    for task in tasks {
        winners += usize::from(task.await?);
    }
    Ok(winners)
}

/// `here` and `there`: two handles of one ledger.
async fn contract(here: Ledger, there: Ledger) -> Result<()> {
    let both = [&here, &there];
    let minute = Duration::from_mins(1);
    // Claimed once, whoever asks; again when its time is over; scopes and keys apart.
    assert_eq!(winners(both, |l| async move { l.claim("scope", "key", Duration::from_mins(1)).await.unwrap() }).await?, 1);
    assert!(here.claim("scope2", "key", minute).await? && here.claim("scope", "key2", minute).await?);
    assert!(here.claim("scopek", "ey", minute).await?, "no two names are one");
    assert!(here.claim("short", "key", Duration::from_millis(1)).await?);
    testkit::eventually("it to be over", async || there.claim("short", "key", minute).await.ok()?.then_some(())).await?;
    for odd in ["", "a\0b", "{braces}", &"x".repeat(10_000), "ключ'; drop table users; --"] {
        assert!(here.claim("odd", odd, minute).await? && !there.claim("odd", odd, minute).await?);
    }

    // A code of an app, one on paper, a link: one of 64 gets in.
    let totp = Totp::generate()?.skew(1);
    let secret = totp.secret();
    let code = one_time_code(&secret);
    let verify = |ledger: Ledger| {
        let (totp, code) = (totp.clone(), code.clone());
        async move { totp.verify(&ledger, "ann", &code).await.unwrap() }
    };
    assert_eq!(winners(both, verify).await?, 1);
    let made = recovery::generate()?;
    let redeem = |ledger: Ledger| {
        let made = made.clone();
        async move { recovery::redeem(&ledger, "ann", &made.codes[0], &made.hashes).await.unwrap().is_some() }
    };
    assert_eq!(winners(both, redeem).await?, 1);
    let keys = Keys::new(&[7; 32])?;
    let token = Tokens::new(keys.clone(), &here).make("reset", "user:7", &["hash"], minute)?;
    let redeem = |ledger: Ledger| {
        let (tokens, token) = (Tokens::new(keys.clone(), &ledger), token.clone());
        async move { tokens.redeem("reset", &token, &["hash"]).await.unwrap().is_some() }
    };
    assert_eq!(winners(both, redeem).await?, 1);

    // Staying signed in: a page's requests at once get the same cookie, a thief ends the family on all servers.
    let (a, b) = (Remember::new(keys.clone(), &here, minute), Remember::new(keys, &there, minute));
    let first = a.begin("user:7", "hash").await?;
    let mut seen = std::collections::HashSet::new();
    for n in 0..20 {
        match (if n % 2 == 0 { &a } else { &b }).exchange(&first, "hash").await? {
            Exchange::Good { cookie, .. } => seen.insert(cookie),
            other => anyhow::bail!("{other:?}"),
        };
    }
    assert_eq!(seen.len(), 1);
    let second = seen.into_iter().next().unwrap();
    assert!(matches!(b.exchange(&second, "hash").await?, Exchange::Good { .. }));
    assert!(matches!(a.exchange(&first, "hash").await?, Exchange::Stolen { .. }));
    assert_eq!(b.exchange(&second, "hash").await?, Exchange::No);
    let third = a.begin("user:7", "hash").await?;
    b.end(&third, "hash").await?;
    assert_eq!(a.exchange(&third, "hash").await?, Exchange::No);
    Ok(())
}

/// What an app would show now, made by another implementation of RFC 4226 than ours: the bits, by hand.
fn one_time_code(secret: &str) -> String {
    use hmac::{Hmac, KeyInit, Mac};
    let key = data_encoding::BASE32_NOPAD.decode(secret.as_bytes()).unwrap();
    let step = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs() / 30;
    let mut mac = Hmac::<sha1::Sha1>::new_from_slice(&key).unwrap();
    mac.update(&step.to_be_bytes());
    let digest = mac.finalize().into_bytes();
    let start = (digest[19] & 0xf) as usize;
    let bits = digest[start..start + 4].iter().fold(0_u64, |bits, byte| (bits << 8) | u64::from(*byte));
    format!("{:06}", (bits & 0x7fff_ffff) % 1_000_000)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_code_is_good_once_whoever_sends_it() -> Result<()> {
    let ledger = Ledger::memory();
    contract(ledger.clone(), ledger).await
}

#[cfg(feature = "sqlite")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sqlite() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let url = format!("sqlite://{}?mode=rwc", folder.path().join("ledger.db").display());
    contract(Ledger::connect(&url, "test").await?, Ledger::connect(&url, "test").await?).await
}

#[cfg(feature = "postgres")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn postgres() -> Result<()> {
    let server = testkit::Postgres::start(0).await?;
    let url = server.node(0).url();
    contract(Ledger::connect(&url, "test").await?, Ledger::connect(&url, "test").await?).await
}

#[cfg(feature = "redis")]
mod redis {
    use super::*;
    use testkit::{Proxy, Redis, RedisCluster};

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn standalone() -> Result<()> {
        let server = Redis::start().await?;
        contract(Ledger::connect(&server.url(), "test").await?, Ledger::connect(&server.url(), "test").await?).await?;
        // Nothing that was typed lies there.
        let keys = server.command(&["KEYS", "*"]).await?;
        assert!(!keys.is_empty() && !keys.contains("ann") && !keys.contains("drop table"), "{keys}");
        Ok(())
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn cluster() -> Result<()> {
        let cluster = RedisCluster::start().await?;
        contract(Ledger::connect(&cluster.url(), "test").await?, Ledger::connect(&cluster.url(), "test").await?).await
    }

    #[tokio::test]
    async fn a_ledger_that_does_not_answer_lets_nobody_in() -> Result<()> {
        let server = Redis::start().await?;
        let proxy = Proxy::start(server.port()).await?;
        let ledger = Ledger::connect(&format!("redis://127.0.0.1:{}", proxy.port()), "test").await?;
        let remember = Remember::new(Keys::new(&[7; 32])?, &ledger, Duration::from_mins(1));
        let cookie = remember.begin("user:7", "hash").await?;
        proxy.cut();
        assert!(ledger.claim("scope", "key", Duration::from_mins(1)).await.is_err());
        assert!(remember.exchange(&cookie, "hash").await.is_err());
        proxy.heal();
        testkit::eventually("it to answer again", async || remember.exchange(&cookie, "hash").await.ok()).await?;
        Ok(())
    }

    #[tokio::test]
    async fn families_and_claims_end_by_themselves() -> Result<()> {
        let server = Redis::start().await?;
        let store = scale_session::auth::ledger::RedisLedger::new(scale_redis::Redis::connect(&server.url()).await?, "test");
        store.open("family", Duration::from_millis(50)).await?;
        store.claim("claim", Duration::from_millis(50)).await?;
        assert_eq!(store.turn("family", 5, Duration::ZERO).await?, Turn::Gone, "a turn from the future");
        testkit::eventually("both to end", async || (server.command(&["DBSIZE"]).await.ok()? == "0").then_some(())).await?;
        assert_eq!(store.turn("family", 0, Duration::ZERO).await?, Turn::Gone);
        Ok(())
    }
}
