//! One address is one account, letter by letter, on each database.
#![allow(clippy::unwrap_used)]

mod common;

use std::io::Write;
use std::process::{Command, Stdio};

use anyhow::Result;
use common::{NO_LIMIT, Shop, Visitor, start};
use sqlx::AnyPool;
use testkit::{MariaDb, Postgres, eventually};

const PASSWORD: &str = "correct horse battery staple";

async fn spellings(database: Option<String>) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let file = format!("sqlite://{}?mode=rwc", folder.path().join("shop.db").display());
    let url = database.unwrap_or(file);
    let config = folder.path().join("shop.toml");
    // Jobs and sessions are in the database too, as nothing else is said.
    let text = format!(
        "listen = \"127.0.0.1:0\"\nplain_http = true\norigin = \"http://localhost:3000\"\n\
         secret = \"{}\"\n[database]\nurl = {url:?}\n{NO_LIMIT}\
         login = {{ name = \"login\", quota = 1000, per = \"1s\" }}\n",
        "07".repeat(32)
    );
    std::fs::write(&config, text)?;
    let config = config.display().to_string();
    let (migrate, _) = start(folder.path(), &["--config", &config, "migrate"])?;
    eventually("the tables", async || (!migrate.is_running()).then_some(())).await?;
    common::account(&config, "ben@example.com", "staff", PASSWORD)?;
    let shop = Shop::open(folder.path(), &["--config", &config]).await?;
    sqlx::any::install_default_drivers();
    let rows = AnyPool::connect(&url).await?;
    for spelling in ["bén@example.com", "ben@exámple.com", "ＢＥＮ@example.com"] {
        let form = [("email", spelling), ("password", PASSWORD)];
        let page = Visitor::new().post(&shop.base, "/login", &form).await?;
        assert_eq!(page.status, 401, "{spelling}: {}", page.body);
        let page = Visitor::new().post(&shop.base, "/forgot", &[("email", spelling)]).await?;
        assert_eq!(page.status, 200, "{spelling}");
    }
    let page = Visitor::new().post(&shop.base, "/forgot", &[("email", " BEN@example.com")]).await?;
    assert_eq!(page.status, 200);
    // In the order in which they were asked for: once the last one is there, so are the others.
    let mails = eventually("the mail of the account", async || {
        let all: Vec<(String, String)> =
            sqlx::query_as("select address, body from mails").fetch_all(&rows).await.ok()?;
        all.iter().any(|(_, body)| body.contains("/reset-password")).then_some(all)
    })
    .await?;
    for (address, body) in mails {
        let has_link = body.contains("/reset-password");
        assert!(!has_link || address == "ben@example.com", "{address}: {body}");
    }
    // A log-in over another one, in the same browser.
    common::account(&config, "cara@example.com", "customer", PASSWORD)?;
    let mut shared = Visitor::new();
    for email in ["ben@example.com", "cara@example.com"] {
        let form = [("email", email), ("password", PASSWORD), ("next", "/account")];
        let page = shared.post(&shop.base, "/login", &form).await?;
        assert!(page.body.contains(email), "{email}: {}", page.body);
    }
    let long = format!("{}@example.com", "x".repeat(100_000));
    for odd in ["", "x", "a b@example.com", "@", &long] {
        let page = Visitor::new().post(&shop.base, "/forgot", &[("email", odd)]).await?;
        assert_eq!(page.status, 422, "{}", &odd[..odd.len().min(20)]);
    }
    shop.close().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_spelling_is_another_account_on_sqlite() -> Result<()> {
    spellings(None).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_spelling_is_another_account_on_postgres() -> Result<()> {
    let server = Postgres::start(0).await?;
    spellings(Some(server.node(0).url())).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_spelling_is_another_account_on_mariadb() -> Result<()> {
    let server = MariaDb::start(0).await?;
    spellings(Some(server.node(0).url())).await
}

/// The command line makes no account that could not be used, or that owns guests' orders; and the
/// laptop's secret is made once, whole.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_command_line_makes_only_good_accounts() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let create = |email: &str, name: &str, password: &str| -> Result<(bool, String)> {
        let mut command = Command::new("env");
        command.arg("-C").arg(folder.path()).arg(env!("CARGO_BIN_EXE_shop"));
        command.args(["account", email, "--name", name]);
        let command = command.stdin(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn()?;
        // It may refuse before it has read the password.
        let _ = child.stdin.take().unwrap().write_all(format!("{password}\n").as_bytes());
        let output = child.wait_with_output()?;
        Ok((output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned()))
    };
    for (email, name, password, word) in [
        ("", "Ann", PASSWORD, "address"),
        ("not an address", "Ann", PASSWORD, "address"),
        ("ann@example.com", " ", PASSWORD, "name"),
        ("ann@example.com", "Ann", "short", "password"),
    ] {
        let (is_made, said) = create(email, name, password)?;
        assert!(!is_made && said.contains(word), "{email}, {name}: {said}");
    }
    // No table is there before, and none is needed.
    let (is_made, said) = create("ann@example.com", "Ann", PASSWORD)?;
    assert!(is_made, "{said}");
    let secret = std::fs::read_to_string(folder.path().join("shop.secret"))?;
    assert_eq!(secret.len(), 64, "{secret}");
    let files = std::fs::read_dir(folder.path())?.count();
    for file in ["shop.secret", "shop.db"] {
        let mode = std::fs::metadata(folder.path().join(file))?;
        let mode = std::os::unix::fs::PermissionsExt::mode(&mode.permissions());
        assert_eq!(mode & 0o077, 0, "{file} is for its owner");
    }
    assert!(files <= 4, "drafts are removed");
    std::fs::write(folder.path().join("shop.secret"), "")?;
    let (is_made, said) = create("ben@example.com", "Ben", PASSWORD)?;
    assert!(!is_made && said.contains("secret"), "{said}");
    Ok(())
}
