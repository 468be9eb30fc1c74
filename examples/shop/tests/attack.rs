//! Guessing, rehearsed on the shop: two hundred addresses at one account, one address at two hundred accounts, and the owner in between.
#![allow(clippy::unwrap_used)]

mod common;

use anyhow::{Result, ensure};
use common::{Shop, Visitor};
use testkit::Redis;

const EMAIL: &str = "ann@example.com";
const PASSWORD: &str = "correct horse battery staple";
/// What `scale_limit::guard::login` documents, over the time this test takes.
const OF_ONE_ACCOUNT: usize = 50;
const FROM_ONE_ADDRESS: usize = 30;

/// Returns whether the password was looked at, and whether it fitted.
async fn try_in(visitor: &mut Visitor, shop: &Shop, email: &str, password: &str) -> Result<(bool, bool)> {
    let page = visitor.post(&shop.base, "/login", &[("email", email), ("password", password)]).await?;
    Ok(match page.status.as_u16() {
        429 => (false, false),
        401 => (true, false),
        200 => (true, true),
        other => anyhow::bail!("{other}: {}", page.body),
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn guessing_is_bounded_and_the_owner_gets_in() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let redis = Redis::start().await?;
    let config = folder.path().join("shop.toml");
    // Two web processes, one Redis for the limits; a proxy on this machine tells addresses. Whole addresses are not limited here, as the
    // botnet comes through one of ours: what is tried is the guard.
    std::fs::write(
        &config,
        format!(
            "plain_http = true\nlisten = \"127.0.0.1:0\"\n[clients]\ntrusted = [\"127.0.0.0/8\"]\nheader = \"x-forwarded-for\"\n[limit]\nurl = \"{}\"\n\
             site = {{ name = \"site\", quota = 10000, per = \"1s\" }}\nlogin = {{ name = \"login\", quota = 10000, per = \"1s\" }}\n",
            redis.url()
        ),
    )?;
    let config = config.to_string_lossy().into_owned();
    let first = Shop::open_in(folder.path(), &["--config", &config]).await?;
    let second = Shop::open_in(folder.path(), &["--config", &config, "serve"]).await?;
    let shops = [&first, &second];

    // The owner's browser is known from a log-in before all this.
    let mut owner = Visitor::at("198.51.100.7");
    ensure!(try_in(&mut owner, &first, EMAIL, PASSWORD).await? == (true, true), "the owner logs in");
    owner.post(&first.base, "/logout", &[]).await?;

    // Two hundred addresses, three guesses each, at either process.
    let mut looked_at = 0;
    for n in 0..200 {
        let mut bot = Visitor::at(&format!("203.0.113.{n}"));
        for guess in 0..3 {
            let (looked, fitted) = try_in(&mut bot, shops[(n + guess) % 2], EMAIL, &format!("guess {n} {guess}")).await?;
            ensure!(!fitted, "a guess fitted");
            looked_at += usize::from(looked);
        }
        if n % 50 == 49 {
            ensure!(try_in(&mut owner, shops[n % 2], EMAIL, PASSWORD).await? == (true, true), "the owner after {n} bots");
            owner.post(&first.base, "/logout", &[]).await?;
        }
    }
    ensure!((OF_ONE_ACCOUNT - 2..=OF_ONE_ACCOUNT).contains(&looked_at), "{looked_at} guesses of one account were looked at");
    // Even the right password does not help a stranger now.
    let mut thief = Visitor::at("203.0.113.250");
    ensure!(try_in(&mut thief, &first, EMAIL, PASSWORD).await? == (false, false), "a stranger with the right password");

    // One address, two hundred accounts.
    let mut sprayer = Visitor::at("192.0.2.1");
    let mut looked_at = 0;
    for n in 0..200 {
        let (looked, _) = try_in(&mut sprayer, shops[n % 2], &format!("user{n}@example.com"), "password1").await?;
        looked_at += usize::from(looked);
    }
    ensure!(looked_at <= FROM_ONE_ADDRESS, "{looked_at} guesses from one address were looked at");
    ensure!(try_in(&mut owner, &second, EMAIL, PASSWORD).await? == (true, true), "the owner at the end");

    // Who writes addresses into headers himself is not behind our proxy: to the shop, the proxy's word is the last one.
    let mut spoofer = Visitor::at("1.1.1.1, 192.0.2.1");
    ensure!(try_in(&mut spoofer, &first, "somebody@example.com", "x").await? == (false, false), "a spoofed header");
    Ok(())
}
