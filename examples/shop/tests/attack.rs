//! Password guessing, tested on the shop: two hundred addresses at one account, one address at two
//! hundred accounts, and the owner in between; then the same through a real nginx and a real
//! HAProxy, by a client that forges addresses, rotates them, and floods.
#![allow(clippy::unwrap_used)]

mod common;

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use common::{Shop, Visitor};
use testkit::{Process, Redis, eventually};

const EMAIL: &str = "ann@example.com";
const PASSWORD: &str = "correct horse battery staple";
/// Limits that `scale_limit::guard::login` documents, over the time this test takes.
const OF_ONE_ACCOUNT: usize = 50;
const FROM_ONE_ADDRESS: usize = 30;

/// Returns whether the password was checked, and whether it was correct.
async fn try_in(
    visitor: &mut Visitor,
    shop: &Shop,
    email: &str,
    password: &str,
) -> Result<(bool, bool)> {
    try_at(visitor, &shop.base, email, password).await
}

async fn try_at(
    visitor: &mut Visitor,
    base: &str,
    email: &str,
    password: &str,
) -> Result<(bool, bool)> {
    let page = visitor.post(base, "/login", &[("email", email), ("password", password)]).await?;
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
    // Two web processes, one Redis for the limits; a proxy on this machine reports addresses. The
    // limit per address is switched off here, as all of the botnet's requests come through one
    // address of ours: this test is about the guard.
    std::fs::write(
        &config,
        format!(
            "plain_http = true\nlisten = \"127.0.0.1:0\"\n[clients]\ntrusted = [\"127.0.0.0/8\"]\n\
             header = \"x-forwarded-for\"\n[limit]\nurl = \"{}\"\n\
             site = {{ name = \"site\", quota = 10000, per = \"1s\" }}\n\
             login = {{ name = \"login\", quota = 10000, per = \"1s\" }}\n",
            redis.url()
        ),
    )?;
    let config = config.to_string_lossy().into_owned();
    let first = Shop::open_in(folder.path(), &["--config", &config]).await?;
    let second = Shop::open_in(folder.path(), &["--config", &config, "serve"]).await?;
    let shops = [&first, &second];

    // The owner's browser is known from an earlier log-in.
    let mut owner = Visitor::at("198.51.100.7");
    ensure!(
        try_in(&mut owner, &first, EMAIL, PASSWORD).await? == (true, true),
        "the owner logs in"
    );
    owner.post(&first.base, "/logout", &[]).await?;

    // Two hundred addresses, three guesses each, at either process.
    let began = std::time::Instant::now();
    let mut looked_at = 0;
    for n in 0..200 {
        let mut bot = Visitor::at(&format!("203.0.113.{n}"));
        for guess in 0..3 {
            let (looked, fitted) =
                try_in(&mut bot, shops[(n + guess) % 2], EMAIL, &format!("guess {n} {guess}"))
                    .await?;
            ensure!(!fitted, "a guess fitted");
            looked_at += usize::from(looked);
        }
        if n % 50 == 49 {
            ensure!(
                try_in(&mut owner, shops[n % 2], EMAIL, PASSWORD).await? == (true, true),
                "the owner after {n} bots"
            );
            owner.post(&first.base, "/logout", &[]).await?;
        }
    }
    // Fifty an hour; on a slow machine some units are refilled meanwhile.
    let flowed_back = began.elapsed().as_secs() as usize / 72;
    ensure!(
        (OF_ONE_ACCOUNT - 2..=OF_ONE_ACCOUNT + flowed_back).contains(&looked_at),
        "{looked_at} guesses at one account were checked"
    );
    // Even the correct password does not help a stranger now.
    let mut thief = Visitor::at("203.0.113.250");
    ensure!(
        try_in(&mut thief, &first, EMAIL, PASSWORD).await? == (false, false),
        "a stranger with the right password"
    );

    // One address, two hundred accounts.
    let mut sprayer = Visitor::at("192.0.2.1");
    let began = std::time::Instant::now();
    let mut looked_at = 0;
    for n in 0..200 {
        let (looked, _) =
            try_in(&mut sprayer, shops[n % 2], &format!("user{n}@example.com"), "password1")
                .await?;
        looked_at += usize::from(looked);
    }
    let most = FROM_ONE_ADDRESS + began.elapsed().as_secs() as usize / 30;
    ensure!(looked_at <= most, "{looked_at} guesses from one address were checked");
    ensure!(
        try_in(&mut owner, &second, EMAIL, PASSWORD).await? == (true, true),
        "the owner at the end"
    );

    // A client that forges addresses in headers does not come from our proxy: the shop uses the
    // last address, which the proxy wrote.
    let mut spoofer = Visitor::at("1.1.1.1, 192.0.2.1");
    ensure!(
        try_in(&mut spoofer, &first, "somebody@example.com", "x").await? == (false, false),
        "a spoofed header"
    );
    Ok(())
}

/// A proxy in front of a shop. It uses the header `x-test-client` as the address of a connection,
/// since the whole test runs on one machine, and reports that address to the shop in
/// `X-Forwarded-For`.
struct Front {
    base: String,
    _process: Process,
}

impl Front {
    async fn nginx(folder: &Path, shop: &Shop) -> Result<Self> {
        let port = free_port()?;
        let config = format!(
            "daemon off; worker_processes 1; pid nginx.pid; error_log stderr; events {{ \
             worker_connections 1024; }}\n\
             http {{ access_log off; client_body_temp_path b; proxy_temp_path p; fastcgi_temp_path \
             f; uwsgi_temp_path u; \
             scgi_temp_path s;\nserver {{ listen 127.0.0.1:{port}; set_real_ip_from 127.0.0.1; \
             real_ip_header X-Test-Client;\n\
             location / {{ proxy_pass {}; proxy_http_version 1.1; proxy_set_header Host \
             $http_host; \
             proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for; }} }} }}",
            shop.base
        );
        std::fs::write(folder.join("nginx.conf"), config)?;
        let mut command = Command::new("/usr/sbin/nginx");
        command.arg("-p").arg(folder).args(["-c", "nginx.conf"]);
        Self::opened(command, &folder.join("nginx.log"), port).await
    }

    async fn haproxy(folder: &Path, shop: &Shop) -> Result<Self> {
        let port = free_port()?;
        let config = format!(
            "defaults\n  mode http\n  timeout connect 2s\n  timeout client 30s\n  timeout server \
             30s\n\
             frontend f\n  bind 127.0.0.1:{port}\n  http-request \
             set-src req.hdr(x-test-client)\n  option forwardfor\n\
             default_backend b\nbackend b\n  server s {}\n",
            shop.base.trim_start_matches("http://")
        );
        std::fs::write(folder.join("haproxy.cfg"), config)?;
        let mut command = Command::new("/usr/sbin/haproxy");
        command.args(["-db", "-f"]).arg(folder.join("haproxy.cfg"));
        Self::opened(command, &folder.join("haproxy.log"), port).await
    }

    async fn opened(command: Command, log: &Path, port: u16) -> Result<Self> {
        let process = Process::spawn(&command, None, log)?;
        let listens =
            async || tokio::net::TcpStream::connect(("127.0.0.1", port)).await.ok().map(drop);
        eventually("a proxy to listen", listens).await.with_context(|| process.log_tail())?;
        Ok(Self { base: format!("http://127.0.0.1:{port}"), _process: process })
    }
}

fn free_port() -> Result<u16> {
    Ok(std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

/// Returns a visitor at an address, who forges another address in every header that proxies use.
fn liar(address: &str, lie: &str) -> Visitor {
    let mut visitor = Visitor::new();
    let quoted = if lie.contains(':') { format!("for=\"[{lie}]\"") } else { format!("for={lie}") };
    visitor.headers = vec![
        ("x-test-client", address.to_owned()),
        ("forwarded", quoted),
        ("x-forwarded-for", lie.to_owned()),
        ("x-real-ip", lie.to_owned()),
        ("cf-connecting-ip", lie.to_owned()),
        ("true-client-ip", lie.to_owned()),
    ];
    visitor
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn through_real_proxies_nobody_is_somebody_else() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let config = |url: &str, name: &str| -> Result<String> {
        let path = folder.path().join(name);
        let text = format!(
            "plain_http = true\nlisten = \"127.0.0.1:0\"\n[clients]\ntrusted = [\"127.0.0.1/32\"]\n\
             header = \"x-forwarded-for\"\n[limit]\n\
             url = \"{url}\"\nshed = false\nsite = {{ name = \"site\", quota = 100, per = \"100h\" \
             }}\n\
             login = {{ name = \"login\", quota = 10000, per = \"1s\" }}\n"
        );
        std::fs::write(&path, text)?;
        Ok(path.to_string_lossy().into_owned())
    };
    let redis = Redis::start().await?;
    let (memory, shared) =
        (config("memory:", "memory.toml")?, config(&redis.url(), "shared.toml")?);
    // One single server behind nginx, and one server of a fleet behind HAProxy.
    let first = Shop::open_in(folder.path(), &["--config", &memory]).await?;
    let second = Shop::open_in(folder.path(), &["--config", &shared, "serve"]).await?;
    for front in
        [Front::nginx(folder.path(), &first).await?, Front::haproxy(folder.path(), &second).await?]
    {
        // The site's limit: 100 in a hundred hours from one address, whatever its headers contain.
        let mut passed = 0;
        for n in 0..130 {
            let mut visitor = liar("203.0.113.1", &format!("9.9.{n}.9"));
            passed += usize::from(visitor.get(&front.base, "/nothing-here").await?.status == 404);
        }
        ensure!((100..=102).contains(&passed), "{}: {passed} requests of one address", front.base);
        // Log-ins: one address at many accounts.
        let tries =
            async |address: &dyn Fn(usize) -> String, name: &str, count: usize| -> Result<usize> {
                let mut looked_at = 0;
                for n in 0..count {
                    let lie = format!("2001:db8:ffff:{n:x}::1");
                    let mut visitor = liar(&address(n), &lie);
                    let (looked, _) = try_at(
                        &mut visitor,
                        &front.base,
                        &format!("{name}{n}@example.com"),
                        "password1",
                    )
                    .await?;
                    looked_at += usize::from(looked);
                }
                Ok(looked_at)
            };
        // The quota of fifteen minutes, and the units refilled meanwhile on a slow machine.
        let began = std::time::Instant::now();
        let allowed =
            |quota: f64| (quota + 1.0 + began.elapsed().as_secs_f64() * quota / 900.0) as usize;
        let one = tries(&|_| "192.0.2.1".into(), "sprayed", 45).await?;
        ensure!(
            one <= allowed(30.0),
            "{}: {one} log-ins from one address were checked",
            front.base
        );
        // A /56: 256 networks of one home.
        let rotated = tries(&|n| format!("2001:db8:1:{:x}::{n}", n % 256), "rotated", 90).await?;
        ensure!(
            rotated <= allowed(60.0),
            "{}: {rotated} log-ins of one /56 were checked",
            front.base
        );
        // A /48: 65,536 networks of one site, each /56 of it once or twice.
        let wide = tries(&|n| format!("2001:db8:2:{:x}::{n}", n * 256), "wide", 160).await?;
        ensure!(wide <= allowed(120.0), "{}: {wide} log-ins of one /48 were checked", front.base);
        // One IPv4 address in other notations: 6to4, and mapped.
        let written = tries(&|n| format!("2002:c000:201:{n:x}::1"), "written", 10).await?;
        ensure!(written <= 1, "{}: {written} more of an address in other notations", front.base);
        // A flood of five thousand other keys, meant to evict counters: a client that was denied
        // before is still denied.
        let mut tasks = tokio::task::JoinSet::new();
        for task in 0..8 {
            let base = front.base.clone();
            tasks.spawn(async move {
                let mut visitor = liar("", "9.9.9.9");
                for n in 0..625 {
                    visitor.headers[0].1 = format!("198.18.{}.{}", task * 8 + n / 250, n % 250);
                    visitor.get(&base, "/nothing-here").await?;
                }
                anyhow::Ok(())
            });
        }
        while let Some(done) = tasks.join_next().await {
            done??;
        }
        let again = liar("203.0.113.1", "9.9.9.9").get(&front.base, "/nothing-here").await?.status;
        ensure!(again == 429, "{}: {again} after the flood", front.base);
        let again = tries(&|_| "192.0.2.1".into(), "again", 3).await?;
        ensure!(again <= 1, "{}: {again} log-ins after the flood", front.base);
    }
    Ok(())
}

/// The owner at a new browser during a botnet's guessing: a link by e-mail signs in, and the
/// password works afterwards.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_owner_at_a_new_browser_gets_in_by_a_link() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let (config, database) = (folder.path().join("shop.toml"), folder.path().join("shop.db"));
    let url = format!("sqlite://{}?mode=rwc", database.display());
    let text = format!(
        "listen = \"127.0.0.1:0\"\nplain_http = true\norigin = \"http://localhost:3000\"\n\
         secret = \"{}\"\n\
         [clients]\ntrusted = [\"127.0.0.1/32\"]\nheader = \"x-forwarded-for\"\n\
         [database]\nurl = {url:?}\n[queue]\nurl = {url:?}\n[session]\nurl = {url:?}\n",
        "07".repeat(32)
    );
    std::fs::write(&config, text)?;
    let shop = Shop::open(folder.path(), &["--config", &config.to_string_lossy()]).await?;
    for n in 0..60 {
        let mut bot = Visitor::at(&format!("203.0.113.{n}"));
        try_in(&mut bot, &shop, EMAIL, &format!("guess {n}")).await?;
    }
    let mut owner = Visitor::at("198.51.100.7");
    let page =
        owner.post(&shop.base, "/login", &[("email", EMAIL), ("password", PASSWORD)]).await?;
    ensure!(
        page.status == 429 && page.body.contains("let us send you a link"),
        "{}: {}",
        page.status,
        page.body
    );
    owner.post(&shop.base, "/forgot", &[("email", EMAIL)]).await?;
    let pool = sqlx::SqlitePool::connect(&format!("sqlite://{}", database.display())).await?;
    let mail = async || {
        sqlx::query_scalar::<_, String>("select body from mails")
            .fetch_optional(&pool)
            .await
            .ok()
            .flatten()
    };
    let mail = eventually("the mail", mail).await?;
    let link = mail
        .lines()
        .find_map(|line| line.strip_prefix("http://localhost:3000"))
        .context("a link")?;
    let token = common::field(&owner.get(&shop.base, link).await?.body, "token")
        .context("the form has it")?;
    let new = "a password of the spring";
    owner.post(&shop.base, "/reset-password", &[("token", &token), ("password", new)]).await?;
    ensure!(
        try_in(&mut owner, &shop, EMAIL, new).await? == (true, true),
        "the owner, at a browser that is known now"
    );
    ensure!(
        try_in(&mut Visitor::at("203.0.113.250"), &shop, EMAIL, new).await? == (false, false),
        "a stranger, still"
    );
    pool.close().await;
    shop.close().await
}
