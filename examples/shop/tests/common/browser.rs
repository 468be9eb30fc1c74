//! Chromium, driven by WebDriver.
#![allow(dead_code, unreachable_pub)]

use std::process::Stdio;

use anyhow::{Context as _, Result, ensure};
use fantoccini::{Client, ClientBuilder, Locator};
use http::Request;
use http_body_util::{BodyExt, Full};
use hyper::body::Bytes;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use serde_json::{Value, json};
use testkit::eventually;
use tokio::process::{Child, Command};

pub fn free_port() -> Result<u16> {
    Ok(std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

/// Chromium, with a virtual authenticator of its own.
pub struct Browser {
    pub client: Client,
    driver: String,
    _process: Child,
    _home: tempfile::TempDir,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Screen {
    Desktop,
    Phone,
}

impl Browser {
    pub async fn start(screen: Screen) -> Result<Self> {
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
        let mut options = json!({ "args": arguments });
        if screen == Screen::Phone {
            let metrics = json!({ "width": 360, "height": 740, "pixelRatio": 2.0 });
            options["mobileEmulation"] = json!({ "deviceMetrics": metrics });
        }
        let capabilities = json!({
            "goog:chromeOptions": options, "webauthn:virtualAuthenticators": true
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

    /// Sends a command about authenticators.
    pub async fn webauthn(&self, method: &str, path: &str, body: Option<Value>) -> Result<Value> {
        self.command(method, &format!("webauthn/{path}"), body).await
    }

    /// Shows pages as for users who prefer dark ones, or light ones.
    pub async fn prefer(&self, scheme: &str) -> Result<()> {
        let features = json!([{ "name": "prefers-color-scheme", "value": scheme }]);
        let command = json!({
            "cmd": "Emulation.setEmulatedMedia", "params": { "features": features }
        });
        self.command("POST", "goog/cdp/execute", Some(command)).await.map(drop)
    }

    /// Sends a command that the WebDriver client lacks.
    async fn command(&self, method: &str, path: &str, body: Option<Value>) -> Result<Value> {
        let session = self.client.session_id().await?.context("a session")?;
        let uri = format!("{}/session/{session}/{path}", self.driver);
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

    pub async fn goto(&self, address: &str) -> Result<()> {
        Ok(self.client.goto(address).await?)
    }

    pub async fn click(&self, selector: &str) -> Result<()> {
        Ok(self.client.find(Locator::Css(selector)).await?.click().await?)
    }

    pub async fn until(&self, what: &str, script: &str) -> Result<()> {
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

    pub async fn log_in(&self, base: &str) -> Result<()> {
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

    pub async fn log_out(&self) -> Result<()> {
        self.click("form[action='/logout'] button").await?;
        self.until("to be logged out", "!document.body.innerText.includes('log out')").await
    }
}
