//! The dashboard in Chromium, with a real store.
#![cfg(all(feature = "dashboard", feature = "redis"))]
#![allow(clippy::unwrap_used)]

use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::Duration;

use anyhow::{Context as _, Result};
use fantoccini::key::Key;
use fantoccini::{Client, ClientBuilder, Locator};
use scale_queue::push::PushOptions;
use scale_queue::{Dashboard, Job, Queue, Retry, Scheduler, Worker};
use serde::{Deserialize, Serialize};
use serde_json::json;
use testkit::{Redis, eventually};
use tokio::net::TcpListener;
use tokio::process::{Child, Command};

#[derive(Serialize, Deserialize)]
struct Mail {
    to: String,
}

impl Job for Mail {
    const NAME: &'static str = "send-mail";
    const RETRY: Retry = Retry::never();
}

/// A browser and its driver, ended on drop.
struct Browser {
    client: Client,
    _driver: Child,
    _home: tempfile::TempDir,
}

impl Browser {
    async fn start() -> Result<Self> {
        Self::start_with(&[]).await
    }

    async fn start_with(more: &[&str]) -> Result<Self> {
        let port = TcpListener::bind("127.0.0.1:0").await?.local_addr()?.port();
        let mut driver = Command::new("chromedriver");
        driver
            .arg(format!("--port={port}"))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .kill_on_drop(true);
        let driver =
            driver.spawn().context("chromedriver: apt-get install chromium chromium-driver")?;
        let home = tempfile::tempdir()?;
        let arguments = [
            "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
            "--disable-background-networking", "--disable-component-update", "--disable-sync",
            "--window-size=1200,900",
        ];
        let mut arguments: Vec<String> = arguments.map(String::from).to_vec();
        arguments.extend(more.iter().map(ToString::to_string));
        arguments.push(format!("--user-data-dir={}", home.path().display()));
        let capabilities = json!({ "goog:chromeOptions": { "args": arguments } });
        let client = eventually("a browser", async || {
            let mut builder =
                ClientBuilder::new(hyper_util::client::legacy::connect::HttpConnector::new());
            builder.capabilities(capabilities.as_object()?.clone());
            builder.connect(&format!("http://127.0.0.1:{port}")).await.ok()
        })
        .await?;
        Ok(Self { client, _driver: driver, _home: home })
    }

    /// Runs a script repeatedly until it returns `true`.
    async fn until(&self, what: &str, script: &str) -> Result<()> {
        let script = format!("return Boolean({script})");
        let check =
            async || (self.client.execute(&script, Vec::new()).await.ok()? == true).then_some(());
        if let Err(error) = eventually(what, check).await {
            let text = self.client.execute("return document.body.innerText", Vec::new()).await?;
            return Err(error.context(
                text.as_str().unwrap_or_default().chars().take(2_000).collect::<String>(),
            ));
        }
        Ok(())
    }

    async fn number(&self, script: &str) -> Result<i64> {
        let value =
            self.client.execute(&format!("return Math.round({script})"), Vec::new()).await?;
        value.as_i64().with_context(|| format!("{script}: {value}"))
    }

    async fn press(&self, keys: &str) -> Result<()> {
        Ok(self.client.find(Locator::Css("body")).await?.send_keys(keys).await?)
    }

    /// Checks that nothing overflows to the right and that no number is wrapped.
    async fn fits(&self, width: u32) -> Result<()> {
        self.client.set_window_size(width, 900).await?;
        let wider = "document.documentElement.scrollWidth - document.documentElement.clientWidth";
        self.until(&format!("{width} px to fit"), &format!("{wider} <= 0"))
            .await
            .context(self.number(wider).await?)?;
        let broken = "[...document.querySelectorAll('.total b, #queues-rows td > a')].filter((n) \
            => n.getClientRects().length > 1).length";
        assert_eq!(self.number(broken).await?, 0, "numbers in two lines at {width} px");
        Ok(())
    }
}

async fn serve(queue: &Queue) -> Result<String> {
    let dashboard = Dashboard::new(queue).allow_changes(|_| true);
    let app = axum::Router::new().nest_service("/admin/queues", dashboard);
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let url = format!("http://{}/admin/queues", listener.local_addr()?);
    tokio::spawn(async move { axum::serve(listener, app).await });
    Ok(url)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_person_uses_the_dashboard() -> Result<()> {
    let (server, browser) = tokio::try_join!(Redis::start(), Browser::start())?;
    let queue = Queue::connect(&server.url(), "test").await?;
    let long = "a-queue-with-a-name-of-sixty-four-characters-as-long-as-it-can";
    for n in 0..50 {
        queue.push(Mail { to: format!("{n}@example.org") }).to(&format!("queue-{n}")).await?;
    }
    queue.push(Mail { to: "x".into() }).to(long).await?;
    queue.push_many((0..1_500).map(|n| Mail { to: format!("user{n}@example.org") })).await?;
    queue.push(Mail { to: "invoice\u{202e}gnp.exe".into() }).to("evil").await?;
    let fails = Arc::new(AtomicBool::new(true));
    let failing = Arc::clone(&fails);
    let worker = Worker::new(&queue).queues(["evil"]).keep_logs(Duration::from_hours(1));
    let worker = worker.keep_ended(100, Duration::from_hours(1));
    let worker = worker.handle(move |_: Mail, context: scale_queue::Context| {
        let fails = failing.load(SeqCst);
        async move {
            context.log("connects to <b>the server</b>");
            if fails { Err("<img src=x onerror=\"document.title='XSS'\">") } else { Ok(()) }
        }
    });
    let worker = tokio::spawn(worker.run(std::future::pending::<()>()));
    eventually("a death", async || (queue.stats("evil").await.ok()?.dead == 1).then_some(()))
        .await?;

    let url = serve(&queue).await?;
    let page = &browser.client;
    page.goto(&url).await?;
    browser
        .until("it to be live", "document.querySelector('#state').textContent.startsWith('Live')")
        .await?;
    browser
        .until("all queues", "document.querySelectorAll('#queues-rows tr').length === 53")
        .await?;
    for width in [1200, 768, 390] {
        browser.fits(width).await?;
    }
    // On a phone, the table is on the first screen.
    let top = browser
        .number("document.querySelector('#queues-rows').getBoundingClientRect().top + scrollY")
        .await?;
    assert!(top < 500, "the queues begin at {top} px");
    page.set_window_size(1200, 900).await?;

    browser.until("charts", "document.querySelectorAll('#charts canvas').length === 2").await?;

    // Live: a push appears by itself, also while a row has the keyboard focus.
    browser.press("jj").await?;
    let name = "document.activeElement.textContent";
    let focused = page.execute(&format!("return {name}"), Vec::new()).await?;
    assert!(focused.as_str().is_some_and(|name| !name.is_empty()), "{focused}");
    let waiting = "[...document.querySelectorAll('#queues-rows tr')].find((r) => \
        r.textContent.startsWith('default')).cells[1].textContent";
    browser.until("the count", &format!("{waiting} === '1,500'")).await?;
    queue.push(Mail { to: "one more".into() }).await?;
    browser.until("the new count", &format!("{waiting} === '1,501'")).await?;
    assert_eq!(
        page.execute(&format!("return {name}"), Vec::new()).await?,
        focused,
        "the keyboard stays where it was"
    );

    // Pause.
    let button = "[...document.querySelectorAll('#queues-rows tr')].find((r) => \
        r.textContent.startsWith('queue-7')).querySelector('button')";
    page.execute(&format!("{button}.click()"), Vec::new()).await?;
    eventually("the pause", async || queue.stats("queue-7").await.ok()?.paused.then_some(()))
        .await?;
    browser.until("it to show", &format!("{button}.textContent === 'Resume'")).await?;

    // Search.
    page.goto(&format!("{url}#jobs/default/waiting")).await?;
    browser.until("jobs", "document.querySelectorAll('#list details').length === 50").await?;
    browser.press("/").await?;
    page.active_element().await?.send_keys(&format!("user1234@{}", char::from(Key::Enter))).await?;
    browser
        .until("what was searched for", "document.querySelectorAll('#list details').length === 1")
        .await?;
    browser
        .until(
            "the one",
            "document.querySelector('#list pre').textContent.includes('user1234@example.org')",
        )
        .await?;
    browser.press(&char::from(Key::Escape).to_string()).await?;
    page.execute("document.activeElement.blur()", Vec::new()).await?;
    browser.press(&char::from(Key::Escape).to_string()).await?;
    browser.until("all queues again", "location.hash === '#queues'").await?;

    // Hostile text stays text, and characters that reverse the direction of writing are made
    // visible.
    page.goto(&format!("{url}#jobs/evil/dead")).await?;
    browser
        .until("the dead job", "document.querySelectorAll('#list details').length === 1")
        .await?;
    let text = "document.querySelector('#list').textContent";
    browser
        .until("the mark", &format!("{text}.includes('⟨U+202E⟩') && !{text}.includes('\\u202e')"))
        .await?;
    browser
        .until(
            "no script of others",
            "document.title === 'Queues' && document.querySelectorAll('#list img').length === 0",
        )
        .await?;
    page.execute("document.querySelector('#list details').open = true", Vec::new()).await?;
    let log = "document.querySelector('#list .log')?.textContent.includes('to <b>the server</b>')";
    browser.until("its log", log).await?;
    // Retry.
    fails.store(false, SeqCst);
    let again = "[...document.querySelectorAll('#list button')].find((b) => b.textContent === 'Try \
        again').click()";
    page.execute(again, Vec::new()).await?;
    eventually("it to be done", async || {
        (queue.stats("evil").await.ok()?.done_total == 1).then_some(())
    })
    .await?;

    // Ended jobs, by tag.
    queue.push(Mail { to: "tagged".into() }).tag("customer:7").to("evil").await?;
    let done = async |count: u64| {
        let done = async || (queue.stats("evil").await.ok()?.done_total == count).then_some(());
        eventually("it to be done", done).await
    };
    done(2).await?;
    page.goto(&format!("{url}#jobs/evil/ended/customer%3A7")).await?;
    let tag = "document.querySelector('#list .tag')?.textContent === 'customer:7'";
    browser.until("the ended job", tag).await?;

    // Edit and retry.
    fails.store(true, SeqCst);
    queue.push(Mail { to: "wrong".into() }).to("evil").await?;
    eventually("a death", async || (queue.stats("evil").await.ok()?.dead == 1).then_some(()))
        .await?;
    page.goto(&format!("{url}#jobs/evil/waiting")).await?;
    page.goto(&format!("{url}#jobs/evil/dead")).await?;
    browser.until("it", "document.querySelectorAll('#list details').length === 1").await?;
    let press = |label: &str| {
        format!(
            "[...document.querySelectorAll('main button')].find((b) => b.textContent === '{label}')\
             .click()",
        )
    };
    page.execute(&press("Edit"), Vec::new()).await?;
    browser.until("a field", "document.querySelector('#list textarea')").await?;
    let fill = |text: &str| format!("document.querySelector('#list textarea').value = '{text}'");
    page.execute(&fill("no JSON"), Vec::new()).await?;
    page.execute(&press("Save and try again"), Vec::new()).await?;
    browser
        .until("what is wrong", "document.querySelector('#state').textContent.includes('no JSON')")
        .await?;
    page.execute(&fill(r#"{"to":"right"}"#), Vec::new()).await?;
    fails.store(false, SeqCst);
    page.execute(&press("Save and try again"), Vec::new()).await?;
    done(3).await?;

    // A workflow is drawn; a job of it is retried, another cancelled.
    fails.store(true, SeqCst);
    let mail = |to: &str| Mail { to: to.into() }.with(PushOptions::new().to("evil"));
    let later = PushOptions::new().to("evil").delay(Duration::from_hours(1));
    let later = Mail { to: "c".into() }.with(later);
    let id = queue
        .workflow()
        .named("import.7")
        .job("read", mail("a"))
        .job("sort", mail("b"))
        .after(["read"])
        .job("late", later)
        .job("never", mail("d"))
        .after(["late"])
        .push()
        .await?;
    page.goto(&format!("{url}#batch/{id}")).await?;
    let row = |name: &str| {
        format!(
            "[...document.querySelectorAll('#batch-rows tr')].find((r) => \
             r.textContent.startsWith('{name}'))",
        )
    };
    let state = |name: &str, state: &str| {
        format!("{}?.querySelector('[data-label=State]').textContent === '{state}'", row(name))
    };
    browser.until("a death", &state("read", "dead")).await?;
    browser.until("what waits", &state("sort", "stuck")).await?;
    let drawn = "document.querySelectorAll('#batch-drawing .node').length === 4 && \
        document.querySelectorAll('#batch-drawing .edge').length === 2";
    browser.until("the drawing", drawn).await?;
    fails.store(false, SeqCst);
    page.execute(&format!("{}.querySelector('button').click()", row("read")), Vec::new()).await?;
    browser.until("it goes on", &state("sort", "done")).await?;
    page.execute(&format!("{}.querySelector('button').click()", row("never")), Vec::new()).await?;
    browser.until("it to be cancelled", &state("never", "dead")).await?;
    for width in [1200, 768, 390] {
        browser.fits(width).await?;
    }
    page.set_window_size(1200, 900).await?;

    // An unknown address shows the queues.
    page.goto(&format!("{url}#constructor")).await?;
    browser
        .until("the queues", "!document.querySelector('section[data-view=queues]').hidden")
        .await?;
    browser
        .until("still live", "document.querySelector('#state').textContent.startsWith('Live')")
        .await?;

    // An unreachable store is reported, with the time since when; so is its return.
    server.kill()?;
    browser
        .until(
            "the trouble",
            "!trouble_is_hidden()"
                .replace("trouble_is_hidden()", "document.querySelector('#trouble').hidden")
                .as_str(),
        )
        .await?;
    browser
        .until("since when", "document.querySelector('#trouble').textContent.includes('since')")
        .await?;
    server.restart().await?;
    browser.until("it to be over", "document.querySelector('#trouble').hidden").await?;
    worker.abort();
    browser.client.clone().close().await?;
    Ok(())
}

/// Screenshots of every page, for review: `SHOTS=folder cargo test -p scale-queue --all-features
/// --test browser`.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pictures_for_people() -> Result<()> {
    let Ok(folder) = std::env::var("SHOTS") else { return Ok(()) };
    let server = Redis::start().await?;
    let queue = Queue::connect(&server.url(), "test").await?;
    for n in 0..50_u64 {
        let jobs = (0..=n).map(|n| Mail { to: format!("{n}@example.org") });
        for job in jobs {
            queue.push(job).to(&format!("queue-{n}")).await?;
        }
    }
    queue
        .push(Mail { to: "x".into() })
        .to("a-queue-with-a-name-of-sixty-four-characters-as-long-as-it-can")
        .await?;
    queue.push_many((0..100_313).map(|n| Mail { to: format!("user{n}@example.org") })).await?;
    queue
        .batch()
        .named("newsletter")
        .jobs((0..500).map(|n| Mail { to: format!("reader{n}@example.org") }))
        .push()
        .await?;
    let mut nightly = queue.workflow().named("nightly").job("read", Mail { to: "user1".into() });
    for part in ["orders", "stock", "prices"] {
        nightly = nightly.job(part, Mail { to: format!("user2{part}") }).after(["read"]);
    }
    nightly
        .job("broken", Mail { to: "user7".into() })
        .after(["orders"])
        .job("report", Mail { to: "user3".into() })
        .after(["broken", "stock", "prices"])
        .push()
        .await?;
    let schedules = Scheduler::new(&queue)
        .every("ping", Duration::from_mins(1), || Mail { to: "ping@example.org".into() })?;
    tokio::spawn(schedules.run(std::future::pending::<()>()));
    let worker = Worker::new(&queue).concurrency(8).handle(|job: Mail| async move {
        tokio::time::sleep(Duration::from_millis(5)).await;
        if job.to.starts_with("user7") {
            Err(format!("550 5.1.1 no such mailbox: {}", job.to))
        } else {
            Ok(())
        }
    });
    let worker = tokio::spawn(worker.run(std::future::pending::<()>()));
    let url = serve(&queue).await?;
    for (mode, scheme) in [("light", "1"), ("dark", "0")] {
        let browser =
            Browser::start_with(&[&format!("--blink-settings=preferredColorScheme={scheme}")])
                .await?;
        browser.client.goto(&url).await?;
        browser.until("charts", "document.querySelectorAll('#charts canvas').length === 2").await?;
        let pages = [
            "queues", "jobs/default/waiting", "jobs/default/dead", "jobs/default/leased",
            "workers", "schedules", "batches", "batch/nightly", "batch/newsletter",
        ];
        for page in pages {
            browser.client.goto(&format!("{url}#{page}")).await?;
            for width in [390, 768, 1200] {
                browser.client.set_window_size(width, 900).await?;
                tokio::time::sleep(Duration::from_millis(2_500)).await;
                let file = format!("{folder}/{mode}-{}-{width}.png", page.replace('/', "-"));
                std::fs::write(file, browser.client.screenshot().await?)?;
            }
        }
        browser.client.clone().close().await?;
    }
    worker.abort();
    Ok(())
}
