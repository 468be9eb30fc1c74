//! One visitor: cookies, pages, forms.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use http_body_util::Full;
use hyper::body::Bytes;
use hyper::header::{CONTENT_TYPE, COOKIE, HOST, LOCATION, SET_COOKIE};
use hyper::{Method, Request, StatusCode};
use tokio::time::Instant;

use super::client::{Answer, Client};
use super::mix::Mix;
use super::report::{Kind, Tally};
use crate::fleet::STAFF;

/// Products of the sample catalogue, numbered from 1.
const PRODUCTS: i64 = 2_400;
const CATEGORIES: [&str; 5] = ["Kitchen", "Living", "Bath", "Garden", "Desk"];
const WORDS: [&str; 12] = [
    "oak", "walnut", "linen", "wool", "copper", "brass", "glass", "cork", "bowl", "lamp", "clock",
    "classic",
];

pub(crate) struct Visitor {
    cookies: BTreeMap<String, String>,
    random: fastrand::Rng,
}

/// A purchase, as far as it came.
pub(crate) struct Purchase {
    /// Path of the order, if it was acknowledged.
    pub(crate) order: Option<String>,
    /// Page with the list of the visitor's orders, if there was one.
    pub(crate) list: Option<String>,
    pub(crate) requests: u64,
    pub(crate) failures: u64,
}

/// A request, and what its answer should be.
struct Step<'a> {
    kind: Kind,
    path: &'a str,
    form: Option<String>,
    expected: StatusCode,
}

impl Visitor {
    pub(crate) fn new(seed: u64) -> Self {
        Self { cookies: BTreeMap::new(), random: fastrand::Rng::with_seed(seed) }
    }

    /// Does one visit. Its first request counts from the moment at which it was due.
    pub(super) async fn act(
        &mut self,
        client: &mut Client,
        what: Mix,
        password: &str,
        due: Instant,
        tally: &mut Tally,
    ) {
        match what {
            Mix::Browse => {
                let path = match self.random.u8(..100) {
                    0..25 => "/".to_owned(),
                    25..40 => format!("/?category={}", self.any(&CATEGORIES)),
                    40..50 => format!("/?after={}", 24 * self.random.i64(1..PRODUCTS / 24)),
                    _ => format!("/products/{}", self.product()),
                };
                self.get(client, Kind::Browse, &path, due, tally).await;
            }
            Mix::Search => {
                let path = match self.random.u8(..3) {
                    0 => format!("/?q={}", self.any(&WORDS)),
                    1 => format!("/?q={}+{}", self.any(&WORDS), self.any(&WORDS)),
                    _ => format!("/?q={}&category={}", self.any(&WORDS), self.any(&CATEGORIES)),
                };
                self.get(client, Kind::Search, &path, due, tally).await;
            }
            Mix::Cart if self.random.bool() => {
                self.get(client, Kind::Cart, "/cart", due, tally).await;
            }
            Mix::Cart => drop(self.add(client, due, tally).await),
            Mix::Purchase => drop(self.buy(client, due, tally).await),
            Mix::Staff => {
                let path = match self.random.u8(..4) {
                    0 => "/admin/orders".to_owned(),
                    1 => format!("/admin/products?after={}", self.product()),
                    2 => format!("/admin/products/{}", self.product()),
                    _ => "/admin/queues/api/queues".to_owned(),
                };
                self.get(client, Kind::Staff, &path, due, tally).await;
            }
            Mix::LogIn => {
                self.cookies.clear();
                let form = form(&[("email", STAFF), ("password", password)]);
                let step = Step {
                    kind: Kind::LogIn,
                    path: "/login",
                    form: Some(form),
                    expected: StatusCode::SEE_OTHER,
                };
                let _ = self.step(client, step, due, tally).await;
            }
        }
    }

    /// Puts something into the cart, which makes a session; not measured.
    pub(super) async fn put_into_cart(&mut self, client: &mut Client) -> Result<()> {
        self.add(client, Instant::now(), &mut Tally::default()).await.map(drop)
    }

    /// Logs in; not measured.
    pub(super) async fn log_in(
        &mut self,
        client: &mut Client,
        email: &str,
        password: &str,
    ) -> Result<()> {
        let form = form(&[("email", email), ("password", password)]);
        let step = Step {
            kind: Kind::LogIn,
            path: "/login",
            form: Some(form),
            expected: StatusCode::SEE_OTHER,
        };
        self.step(client, step, Instant::now(), &mut Tally::default()).await.map(drop)
    }

    async fn get(
        &mut self,
        client: &mut Client,
        kind: Kind,
        path: &str,
        due: Instant,
        tally: &mut Tally,
    ) {
        let step = Step { kind, path, form: None, expected: StatusCode::OK };
        let _ = self.step(client, step, due, tally).await;
    }

    async fn add(&mut self, client: &mut Client, due: Instant, tally: &mut Tally) -> Result<()> {
        let product = self.product().to_string();
        let form = form(&[("product", &product), ("add", "1")]);
        let step = Step {
            kind: Kind::Cart,
            path: "/cart",
            form: Some(form),
            expected: StatusCode::SEE_OTHER,
        };
        self.step(client, step, due, tally).await.map(drop)
    }

    /// Buys something, and looks at the list of orders.
    pub(crate) async fn purchase(&mut self, client: &mut Client) -> Purchase {
        let mut tally = Tally::default();
        let order = self.buy(client, Instant::now(), &mut tally).await.ok();
        let step =
            Step { kind: Kind::Browse, path: "/orders", form: None, expected: StatusCode::OK };
        let list = self.step(client, step, Instant::now(), &mut tally).await.ok();
        let list = list.map(|answer| String::from_utf8_lossy(&answer.body).into_owned());
        Purchase { order, list, requests: tally.requests(), failures: tally.failures() }
    }

    /// Buys what is in the cart, and one thing more; returns the order's path.
    async fn buy(
        &mut self,
        client: &mut Client,
        due: Instant,
        tally: &mut Tally,
    ) -> Result<String> {
        self.add(client, due, tally).await?;
        let step = Step { kind: Kind::Cart, path: "/cart", form: None, expected: StatusCode::OK };
        let cart = self.step(client, step, Instant::now(), tally).await?;
        let page = String::from_utf8_lossy(&cart.body).into_owned();
        let (token, total) = (field(&page, "token")?, field(&page, "total")?);
        let form = form(&[("token", token), ("total", total), ("email", "ann@example.com")]);
        let step = Step {
            kind: Kind::Checkout,
            path: "/checkout",
            form: Some(form),
            expected: StatusCode::SEE_OTHER,
        };
        let placed = self.step(client, step, Instant::now(), tally).await?;
        let order = placed.headers.get(LOCATION).context("no order")?.to_str()?.to_owned();
        self.get(client, Kind::Browse, &order, Instant::now(), tally).await;
        Ok(order)
    }

    async fn step(
        &mut self,
        client: &mut Client,
        step: Step<'_>,
        due: Instant,
        tally: &mut Tally,
    ) -> Result<Answer> {
        let answer = self.ask(client, &step).await;
        tally.record(step.kind, due.elapsed(), answer.as_ref().err());
        answer
    }

    async fn ask(&mut self, client: &mut Client, step: &Step<'_>) -> Result<Answer> {
        let method = if step.form.is_some() { Method::POST } else { Method::GET };
        let mut request = Request::builder().method(method).uri(step.path).header(HOST, "shop");
        if !self.cookies.is_empty() {
            let pairs: Vec<_> = self.cookies.iter().map(|(k, v)| format!("{k}={v}")).collect();
            request = request.header(COOKIE, pairs.join("; "));
        }
        if step.form.is_some() {
            request = request.header(CONTENT_TYPE, "application/x-www-form-urlencoded");
        }
        let body = step.form.clone().map_or_else(Bytes::new, Bytes::from);
        let answer = client.send(request.body(Full::new(body))?).await?;
        for cookie in answer.headers.get_all(SET_COOKIE) {
            let pair = cookie.to_str()?.split(';').next().and_then(|pair| pair.split_once('='));
            let (name, value) = pair.context("a cookie without a value")?;
            self.cookies.insert(name.to_owned(), value.to_owned());
        }
        ensure!(answer.status == step.expected, "{} {}", step.kind.name(), answer.status);
        Ok(answer)
    }

    fn product(&mut self) -> i64 {
        self.random.i64(1..=PRODUCTS)
    }

    fn any(&mut self, words: &[&'static str]) -> &'static str {
        words[self.random.usize(..words.len())]
    }
}

/// Returns the value of a field in a page's form.
fn field<'a>(page: &'a str, name: &str) -> Result<&'a str> {
    let (_, rest) = page
        .split_once(&format!("name=\"{name}\" value=\""))
        .with_context(|| format!("no field {name}"))?;
    rest.split('"').next().context("a field without an end")
}

fn form(fields: &[(&str, &str)]) -> String {
    let pairs =
        fields.iter().map(|(name, value)| format!("{name}={}", crate::pages::percent(value)));
    pairs.collect::<Vec<_>>().join("&")
}
