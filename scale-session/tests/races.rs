//! Two server processes, one Redis, and a client whose requests are under way at both while it logs
//! out or its session gets a new id.
//!
//! `RACES=100000 cargo test --release -p scale-session --all-features --test races` for a long run.
#![cfg(feature = "redis")]
#![allow(clippy::print_stdout, clippy::unwrap_used)]

mod common;

use std::io::{BufRead, BufReader};
use std::process::Child;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use common::{Action, action, send};
use scale_session::{Config, SessionLayer};
use testkit::{Redis, helper};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufStream};
use tokio::net::{TcpListener, TcpStream};

/// Concurrent races.
const AT_ONCE: usize = 8;
const GRACE: Duration = Duration::from_secs(2);

/// Runs a request: `action field value`.
fn handler(words: &[String]) -> Action {
    let [act, field, value] = words else { panic!("a request has three words") };
    let (act, field, value) = (act.clone(), field.clone(), value.clone());
    action(move |session| {
        let (act, field, value) = (act.clone(), field.clone(), value.clone());
        async move {
            match act.as_str() {
                "login" => session.sign_in(&value, "browser").await?,
                "logout" => session.destroy().await?,
                "rotate" => session.rotate().await?,
                "write" | "slow" => {
                    let signed_in = session.user().await?.is_some();
                    if act == "slow" {
                        tokio::time::sleep(Duration::from_micros(fastrand::u64(..1_500))).await;
                    }
                    // As a real handler: without a user nothing is written.
                    if signed_in {
                        session.insert(&field, &value).await?;
                    }
                }
                _ => {}
            }
            let user = session.user().await?.unwrap_or_else(|| "nobody".into());
            let found = session.get::<String>(&field).await?.unwrap_or_else(|| "none".into());
            Ok(format!("{user} {found}"))
        }
    })
}

/// One line a request: its cookie or `-`, and three words. One line a response: its status, the
/// cookie set, `cleared` or `-`, and the body.
async fn serve(layer: Arc<SessionLayer>, stream: TcpStream) -> Result<()> {
    let mut stream = BufStream::new(stream);
    let mut line = String::new();
    while stream.read_line(&mut line).await? > 0 {
        let mut words = line.split_whitespace().map(str::to_owned);
        let cookie = words.next().filter(|cookie| cookie != "-");
        let words: Vec<String> = words.collect();
        let (status, body, set) = send(&layer, cookie.as_deref(), handler(&words)).await;
        let set = set
            .map_or_else(|| "-".into(), |set| if set.is_empty() { "cleared".into() } else { set });
        stream.write_all(format!("{} {set} {body}\n", status.as_u16()).as_bytes()).await?;
        stream.flush().await?;
        line.clear();
    }
    Ok(())
}

#[test]
fn helper_that_is_a_server() -> Result<()> {
    let Ok(url) = std::env::var("RACES_REDIS") else { return Ok(()) };
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
        let layer = Arc::new(
            SessionLayer::connect(&url, "races", Config::default().rotation_grace(GRACE)).await?,
        );
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        println!("\nport {}", listener.local_addr()?.port());
        loop {
            let (stream, _) = listener.accept().await?;
            stream.set_nodelay(true)?;
            tokio::spawn(serve(Arc::clone(&layer), stream));
        }
    })
}

struct Server {
    child: Child,
    port: u16,
}

impl Server {
    fn start(redis: &Redis) -> Result<Self> {
        let mut child =
            helper("helper_that_is_a_server")?.env("RACES_REDIS", redis.url()).spawn()?;
        let output = BufReader::new(child.stdout.take().context("its output")?);
        let mut lines = output.lines().map_while(Result::ok);
        let port = lines.find_map(|line| line.strip_prefix("port ")?.parse().ok());
        // The output is read until its end: the test harness reports slow tests, and a server that
        // cannot write exits.
        std::thread::spawn(move || lines.for_each(drop));
        Ok(Self { child, port: port.context("a server that did not start")? })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Response to a request.
#[derive(Debug)]
struct Answer {
    status: u16,
    /// Cookie that the response set.
    cookie: Option<String>,
    user: String,
    found: String,
}

/// Connections to one server, each for one request at a time.
struct Client {
    port: u16,
    idle: parking_lot::Mutex<Vec<BufStream<TcpStream>>>,
}

impl Client {
    async fn ask(&self, cookie: &str, act: &str, field: &str, value: &str) -> Result<Answer> {
        let idle = self.idle.lock().pop();
        let mut stream = if let Some(stream) = idle {
            stream
        } else {
            let stream = TcpStream::connect(("127.0.0.1", self.port)).await?;
            stream.set_nodelay(true)?;
            BufStream::new(stream)
        };
        stream.write_all(format!("{cookie} {act} {field} {value}\n").as_bytes()).await?;
        stream.flush().await?;
        let mut line = String::new();
        stream.read_line(&mut line).await?;
        self.idle.lock().push(stream);
        let mut words = line.split_whitespace().map(str::to_owned);
        let (status, set) =
            (words.next().context("a status")?.parse()?, words.next().context("a cookie")?);
        let cookie = (set != "-" && set != "cleared").then_some(set);
        Ok(Answer {
            status,
            cookie,
            user: words.next().unwrap_or_default(),
            found: words.collect::<Vec<_>>().join(" "),
        })
    }
}

struct Races {
    servers: [Client; 2],
    /// Number of requests in all races.
    requests: AtomicUsize,
}

impl Races {
    /// Sends a request to one of the two servers.
    async fn ask(&self, cookie: &str, act: &str, field: &str, value: &str) -> Result<Answer> {
        self.requests.fetch_add(1, SeqCst);
        let answer = self.servers[fastrand::usize(..2)].ask(cookie, act, field, value).await?;
        ensure!(answer.status == 200, "{act}: {answer:?}");
        Ok(answer)
    }

    async fn login(&self, user: &str) -> Result<String> {
        self.ask("-", "login", "-", user).await?.cookie.context("a cookie")
    }

    /// Reads and slow writes are under way at both servers when the client logs out: no data comes
    /// back.
    async fn logout(&self, number: usize) -> Result<()> {
        let user = format!("user-{number}");
        let cookie = self.login(&user).await?;
        let under_way = async |act| {
            let answer = self.ask(&cookie, act, "a", "1").await?;
            ensure!(answer.user == user || answer.user == "nobody", "{act}: {answer:?}");
            ensure!(answer.cookie.is_none(), "{act} during a logout set a cookie: {answer:?}");
            anyhow::Ok(())
        };
        let logout = async {
            tokio::time::sleep(Duration::from_micros(fastrand::u64(..1_500))).await;
            self.ask(&cookie, "logout", "-", "-").await?;
            // Begun after the logout was answered, while others are still under way.
            for _ in 0..2 {
                let answer = self.ask(&cookie, "read", "a", "-").await?;
                ensure!(
                    answer.user == "nobody" && answer.found == "none",
                    "after the logout: {answer:?}"
                );
            }
            anyhow::Ok(())
        };
        tokio::try_join!(
            under_way("slow"),
            under_way("slow"),
            under_way("write"),
            under_way("read"),
            logout
        )?;
        for act in ["read", "write"] {
            let answer = self.ask(&cookie, act, "a", "2").await?;
            ensure!(answer.user == "nobody", "it came back: {answer:?}");
        }
        Ok(())
    }

    /// Writes are under way at both servers when the session gets a new id: no write is lost, and
    /// no write is undone by an older one.
    async fn rotation(&self, number: usize) -> Result<()> {
        let user = format!("user-{number}");
        let old = self.login(&user).await?;
        let write = async |act, field, value| {
            let answer = self.ask(&old, act, field, value).await?;
            ensure!(answer.user == user, "{act} during a rotation: {answer:?}");
            anyhow::Ok(())
        };
        let one_after_the_other = async {
            for value in ["1", "2", "3"] {
                write("write", "c", value).await?;
                let answer = self.ask(&old, "read", "c", "-").await?;
                ensure!(answer.found == value, "a stale read: {answer:?} instead of {value}");
            }
            anyhow::Ok(())
        };
        let rotate = async {
            tokio::time::sleep(Duration::from_micros(fastrand::u64(..1_500))).await;
            self.ask(&old, "rotate", "-", "-").await?.cookie.context("a new cookie")
        };
        let (.., new) = tokio::try_join!(
            write("slow", "a", "1"),
            write("write", "b", "1"),
            one_after_the_other,
            rotate
        )?;
        ensure!(new != old, "the same id");
        for (field, value) in [("a", "1"), ("b", "1"), ("c", "3")] {
            let answer = self.ask(&new, "read", field, "-").await?;
            ensure!(
                answer.user == user && answer.found == value,
                "{field} after a rotation: {answer:?}"
            );
        }
        // A logout with the old id also ends the session of the new id.
        if number.is_multiple_of(3) {
            self.ask(&old, "logout", "-", "-").await?;
            for cookie in [&old, &new] {
                let answer = self.ask(cookie, "read", "a", "-").await?;
                ensure!(answer.user == "nobody", "after a logout by the old id: {answer:?}");
            }
        }
        Ok(())
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_comes_back_and_nothing_is_lost() -> Result<()> {
    let races: usize = std::env::var("RACES").ok().and_then(|n| n.parse().ok()).unwrap_or(10_000);
    let redis = Redis::start_with(&["--appendonly", "no"]).await?;
    let servers = [Server::start(&redis)?, Server::start(&redis)?];
    let clients =
        [0, 1].map(|n| Client { port: servers[n].port, idle: parking_lot::Mutex::default() });
    let all = Arc::new(Races { servers: clients, requests: AtomicUsize::new(0) });
    let next = Arc::new(AtomicUsize::new(0));
    let tasks: Vec<_> = (0..AT_ONCE)
        .map(|_| {
            let (all, next) = (Arc::clone(&all), Arc::clone(&next));
            tokio::spawn(async move {
                loop {
                    let number = next.fetch_add(1, SeqCst);
                    if number >= races {
                        return anyhow::Ok(());
                    }
                    if number.is_multiple_of(2) {
                        all.logout(number).await?;
                    } else {
                        all.rotation(number).await?;
                    }
                }
            })
        })
        .collect();
    for task in tasks {
        task.await??;
    }
    println!(
        "{races} races, {} requests: nothing came back, nothing was lost",
        all.requests.load(SeqCst)
    );
    Ok(())
}
