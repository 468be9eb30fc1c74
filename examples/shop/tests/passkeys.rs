//! Passkeys as users see them: in Chromium, with a virtual authenticator of WebDriver.
#![allow(clippy::unwrap_used)]

mod common;

use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use common::Shop;
use fantoccini::{Client, ClientBuilder, Locator};
use http::Request;
use http_body_util::{BodyExt, Full};
use hyper::body::Bytes;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use serde_json::{Value, json};
use testkit::eventually;
use tokio::process::{Child, Command};

fn free_port() -> Result<u16> {
    Ok(std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

/// A browser with a virtual authenticator of its own.
struct Browser {
    client: Client,
    driver: String,
    _process: Child,
    _home: tempfile::TempDir,
}

impl Browser {
    async fn start() -> Result<Self> {
        let (port, home) = (free_port()?, tempfile::tempdir()?);
        let mut driver = Command::new("chromedriver");
        driver
            .arg(format!("--port={port}"))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .kill_on_drop(true);
        let process =
            driver.spawn().context("chromedriver: apt-get install chromium chromium-driver")?;
        let arguments = [
            "--headless".to_owned(),
            "--no-sandbox".into(),
            "--disable-gpu".into(),
            "--no-first-run".into(),
            "--disable-background-networking".into(),
            format!("--user-data-dir={}", home.path().display()),
        ];
        let capabilities = json!({
            "goog:chromeOptions": { "args": arguments }, "webauthn:virtualAuthenticators": true
        });
        let driver = format!("http://127.0.0.1:{port}");
        let client = eventually("a browser", async || {
            let mut builder = ClientBuilder::new(HttpConnector::new());
            builder.capabilities(capabilities.as_object()?.clone());
            builder.connect(&driver).await.ok()
        })
        .await?;
        let browser = Self { client, driver, _process: process, _home: home };
        Ok(browser)
    }

    /// Sends a command that the WebDriver client lacks.
    async fn command(&self, method: &str, path: &str, body: Option<Value>) -> Result<Value> {
        let session = self.client.session_id().await?.context("a session")?;
        let uri = format!("{}/session/{session}/webauthn/{path}", self.driver);
        let http = hyper_util::client::legacy::Client::builder(TokioExecutor::new()).build_http();
        let body = body.map_or(String::new(), |body| body.to_string());
        let request =
            Request::builder().method(method).uri(uri).header("content-type", "application/json");
        let response = http.request(request.body(Full::<Bytes>::from(body))?).await?;
        let answer: Value =
            serde_json::from_slice(&response.into_body().collect().await?.to_bytes())?;
        ensure!(answer["value"].get("error").is_none(), "{answer}");
        Ok(answer["value"].clone())
    }

    async fn add_device(&self, verifies: bool) -> Result<String> {
        let device = json!({
            "protocol": "ctap2", "transport": "internal", "hasResidentKey": true,
            "hasUserVerification": true, "isUserVerified": verifies, "isUserConsenting": true
        });
        Ok(self
            .command("POST", "authenticator", Some(device))
            .await?
            .as_str()
            .context("a device")?
            .to_owned())
    }

    async fn goto(&self, address: &str) -> Result<()> {
        Ok(self.client.goto(address).await?)
    }

    async fn click(&self, selector: &str) -> Result<()> {
        Ok(self.client.find(Locator::Css(selector)).await?.click().await?)
    }

    async fn until(&self, what: &str, script: &str) -> Result<()> {
        let script = format!("return Boolean({script})");
        let check =
            async || (self.client.execute(&script, Vec::new()).await.ok()? == true).then_some(());
        if let Err(error) = eventually(what, check).await {
            let text = self.client.execute("return document.body.innerText", Vec::new()).await?;
            return Err(error.context(
                text.as_str().unwrap_or_default().chars().take(1_000).collect::<String>(),
            ));
        }
        Ok(())
    }

    async fn log_in(&self, base: &str) -> Result<()> {
        self.goto(&format!("{base}/login")).await?;
        self.client.find(Locator::Css("[name=email]")).await?.send_keys("ann@example.com").await?;
        self.client
            .find(Locator::Css("[name=password]"))
            .await?
            .send_keys("correct horse battery staple")
            .await?;
        self.click("form.stack button").await?;
        self.until("to be logged in", "document.body.innerText.includes('log out')").await
    }

    async fn log_out(&self) -> Result<()> {
        self.click("form[action='/logout'] button").await?;
        self.until("to be logged out", "!document.body.innerText.includes('log out')").await
    }
}

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
    let (shop, browser) = tokio::try_join!(Shop::open_in(folder.path(), &words), Browser::start())?;
    let base = format!("http://localhost:{port}");
    let device = browser.add_device(true).await?;

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
    let kept = browser.command("GET", &format!("authenticator/{device}/credentials"), None).await?;
    ensure!(
        kept.as_array().is_some_and(|all| all.len() == 1 && all[0]["isResidentCredential"] == true),
        "{kept}"
    );
    ensure!(kept[0]["rpId"] == "localhost", "{kept}");
    browser.log_out().await?;

    // Stolen and not unlocked.
    browser
        .command(
            "POST",
            &format!("authenticator/{device}/uv"),
            Some(json!({ "isUserVerified": false })),
        )
        .await?;
    browser.goto(&format!("{base}/login")).await?;
    browser.click("#passkey-login").await?;
    browser.until("a word on it", "!document.querySelector('#passkey-failed').hidden").await?;
    browser
        .command(
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
