//! The same shop on both tiers, as users see it: over HTTP.
#![allow(clippy::unwrap_used)]

mod common;

use std::path::Path;

use anyhow::{Context, Result};
use common::{NO_LIMIT, Shop, Visitor, fleet, journey, laptop, receipt, start};
use futures_util::future::try_join_all;
use testkit::{MariaDb, Postgres, Redis, eventually};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn on_a_laptop() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let config = laptop(folder.path())?;
    let shop = Shop::open(folder.path(), &["--config", &config]).await?;
    let base = shop.base.clone();

    let requests: usize = try_join_all((0..20).map(|n| {
        let base = base.clone();
        async move {
            let mut visitor = Visitor::new();
            for round in 0..3 {
                let path = journey(&mut visitor, &[&base], 1 + n * 3 + round).await?;
                receipt(&mut visitor, &base, &path).await?;
            }
            anyhow::Ok(visitor.requests)
        }
    }))
    .await?
    .into_iter()
    .sum();
    assert!(requests >= 600, "{requests} requests");

    // An account's orders remain after a restart.
    let mut ann = Visitor::new();
    let form = [("email", "ann@example.com"), ("password", "correct horse battery staple")];
    assert!(ann.post(&base, "/login", &form).await?.body.contains("Ann · log out"));
    // Rights are those of the account, not of everybody who is logged in.
    common::account(&config, "bob@example.com", "customer", "another good password")?;
    let bobs = [("email", "bob@example.com"), ("password", "another good password")];
    let mut bob = Visitor::new();
    assert!(bob.post(&base, "/login", &bobs).await?.body.contains("log out"));
    for (visitor, status) in [(&mut ann, 200), (&mut bob, 404), (&mut Visitor::new(), 404)] {
        assert_eq!(visitor.get(&base, "/admin/queues/").await?.status, status);
    }
    let order = journey(&mut ann, &[&base], 200).await?;
    shop.close().await?;
    let shop = Shop::open(folder.path(), &["--config", &config]).await?;
    // Still logged in, and in another browser after a log-in there.
    assert!(ann.get(&shop.base, "/orders").await?.body.contains("Ann · log out"));
    let mut before = ann;
    let mut ann = Visitor::new();
    ann.post(&shop.base, "/login", &form).await?;
    assert!(ann.get(&shop.base, "/orders").await?.body.contains(&order));

    // Both are devices of hers, until one logs the other out.
    let devices = ann.get(&shop.base, "/devices").await?;
    assert!(
        devices.body.contains("this one") && devices.body.contains("everywhere else"),
        "{}",
        devices.body
    );
    assert_eq!(ann.post(&shop.base, "/devices", &[("end", "made up")]).await?.status, 404);
    let devices = ann.post(&shop.base, "/devices", &[("end", "others")]).await?;
    assert!(!devices.body.contains("everywhere else"));
    let log_in = before.get(&shop.base, "/devices").await?;
    assert_eq!(log_in.path, "/login?next=%2Fdevices");
    assert!(log_in.body.contains("name=\"next\" value=\"/devices\""), "{}", log_in.body);
    assert!(before.get(&shop.base, "/orders").await?.body.contains("Log in"));
    assert!(ann.get(&shop.base, "/orders").await?.body.contains("Ann · log out"));

    // Another user's order is not found.
    assert_eq!(Visitor::new().get(&shop.base, &order).await?.status, 404);
    shop.close().await
}

/// Tests the files of `config/`, with other addresses: one server with a database of its own.
async fn on_one_server(file: &str, placeholder: &str, url: &str) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let config = folder.path().join("server.toml");
    let text =
        std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("config").join(file))?;
    assert!(text.contains(placeholder), "{text}");
    let text = text.replace(placeholder, url).replace("127.0.0.1:3000", "127.0.0.1:0");
    let mails = folder.path().join("mails");
    let smtp = "smtp = \"smtp://localhost\"";
    assert!(text.contains(smtp), "{text}");
    let text = text.replace(smtp, &format!("folder = \"{}\"", mails.display()));
    let (head, tables) = text.split_once("[database]").context("a database")?;
    let extra = format!(
        "plain_http = true\norigin = \"http://localhost:3000\"\nsecret = \"{}\"\n[database]",
        "07".repeat(32)
    );
    std::fs::write(&config, format!("{head}{extra}{tables}{NO_LIMIT}"))?;
    let config = config.display().to_string();
    let (seed, _) = start(folder.path(), &["--config", &config, "seed"])?;
    eventually("the seed", async || (!seed.is_running()).then_some(())).await?;
    common::account(&config, "Ann@example.com", "staff", "correct horse battery staple")?;
    let shop = Shop::open(folder.path(), &["--config", &config]).await?;
    let base = shop.base.clone();
    let login = Visitor::new().get(&base, "/login").await?.body;
    assert!(!login.contains("To try it"), "no known password on a server: {login}");
    let visits = (0..8).map(|n| {
        let base = base.clone();
        async move {
            let mut visitor = Visitor::new();
            let path = journey(&mut visitor, &[&base], 1 + n).await?;
            receipt(&mut visitor, &base, &path).await.map(drop)
        }
    });
    try_join_all(visits).await.with_context(|| shop.log())?;
    let mails = std::fs::read_dir(&mails)?.map(|file| std::fs::read_to_string(file?.path()));
    let mails = mails.collect::<Result<Vec<_>, _>>()?;
    assert_eq!(mails.len(), 8, "a receipt for each order");
    for mail in &mails {
        for line in [
            " <shop@example.com>\r\n", "To: ann@example.com\r\n", "Message-ID: <order-",
            "Subject: Your order ",
        ] {
            assert!(mail.contains(line), "{line}: {mail}");
        }
    }
    let form = [("email", "ann@example.com"), ("password", "correct horse battery staple")];
    let mut ann = Visitor::new();
    assert!(ann.post(&base, "/login", &form).await?.body.contains("Ann · log out"));
    let order = journey(&mut ann, &[&base], 200).await?;
    shop.close().await?;
    let shop = Shop::open(folder.path(), &["--config", &config]).await?;
    assert!(
        ann.get(&shop.base, "/orders").await?.body.contains("Ann · log out"),
        "still logged in"
    );
    assert!(ann.get(&shop.base, "/orders").await?.body.contains(&order));
    let devices = ann.get(&shop.base, "/devices").await?;
    assert!(devices.body.contains("this one"), "{}", devices.body);
    shop.close().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn on_one_server_with_postgres() -> Result<()> {
    let server = Postgres::start(0).await?;
    on_one_server("one-server.toml", "postgres://shop@localhost/shop", &server.node(0).url()).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn on_one_server_with_mariadb() -> Result<()> {
    let server = MariaDb::start(0).await?;
    on_one_server("one-server-mariadb.toml", "mysql://shop@localhost/shop", &server.node(0).url())
        .await
}

/// A forgotten password: the link in the mail works once, even if a mail scanner has opened it
/// before, and ends the sessions of the old password.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_forgotten_password() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let config = laptop(folder.path())?;
    let shop = Shop::open(folder.path(), &["--config", &config]).await?;
    let log_in = async |password: &str| -> Result<Visitor> {
        let mut visitor = Visitor::new();
        visitor
            .post(&shop.base, "/login", &[("email", "ann@example.com"), ("password", password)])
            .await?;
        Ok(visitor)
    };
    let mut thief = log_in("correct horse battery staple").await?;
    let mut ann = Visitor::new();
    let known = ann.post(&shop.base, "/forgot", &[("email", "Ann@example.com ")]).await?;
    let unknown =
        Visitor::new().post(&shop.base, "/forgot", &[("email", "nobody@example.com")]).await?;
    assert_eq!(
        (known.status, known.body),
        (unknown.status, unknown.body),
        "an unknown address looks the same"
    );
    let pool =
        sqlx::SqlitePool::connect(&format!("sqlite://{}", folder.path().join("shop.db").display()))
            .await?;
    let mails = async || {
        sqlx::query_as::<_, (String, String)>("select address, body from mails order by id")
            .fetch_all(&pool)
            .await
    };
    let sent =
        eventually("the mail", async || mails().await.ok().filter(|mails| !mails.is_empty()))
            .await?;
    assert_eq!(sent[0].0, "ann@example.com");
    let link = sent[0]
        .1
        .lines()
        .find_map(|line| line.strip_prefix("http://localhost:3000"))
        .context("a link")?;
    // A mail scanner.
    for _ in 0..3 {
        assert_eq!(Visitor::new().get(&shop.base, link).await?.status, 200);
    }
    let token = common::field(&ann.get(&shop.base, link).await?.body, "token")
        .context("the form has it")?;
    let set = async |password: &str| {
        Visitor::new()
            .post(&shop.base, "/reset-password", &[("token", &token), ("password", password)])
            .await
    };
    assert_eq!(set("short").await?.status, 422);
    assert_eq!(set("a password of the spring").await?.path, "/login");
    assert_eq!(set("a password of a thief").await?.status, 410);
    assert_eq!(Visitor::new().get(&shop.base, link).await?.status, 410);
    assert!(
        thief.get(&shop.base, "/orders").await?.body.contains("Log in"),
        "sessions of the old password end"
    );
    assert!(
        log_in("a password of the spring")
            .await?
            .get(&shop.base, "/orders")
            .await?
            .body
            .contains("Ann · log out")
    );
    let all = eventually("the notice", async || mails().await.ok().filter(|mails| mails.len() > 1))
        .await?;
    assert_eq!(
        all.iter().map(|(to, _)| to.as_str()).collect::<Vec<_>>(),
        ["ann@example.com"; 2],
        "no other account got a mail"
    );
    assert!(all[1].1.contains("was changed"));
    pool.close().await;
    shop.close().await
}

/// A shared cache in front of sessions: public pages come from it, but no user's page or cookie.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_shared_cache_keeps_nobodys_page() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let shop = Shop::open(folder.path(), &["--config", &laptop(folder.path())?]).await?;
    let (mut ann, mut other) = (Visitor::new(), Visitor::new());
    ann.post(
        &shop.base,
        "/login",
        &[("email", "ann@example.com"), ("password", "correct horse battery staple")],
    )
    .await?;
    for path in ["/", "/products/1", "/cart", "/orders"] {
        for _ in 0..2 {
            assert!(ann.get(&shop.base, path).await?.body.contains("Ann · log out"), "{path}");
            assert!(!other.get(&shop.base, path).await?.body.contains("Ann"), "{path}");
        }
    }
    // A cookie that is set for one user goes to no other.
    other.post(&shop.base, "/cart", &[("product", "1"), ("quantity", "1")]).await?;
    let mut third = Visitor::new();
    third.get(&shop.base, "/cart").await?;
    assert!(!third.get(&shop.base, "/cart").await?.body.contains("class=\"count\""));
    let page = third.get(&shop.base, "/").await?.body;
    let (_, style) = page.split_once("rel=\"stylesheet\" href=\"").context("a style sheet")?;
    let style = style.split('"').next().context("an address")?;
    for _ in 0..3 {
        assert_eq!(third.get(&shop.base, style).await?.status, 200);
    }
    assert_eq!(third.get(&shop.base, "/metrics").await?.status, 404, "not for visitors");
    let operations = shop.operations.clone().context("an address for operators")?;
    let after = Visitor::new().get(&operations, "/metrics").await?.body;
    let line =
        after.lines().find(|line| line.starts_with("scale_cache_http") && line.contains("hit"));
    assert!(
        line.is_some_and(|line| !line.ends_with(" 0")),
        "the style sheet came from the cache: {after}"
    );
    shop.close().await
}

/// The first start after cloning the repository: no file, no server, one command.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_configuration() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let open = async || Shop::open_in(folder.path(), &["--listen", "127.0.0.1:0"]).await;
    let shop = open().await?;
    let mut ann = Visitor::new();
    let form = [("email", "ann@example.com"), ("password", "correct horse battery staple")];
    ann.post(&shop.base, "/login", &form).await?;
    let order = journey(&mut ann, &[&shop.base], 1).await?;
    receipt(&mut ann, &shop.base, &order).await?;
    ann.post(&shop.base, "/cart", &[("product", "2"), ("add", "3")]).await?;
    shop.close().await?;
    let shop = open().await?;
    assert!(
        ann.get(&shop.base, &order).await?.body.contains("The receipt was sent"),
        "the order is there"
    );
    assert!(ann.get(&shop.base, "/cart").await?.body.contains("Cart"), "and so is the cart");
    assert_eq!(Visitor::new().get(&shop.base, "/admin/queues/").await?.status, 404);
    assert!(
        ann.get(&shop.base, "/admin/queues/api/queues").await?.body.contains("\"done_total\":1")
    );
    shop.close().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wrong_input_gets_a_clear_answer() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let config = laptop(folder.path())?;
    let shop = Shop::open(folder.path(), &["--config", &config]).await?;
    let mut visitor = Visitor::new();
    for (path, status) in [
        ("/products/0", 404),
        ("/products/x", 400),
        ("/nowhere", 404),
        ("/?after=x", 400),
        ("/?q=%25_%5C", 200),
    ] {
        assert_eq!(visitor.get(&shop.base, path).await?.status, status, "{path}");
    }
    let many = "x".repeat(100_000);
    for (path, form, status) in [
        ("/cart", vec![("product", "1")], 422),
        ("/cart", vec![("product", "999999"), ("add", "1")], 200),
        ("/checkout", vec![("token", "x"), ("total", "1"), ("email", "a@b.c")], 422),
        ("/login", vec![("email", "nobody@example.com"), ("password", many.as_str())], 401),
    ] {
        assert_eq!(visitor.post(&shop.base, path, &form).await?.status, status, "{path}");
    }
    // A form sent twice makes one order; an order that exceeds the stock makes none.
    journey(&mut visitor, &[&shop.base], 7).await?;
    visitor.post(&shop.base, "/cart", &[("product", "8"), ("add", "2")]).await?;
    let cart = visitor.get(&shop.base, "/cart").await?;
    let token = common::field(&cart.body, "token").context("a token")?;
    let total = common::field(&cart.body, "total").context("a total")?;
    let form = [("token", &*token), ("total", &*total), ("email", "a@b.c")];
    let mut twin = visitor.clone();
    let (one, two) = tokio::join!(
        visitor.post(&shop.base, "/checkout", &form),
        twin.post(&shop.base, "/checkout", &form)
    );
    let orders: Vec<_> =
        [one?.path, two?.path].into_iter().filter(|path| path.starts_with("/orders/")).collect();
    assert!(!orders.is_empty() && orders.iter().all(|o| *o == orders[0]), "{orders:?}");

    // Password guessing is soon refused.
    let wrong = [("email", "ann@example.com"), ("password", "guess")];
    let mut answers = Vec::new();
    for _ in 0..8 {
        answers.push(visitor.post(&shop.base, "/login", &wrong).await?.status.as_u16());
    }
    assert!(answers.contains(&401) && answers.ends_with(&[429, 429]), "{answers:?}");
    shop.close().await
}

/// Two hundred addresses guess at one account, and one address at two hundred accounts; the owner
/// can still log in.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn guessing_is_bounded_and_the_owner_gets_in() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let redis = Redis::start().await?;
    let config = laptop(folder.path())?;
    // Two servers behind a load balancer on this machine.
    let shared = folder.path().join("shared.toml");
    let limits = NO_LIMIT.replace("[limit]", &format!("[limit]\nurl = {:?}", redis.url()));
    let proxied = "clients = { trusted = [\"127.0.0.1/32\"], header = \"x-forwarded-for\" }\n";
    std::fs::write(
        &shared,
        format!("{proxied}{}", std::fs::read_to_string(&config)?.replace(NO_LIMIT, &limits)),
    )?;
    let shared = shared.display().to_string();
    let one = Shop::open(folder.path(), &["--config", &shared]).await?;
    let two = Shop::open(folder.path(), &["--config", &shared, "serve"]).await?;

    let right = [("email", "ann@example.com"), ("password", "correct horse battery staple")];
    let mut ann = Visitor::at("198.51.100.1");
    assert_eq!(ann.post(&one.base, "/login", &right).await?.status, 200);
    ann.post(&one.base, "/logout", &[]).await?;

    let attack = |targets: Vec<(String, String)>| {
        let bases = [one.base.clone(), two.base.clone()];
        async move {
            let mut looked_at = 0;
            for chunk in targets.chunks(20) {
                let guesses = chunk.iter().enumerate().map(|(n, (address, email))| {
                    let base = &bases[n % 2];
                    async move {
                        let form = [("email", email.as_str()), ("password", "guess")];
                        anyhow::Ok(Visitor::at(address).post(base, "/login", &form).await?.status)
                    }
                });
                let answers = try_join_all(guesses).await?;
                assert!(answers.iter().all(|s| *s == 401 || *s == 429), "{answers:?}");
                looked_at += answers.iter().filter(|s| **s == 401).count();
            }
            anyhow::Ok(looked_at)
        }
    };
    let botnet =
        (0..200).map(|n| (format!("203.0.113.{n}"), "ann@example.com".to_owned())).collect();
    assert_eq!(attack(botnet).await?, 50, "of one account, from everywhere: 50 an hour");
    let spray =
        (0..200).map(|n| ("192.0.2.1".to_owned(), format!("user{n}@example.com"))).collect();
    assert!(
        attack(spray).await? <= 30,
        "from one address, at every account: 30 in a quarter of an hour"
    );

    // Ann's browser is known; a stranger with her password but another browser is limited with the
    // botnet.
    assert_eq!(ann.post(&two.base, "/login", &right).await?.status, 200);
    assert_eq!(Visitor::at("198.51.100.9").post(&two.base, "/login", &right).await?.status, 429);
    one.close().await?;
    two.close().await
}

#[tokio::test]
async fn a_wrong_configuration_ends_at_once_with_one_line() -> Result<()> {
    let folder = tempfile::tempdir()?;
    for (text, words) in [
        ("listne = 1", "line 1: unknown field `listne`"),
        (
            "[database]\nurl = \"postgres://u:hunter2@127.0.0.1:1/x\"",
            "[database]: no database node answered",
        ),
        ("[cache]\nurl = \"http://u:hunter2@h\"", "[cache]: cannot use `http` as a cache"),
        ("[queue]\nurl = \"redis://:hunter2@127.0.0.1:1\"", "[queue]: the queue's store"),
        ("[session]\nurl = \"redis+ring://h\"", "[session]"),
        ("[queue]\nurl = \"sqlite://other.db?mode=rwc\"", "[queue] url: expected that of"),
        ("[limit]\nlogin = { name = \"login\", quota = 0, per = \"1m\" }", "quota of 0"),
    ] {
        let config = folder.path().join("wrong.toml");
        let memory = [
            "[database]\nurl = \"sqlite::memory:\"\n",
            "[queue]\nurl = \"memory:\"\n",
            "[session]\nurl = \"memory:\"\n",
        ];
        let rest: Vec<_> = memory.into_iter().filter(|part| !text.contains(&part[..7])).collect();
        std::fs::write(&config, format!("{text}\n{}", rest.concat()))?;
        let (process, log) =
            start(folder.path(), &["--config", &config.display().to_string(), "serve"])?;
        eventually("it to end", async || (!process.is_running()).then_some(())).await?;
        let said = std::fs::read_to_string(log)?;
        let line = said.lines().find(|line| line.starts_with("shop: ")).context("a line")?;
        assert!(line.contains(words), "{line}");
        assert!(!said.contains("hunter2"), "{said}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn on_a_fleet() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let (postgres, redis) = tokio::try_join!(Postgres::start(2), Redis::start())?;
    postgres.node(0).sql("create extension pg_stat_statements").await?;
    postgres.caught_up().await?;
    let config = fleet(folder.path(), &postgres, &redis, "20ms")?;
    let (seed, _) = start(folder.path(), &["--config", &config, "seed"])?;
    eventually("the seed", async || (!seed.is_running()).then_some(())).await?;
    postgres.caught_up().await?;
    let a = Shop::open(folder.path(), &["--config", &config, "serve"]).await?;
    let b = Shop::open(folder.path(), &["--config", &config, "serve"]).await?;
    let (worker, _) = start(folder.path(), &["--config", &config, "work"])?;

    let requests: usize = try_join_all((0..20).map(|n| {
        let (a, b) = (a.base.clone(), b.base.clone());
        async move {
            let mut visitor = Visitor::new();
            for round in 0..3 {
                // Consecutive requests go to different servers: neither server stores the session
                // or the cart.
                let path = journey(&mut visitor, &[&a, &b], 1 + n * 3 + round).await?;
                receipt(&mut visitor, &a, &path).await?;
            }
            anyhow::Ok(visitor.requests)
        }
    }))
    .await?
    .into_iter()
    .sum();
    assert!(requests >= 600, "{requests} requests");

    // Catalogue reads ran on the replicas, orders were written on the primary.
    let calls = async |node: usize, like: &str| -> Result<u64> {
        let sql = format!(
            "select coalesce(sum(calls), 0) from pg_stat_statements where query ilike '{like}'"
        );
        Ok(postgres.node(node).sql(&sql).await?.parse()?)
    };
    let shelves = "select %name, %category, %description%";
    let (one, two) = (calls(1, shelves).await?, calls(2, shelves).await?);
    assert!(one > 0 && two > 0, "shelves were read {one} and {two} times on the replicas");
    // Clients that have ordered read from the primary while the replicas lag. Others do not, once
    // the replicas have caught up.
    postgres.caught_up().await?;
    let before = calls(0, shelves).await?;
    for n in 0..20 {
        let page = Visitor::new().get(&a.base, &format!("/?q=nothing-{n}")).await?;
        assert_eq!(page.status, 200);
    }
    assert_eq!(calls(0, shelves).await?, before, "shelves were read on the primary");
    assert!(calls(1, shelves).await? + calls(2, shelves).await? >= one + two + 20);
    assert_eq!(calls(0, "insert into orders%").await?, 60);

    for shop in [&a, &b] {
        let mut probe = Visitor::new();
        assert_eq!(probe.get(&shop.base, "/health/live").await?.status, 200);
        assert_eq!(probe.get(&shop.base, "/health/ready").await?.status, 200);
        let operations = shop.operations.as_deref().context("an address for operators")?;
        let metrics = probe.get(operations, "/metrics").await?.body;
        assert!(metrics.contains("scale_cache_hits_total"));
        assert!(!shop.log().contains("ERROR"), "{}", shop.log());
    }
    worker.terminate()?;
    eventually("the worker to stop", async || (!worker.is_running()).then_some(())).await?;
    a.close().await?;
    b.close().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_killed_during_a_job_is_replaced() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let (postgres, redis) = tokio::try_join!(Postgres::start(0), Redis::start())?;
    let config = fleet(folder.path(), &postgres, &redis, "1s")?;
    let (seed, _) = start(folder.path(), &["--config", &config, "seed"])?;
    eventually("the seed", async || (!seed.is_running()).then_some(())).await?;
    let web = Shop::open(folder.path(), &["--config", &config, "serve"]).await?;
    let (first, _) = start(folder.path(), &["--config", &config, "work"])?;
    let mut visitor = Visitor::new();
    let order = journey(&mut visitor, &[&web.base], 1).await?;
    eventually("the job to be under way", async || {
        (redis.command(&["ZCARD", "shop:queue:{high}:leases"]).await.ok()? == "1").then_some(())
    })
    .await?;
    first.kill()?;
    assert!(visitor.get(&web.base, &order).await?.body.contains("on its way"));
    let (_second, _) = start(folder.path(), &["--config", &config, "work"])?;
    let page = receipt(&mut visitor, &web.base, &order).await?;
    assert!(page.contains("at attempt 2"), "{page}");
    web.close().await
}
