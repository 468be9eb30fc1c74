//! Requests per second of actix-session on Redis, in process: two threads for two cores, each with
//! its own service, as usual for actix.

use std::cell::Cell;
use std::time::Instant;

use actix_session::storage::RedisSessionStore;
use actix_session::{Session, SessionMiddleware};
use actix_web::cookie::{Cookie, Key};
use actix_web::{App, test, web};
use anyhow::{Context, Result, ensure};
use futures_util::stream::{StreamExt, iter};

const SESSIONS: usize = 1_000;
const TASKS: usize = 200;
const THREADS: usize = 2;

async fn untouched() -> &'static str {
    "hello"
}

async fn read(session: Session) -> String {
    session.get::<String>("user").ok().flatten().unwrap_or_default()
}

/// Returns a value that differs at each write.
fn next() -> String {
    thread_local!(static COUNT: Cell<u64> = const { Cell::new(0) });
    format!("{:030}", COUNT.replace(COUNT.get() + 1))
}

async fn write(session: Session) -> String {
    let seen: Option<String> = session.get("last").ok().flatten();
    let wrote = session.insert("last", next()).is_ok();
    if wrote { seen.unwrap_or_default() } else { String::new() }
}

async fn begin(session: Session) -> &'static str {
    let _ = session.insert("user", "somebody@example.org");
    let _ = session.insert("theme", "dark");
    let _ = session.insert("last", next());
    "begun"
}

/// Runs this thread's share of the requests. Returns seconds.
#[actix_web::main]
async fn share(case: &str, port: u16, count: usize) -> Result<f64> {
    let store = RedisSessionStore::new(format!("redis://127.0.0.1:{port}")).await?;
    let app = App::new()
        .wrap(SessionMiddleware::new(store, Key::from(&[7; 64])))
        .route("/untouched", web::get().to(untouched))
        .route("/read", web::get().to(read))
        .route("/write", web::get().to(write))
        .route("/begin", web::get().to(begin));
    let app = test::init_service(app).await;
    let mut cookies: Vec<Cookie<'static>> = Vec::with_capacity(SESSIONS / THREADS);
    for _ in 0..SESSIONS / THREADS {
        let response = test::call_service(
            &app, test::TestRequest::get().uri("/begin").to_request(),
        ).await;
        cookies.push(
            response.response().cookies().next().context("no cookie was set")?.into_owned()
        );
    }
    let (app, cookies, uri) = (&app, &cookies, &format!("/{case}"));
    let tasks = if case == "untouched" { 1 } else { TASKS / THREADS };
    let start = Instant::now();
    let one = async |n: usize| {
        let request = test::TestRequest::get()
            .uri(uri)
            .cookie(cookies[(n * 7_919) % cookies.len()].clone())
            .to_request();
        let body = test::call_and_read_body(app, request).await;
        ensure!(!body.is_empty(), "the session was not found");
        Ok(())
    };
    let mut running = iter(0..count / THREADS).map(one).buffer_unordered(tasks);
    while let Some(done) = running.next().await {
        done?;
    }
    Ok(start.elapsed().as_secs_f64())
}

/// Returns requests per second of all threads.
pub fn run(case: &str, port: u16, count: usize) -> Result<f64> {
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..THREADS)
            .map(|_| scope.spawn(move || share(case, port, count)))
            .collect();
        let mut longest = 0_f64;
        for thread in threads {
            let took = thread.join().map_err(|_| anyhow::anyhow!("a thread died"))??;
            longest = longest.max(took);
        }
        Ok(count as f64 / longest)
    })
}
