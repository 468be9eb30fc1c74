//! Changes by staff, and what others see of them.
#![allow(clippy::unwrap_used)]

mod common;

use std::process::{Command, Output};

use anyhow::Result;
use common::{Shop, Visitor, fleet, journey, laptop, start};
use testkit::{Postgres, Redis, eventually};

const PASSWORD: &str = "correct horse battery staple";

async fn staff(base: &str) -> Result<Visitor> {
    let mut ann = Visitor::new();
    let form = [("email", "ann@example.com"), ("password", PASSWORD), ("next", "/admin")];
    let menu = ann.post(base, "/login", &form).await?;
    assert!(menu.path == "/admin" && menu.body.contains("Audit log"), "{}", menu.body);
    Ok(ann)
}

fn audit(config: &str, words: &[&str]) -> Result<Output> {
    let mut command = Command::new(env!("CARGO_BIN_EXE_shop"));
    Ok(command.args(["--config", config, "audit"]).args(words).output()?)
}

/// A price changed at one process is the price on every page of the other one, although its
/// replica has not replayed the change yet.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_price_shows_at_once_on_every_process() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let (postgres, redis) = tokio::try_join!(Postgres::start(1), Redis::start())?;
    let config = fleet(folder.path(), &postgres, &redis, "1ms")?;
    let text = std::fs::read_to_string(&config)?;
    std::fs::write(&config, format!("secret = \"{}\"\n{text}", "07".repeat(32)))?;
    let (seed, _) = start(folder.path(), &["--config", &config, "seed"])?;
    eventually("the seed", async || (!seed.is_running()).then_some(())).await?;
    common::account(&config, "ann@example.com", "staff", PASSWORD)?;
    postgres.caught_up().await?;
    let one = Shop::open(folder.path(), &["--config", &config, "serve"]).await?;
    let other = Shop::open(folder.path(), &["--config", &config, "serve"]).await?;
    let mut ann = staff(&one.base).await?;

    // Everything that shows the price is in the caches of both.
    let pages = ["/products/1", "/", "/?category=Kitchen", "/?q=classic%20oak"];
    for shop in [&one, &other] {
        for path in pages {
            let page = Visitor::new().get(&shop.base, path).await?;
            assert!(!page.body.contains("€ 4711.00"), "{path}");
        }
    }
    postgres.node(1).pause_replay().await?;
    let page = ann.get(&one.base, "/admin/products/1").await?.body;
    let was = common::field(&page, "was").unwrap();
    let form = [("price", "4711"), ("add", "0"), ("was", &*was)];
    assert_eq!(ann.post(&one.base, "/admin/products/1", &form).await?.status, 200);
    for path in pages {
        let page = Visitor::new().get(&one.base, path).await?;
        assert!(page.body.contains("€ 4711.00"), "{path}, where it was changed");
        eventually("the price at the other process", async || {
            let page = Visitor::new().get(&other.base, path).await.ok()?;
            page.body.contains("€ 4711.00").then_some(())
        })
        .await?;
    }
    postgres.node(1).resume_replay().await?;

    // The log says who it was, and a change of the log is found.
    let log = ann.get(&one.base, "/admin/audit").await?.body;
    assert!(log.contains("ann@example.com") && log.contains("to € 4711.00"), "{log}");
    let good = audit(&config, &[])?;
    let said = String::from_utf8_lossy(&good.stdout).into_owned();
    // The account, and the price.
    assert!(good.status.success() && said.starts_with("2 records, unchanged"), "{said}");
    let anchor = said.trim().rsplit(' ').next().unwrap().to_owned();
    assert!(audit(&config, &["--anchor", &anchor])?.status.success());
    let table = "select c.table_name from information_schema.columns c \
        where c.column_name = 'details' and c.table_schema = 'public'";
    let table = postgres.node(0).sql(table).await?;
    postgres.node(0).sql(&format!("update {} set details = 'nothing'", table.trim())).await?;
    let bad = audit(&config, &["--anchor", &anchor])?;
    let said = String::from_utf8_lossy(&bad.stderr).into_owned();
    assert!(!bad.status.success() && said.contains("record 1 was changed"), "{said}");
    one.close().await?;
    other.close().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn staff_changes_stock_and_others_cannot() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let shop = Shop::open(folder.path(), &["--config", &laptop(folder.path())?]).await?;
    let base = shop.base.clone();
    let mut ann = staff(&base).await?;
    let mut guest = Visitor::new();
    for path in ["/admin", "/admin/products", "/admin/products/1", "/admin/orders", "/admin/audit"]
    {
        assert_eq!(ann.get(&base, path).await?.status, 200, "{path}");
        assert_eq!(guest.get(&base, path).await?.status, 404, "{path}");
    }
    let change = async |visitor: &mut Visitor, price: &str, add: &str| -> Result<u16> {
        let page = visitor.get(&base, "/admin/products/1").await?.body;
        let was = common::field(&page, "was").unwrap_or_else(|| "0".into());
        let form = [("price", price), ("add", add), ("was", &*was)];
        Ok(visitor.post(&base, "/admin/products/1", &form).await?.status.as_u16())
    };
    assert_eq!(change(&mut guest, "1", "1").await?, 404);
    let stock = async || -> Result<i64> {
        let page = Visitor::new().get(&base, "/products/1").await?.body;
        let (before, _) = page.split_once(" in stock").unwrap();
        Ok(before.rsplit('>').next().unwrap().parse()?)
    };
    let before = stock().await?;
    assert_eq!(change(&mut ann, "12.50", "100").await?, 200);
    assert_eq!(stock().await?, before + 100);
    assert_eq!(change(&mut ann, "12.50", "-1000").await?, 409, "no more than there is");
    assert_eq!(change(&mut ann, "-1", "0").await?, 422);
    assert_eq!(change(&mut ann, "0", "0").await?, 422);
    let odd = i64::MAX.to_string();
    for add in ["x", "100001", &*odd, "1.5", ""] {
        assert_eq!(change(&mut ann, "12.50", add).await?, 422, "{add}");
    }
    assert_eq!(stock().await?, before + 100);
    // What was typed stays, and so does another person's change.
    let form = [("price", "12.5"), ("add", "7"), ("was", "1250")];
    let page = ann.post(&base, "/admin/products/1", &form).await?;
    assert!(page.status == 422 && page.body.contains("value=\"12.5\""), "{}", page.body);
    assert!(page.body.contains("value=\"7\""), "{}", page.body);
    assert_eq!(change(&mut ann, "13.00", "0").await?, 200);
    let form = [("price", "12.50"), ("add", "1"), ("was", "1250")];
    let page = ann.post(&base, "/admin/products/1", &form).await?;
    assert!(page.status == 409 && page.body.contains("€ 13.00 by now"), "{}", page.body);
    assert!(Visitor::new().get(&base, "/products/1").await?.body.contains("€ 13.00"));
    let log = ann.get(&base, "/admin/audit").await?.body;
    assert!(log.contains("product.change.refused") && log.contains("stock -1000"), "{log}");
    shop.close().await
}

/// After a failover a process starts, and staff's changes are recorded, although the first address
/// of the configuration leads nowhere.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_first_node_of_the_database_may_be_gone() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let (postgres, redis) = tokio::try_join!(Postgres::start(1), Redis::start())?;
    let config = fleet(folder.path(), &postgres, &redis, "1ms")?;
    let text = std::fs::read_to_string(&config)?;
    std::fs::write(&config, format!("secret = \"{}\"\n{text}", "07".repeat(32)))?;
    let (seed, _) = start(folder.path(), &["--config", &config, "seed"])?;
    eventually("the seed", async || (!seed.is_running()).then_some(())).await?;
    common::account(&config, "ann@example.com", "staff", PASSWORD)?;
    postgres.caught_up().await?;
    let before = Shop::open(folder.path(), &["--config", &config, "serve"]).await?;
    postgres.node(0).kill()?;
    postgres.node(1).promote().await?;
    let after = Shop::open(folder.path(), &["--config", &config, "serve"]).await?;
    for (shop, price) in [(&after, "41.00"), (&before, "42.00")] {
        let mut ann = staff(&shop.base).await?;
        let changed = eventually("a change", async || {
            let page = ann.get(&shop.base, "/admin/products/1").await.ok()?.body;
            let was = common::field(&page, "was")?;
            let form = [("price", price), ("add", "0"), ("was", &*was)];
            let page = ann.post(&shop.base, "/admin/products/1", &form).await.ok()?;
            (page.status == 200).then_some(page)
        });
        changed.await?;
        let log = ann.get(&shop.base, "/admin/audit").await?.body;
        assert!(log.contains(&format!("to € {price}")), "{log}");
    }
    // The tables are migrated on the new primary, too.
    let (migrate, log) = start(folder.path(), &["--config", &config, "migrate"])?;
    eventually("the migration", async || (!migrate.is_running()).then_some(())).await?;
    let said = std::fs::read_to_string(log)?;
    assert!(!said.contains("shop: "), "{said}");
    before.close().await?;
    after.close().await
}

/// Lists of orders are read in both directions, and a new order shifts none of the pages.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn orders_are_turned_over_in_both_directions() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let shop = Shop::open(folder.path(), &["--config", &laptop(folder.path())?]).await?;
    let base = shop.base.clone();
    let mut ann = staff(&base).await?;
    let buy = async |ann: &mut Visitor, product: u64| journey(ann, &[&base], product).await;
    let mut paths = Vec::new();
    for n in 0..60 {
        paths.push(buy(&mut ann, 1 + n % 30).await?);
    }
    paths.reverse();
    let shown = |body: &str| -> Vec<String> {
        let links = body.split("href=\"").skip(1).filter_map(|rest| rest.split('"').next());
        links.filter(|link| link.starts_with("/orders/")).map(str::to_owned).collect()
    };
    let link = |body: &str, rel: &str| -> Option<String> {
        let (before, _) = body.split_once(&format!("\" rel=\"{rel}\""))?;
        Some(before.rsplit('"').next()?.to_owned())
    };
    let first = ann.get(&base, "/orders").await?.body;
    assert_eq!(shown(&first), paths[..25]);
    assert_eq!(link(&first, "prev"), None);
    let second = ann.get(&base, &link(&first, "next").unwrap()).await?.body;
    assert_eq!(shown(&second), paths[25..50]);
    let newest = buy(&mut ann, 31).await?;
    let third = ann.get(&base, &link(&second, "next").unwrap()).await?.body;
    assert_eq!(shown(&third), paths[50..]);
    assert_eq!(link(&third, "next"), None);
    let back = ann.get(&base, &link(&third, "prev").unwrap()).await?.body;
    assert_eq!(shown(&back), paths[25..50], "the same page as on the way there");
    let back = ann.get(&base, &link(&back, "prev").unwrap()).await?.body;
    assert_eq!(shown(&back), paths[..25]);
    let back = ann.get(&base, &link(&back, "prev").unwrap()).await?.body;
    assert_eq!(shown(&back), [newest]);
    assert_eq!(link(&back, "prev"), None);
    for odd in ["x", "-1", "99999999999999999999"] {
        let status = ann.get(&base, &format!("/orders?older={odd}")).await?.status.as_u16();
        assert!([200, 400].contains(&status), "{odd}: {status}");
    }
    shop.close().await
}
