//! A guest book without a web framework. This file is the same in every example.
//!
//! | variable | one machine (the default) | many servers |
//! | --- | --- | --- |
//! | `DATABASE` | `sqlite://guestbook.db?mode=rwc` | `postgres://…` |
//! | `REPLICA` | | `postgres://…` |
//! | `SHARED` | `memory:` | `redis://…` |

use std::time::Duration;

use anyhow::Context as _;
use scale_cache::{Cache, LoadContext, Options};
use scale_db::Db;
use scale_db::sticky::{self, Mark};
use scale_limit::{Limiter, Policy};
use scale_queue::{Context, Job, Queue, Worker};
use scale_session::{Config, Session, SessionLayer};
use serde::{Deserialize, Serialize};

const NAME: &str = "guestbook";

/// Handles of the five crates. A clone is cheap.
#[derive(Clone)]
pub struct Guestbook {
    pub db: Db<sqlx::Any>,
    pub cache: Cache,
    pub queue: Queue,
    pub sessions: SessionLayer,
    pub limiter: Limiter,
}

/// A message to whoever keeps the guest book.
#[derive(Serialize, Deserialize)]
struct Announce {
    text: String,
}

impl Job for Announce {
    const NAME: &'static str = "announce";
}

impl Guestbook {
    pub async fn connect() -> anyhow::Result<Self> {
        let setting = |name, default: &str| std::env::var(name).unwrap_or_else(|_| default.into());
        let database = setting("DATABASE", "sqlite://guestbook.db?mode=rwc");
        let shared = setting("SHARED", "memory:");
        let mut db = Db::builder(&database);
        if let Ok(replica) = std::env::var("REPLICA") {
            db = db.replica(replica);
        }
        let db: Db<sqlx::Any> = db.connect().await.context("DATABASE")?;
        let id = match db.dialect() {
            scale_db::Dialect::Sqlite => "integer primary key",
            _ => "bigint generated always as identity primary key",
        };
        let table = format!("create table if not exists entries (id {id}, text text not null)");
        sqlx::query(sqlx::AssertSqlSafe(table)).execute(&db).await?;
        Ok(Self {
            db,
            cache: Cache::connect(&shared, NAME).await.context("SHARED")?,
            queue: Queue::connect(&shared, NAME).await.context("SHARED")?,
            sessions: SessionLayer::connect(&shared, NAME, Config::default()).await?,
            limiter: Limiter::connect(&shared, NAME).await?,
        })
    }

    /// Returns the number of the visit, and the newest entries.
    pub async fn page(&self, session: &Session) -> anyhow::Result<String> {
        let visits = session.increment("visits", 1).await?;
        let (db, options) = (self.db.clone(), Options::ttl(Duration::from_mins(5)).tag("entries"));
        let entries = self.cache.get_or_load("newest", &options, |load: LoadContext| async move {
            let newest = "select text from entries order by id desc limit 10";
            let newest = sqlx::query_scalar::<_, String>(newest).fetch_all(&db);
            // A replica answers, if there is one that has what the last writer wrote.
            sticky::seeing(&db, load.position().map(Mark::from_bytes), newest).await
        });
        let entries = entries.await?;
        Ok(format!("visit {visits}\n{}\n", entries.join("\n")))
    }

    pub async fn write(&self, text: String) -> anyhow::Result<()> {
        let insert = "insert into entries (text) values ($1)";
        sqlx::query(insert).bind(&text).execute(&self.db).await?;
        match sticky::mark(&self.db).await {
            Some(mark) => self.cache.invalidate_tags_at(["entries"], &mark.to_bytes()).await,
            None => self.cache.invalidate_tags(["entries"]).await,
        };
        self.queue.push(Announce { text }).await?;
        Ok(())
    }

    /// Returns the limit of entries: five a minute for each client.
    pub fn entries_per_client() -> Policy {
        Policy::per_minute("entries", 5)
    }

    /// Runs jobs until the process is asked to stop. On many servers, run it in processes of its
    /// own.
    pub async fn work(self) -> anyhow::Result<()> {
        let worker = Worker::new(&self.queue).handle(|job: Announce, _: Context| async move {
            println!("a new entry: {}", job.text);
            Ok::<(), std::io::Error>(())
        });
        Ok(worker.run(tokio::signal::ctrl_c()).await?)
    }
}
