//! Passkeys as users see them: in Chromium, with a virtual authenticator of WebDriver.
#![allow(clippy::unwrap_used)]

mod common;

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use common::Shop;
use common::browser::{Browser, Screen, free_port};
use serde_json::json;

/// Signs in once with a password, and then with the device alone; a device without user
/// verification and a removed passkey are refused.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_person_logs_in_by_a_passkey() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let port = free_port()?;
    let config = folder.path().join("shop.toml");
    let text = format!(
        "plain_http = true\nlisten = \"127.0.0.1:{port}\"\norigin = \"http://localhost:{port}\"\n"
    );
    std::fs::write(&config, text)?;
    let config = config.to_string_lossy().into_owned();
    let words = ["--config", &config];
    let (shop, browser) =
        tokio::try_join!(Shop::open_in(folder.path(), &words), Browser::start(Screen::Desktop))?;
    let base = format!("http://localhost:{port}");
    let device = add_device(&browser, true).await?;

    browser.log_in(&base).await?;
    browser.goto(&format!("{base}/passkeys")).await?;
    browser.click("#passkey-add").await?;
    browser
        .until("a passkey in the list", "document.querySelectorAll('table tr').length === 1")
        .await?;
    browser.log_out().await?;

    browser.goto(&format!("{base}/login")).await?;
    browser.click("#passkey-login").await?;
    browser.until("to be logged in", "document.body.innerText.includes('log out')").await?;
    let kept =
        browser.webauthn("GET", &format!("authenticator/{device}/credentials"), None).await?;
    ensure!(
        kept.as_array().is_some_and(|all| all.len() == 1 && all[0]["isResidentCredential"] == true),
        "{kept}"
    );
    ensure!(kept[0]["rpId"] == "localhost", "{kept}");
    browser.log_out().await?;

    // Stolen and not unlocked.
    browser
        .webauthn(
            "POST",
            &format!("authenticator/{device}/uv"),
            Some(json!({ "isUserVerified": false })),
        )
        .await?;
    browser.goto(&format!("{base}/login")).await?;
    browser.click("#passkey-login").await?;
    browser.until("a word on it", "!document.querySelector('#passkey-failed').hidden").await?;
    browser
        .webauthn(
            "POST",
            &format!("authenticator/{device}/uv"),
            Some(json!({ "isUserVerified": true })),
        )
        .await?;

    // Removed.
    browser.log_in(&base).await?;
    browser.goto(&format!("{base}/passkeys")).await?;
    browser.click("form[action='/passkeys/remove'] button").await?;
    browser.until("an empty list", "document.querySelectorAll('table tr').length === 0").await?;
    browser.log_out().await?;
    browser.goto(&format!("{base}/login")).await?;
    browser.click("#passkey-login").await?;
    browser.until("a word on it", "!document.querySelector('#passkey-failed').hidden").await?;

    // A response without a challenge.
    let mut visitor = common::Visitor::new();
    for odd in ["", "{}", "null", &"x".repeat(100_000)] {
        let answer = visitor.post(&shop.base, "/login/passkey/finish", &[("answer", odd)]).await?;
        ensure!(answer.status == 403, "{}: {}", answer.status, answer.body);
    }
    let answer = visitor.post(&shop.base, "/passkeys/begin", &[]).await?;
    ensure!(answer.status == 401, "nobody is signed in: {}", answer.status);
    browser.client.clone().close().await?;
    tokio::time::timeout(Duration::from_secs(30), shop.close()).await?
}

async fn add_device(browser: &Browser, verifies: bool) -> Result<String> {
    let device = json!({
        "protocol": "ctap2", "transport": "internal", "hasResidentKey": true,
        "hasUserVerification": true, "isUserVerified": verifies, "isUserConsenting": true
    });
    let made = browser.webauthn("POST", "authenticator", Some(device)).await?;
    Ok(made.as_str().context("a device")?.to_owned())
}
