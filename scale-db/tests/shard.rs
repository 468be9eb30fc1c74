//! Shards: rows distributed by key, queried together, and moved to a new shard while users write.
#![cfg(feature = "sqlite")]
#![allow(clippy::unwrap_used)]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::Result;
use scale_db::shard::Shards;
use scale_db::{Db, Error};
use sqlx::Sqlite;
use tokio::sync::RwLock;

async fn file(folder: &tempfile::TempDir, name: &str) -> Result<Db<Sqlite>> {
    let db =
        Db::connect(&format!("sqlite://{}/{name}.db?mode=rwc", folder.path().display())).await?;
    sqlx::raw_sql("create table notes (id integer primary key, customer bigint not null)")
        .execute(&db)
        .await?;
    Ok(db)
}

async fn write(shards: &Shards<Sqlite>, customer: i64) -> Result<()> {
    sqlx::query("insert into notes (customer) values ($1)")
        .bind(customer)
        .execute(shards.of(&customer))
        .await?;
    Ok(())
}

async fn count(db: &Db<Sqlite>, customer: i64) -> Result<i64> {
    Ok(sqlx::query_scalar("select count(*) from notes where customer = $1")
        .bind(customer)
        .fetch_one(db)
        .await?)
}

#[tokio::test]
async fn rows_are_spread_and_asked_together() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let [a, b] = [file(&folder, "a").await?, file(&folder, "b").await?];
    let shards = Shards::new([("a", a.clone()), ("b", b)])?;
    for customer in 0..40 {
        write(&shards, customer).await?;
    }
    let on = shards
        .on_all(|db| async move {
            sqlx::query_scalar::<_, i64>("select count(*) from notes").fetch_one(&db).await
        })
        .await;
    let on: Vec<(&str, i64)> = on.into_iter().map(|(name, n)| (name, n.unwrap())).collect();
    assert_eq!((on[0].0, on[1].0, on[0].1 + on[1].1), ("a", "b", 40));
    assert!(on.iter().all(|(_, n)| *n > 8), "{on:?}");
    let newest = shards
        .merged(
            15,
            |a: &i64, b| b.cmp(a),
            |db| async move {
                sqlx::query_scalar("select customer from notes order by customer desc limit 15")
                    .fetch_all(&db)
                    .await
            },
        )
        .await?;
    assert_eq!(newest, (25..40).rev().collect::<Vec<i64>>());

    // One shard is down: the others answer, and a merge reports the failure.
    a.close().await;
    let asked =
        shards.on_all(|db| async move { sqlx::query("select 1").execute(&db).await.is_ok() }).await;
    assert_eq!(asked, [("a", false), ("b", true)]);
    assert!(
        shards
            .merged(
                1,
                i64::cmp,
                |db| async move { sqlx::query_scalar("select 1").fetch_all(&db).await }
            )
            .await
            .is_err()
    );
    Ok(())
}

#[tokio::test]
async fn what_cannot_be_is_refused() -> Result<()> {
    let db: Db<Sqlite> = Db::connect("sqlite::memory:").await?;
    let one = |name: &str| (name.to_owned(), db.clone());
    assert!(matches!(Shards::<Sqlite>::new(Vec::<(String, _)>::new()), Err(Error::Shards(_))));
    let twice = Shards::new([one("x"), one("y"), one("x")]).unwrap_err();
    assert!(twice.to_string().contains("`x`, number 2"), "{twice}");
    let shards = Shards::new([one("x"), one("y")])?;
    assert!(shards.place(&7_i64, "z").is_err() && shards.get("z").is_none());
    assert!(shards.grow("x", db.clone()).is_err());
    let grown = shards.grow("z", db.clone())?;
    assert!(grown.grow("w", db.clone()).is_err(), "one at a time");
    grown.settle();
    assert!(grown.grow("w", db.clone()).is_ok());

    // A customer with a dedicated shard, independent of the hash.
    let other = if shards.name_of("large") == "x" { "y" } else { "x" };
    shards.place("large", other)?;
    assert_eq!((shards.name_of("large"), shards.exceptions()), (other, 1));
    assert_eq!(shards.grow("z", db.clone())?.name_of("large"), other);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_shard_is_added_while_users_write() -> Result<()> {
    const CUSTOMERS: i64 = 60;
    let folder = tempfile::tempdir()?;
    let old = Shards::new([("a", file(&folder, "a").await?), ("b", file(&folder, "b").await?)])?;
    let shards = old.grow("c", file(&folder, "c").await?)?;
    // Stops the writes of one customer during its move: in Postgres, a row lock on the account.
    let locks: Arc<Vec<RwLock<()>>> = Arc::new((0..CUSTOMERS).map(|_| RwLock::new(())).collect());
    let stop = Arc::new(AtomicBool::new(false));
    let users: Vec<_> = (0..3)
        .map(|user| {
            let (shards, locks, stop) = (shards.clone(), Arc::clone(&locks), Arc::clone(&stop));
            tokio::spawn(async move {
                let mut written = vec![0_i64; CUSTOMERS as usize];
                let mut customer = user;
                while !stop.load(Ordering::Relaxed) {
                    customer = (customer + 7) % CUSTOMERS;
                    let _mine = locks[customer as usize].read().await;
                    write(&shards, customer).await?;
                    written[customer as usize] += 1;
                    // A user reads from the shard that holds the user's writes.
                    anyhow::ensure!(
                        count(shards.of(&customer), customer).await? >= written[customer as usize]
                    );
                }
                anyhow::Ok(written)
            })
        })
        .collect();
    let mut moved = 0;
    for customer in 0..CUSTOMERS {
        let Some(to) = shards.moves_to(&customer) else { continue };
        assert_eq!(to, "c", "only to the new one");
        let _alone = locks[customer as usize].write().await;
        let (from, to) = (shards.of(&customer), shards.get(to).unwrap());
        for _ in 0..count(from, customer).await? {
            sqlx::query("insert into notes (customer) values ($1)")
                .bind(customer)
                .execute(to)
                .await?;
        }
        shards.place(&customer, "c")?;
        sqlx::query("delete from notes where customer = $1").bind(customer).execute(from).await?;
        moved += 1;
        assert_eq!(shards.moves_to(&customer), None);
    }
    assert!((10..=35).contains(&moved), "about a third of {CUSTOMERS}: {moved}");
    assert_eq!(shards.exceptions(), moved);
    shards.settle();
    assert_eq!(shards.exceptions(), 0, "the hash alone says it now");
    stop.store(true, Ordering::Relaxed);
    let mut written = vec![0; CUSTOMERS as usize];
    for user in users {
        written.iter_mut().zip(user.await??).for_each(|(sum, n)| *sum += n);
    }
    for customer in 0..CUSTOMERS {
        let mut everywhere = 0;
        for (_, db) in shards.iter() {
            everywhere += count(db, customer).await?;
        }
        let there = count(shards.of(&customer), customer).await?;
        assert_eq!(
            (there, everywhere),
            (written[customer as usize], written[customer as usize]),
            "customer {customer}"
        );
    }
    Ok(())
}
