//! A simple browser, and the shop's processes.
#![allow(dead_code, unreachable_pub, clippy::unwrap_used)]

pub mod browser;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use http::{Request, StatusCode, header};
use http_body_util::{BodyExt, Full};
use hyper::body::Bytes;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use testkit::{Postgres, Process, Redis, eventually};

/// One visitor: cookies, and redirects followed as browsers do.
#[derive(Clone)]
pub struct Visitor {
    client: Client<HttpConnector, Full<Bytes>>,
    cookies: BTreeMap<String, String>,
    pub requests: usize,
    /// Address that a load balancer would report for this visitor.
    pub address: Option<String>,
    /// Other headers of every request.
    pub headers: Vec<(&'static str, String)>,
}

pub struct Answer {
    pub status: StatusCode,
    pub path: String,
    pub body: String,
}

impl Visitor {
    pub fn new() -> Self {
        let client = Client::builder(TokioExecutor::new()).build_http();
        Self { client, cookies: BTreeMap::new(), requests: 0, address: None, headers: Vec::new() }
    }

    /// Makes another browser, at that address.
    pub fn at(address: &str) -> Self {
        Self { address: Some(address.into()), ..Self::new() }
    }

    pub async fn get(&mut self, base: &str, path: &str) -> Result<Answer> {
        self.send(base, path, None).await
    }

    pub async fn post(&mut self, base: &str, path: &str, form: &[(&str, &str)]) -> Result<Answer> {
        let encode = |text: &str| {
            text.bytes().fold(String::new(), |s, b| {
                if b.is_ascii_alphanumeric() {
                    s + &char::from(b).to_string()
                } else {
                    s + &format!("%{b:02X}")
                }
            })
        };
        let body: Vec<_> =
            form.iter().map(|(k, v)| format!("{}={}", encode(k), encode(v))).collect();
        self.send(base, path, Some(body.join("&"))).await
    }

    async fn send(&mut self, base: &str, path: &str, mut form: Option<String>) -> Result<Answer> {
        let mut path = path.to_owned();
        for _ in 0..5 {
            self.requests += 1;
            let cookies: Vec<_> = self.cookies.iter().map(|(k, v)| format!("{k}={v}")).collect();
            let mut request = Request::builder()
                .uri(format!("{base}{path}"))
                .header(header::COOKIE, cookies.join("; "));
            if let Some(address) = &self.address {
                request = request.header("x-forwarded-for", address);
            }
            for (name, value) in &self.headers {
                request = request.header(*name, value);
            }
            if form.is_some() {
                request = request
                    .method("POST")
                    .header(header::CONTENT_TYPE, "application/x-www-form-urlencoded");
            }
            let request = request.body(Full::from(form.take().unwrap_or_default()))?;
            let response =
                self.client.request(request).await.with_context(|| format!("{base}{path}"))?;
            for cookie in response.headers().get_all(header::SET_COOKIE) {
                let (name, rest) = cookie.to_str()?.split_once('=').context("a cookie")?;
                if rest.contains("Max-Age=0") {
                    self.cookies.remove(name);
                } else {
                    self.cookies
                        .insert(name.into(), rest.split(';').next().unwrap_or_default().into());
                }
            }
            if response.status().is_redirection() {
                path = response.headers()[header::LOCATION].to_str()?.to_owned();
                continue;
            }
            let status = response.status();
            let body = response.into_body().collect().await?.to_bytes();
            return Ok(Answer { status, path, body: String::from_utf8(body.to_vec())? });
        }
        anyhow::bail!("redirected in a circle: {path}")
    }
}

/// Limits that no test reaches.
pub const NO_LIMIT: &str = "[limit]\nsite = { name = \"site\", quota = 1000000, per = \"1s\" }\n\
    search = { name = \"search\", quota = 1000000, per = \"1s\" }\n";

/// Writes the configuration of a laptop without limits; returns its path.
pub fn laptop(folder: &Path) -> Result<String> {
    let config = folder.join("laptop.toml");
    let database = folder.join("shop.db");
    let url = format!("sqlite://{}?mode=rwc", database.display());
    let text = format!(
        "listen = \"127.0.0.1:0\"\noperations = \"127.0.0.1:0\"\nplain_http = true\n\
         origin = \"http://localhost:3000\"\n\
         secret = \"{}\"\n[database]\nurl = {url:?}\n[queue]\nurl = {url:?}\n[session]\n\
         url = {url:?}\n{NO_LIMIT}",
        "07".repeat(32)
    );
    std::fs::write(&config, text)?;
    Ok(config.display().to_string())
}

/// Writes the configuration of a fleet; returns its path.
pub fn fleet(
    folder: &Path,
    postgres: &Postgres,
    redis: &Redis,
    mail_takes: &str,
) -> Result<String> {
    let config = folder.join("fleet.toml");
    let replicas: Vec<_> = postgres.nodes()[1..].iter().map(|n| format!("{:?}", n.url())).collect();
    let (primary, redis) = (postgres.node(0).url(), redis.url());
    let text = format!(
        "listen = \"127.0.0.1:0\"\noperations = \"127.0.0.1:0\"\nplain_http = true\n[database]\n\
         url = {primary:?}\nreplicas = [{}]\n[cache]\nurl = {redis:?}\n\
         [queue]\nurl = {redis:?}\nlease = \"1s\"\n[mail]\ntakes = {mail_takes:?}\n[session]\n\
         url = {redis:?}\n{NO_LIMIT}url = {redis:?}\n",
        replicas.join(", ")
    );
    std::fs::write(&config, text)?;
    Ok(config.display().to_string())
}

/// Creates an account by the command line.
pub fn account(config: &str, email: &str, role: &str, password: &str) -> Result<()> {
    let mut command = Command::new(env!("CARGO_BIN_EXE_shop"));
    command.args(["--config", config, "account", email, "--name", "Ann", "--role", role]);
    let mut child = command.stdin(std::process::Stdio::piped()).spawn()?;
    let mut input = child.stdin.take().context("an input")?;
    std::io::Write::write_all(&mut input, format!("{password}\n").as_bytes())?;
    drop(input);
    ensure!(child.wait()?.success(), "`shop account` failed");
    Ok(())
}

/// Returns the value of a field in a page's form.
pub fn field(body: &str, name: &str) -> Option<String> {
    let (_, rest) = body.split_once(&format!("name=\"{name}\" value=\""))?;
    Some(rest.split('"').next()?.to_owned())
}

/// A process of the shop; killed on drop.
pub struct Shop {
    pub process: Process,
    pub base: String,
    /// Address for operators, if it is configured.
    pub operations: Option<String>,
    log: PathBuf,
}

/// Numbers the log files.
static LOGS: std::sync::atomic::AtomicUsize = std::sync::atomic::AtomicUsize::new(0);

pub fn start(folder: &Path, words: &[&str]) -> Result<(Process, PathBuf)> {
    let mut command = Command::new(env!("CARGO_BIN_EXE_shop"));
    command.args(words).env("RUST_LOG", "warn,shop=info");
    let log =
        folder.join(format!("{}.log", LOGS.fetch_add(1, std::sync::atomic::Ordering::Relaxed)));
    Ok((Process::spawn(&command, None, &log)?, log))
}

impl Shop {
    /// Starts a process that works in a directory, where its files go.
    pub async fn open_in(folder: &Path, words: &[&str]) -> Result<Self> {
        let mut command = Command::new("env");
        command
            .arg("-C")
            .arg(folder)
            .arg(env!("CARGO_BIN_EXE_shop"))
            .args(words)
            .env("RUST_LOG", "warn,shop=info");
        let log =
            folder.join(format!("{}.log", LOGS.fetch_add(1, std::sync::atomic::Ordering::Relaxed)));
        Self::opened(Process::spawn(&command, None, &log)?, log).await
    }

    /// Starts a web process, and waits until it is open.
    pub async fn open(folder: &Path, words: &[&str]) -> Result<Self> {
        let (process, log) = start(folder, words)?;
        Self::opened(process, log).await
    }

    async fn opened(process: Process, log: PathBuf) -> Result<Self> {
        let base = eventually("the shop to open", async || {
            if !process.is_running() {
                return Some(Err(anyhow::anyhow!("it ended: {}", process.log_tail())));
            }
            let text = std::fs::read_to_string(&log).ok()?;
            text.lines()
                .find_map(|l| l.strip_prefix("The shop is open: "))
                .map(|a| Ok(a.to_owned()))
        })
        .await??;
        let text = std::fs::read_to_string(&log)?;
        let operations = text.lines().find_map(|line| line.strip_prefix("For operators: "));
        let operations = operations.map(|url| url.trim_end_matches("/metrics").to_owned());
        Ok(Self { process, base, operations, log })
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Stops the process gracefully, and waits for its end.
    pub async fn close(self) -> Result<()> {
        self.process.terminate()?;
        eventually("the shop to close", async || (!self.process.is_running()).then_some(())).await
    }
}

/// Visits pages, buys two products, and waits for the receipt; each request goes to the next of
/// `bases`. Returns the order's path.
pub async fn journey(visitor: &mut Visitor, bases: &[&str], product: u64) -> Result<String> {
    let mut turn = bases.iter().cycle();
    let mut next = || *turn.next().unwrap();
    let page = visitor.get(next(), "/").await?;
    ensure!(
        page.status == 200 && page.body.contains("Classic oak bowl"),
        "the shelves: {}",
        page.status
    );
    let page = visitor.get(next(), "/?q=walnut&category=Desk").await?;
    ensure!(page.body.contains("walnut clock") && !page.body.contains("oak"), "a search");
    let page = visitor.get(next(), &format!("/products/{product}")).await?;
    ensure!(page.body.contains("in stock"), "product {product}: {}", page.status);
    let product = product.to_string();
    for pieces in ["Cart<span class=\"count\">1<", "Cart<span class=\"count\">2<"] {
        let page = visitor.post(next(), "/cart", &[("product", &product), ("add", "1")]).await?;
        let page = page.body.replace("Cart <", "Cart<").replace("Cart\n", "Cart");
        ensure!(page.contains(pieces), "the cart: {page}");
    }
    let page = visitor.get(next(), "/cart").await?;
    let token = field(&page.body, "token").context("a checkout form")?;
    let total = field(&page.body, "total").context("a total")?;
    let form = [("token", &*token), ("total", &*total), ("email", "ann@example.com")];
    let order = visitor.post(next(), "/checkout", &form).await?;
    ensure!(
        order.path.starts_with("/orders/") && order.body.contains("Order"),
        "checkout: {} {}",
        order.path,
        order.body
    );
    // Users see their own order at once, on every server and replica.
    let page = visitor.get(next(), &order.path).await?;
    ensure!(page.status == 200 && page.body.contains("2 ×"), "one's own order: {}", page.status);
    let list = visitor.get(next(), "/orders").await?;
    ensure!(list.body.contains(&order.path), "the list of orders");
    Ok(order.path)
}

pub async fn receipt(visitor: &mut Visitor, base: &str, path: &str) -> Result<String> {
    let client = visitor.clone();
    eventually("the receipt", async || {
        let page = client.clone().get(base, path).await.ok()?;
        page.body.contains("The receipt was sent").then_some(page.body)
    })
    .await
}
