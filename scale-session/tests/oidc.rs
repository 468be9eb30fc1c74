//! Log-in with an OpenID provider: against a certified provider (npm `oidc-provider`), with a
//! browser of a few lines.
#![cfg(feature = "oidc")]
#![allow(clippy::unwrap_used)]

mod common;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use common::{Action, action, send};
use http::header::{CONTENT_TYPE, COOKIE, LOCATION, SET_COOKIE};
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use scale_session::auth::Error;
use scale_session::auth::oidc::{HttpClient, Identity, OidcClient};
use scale_session::{Config, SessionLayer};
use testkit::eventually;
use tokio::process::{Child, Command};
use tokio::sync::OnceCell;

const REDIRECT: &str = "http://127.0.0.1:1/callback";

type Answer = Result<Response<Vec<u8>>, Box<dyn std::error::Error + Send + Sync>>;

/// Counts the requests to the provider, and among them the requests for its keys, which fail while
/// `keys_are_gone`.
#[derive(Clone)]
struct Http(Client<HttpConnector, Full<Bytes>>, Arc<AtomicUsize>, Arc<Keys>);

#[derive(Default)]
struct Keys {
    asked: AtomicUsize,
    are_gone: AtomicBool,
}

impl HttpClient for Http {
    async fn send(&self, request: Request<Vec<u8>>) -> Answer {
        self.1.fetch_add(1, SeqCst);
        if request.uri().path().contains("jwks") {
            self.2.asked.fetch_add(1, SeqCst);
            if self.2.are_gone.load(SeqCst) {
                return Err("the keys cannot be had".into());
            }
        }
        let (parts, body) =
            self.0.request(request.map(|body| Full::new(body.into()))).await?.into_parts();
        Ok(Response::from_parts(parts, body.collect().await?.to_bytes().to_vec()))
    }
}

fn http() -> Http {
    Http(Client::builder(TokioExecutor::new()).build_http(), Arc::default(), Arc::default())
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/oidc_provider")
}

async fn install() -> Result<()> {
    static DONE: OnceCell<()> = OnceCell::const_new();
    let install = async {
        if folder().join("node_modules/oidc-provider").is_dir() {
            return Ok(());
        }
        let words = ["ci", "--no-audit", "--no-fund", "--silent", "--ignore-scripts", "--omit=dev"];
        let status = Command::new("npm")
            .args(words)
            .current_dir(folder())
            .stdin(Stdio::null())
            .status()
            .await;
        ensure!(
            status.context("npm is missing: apt-get install -y nodejs npm")?.success(),
            "npm ci failed"
        );
        Ok(())
    };
    DONE.get_or_try_init(|| install).await.copied()
}

async fn provider(port: u16, algorithm: &str, key_id: &str) -> Result<Child> {
    install().await?;
    let mut node = Command::new("node");
    node.current_dir(folder()).args([
        "provider.mjs",
        &port.to_string(),
        REDIRECT,
        algorithm,
        key_id,
    ]);
    let child = node
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()?;
    eventually("the provider", async || {
        tokio::net::TcpStream::connect(("127.0.0.1", port)).await.ok()
    })
    .await?;
    Ok(child)
}

fn free_port() -> Result<u16> {
    Ok(std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

/// A browser: cookies, redirects, and the two forms of the provider.
struct Browser {
    http: Http,
    origin: String,
    cookies: BTreeMap<String, String>,
}

impl Browser {
    async fn ask(&mut self, address: &str, form: Option<&str>) -> Result<Response<Vec<u8>>> {
        let address = if address.starts_with('/') {
            format!("{}{address}", self.origin)
        } else {
            address.to_owned()
        };
        let cookies: Vec<String> =
            self.cookies.iter().map(|(name, value)| format!("{name}={value}")).collect();
        let request = Request::builder().uri(address).header(COOKIE, cookies.join("; "));
        let request = match form {
            Some(form) => request
                .method("POST")
                .header(CONTENT_TYPE, "application/x-www-form-urlencoded")
                .body(form.into())?,
            None => request.body(Vec::new())?,
        };
        let response = self.http.send(request).await.map_err(anyhow::Error::from_boxed)?;
        for line in response.headers().get_all(SET_COOKIE) {
            let pair = line.to_str()?.split(';').next().unwrap_or_default();
            if let Some((name, value)) = pair.split_once('=') {
                self.cookies.insert(name.into(), value.into());
            }
        }
        Ok(response)
    }

    /// Logs in at the provider, and returns the query of the callback.
    async fn log_in(&mut self, address: &str, user: &str) -> Result<String> {
        let (mut address, mut form) = (address.to_owned(), None);
        for _ in 0..12 {
            let response = self.ask(&address, form.take().as_deref()).await?;
            if let Some(next) = response.headers().get(LOCATION) {
                next.to_str()?.clone_into(&mut address);
                if let Some(query) = address.strip_prefix(&format!("{REDIRECT}?")) {
                    return Ok(query.to_owned());
                }
                continue;
            }
            let page = String::from_utf8_lossy(response.body()).into_owned();
            let (_, rest) = page.split_once("action=\"").with_context(|| page.clone())?;
            rest.split('"').next().unwrap_or_default().clone_into(&mut address);
            let is_log_in = page.contains("value=\"login\"");
            form = Some(if is_log_in {
                format!("prompt=login&login={user}&password=any")
            } else {
                "prompt=consent".to_owned()
            });
        }
        anyhow::bail!("it never comes back")
    }
}

struct Site {
    client: Arc<OidcClient>,
    http: Http,
    layer: SessionLayer,
    origin: String,
}

impl Site {
    async fn of(port: u16) -> Result<Self> {
        let (http, origin) = (http(), format!("http://127.0.0.1:{port}"));
        let client =
            OidcClient::discover(&http, &origin, "shop", Some("a secret of the shop"), REDIRECT)
                .await?;
        let layer = SessionLayer::connect("memory:", "shop", Config::default()).await?;
        Ok(Self { client: Arc::new(client), http, layer, origin })
    }

    fn begins(&self) -> Action {
        let client = Arc::clone(&self.client);
        action(move |s| {
            let client = Arc::clone(&client);
            async move { Ok(client.begin(&s, &["email"]).await?) }
        })
    }

    /// Returns the user who logged in, or the reason why the log-in failed.
    fn finishes(&self, query: &str) -> Action {
        let (client, http, query) = (Arc::clone(&self.client), self.http.clone(), query.to_owned());
        action(move |s| {
            let (client, http, query) = (Arc::clone(&client), http.clone(), query.clone());
            async move {
                Ok(match client.finish(&http, &s, &query).await {
                    Ok(Identity { subject, email, email_verified, .. }) => {
                        format!("{subject} {email:?} {email_verified}")
                    }
                    Err(Error::Denied(why)) => format!("denied: {why}"),
                    Err(error) => format!("error: {error}"),
                })
            }
        })
    }

    fn browser(&self) -> Browser {
        Browser { http: http(), origin: self.origin.clone(), cookies: BTreeMap::new() }
    }
}

#[tokio::test]
async fn somebody_logs_in_with_an_account_elsewhere() -> Result<()> {
    for algorithm in ["RS256", "ES256", "EdDSA"] {
        let port = free_port()?;
        let _provider = provider(port, algorithm, "k1").await?;
        let site = Site::of(port).await?;
        let (_, address, cookie) = send(&site.layer, None, site.begins()).await;
        for part in [
            "code_challenge_method=S256", "code_challenge=", "nonce=", "state=",
            "scope=openid+email",
        ] {
            assert!(address.contains(part), "{part}: {address}");
        }
        let query = site.browser().log_in(&address, "ann").await?;
        // Another browser with the same callback: a log-in that this browser has not begun.
        let (_, others, _) = send(&site.layer, None, site.finishes(&query)).await;
        assert!(others.starts_with("denied"), "{others}");
        let cookie = cookie.as_deref();
        let (_, who, _) = send(&site.layer, cookie, site.finishes(&query)).await;
        assert_eq!(who, "ann Some(\"ann@example.org\") true", "{algorithm}");
        let (_, again, _) = send(&site.layer, cookie, site.finishes(&query)).await;
        assert!(again.starts_with("denied"), "{again}");
    }
    Ok(())
}

#[tokio::test]
async fn what_comes_back_must_be_what_was_begun() -> Result<()> {
    let port = free_port()?;
    let _provider = provider(port, "RS256", "k1").await?;
    let site = Site::of(port).await?;
    let (_, address, cookie) = send(&site.layer, None, site.begins()).await;
    let cookie = cookie.as_deref();
    let query = site.browser().log_in(&address, "ann").await?;
    // Another log-in of the same session: its code does not belong to the first, and the provider
    // detects that by PKCE.
    let (_, second, _) = send(&site.layer, cookie, site.begins()).await;
    let other = site.browser().log_in(&second, "ben").await?;
    let part = |query: &str, name: &str| {
        query.split('&').find(|part| part.starts_with(name)).unwrap_or_default().to_owned()
    };
    let mixed = format!("{}&{}", part(&query, "state="), part(&other, "code="));
    let (_, said, _) = send(&site.layer, cookie, site.finishes(&mixed)).await;
    assert!(
        said.starts_with("error: identity provider failed: the provider refused the code"),
        "{said}"
    );
    // That used up the first; the second callback names another issuer.
    let (_, said, _) =
        send(&site.layer, cookie, site.finishes(&other.replace("iss=http", "iss=https"))).await;
    assert!(said.contains("another provider"), "{said}");
    let asked = site.http.1.load(SeqCst);
    for odd in ["", "state=", "code=x", "state=x&code=y", "&&&=", "%FF=%00", &"x".repeat(100_000)] {
        let (_, said, _) = send(&site.layer, cookie, site.finishes(odd)).await;
        assert!(said.starts_with("denied"), "{odd:.20}: {said}");
    }
    assert_eq!(site.http.1.load(SeqCst), asked, "nothing was asked for those");
    let (_, address, _) = send(&site.layer, cookie, site.begins()).await;
    let state = part(&address, "state=");
    let (_, said, _) =
        send(&site.layer, cookie, site.finishes(&format!("{state}&error=access_denied"))).await;
    assert_eq!(said, "denied: access_denied");
    Ok(())
}

/// The provider changes its keys; the next log-in fetches the new ones.
#[tokio::test]
async fn keys_are_fetched_anew_when_they_change() -> Result<()> {
    let port = free_port()?;
    let first = provider(port, "RS256", "k1").await?;
    let site = Site::of(port).await?;
    drop(first);
    eventually("it to be gone", async || {
        tokio::net::TcpStream::connect(("127.0.0.1", port)).await.is_err().then_some(())
    })
    .await?;
    let second = provider(port, "RS256", "k2").await?;
    let log_in = async || -> Result<String> {
        let (_, address, cookie) = send(&site.layer, None, site.begins()).await;
        let query = site.browser().log_in(&address, "ann").await?;
        Ok(send(&site.layer, cookie.as_deref(), site.finishes(&query)).await.1)
    };
    assert!(log_in().await?.starts_with("ann "));
    let asked = site.http.2.asked.load(SeqCst);
    // While the keys cannot be fetched, the known keys remain valid.
    site.http.2.are_gone.store(true, SeqCst);
    assert!(log_in().await?.starts_with("ann "));
    assert_eq!(site.http.2.asked.load(SeqCst), asked, "no request was needed");
    drop(second);
    Ok(())
}

/// A provider that replaces a key under the same name: the new key is fetched, and a flood of
/// tokens with an invalid signature causes one fetch.
#[tokio::test]
async fn a_key_that_keeps_its_name_is_fetched_anew() -> Result<()> {
    let port = free_port()?;
    let first = provider(port, "RS256", "k1").await?;
    let site = Site::of(port).await?;
    drop(first);
    eventually("it to be gone", async || {
        tokio::net::TcpStream::connect(("127.0.0.1", port)).await.is_err().then_some(())
    })
    .await?;
    let _second = provider(port, "RS256", "k1").await?;
    let log_in = async |user: &'static str| -> Result<String> {
        let (_, address, cookie) = send(&site.layer, None, site.begins()).await;
        let query = site.browser().log_in(&address, user).await?;
        Ok(send(&site.layer, cookie.as_deref(), site.finishes(&query)).await.1)
    };
    site.http.2.are_gone.store(true, SeqCst);
    let before = site.http.2.asked.load(SeqCst);
    for _ in 0..3 {
        let said = log_in("ann").await?;
        assert!(said.starts_with("error: identity provider failed"), "{said}");
    }
    assert_eq!(
        site.http.2.asked.load(SeqCst),
        before + 1,
        "they are asked for once in a few seconds"
    );
    site.http.2.are_gone.store(false, SeqCst);
    eventually("the new key to be known", async || {
        log_in("ann").await.ok().filter(|said| said.starts_with("ann "))
    })
    .await?;
    Ok(())
}

#[tokio::test]
async fn a_provider_of_another_name_is_none() -> Result<()> {
    let port = free_port()?;
    let _provider = provider(port, "RS256", "k1").await?;
    let found = |issuer: String| async move {
        OidcClient::discover(&http(), &issuer, "shop", None, REDIRECT).await
    };
    assert!(found(format!("http://localhost:{port}")).await.is_err(), "it says 127.0.0.1");
    let refused = found("http://id.example.com".into()).await.unwrap_err();
    assert!(
        refused.to_string().contains("https://"),
        "{refused}: anybody on the way could be the provider"
    );
    assert!(
        found("http://127.0.0.1:1".into()).await.is_err()
            && found("nonsense".into()).await.is_err()
    );
    Ok(())
}
