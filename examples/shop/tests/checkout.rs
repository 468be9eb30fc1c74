//! One cart is one order, at the price that the visitor has seen.
#![allow(clippy::unwrap_used)]

mod common;

use anyhow::{Context, Result};
use common::{Answer, Shop, Visitor, field, start};
use sqlx::AssertSqlSafe;
use testkit::{MariaDb, Postgres, eventually};

/// A shop on one server, its database, and a visitor.
struct Case {
    shop: Shop,
    rows: sqlx::AnyPool,
    visitor: Visitor,
    _folder: tempfile::TempDir,
}

impl Case {
    async fn on(database: Option<String>) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let file = format!("sqlite://{}?mode=rwc", folder.path().join("shop.db").display());
        let url = database.unwrap_or(file);
        let config = folder.path().join("shop.toml");
        let text = format!(
            "listen = \"127.0.0.1:0\"\nplain_http = true\n[database]\nurl = {url:?}\n[queue]\n\
             url = {url:?}\n[session]\nurl = {url:?}\n[limit]\n\
             site = {{ name = \"site\", quota = 1000000, per = \"1s\" }}\n"
        );
        std::fs::write(&config, text)?;
        let config = config.display().to_string();
        let (seed, _) = start(folder.path(), &["--config", &config, "seed"])?;
        eventually("the products", async || (!seed.is_running()).then_some(())).await?;
        let shop = Shop::open(folder.path(), &["--config", &config]).await?;
        sqlx::any::install_default_drivers();
        let rows = sqlx::AnyPool::connect(&url).await?;
        Ok(Self { shop, rows, visitor: Visitor::new(), _folder: folder })
    }

    async fn count(&self, sql: &str) -> Result<i64> {
        Ok(sqlx::query_scalar(AssertSqlSafe(sql.to_owned())).fetch_one(&self.rows).await?)
    }

    async fn add(&mut self, product: u32) -> Result<Answer> {
        let product = product.to_string();
        self.visitor.post(&self.shop.base, "/cart", &[("product", &product), ("add", "1")]).await
    }

    /// Opens the cart in a tab.
    async fn cart(&mut self) -> Result<Tab> {
        let page = self.visitor.get(&self.shop.base, "/cart").await?;
        let value = |name| field(&page.body, name).with_context(|| page.body.clone());
        Ok(Tab { token: value("token")?, total: value("total")? })
    }

    async fn buy(&self, tab: &Tab) -> Result<Answer> {
        self.buy_as(&self.visitor, tab).await
    }

    async fn buy_as(&self, visitor: &Visitor, tab: &Tab) -> Result<Answer> {
        let form = [("token", &*tab.token), ("total", &*tab.total), ("email", "ann@example.com")];
        visitor.clone().post(&self.shop.base, "/checkout", &form).await
    }
}

struct Tab {
    token: String,
    total: String,
}

async fn holds(mut case: Case) -> Result<()> {
    // Two clicks at once, a third later: one order, and each click ends at it.
    case.add(1).await?;
    let tab = case.cart().await?;
    let (one, another) = tokio::try_join!(case.buy(&tab), case.buy(&tab))?;
    assert_eq!((one.status, another.status), (200.try_into()?, 200.try_into()?));
    assert!(one.path.starts_with("/orders/"), "{}", one.path);
    assert_eq!((&one.path, &one.path), (&another.path, &case.buy(&tab).await?.path));
    assert_eq!(case.count("select count(*) from orders").await?, 1);

    // Two tabs of one cart.
    case.add(2).await?;
    let tabs = [case.cart().await?, case.cart().await?];
    let bought = [case.buy(&tabs[0]).await?, case.buy(&tabs[1]).await?];
    assert_eq!(bought[0].path, bought[1].path);
    assert_eq!(case.count("select count(*) from orders").await?, 2);

    // What was added in another tab meanwhile is still in the cart, and not in the order.
    case.add(3).await?;
    let tab = case.cart().await?;
    case.add(4).await?;
    let refused = case.buy(&tab).await?;
    assert_eq!(refused.status, 409, "another total: {}", refused.body);
    let tab = case.cart().await?;
    case.buy(&tab).await?;
    assert_eq!(case.count("select count(*) from order_items").await?, 4);

    // A price that has changed since the page was shown.
    case.add(5).await?;
    let tab = case.cart().await?;
    let raise = "update products set price_cents = price_cents + 100 where id = 5";
    sqlx::query(raise).execute(&case.rows).await?;
    let refused = case.buy(&tab).await?;
    assert!(refused.status == 409 && refused.body.contains("The price has changed"));
    let again = case.cart().await?;
    assert_eq!(again.total.parse::<i64>()?, tab.total.parse::<i64>()? + 100, "the new total");
    assert_eq!(case.buy(&tab).await?.status, 409, "the old total is not what is due");
    let order = case.buy(&again).await?;
    assert!(order.path.starts_with("/orders/"), "{}", order.body);
    let paid = "select max(total_cents) from orders where id = (select max(id) from orders)";
    assert_eq!(case.count(paid).await?, again.total.parse::<i64>()?);

    // The token opens nothing for somebody else.
    let stranger = case.buy_as(&Visitor::new(), &again).await?;
    assert_eq!(stranger.path, "/cart", "{}", stranger.body);

    // What is no longer sold leaves the cart, and the rest can be bought.
    case.add(10).await?;
    case.add(11).await?;
    let tab = case.cart().await?;
    sqlx::query("delete from products where id = 11").execute(&case.rows).await?;
    let refused = case.buy(&tab).await?;
    assert!(refused.status == 409 && refused.body.contains("no longer sold"), "{}", refused.body);
    assert!(refused.body.contains("class=\"count\">1<"), "{}", refused.body);
    let tab = case.cart().await?;
    assert!(case.buy(&tab).await?.path.starts_with("/orders/"));

    // Sold out: nothing is taken, nothing is ordered.
    case.add(6).await?;
    case.add(7).await?;
    let tab = case.cart().await?;
    sqlx::query("update products set stock = 0 where id = 7").execute(&case.rows).await?;
    let (before, orders) = (case.count("select stock from products where id = 6").await?, 5);
    let refused = case.buy(&tab).await?;
    assert!(refused.status == 409 && refused.body.contains("in stock"), "{}", refused.body);
    assert_eq!(case.count("select stock from products where id = 6").await?, before);
    assert_eq!(case.count("select count(*) from orders").await?, orders);
    case.shop.close().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_cart_is_one_order_on_sqlite() -> Result<()> {
    holds(Case::on(None).await?).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_cart_is_one_order_on_postgres() -> Result<()> {
    let server = Postgres::start(0).await?;
    holds(Case::on(Some(server.node(0).url())).await?).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_cart_is_one_order_on_mariadb() -> Result<()> {
    let server = MariaDb::start(0).await?;
    holds(Case::on(Some(server.node(0).url())).await?).await
}

/// Orders of the same products in any order of their carts do not deadlock, and no piece is sold
/// twice.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stock_is_never_sold_twice() -> Result<()> {
    let server = Postgres::start(0).await?;
    let case = Case::on(Some(server.node(0).url())).await?;
    sqlx::query("update products set stock = 10 where id in (1, 2, 3)").execute(&case.rows).await?;
    let buyers = (0..16).map(|n| {
        let base = case.shop.base.clone();
        async move {
            let mut visitor = Visitor::new();
            let mut products = ["1", "2", "3"];
            products.rotate_left(n % 3);
            for product in products {
                visitor.post(&base, "/cart", &[("product", product), ("add", "1")]).await?;
            }
            let page = visitor.get(&base, "/cart").await?;
            let value = |name| field(&page.body, name).context("a form");
            let (token, total) = (value("token")?, value("total")?);
            let form = [("token", &*token), ("total", &*total), ("email", "a@example.com")];
            Ok::<_, anyhow::Error>(visitor.post(&base, "/checkout", &form).await?.status.as_u16())
        }
    });
    let statuses = futures_util::future::try_join_all(buyers).await?;
    assert_eq!(statuses.iter().filter(|status| **status == 200).count(), 10, "{statuses:?}");
    assert_eq!(statuses.iter().filter(|status| **status == 409).count(), 6, "{statuses:?}");
    assert_eq!(case.count("select max(stock) from products where id <= 3").await?, 0);
    case.shop.close().await
}
