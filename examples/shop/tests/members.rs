//! The life of an account: it is opened by a link, gets a second factor, shows what is known about
//! it, and is closed.
#![allow(clippy::unwrap_used)]

mod common;

use std::io::Write;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use common::{NO_LIMIT, Shop, Visitor, field, receipt, start};
use sqlx::AnyPool;
use testkit::{MariaDb, Postgres, Redis, eventually};

const EMAIL: &str = "dora@example.com";
/// Her account, among others of a demonstration.
const DORA: &str = "users where email = 'dora@example.com'";
const PASSWORD: &str = "correct horse battery staple";

/// A shop on a database, and a look into its tables.
struct Setup {
    shop: Shop,
    rows: AnyPool,
    _folder: tempfile::TempDir,
}

impl Setup {
    async fn new(database: Option<String>) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let file = format!("sqlite://{}?mode=rwc", folder.path().join("shop.db").display());
        let url = database.unwrap_or(file);
        let config = folder.path().join("shop.toml");
        let text = format!(
            "listen = \"127.0.0.1:0\"\nplain_http = true\norigin = \"http://localhost:3000\"\n\
             secret = \"{}\"\n[database]\nurl = {url:?}\n[mail]\ntakes = \"1ms\"\n{NO_LIMIT}\
             login = {{ name = \"login\", quota = 1000, per = \"1s\" }}\n",
            "07".repeat(32)
        );
        std::fs::write(&config, text)?;
        let config = config.display().to_string();
        let (seed, _) = start(folder.path(), &["--config", &config, "seed"])?;
        eventually("the products", async || (!seed.is_running()).then_some(())).await?;
        let shop = Shop::open(folder.path(), &["--config", &config]).await?;
        sqlx::any::install_default_drivers();
        Ok(Self { shop, rows: AnyPool::connect(&url).await?, _folder: folder })
    }

    /// Waits for the mail to an address that contains a text; returns its body.
    async fn mail(&self, to: &str, text: &str) -> Result<String> {
        eventually(&format!("a mail to {to} with “{text}”"), async || {
            let all: Vec<(String, String)> = sqlx::query_as("select address, body from mails")
                .fetch_all(&self.rows)
                .await
                .ok()?;
            all.into_iter().find(|(address, body)| address == to && body.contains(text))
        })
        .await
        .map(|(_, body)| body)
    }

    async fn count(&self, table: &str) -> Result<i64> {
        let count = sqlx::AssertSqlSafe(format!("select count(*) from {table}"));
        Ok(sqlx::query_scalar(count).fetch_one(&self.rows).await?)
    }
}

fn path_in(mail: &str) -> Result<String> {
    let line = mail.lines().find_map(|line| line.strip_prefix("http://localhost:3000"));
    Ok(line.context("a link")?.to_owned())
}

/// Opens an account; returns its browser.
async fn sign_up(setup: &Setup) -> Result<Visitor> {
    let base = &setup.shop.base;
    let mut dora = Visitor::new();
    let page = dora.post(base, "/signup", &[("email", " Dora@Example.com ")]).await?;
    ensure!(page.status == 200 && page.body.contains("Check your mail"), "{}", page.body);
    ensure!(setup.count(DORA).await? == 0, "nothing is stored yet");
    let link = path_in(&setup.mail(EMAIL, "/verify-email").await?)?;
    // A mail scanner.
    for _ in 0..2 {
        ensure!(Visitor::new().get(base, &link).await?.status == 200);
    }
    let token = field(&dora.get(base, &link).await?.body, "token").context("a form")?;
    for (name, password) in [("Dora", "short"), (" ", PASSWORD)] {
        let form = [("token", &*token), ("name", name), ("password", password)];
        ensure!(dora.post(base, "/verify-email", &form).await?.status == 422);
    }
    let form = [("token", &*token), ("name", "Dora"), ("password", PASSWORD)];
    let page = dora.post(base, "/verify-email", &form).await?;
    ensure!(page.path == "/account" && page.body.contains("Dora · log out"), "{}", page.body);
    ensure!(Visitor::new().post(base, "/verify-email", &form).await?.status == 410, "once");
    ensure!(dora.get(base, &link).await?.status == 410);
    Ok(dora)
}

/// Returns the code of an authenticator app with that secret, that many steps from now.
fn code(secret: &str, steps: i64) -> Result<String> {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?.as_secs();
    let at = now as i64 + 30 * steps;
    let key =
        data_encoding::HEXLOWER.encode(&data_encoding::BASE32_NOPAD.decode(secret.as_bytes())?);
    let mut openssl = Command::new("openssl");
    openssl.args(["dgst", "-sha1", "-mac", "HMAC", "-macopt", &format!("hexkey:{key}"), "-binary"]);
    let mut child = openssl.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
    child.stdin.take().context("an input")?.write_all(&(at / 30).to_be_bytes())?;
    let digest = child.wait_with_output()?.stdout;
    let from = usize::from(digest.last().context("a digest")? & 15);
    let number = u32::from_be_bytes(digest[from..from + 4].try_into()?) & 0x7fff_ffff;
    Ok(format!("{:06}", number % 1_000_000))
}

async fn log_in(base: &str) -> Result<(Visitor, common::Answer)> {
    let mut visitor = Visitor::new();
    let form = [("email", EMAIL), ("password", PASSWORD), ("next", "/devices")];
    let page = visitor.post(base, "/login", &form).await?;
    Ok((visitor, page))
}

async fn second_factor(setup: &Setup, dora: &mut Visitor) -> Result<()> {
    let (base, path) = (&setup.shop.base, "/account/second-factor");
    let page = dora.get(base, path).await?.body;
    let secret = page.split("into the app: <code>").nth(1).context("a secret")?;
    let secret = secret.split('<').next().unwrap_or_default().to_owned();
    ensure!(page.contains("<svg"), "{page}");
    let sealed = field(&page, "sealed").context("a form")?;
    let first = code(&secret, 0)?;
    for (code, password, says) in
        [("000000", PASSWORD, "code is wrong"), (&*first, "wrong", "password is wrong")]
    {
        let form = [("sealed", &*sealed), ("code", code), ("password", password)];
        let page = dora.post(base, path, &form).await?;
        ensure!(page.status == 422 && page.body.contains(says), "{}", page.body);
        ensure!(page.body.contains(&secret), "the app need not be set up again");
    }
    let form = [("sealed", &*sealed), ("code", &*first), ("password", PASSWORD)];
    let page = dora.post(base, path, &form).await?.body;
    let codes: Vec<_> =
        page.split("<li><code>").skip(1).filter_map(|s| s.split('<').next()).collect();
    ensure!(codes.len() == 10, "{page}");
    let (stored, hashes): (String, String) =
        sqlx::query_as("select secret, recovery from second_factors")
            .fetch_one(&setup.rows)
            .await?;
    ensure!(!stored.contains(&secret) && !hashes.contains(&codes[0].replace('-', "")));
    // The password alone opens nothing.
    let (mut visitor, page) = log_in(base).await?;
    ensure!(page.path.starts_with("/login/code") && page.body.contains("One more step"));
    for path in ["/account", "/devices", "/account/export.json"] {
        ensure!(visitor.get(base, path).await?.path.starts_with("/login?next="), "{path}");
    }
    let answer = async |visitor: &mut Visitor, code: &str| {
        visitor.post(base, "/login/code", &[("code", code), ("next", "/devices")]).await
    };
    ensure!(answer(&mut visitor, &first).await?.status == 401, "it was used to set up the app");
    ensure!(answer(&mut visitor, "000000").await?.status == 401);
    let next = code(&secret, 1)?;
    let page = answer(&mut visitor, &next).await?;
    ensure!(page.path == "/devices" && page.body.contains("Dora · log out"), "{}", page.body);
    // Neither the code nor a recovery code works twice.
    let (mut visitor, _) = log_in(base).await?;
    ensure!(answer(&mut visitor, &next).await?.status == 401);
    ensure!(answer(&mut visitor, codes[3]).await?.path == "/devices");
    let (mut visitor, _) = log_in(base).await?;
    ensure!(answer(&mut visitor, codes[3]).await?.status == 401);
    let page = dora.get(base, path).await?.body;
    ensure!(page.contains("9 recovery codes"), "{page}");
    // Without a password before it, there is nothing to answer.
    ensure!(answer(&mut Visitor::new(), codes[4]).await?.path.starts_with("/login?"));
    let remove = "/account/second-factor/remove";
    ensure!(dora.post(base, remove, &[("password", PASSWORD)]).await?.path == "/account");
    let (_, page) = log_in(base).await?;
    ensure!(page.path == "/devices", "{}", page.path);
    Ok(())
}

async fn export(setup: &Setup, dora: &mut Visitor) -> Result<()> {
    let base = &setup.shop.base;
    let order = common::journey(dora, &[base], 7).await?;
    receipt(dora, base, &order).await?;
    ensure!(dora.get(base, "/account/export.json").await?.status == 404);
    ensure!(dora.post(base, "/account/export", &[]).await?.status == 200);
    let client = dora.clone();
    eventually("the export", async || {
        let page = client.clone().get(base, "/account/export").await.ok()?;
        page.body.contains("/account/export.json").then_some(())
    })
    .await?;
    let export: serde_json::Value =
        serde_json::from_str(&dora.get(base, "/account/export.json").await?.body)?;
    ensure!(export["email"] == EMAIL && export["name"] == "Dora", "{export}");
    ensure!(format!("/orders/{}", export["orders"][0]["number"]) == order, "{export}");
    ensure!(export["orders"][0]["items"][0]["quantity"] == 2, "{export}");
    ensure!(Visitor::new().get(base, "/account/export.json").await?.path.starts_with("/login"));
    Ok(())
}

async fn closing(setup: &Setup, dora: &mut Visitor) -> Result<()> {
    let base = &setup.shop.base;
    let (mut elsewhere, _) = log_in(base).await?;
    ensure!(elsewhere.get(base, "/account").await?.body.contains("Dora"));
    ensure!(dora.post(base, "/account/delete", &[("password", "wrong")]).await?.status == 422);
    ensure!(setup.count(DORA).await? == 1);
    let page = dora.post(base, "/account/delete", &[("password", PASSWORD)]).await?;
    ensure!(page.body.contains("account is closed"), "{}", page.body);
    for visitor in [&mut *dora, &mut elsewhere] {
        ensure!(visitor.get(base, "/account").await?.path.starts_with("/login"));
    }
    ensure!(log_in(base).await?.1.status == 401);
    for table in [DORA, "devices", "second_factors", "exports"] {
        ensure!(setup.count(table).await? == 0, "{table}");
    }
    eventually("the orders without their account", async || {
        let named = "orders where account <> '' or email <> ''";
        (setup.count(named).await.ok()? == 0).then_some(())
    })
    .await?;
    ensure!(setup.count("orders").await? == 1, "the books are complete");
    ensure!(setup.count("receipts").await? == 0);
    Ok(())
}

async fn a_life(database: Option<String>) -> Result<()> {
    let setup = Setup::new(database).await?;
    let mut dora = sign_up(&setup).await?;
    second_factor(&setup, &mut dora).await.context("second factor")?;
    export(&setup, &mut dora).await.context("export")?;
    strangers(&setup).await.context("strangers")?;
    closing(&setup, &mut dora).await.context("closing")?;
    setup.rows.close().await;
    setup.shop.close().await
}

/// An address that has an account gets a notice instead of a link, and the page says the same.
async fn strangers(setup: &Setup) -> Result<()> {
    let base = &setup.shop.base;
    let same = async |email: &str| {
        let page = Visitor::new().post(base, "/signup", &[("email", email)]).await?;
        anyhow::Ok((page.status, page.body.replace(email, "")))
    };
    let strange = same("somebody@example.com").await?;
    ensure!(same(EMAIL).await? == strange);
    setup.mail("somebody@example.com", "/verify-email").await?;
    setup.mail(EMAIL, "which has one already").await?;
    ensure!(Visitor::new().post(base, "/signup", &[("email", "no address")]).await?.status == 422);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_account_on_sqlite() -> Result<()> {
    a_life(None).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_account_on_postgres() -> Result<()> {
    let server = Postgres::start(0).await?;
    a_life(Some(server.node(0).url())).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_account_on_mariadb() -> Result<()> {
    let server = MariaDb::start(0).await?;
    a_life(Some(server.node(0).url())).await
}

/// A password that was changed opens nothing, although the replicas do not know of the change yet.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_old_password_opens_nothing_while_replicas_are_behind() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let (pg, redis) = tokio::try_join!(Postgres::start(2), Redis::start())?;
    let config = common::fleet(folder.path(), &pg, &redis, "1ms")?;
    let (migrate, _) = start(folder.path(), &["--config", &config, "migrate"])?;
    eventually("the tables", async || (!migrate.is_running()).then_some(())).await?;
    let (old, new) = (PASSWORD, "a password of the spring");
    for (email, password) in [(EMAIL, old), ("other@example.com", new)] {
        common::account(&config, email, "customer", password)?;
    }
    let shop = Shop::open(folder.path(), &["--config", &config, "serve"]).await?;
    pg.caught_up().await?;
    let log_in = async |password: &str| {
        let form = [("email", EMAIL), ("password", password)];
        Visitor::new().post(&shop.base, "/login", &form).await
    };
    ensure!(log_in(old).await?.status == 200);
    for node in [1, 2] {
        pg.node(node).pause_replay().await?;
    }
    pg.node(0)
        .sql(&format!(
            "update users set password = (select password from users where email = \
             'other@example.com') where email = '{EMAIL}'"
        ))
        .await?;
    ensure!(log_in(old).await?.status == 401);
    ensure!(log_in(new).await?.status == 200);
    shop.close().await
}
