//! Every page of a shop with 100,000 products and 1,000,000 orders: no table is scanned, and no
//! page has more statements for more rows.
#![allow(clippy::unwrap_used)]

mod common;

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use common::{NO_LIMIT, Shop, Visitor, field, start};
use testkit::{Postgres, eventually};

const PASSWORD: &str = "correct horse battery staple";

/// Products, their words, orders of a thousand accounts, and their items.
const FILL: [&str; 6] = [
    "insert into products (name, category, description, price_cents, stock) \
     select (array['Oak', 'Walnut', 'Linen', 'Wool', 'Copper'])[1 + n % 5] || ' thing ' || n, \
     'Shelf ' || n % 50, 'A thing.', 100 + n % 900, 1000 from generate_series(1, 100000) n",
    "insert into categories select 'Shelf ' || n from generate_series(0, 49) n",
    "insert into product_words select '=' || category, id from products",
    "insert into orders (token, account, email, total_cents, placed_ms) \
     select n::text, 'a' || n % 1000 || '@example.com', 'x@example.com', 500, n \
     from generate_series(1, 1000000) n",
    "insert into order_items select n, 1 + n % 100000, 'Thing', 1, 500 \
     from generate_series(1, 1000000) n",
    "insert into receipts select n, 'Thank you.', 1, n from generate_series(1, 100000) n",
];

/// Large tables of the shop.
const LARGE: &str = "'products', 'product_words', 'orders', 'order_items', 'receipts'";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_page_scans_a_table_or_asks_once_per_row() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let postgres = Postgres::start(0).await?;
    let node = postgres.node(0);
    node.sql("create extension pg_stat_statements").await?;
    let (url, config) = (node.url(), folder.path().join("shop.toml"));
    // Nothing comes from a cache for longer than a moment.
    let text = format!(
        "listen = \"127.0.0.1:0\"\nplain_http = true\n[database]\nurl = {url:?}\n[queue]\n\
         url = {url:?}\n[mail]\ntakes = \"1ms\"\n[session]\nurl = {url:?}\n{NO_LIMIT}"
    );
    std::fs::write(&config, text)?;
    let config = config.display().to_string();
    let (migrate, _) = start(folder.path(), &["--config", &config, "migrate"])?;
    eventually("the tables", async || (!migrate.is_running()).then_some(())).await?;
    for statement in FILL {
        node.sql(statement).await.with_context(|| statement.to_owned())?;
    }
    for first in (1..100_000).step_by(10_000) {
        let words = format!(
            "insert into product_words select distinct substr(w, 1, l), id from products, \
             string_to_table(lower(name), ' ') w, generate_series(1, least(12, length(w))) l \
             where id between {first} and {first} + 9999"
        );
        node.sql(&words).await?;
    }
    node.sql("analyze").await?;
    common::account(&config, "a7@example.com", "staff", PASSWORD)?;
    let scanned = async || -> Result<String> {
        let sql = format!(
            "select coalesce(string_agg(relname || ' ' || seq_tup_read, ', ' order by relname), \
             '') from pg_stat_user_tables where relname in ({LARGE})"
        );
        node.sql(&sql).await
    };
    let looked_up = async || -> Result<u64> {
        let sql = "select idx_scan from pg_stat_user_tables where relname = 'orders'";
        Ok(node.sql(sql).await?.parse().unwrap_or(0))
    };
    let shop = Shop::open(folder.path(), &["--config", &config]).await?;
    let base = shop.base.clone();
    let (before, lookups) = (scanned().await?, looked_up().await?);

    // Statements that a request causes, on tables of the shop.
    let statements = async || -> Result<u64> {
        let sql = "select coalesce(sum(calls), 0) from pg_stat_statements where query ilike \
            any (array['%products%', '%product_words%', '%categories%', '%orders%', \
            '%order_items%', '%users%', '%receipts%']) and query not ilike '%pg_stat%'";
        Ok(node.sql(sql).await?.parse()?)
    };
    let mut counts = BTreeMap::new();
    let mut ann = Visitor::new();
    let form = [("email", "a7@example.com"), ("password", PASSWORD)];
    assert_eq!(ann.post(&base, "/login", &form).await?.status, 200);
    for path in [
        "/", "/?after=90000", "/?category=Shelf%207", "/?category=Shelf%207&after=90000",
        "/?q=oak", "/?q=oak+th+12", "/?q=thing&category=Shelf%209", "/products/777", "/orders",
        "/orders?older=500000", "/orders?newer=500000", "/orders/7", "/devices", "/admin",
        "/admin/products", "/admin/products?after=90000", "/admin/products/777", "/admin/orders",
        "/admin/orders?older=500000", "/admin/audit",
    ] {
        let start = statements().await?;
        let page = ann.get(&base, path).await?;
        assert_eq!(page.status, 200, "{path}: {}", page.body);
        counts.insert(path.to_owned(), statements().await? - start);
    }
    let form = [("price", "9.99"), ("add", "1"), ("was", "877")];
    assert_eq!(ann.post(&base, "/admin/products/777", &form).await?.status, 200);

    // A cart of forty products, and a guest's thirty orders.
    let mut guest = Visitor::new();
    for product in 1..=40 {
        let product = (product * 100).to_string();
        guest.post(&base, "/cart", &[("product", &product), ("add", "1")]).await?;
    }
    let buy = async |guest: &mut Visitor| -> Result<String> {
        let cart = guest.get(&base, "/cart").await?.body;
        let [token, total] = ["token", "total"].map(|name| field(&cart, name).unwrap());
        let form = [("token", &*token), ("total", &*total), ("email", "x@example.com")];
        Ok(guest.post(&base, "/checkout", &form).await?.path)
    };
    let start = statements().await?;
    let order = buy(&mut guest).await?;
    assert!(order.starts_with("/orders/"), "{order}");
    counts.insert("checkout of 40".into(), statements().await? - start);
    for _ in 0..29 {
        guest.post(&base, "/cart", &[("product", "5"), ("add", "1")]).await?;
        buy(&mut guest).await?;
    }
    let start = statements().await?;
    let list = guest.get(&base, "/orders").await?;
    assert_eq!(list.body.matches("href=\"/orders/").count(), 30);
    counts.insert("30 orders of a guest".into(), statements().await? - start);

    // Checkout: its seven statements, those of the order's page, and of the receipt's job.
    for (what, count) in &counts {
        let most = if what == "checkout of 40" { 18 } else { 4 };
        assert!(*count <= most, "{what}: {count} statements; all: {counts:?}");
    }
    // A deletion does not look at all orders, nor at all words.
    node.sql("select pg_stat_force_next_flush()").await?;
    node.sql(
        "delete from products where id = 99999 and not exists (select 1 from order_items i \
        where i.product_id = 99999)",
    )
    .await?;
    // The connections of the shop report what they have read when they end.
    shop.close().await.context("closing")?;
    eventually("the statistics", async || (looked_up().await.ok()? >= lookups + 30).then_some(()))
        .await?;
    assert_eq!(scanned().await?, before, "rows read by scans of whole tables");
    Ok(())
}
