//! The search, in the same way on each database, and without a look at all products.
#![allow(clippy::unwrap_used)]

mod common;

use anyhow::{Context, Result};
use common::{Shop, Visitor, start};
use sqlx::AnyPool;
use testkit::{MariaDb, Postgres, eventually};

struct Case {
    shop: Shop,
    rows: AnyPool,
    _folder: tempfile::TempDir,
}

/// Opens a shop with the sample products and these ones.
async fn shop(database: Option<String>, products: &[(&str, &str)]) -> Result<Case> {
    let folder = tempfile::tempdir()?;
    let file = format!("sqlite://{}?mode=rwc", folder.path().join("shop.db").display());
    let url = database.unwrap_or(file);
    let config = folder.path().join("shop.toml");
    let text = format!(
        "listen = \"127.0.0.1:0\"\nplain_http = true\n[database]\nurl = {url:?}\n[queue]\n\
         url = {url:?}\n[session]\nurl = {url:?}\n[limit]\n\
         site = {{ name = \"site\", quota = 1000000, per = \"1s\" }}\n\
         search = {{ name = \"search\", quota = 1000, per = \"1s\" }}\n"
    );
    std::fs::write(&config, text)?;
    let config = config.display().to_string();
    let done = async |command: &str| -> Result<()> {
        let (process, _) = start(folder.path(), &["--config", &config, command])?;
        eventually(command, async || (!process.is_running()).then_some(())).await
    };
    done("seed").await?;
    sqlx::any::install_default_drivers();
    let rows = AnyPool::connect(&url).await?;
    for (name, category) in products {
        // A stored product of another version, or of an import: `migrate` indexes it.
        let insert = "insert into products (name, category, description, price_cents, stock) \
            values ($1, $2, '', 100, 1)";
        let insert = if url.starts_with("mysql") {
            insert.replace("$1", "?").replace("$2", "?")
        } else {
            insert.to_owned()
        };
        let insert = sqlx::query(sqlx::AssertSqlSafe(insert));
        insert.bind(*name).bind(*category).execute(&rows).await?;
    }
    done("migrate").await?;
    let shop = Shop::open(folder.path(), &["--config", &config]).await?;
    Ok(Case { shop, rows, _folder: folder })
}

async fn finds_words(database: Option<String>) -> Result<()> {
    let products =
        [("Ölkanne klein", "Küche"), ("Oilcan, LARGE 2L", "Küche"), ("100%_wool", "Desk")];
    let case = shop(database, &products).await?;
    let mut visitor = Visitor::new();
    for (query, found) in [
        ("q=%C3%96lkanne", "Ölkanne klein"),
        ("q=%C3%B6lk", "Ölkanne klein"),
        ("q=klein+%C3%B6l", "Ölkanne klein"),
        ("q=large&category=K%C3%BCche", "Oilcan, LARGE 2L"),
        ("q=2l", "Oilcan, LARGE 2L"),
        ("q=100%25_wo", "100%_wool"),
        ("category=Desk&q=WALNUT", "walnut clock"),
        ("category=Desk", "Pencil box".to_lowercase().as_str()),
    ] {
        let page = visitor.get(&case.shop.base, &format!("/?{query}")).await?;
        assert!(page.status == 200 && page.body.contains(found), "{query}: {}", page.body);
    }
    for query in [
        "q=kanne", "q=%25", "q=%00", "q=!!!&category=Desk", "q=%C3%96lkanne&category=Desk",
        "q=x%27y",
    ] {
        let page = visitor.get(&case.shop.base, &format!("/?{query}")).await?;
        let answer = (page.status.as_u16(), page.body.contains("No product has a word"));
        assert_eq!(answer, (200, true), "{query}");
    }
    // A control character is no letter, on each database.
    let page = visitor.get(&case.shop.base, "/?category=%00Desk").await?;
    assert!(page.status == 200 && page.body.contains("pencil box"), "{}", page.status);
    let form = [("email", "ann\0@example.com"), ("password", "no such password")];
    assert_eq!(visitor.post(&case.shop.base, "/login", &form).await?.status, 401);
    // All pages together have each product once, in order.
    let (mut seen, mut next) = (Vec::new(), Some("/?q=walnut".to_owned()));
    while let Some(path) = next {
        let page = visitor.get(&case.shop.base, &path).await?.body;
        let ids = page.split("href=\"/products/").skip(1);
        seen.extend(ids.filter_map(|rest| rest.split('"').next()?.parse::<u32>().ok()));
        let more = page.split("<div class=\"more\"><a href=\"").nth(1);
        next = more.and_then(|rest| rest.split('"').next()).map(|path| path.replace("&amp;", "&"));
    }
    assert_eq!(seen.len(), 200, "one of twelve materials");
    assert!(seen.is_sorted_by(|a, b| a < b), "{seen:?}");
    case.shop.close().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn words_are_found_on_sqlite() -> Result<()> {
    finds_words(None).await
}

/// A search counts as one, however its address is written.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn searches_are_limited_however_they_are_written() -> Result<()> {
    for query in ["q=w", "%71=w", "category=&q=w", "Q=1&q=w"] {
        let folder = tempfile::tempdir()?;
        let config = folder.path().join("shop.toml");
        let url = format!("sqlite://{}?mode=rwc", folder.path().join("shop.db").display());
        let text = format!(
            "listen = \"127.0.0.1:0\"\nplain_http = true\n[database]\nurl = {url:?}\n[limit]\n\
             search = {{ name = \"search\", quota = 5, per = \"1h\" }}\n"
        );
        std::fs::write(&config, text)?;
        let shop = Shop::open(folder.path(), &["--config", &config.display().to_string()]).await?;
        let mut visitor = Visitor::new();
        visitor.headers.push(("accept", "text/html".into()));
        let mut passed = 0;
        for n in 0..10 {
            let page = visitor.get(&shop.base, &format!("/?{query}{n}")).await?;
            passed += usize::from(page.status == 200);
            // The refusal is a page, too.
            assert!(
                page.status == 200 || page.body.contains("very many requests"),
                "{}",
                page.body
            );
        }
        assert_eq!(passed, 5, "{query}");
        assert_eq!(visitor.get(&shop.base, "/?q=").await?.status, 200, "no search");
        shop.close().await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn words_are_found_on_mariadb() -> Result<()> {
    let server = MariaDb::start(0).await?;
    finds_words(Some(server.node(0).url())).await
}

/// On Postgres it is also counted what the searches have read.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn words_are_found_on_postgres_without_a_scan() -> Result<()> {
    let server = Postgres::start(0).await?;
    finds_words(Some(server.node(0).url())).await?;
    let server = Postgres::start(0).await?;
    let case = shop(Some(server.node(0).url()), &[]).await?;
    sqlx::query("analyze").execute(&case.rows).await?;
    // Twenty thousand products more: enough for a plan that would scan if it had to.
    server
        .node(0)
        .sql(
            "insert into products (name, category, description, price_cents, stock) \
             select 'Thing ' || n, 'Attic', '', 100, 1 from generate_series(1, 20000) n; \
             insert into product_words select b, id from products, \
             unnest(array['=Attic', 't', 'th', 'thi', 'thin', 'thing']) b \
             where category = 'Attic'; \
             insert into categories values ('Attic'); analyze",
        )
        .await?;
    let read = async || -> Result<i64> {
        let rows = "select seq_tup_read from pg_stat_user_tables where relname = 'products'";
        Ok(sqlx::query_scalar(rows).fetch_one(&case.rows).await?)
    };
    let before = read().await?;
    let mut visitor = Visitor::new();
    for query in
        ["", "q=thing", "q=thing&category=Attic", "q=walnut+clock", "category=Attic", "q=t"]
    {
        for after in [0, 5_000, 19_000] {
            let path = format!("/?{query}&after={after}");
            assert_eq!(visitor.get(&case.shop.base, &path).await?.status, 200, "{path}");
        }
    }
    assert_eq!(visitor.get(&case.shop.base, "/products/9999").await?.status, 200);
    // The connections of the shop report what they have read when they end.
    case.shop.close().await.context("closing")?;
    eventually("the statistics", async || {
        let looked = "select idx_scan from pg_stat_user_tables where relname = 'product_words'";
        let looked: i64 = sqlx::query_scalar(looked).fetch_one(&case.rows).await.ok()?;
        (looked > 0).then_some(())
    })
    .await?;
    assert_eq!(read().await? - before, 0, "rows read by scans of all products");
    Ok(())
}
