//! Promises about statements, transactions and timeouts, tested on real servers.
#![cfg(all(feature = "postgres", feature = "mysql", feature = "sqlite"))]
#![allow(clippy::unwrap_used)]

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use scale_sql::{Database, Options, Statement, System, statements};
use testkit::{MariaDb, Postgres, Proxy, eventually};

statements! {
    Texts;
    put = "{insert} things (id, name, body, number) values ($1, $2, $3, $4) {or_nothing}";
    set = "insert into things (id, name, body, number) values ($1, $2, $3, $4) \
        {conflict:id} name = {new:name}, number = things.number + {new:number}";
    some = "select id, name, body, number from things where id {list:1} order by id";
    numbers = "select id from things where number {list:1} order by id";
    add = "update things set number = number + $2 where id = $1";
    count = "select count(*) from things";
    lock = "select number from things where id = $1 {lock}";
    claim = "select id from things order by id limit 1 {claim}";
    clock = "select {now}, {now_us}, {clock}";
}

/// One server of each system, and the handles that keep it alive.
struct Systems {
    postgres: Postgres,
    mariadb: MariaDb,
    folder: tempfile::TempDir,
}

impl Systems {
    async fn start() -> Result<Self> {
        let (postgres, mariadb) = tokio::try_join!(Postgres::start(0), MariaDb::start(0))?;
        Ok(Self { postgres, mariadb, folder: tempfile::tempdir()? })
    }

    async fn databases(&self) -> Result<Vec<Database>> {
        let sqlite = format!("sqlite://{}/t.db", self.folder.path().display());
        let mut databases = Vec::new();
        for url in [self.postgres.node(0).url(), self.mariadb.node(0).url(), sqlite] {
            let database = Database::connect(&url, &Options::default()).await?;
            let bytes = if database.system() == System::Postgres { "bytea" } else { "blob" };
            let table = format!(
                "create table if not exists things (id varchar(64) primary key, name varchar(64), \
                 body {bytes}, number bigint)"
            );
            database.acquire().await?.tell(&table).await?;
            databases.push(database);
        }
        Ok(databases)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_set_of_statements_does_the_same_everywhere() -> Result<()> {
    let systems = Systems::start().await?;
    for database in systems.databases().await? {
        let texts = Texts::new(database.system());
        let put = |id: &str, n: i64| {
            texts.put.bind(id).bind(Some("é'\"".to_owned())).bind(vec![0_u8, 255]).bind(n)
        };
        assert_eq!(put("a", 1).execute(&database).await?, 1);
        assert_eq!(put("a", 1).execute(&database).await?, 0, "it is there");
        assert_eq!(put("b", 2).execute(&database).await?, 1);
        let null = texts.put.bind("c").bind(None::<String>).bind(None::<Vec<u8>>).bind(None::<i64>);
        null.execute(&database).await?;
        let set = texts.set.bind("a").bind("new").bind(Vec::<u8>::new()).bind(10_i64);
        assert!(set.execute(&database).await? > 0);
        let list = |ids: &[&str]| {
            texts.some.bind(ids.iter().map(|id| (*id).to_owned()).collect::<Vec<_>>())
        };
        let rows = list(&["c", "a", "z"]).fetch_all(&database).await?;
        assert_eq!(rows.len(), 2, "{}", database.system());
        assert_eq!(
            (rows[0].get::<String>(0)?, rows[0].get::<String>(1)?),
            ("a".to_owned(), "new".to_owned())
        );
        assert_eq!((rows[0].get::<Vec<u8>>(2)?, rows[0].get::<i64>(3)?), (vec![0, 255], 11));
        assert_eq!(
            (rows[1].get::<Option<String>>(1)?, rows[1].get::<Option<i64>>(3)?),
            (None, None)
        );
        assert!(rows[1].get::<String>(1).is_err(), "null is no text");
        assert!(list(&[]).fetch_all(&database).await?.is_empty());
        let found = texts.numbers.bind(vec![2_i64, 11, 99]).fetch_all(&database).await?;
        assert_eq!(found.len(), 2);
        // An update that changes nothing still counts its row as found.
        assert_eq!(texts.add.bind("a").bind(0_i64).execute(&database).await?, 1);
        assert_eq!(texts.add.bind("nobody").bind(0_i64).execute(&database).await?, 0);
        let clock = texts.clock.query().fetch_one(&database).await?;
        let (ms, us, clock): (i64, i64, i64) = (clock.get(0)?, clock.get(1)?, clock.get(2)?);
        let here =
            std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?.as_millis() as i64;
        assert!(
            (ms - here).abs() < 5_000 && (us / 1_000 - ms).abs() <= 1 && (clock - ms).abs() < 1_000
        );
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn transactions_are_whole_and_one_after_the_other() -> Result<()> {
    let systems = Systems::start().await?;
    for database in systems.databases().await? {
        let texts = Texts::new(database.system());
        let count =
            async || anyhow::Ok(texts.count.query().fetch_one(&database).await?.get::<i64>(0)?);
        let put = |id: &str| texts.put.bind(id).bind("x").bind(Vec::<u8>::new()).bind(0_i64);
        let mut tx = database.begin().await?;
        put("a").execute(&mut tx).await?;
        drop(tx);
        assert_eq!(count().await?, 0, "dropped is rolled back on {}", database.system());
        let mut tx = database.begin().await?;
        put("a").execute(&mut tx).await?;
        tx.commit().await?;
        assert_eq!(count().await?, 1);
        // Many transactions add to the value that they have read: no update is lost.
        let adders = (0..20).map(|_| async {
            let mut tx = database.begin().await?;
            let number: i64 = texts.lock.bind("a").fetch_one(&mut tx).await?.get(0)?;
            let text =
                Statement::new(database.system(), "update things set number = $2 where id = $1");
            text.bind("a").bind(number + 1).execute(&mut tx).await?;
            tx.commit().await
        });
        futures_util::future::try_join_all(adders).await?;
        let number: i64 =
            texts.lock.bind("a").fetch_one(&mut database.begin().await?).await?.get(0)?;
        assert_eq!(number, 20);
    }
    Ok(())
}

/// An abandoned `begin` or statement leaves no transaction open on a connection of the pool.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_given_up_leaves_nothing_open() -> Result<()> {
    let systems = Systems::start().await?;
    systems.databases().await?;
    for url in [systems.postgres.node(0).url(), systems.mariadb.node(0).url()] {
        let (proxy, far) = proxied(&url).await?;
        let mut options = Options::default();
        options.max_connections = 1;
        let database = Database::connect(&far, &options).await?;
        let texts = Texts::new(database.system());
        let put =
            |n: u64| texts.put.bind(n.to_string()).bind("x").bind(Vec::<u8>::new()).bind(0_i64);
        proxy.delay(Duration::from_millis(5));
        for n in 0..40 {
            let work = async {
                let mut tx = database.begin().await?;
                put(n).execute(&mut tx).await?;
                // Never committed.
                std::future::pending::<Result<(), sqlx::Error>>().await
            };
            let _ = tokio::time::timeout(Duration::from_millis(n * 2), work).await;
        }
        proxy.delay(Duration::ZERO);
        // The only connection is in no transaction: its writes are visible to others.
        eventually("a statement", async || put(1_000).execute(&database).await.ok()).await?;
        let other = Database::connect(&url, &Options::default()).await?;
        let count: i64 = texts.count.query().fetch_one(&other).await?.get(0)?;
        assert_eq!(count, 1, "{}", database.system());
    }
    Ok(())
}

async fn proxied(url: &str) -> Result<(Proxy, String)> {
    let (_, rest) = url.rsplit_once(':').context("a port")?;
    let port = rest.split(['/', '?']).next().unwrap_or_default();
    let proxy = Proxy::start(port.parse()?).await?;
    let far = url.replacen(&format!(":{port}"), &format!(":{}", proxy.port()), 1);
    Ok((proxy, far))
}

/// A silent server, as behind a firewall that has dropped the connection: waits end, and the
/// connections of the pool become free again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_silent_server_holds_nobody_for_long() -> Result<()> {
    let systems = Systems::start().await?;
    systems.databases().await?;
    for url in [systems.postgres.node(0).url(), systems.mariadb.node(0).url()] {
        let (proxy, far) = proxied(&url).await?;
        let mut options = Options::default();
        (options.max_connections, options.acquire_timeout) = (2, Duration::from_secs(1));
        options.statement_timeout = Duration::from_millis(500);
        let database = Database::connect(&far, &options).await?;
        let texts = Texts::new(database.system());
        let count = async || texts.count.query().fetch_one(&database).await;
        let mut held = vec![database.begin().await?, database.begin().await?];
        proxy.cut();
        let start = Instant::now();
        for tx in &mut held {
            assert!(texts.count.query().fetch_one(tx).await.is_err());
        }
        drop(held);
        for _ in 0..3 {
            assert!(count().await.is_err());
        }
        assert!(start.elapsed() < Duration::from_secs(10), "{:?}", start.elapsed());
        proxy.heal();
        eventually("the pool's places to be free", async || {
            let both = tokio::join!(database.begin(), database.begin());
            (both.0.is_ok() && both.1.is_ok()).then_some(())
        })
        .await?;
        count().await?;
    }
    Ok(())
}

/// Two transactions that lock in opposite orders: the database aborts one, which is retried.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn deadlocks_are_tried_again() -> Result<()> {
    let systems = Systems::start().await?;
    for database in systems.databases().await? {
        let texts = Texts::new(database.system());
        for id in ["a", "b"] {
            texts
                .put
                .bind(id)
                .bind("x")
                .bind(Vec::<u8>::new())
                .bind(0_i64)
                .execute(&database)
                .await?;
        }
        let both = async |order: [&str; 2]| {
            let attempt = || async {
                let mut tx = database.begin().await?;
                for id in order {
                    texts.add.bind(id).bind(1_i64).execute(&mut tx).await?;
                    tokio::task::yield_now().await;
                }
                tx.commit().await
            };
            scale_sql::retry(|error: &sqlx::Error| Some(error), attempt).await
        };
        for _ in 0..30 {
            let (one, two) = tokio::join!(both(["a", "b"]), both(["b", "a"]));
            one.and(two)?;
        }
        let rows = texts.numbers.bind(vec![60_i64]).fetch_all(&database).await?;
        assert_eq!(rows.len(), 2, "each was added to sixty times on {}", database.system());
    }
    Ok(())
}

/// TLS with a private authority; a certificate of another authority is refused.
#[cfg(feature = "tls")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn servers_are_spoken_to_in_secret_and_known_by_their_certificates() -> Result<()> {
    let (ours, others) = (testkit::Authority::new()?, testkit::Authority::new()?);
    let (postgres, mariadb) = tokio::try_join!(Postgres::start(0), MariaDb::start(0))?;
    postgres.node(0).offer_tls(&ours).await?;
    mariadb.node(0).offer_tls(&ours).await?;
    let of = |authority: &testkit::Authority| {
        let file = authority.file().display().to_string();
        let postgres = format!("{}?sslmode=verify-full&sslrootcert={file}", postgres.node(0).url());
        let mariadb = format!("{}?ssl-mode=VERIFY_IDENTITY&ssl-ca={file}", mariadb.node(0).url());
        [postgres, mariadb]
    };
    let secret = [
        "select case when ssl then 1::bigint else 0 end from pg_stat_ssl \
         where pid = pg_backend_pid()",
        "select count(*) from information_schema.session_status \
         where variable_name = 'SSL_CIPHER' and variable_value <> ''",
    ];
    for (url, text) in of(&ours).iter().zip(secret) {
        let database = Database::connect(url, &Options::default()).await?;
        let is_secret: i64 =
            Statement::new(database.system(), text).query().fetch_one(&database).await?.get(0)?;
        assert_eq!(is_secret, 1, "{}", database.system());
    }
    for url in of(&others) {
        let refused =
            Database::connect(&url, &Options::default()).await?.acquire().await.unwrap_err();
        assert!(refused.to_string().contains("certificate"), "{refused}");
    }
    Ok(())
}

/// An application that cannot connect receives the reason, not only that the pool timed out.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_is_not_there_is_named_as_such() -> Result<()> {
    for url in ["postgres://u:hunter2@127.0.0.1:1/x", "mysql://u:hunter2@127.0.0.1:1/x"] {
        let mut options = Options::default();
        options.acquire_timeout = Duration::from_millis(200);
        let refused =
            Database::connect(url, &options).await?.acquire().await.unwrap_err().to_string();
        assert!(refused.contains("refused") && !refused.contains("hunter2"), "{refused}");
    }
    Ok(())
}
