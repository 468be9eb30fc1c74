//! One process of the application: it writes rows, and reads its own rows and those of others.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use scale_db::sticky::{self, Mark};
use scale_db::{Builder, Db};
use sqlx::Postgres;

use super::journal::{self, Entry, Journal};
use super::{INTERVAL, LAG, now_us};

const PAUSE: Duration = Duration::from_millis(15);

/// Runs until it is killed.
pub async fn run(number: usize, processes: usize, folder: &Path, urls: &[String]) -> Result<()> {
    let builder = Db::<Postgres>::builder(&urls[0])
        .safe_function("inet_server_port")
        .monitor_interval(INTERVAL)
        .max_replica_lag(LAG)
        .primary_wait(Duration::from_secs(3))
        .statement_timeout(Duration::from_secs(5))
        .acquire_timeout(Duration::from_secs(2));
    let builder = urls[1..].iter().fold(builder, Builder::replica);
    let journal = Arc::new(Journal::open(&journal::path(folder, number))?);
    let db = loop {
        match builder.clone().connect().await {
            Ok(db) => break db,
            Err(_) => tokio::time::sleep(INTERVAL).await,
        }
    };
    let (writes, newest, marked) = (
        tokio::spawn(write(db.clone(), Arc::clone(&journal))),
        tokio::spawn(read_newest(db.clone(), Arc::clone(&journal))),
        tokio::spawn(read_marked(db, journal, folder.to_owned(), processes)),
    );
    tokio::try_join!(async { writes.await? }, async { newest.await? }, async { marked.await? })?;
    Ok(())
}

/// Records failures in the journal, and continues.
fn note<T>(journal: &Journal, began: u64, result: Result<T, sqlx::Error>) -> Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) => {
            journal.note(&Entry::Failed { began, ended: now_us(), what: error.to_string() })?;
            Ok(None)
        }
    }
}

async fn write(db: Db<Postgres>, journal: Arc<Journal>) -> Result<()> {
    loop {
        let began = now_us();
        // The newest row is the one with the highest id.
        let id = began;
        let result = sticky::scope(None, async {
            let insert = "insert into writes (id) values ($1) on conflict do nothing \
                returning inet_server_port()";
            let port: Option<i32> =
                sqlx::query_scalar(insert).bind(id as i64).fetch_optional(&db).await?;
            Ok((port, now_us(), sticky::mark(&db).await))
        });
        if let Some((Some(port), ended, Some(mark))) = note(&journal, began, result.await)? {
            journal.note(&Entry::Wrote {
                id,
                began,
                ended,
                port: port as u16,
                mark: mark.to_string(),
            })?;
        }
        tokio::time::sleep(PAUSE).await;
    }
}

async fn read_newest(db: Db<Postgres>, journal: Arc<Journal>) -> Result<()> {
    loop {
        let began = now_us();
        let newest = sqlx::query_scalar::<_, i64>("select coalesce(max(id), 0) from writes")
            .fetch_one(&db)
            .await;
        if let Some(id) = note(&journal, began, newest)? {
            journal.note(&Entry::Newest { began, id: id as u64 })?;
        }
        tokio::time::sleep(PAUSE).await;
    }
}

async fn read_marked(
    db: Db<Postgres>,
    journal: Arc<Journal>,
    folder: std::path::PathBuf,
    processes: usize,
) -> Result<()> {
    loop {
        let other = journal::path(&folder, fastrand::usize(..processes));
        let written = journal::tail(&other).unwrap_or_default();
        let last = written.iter().rev().find_map(|entry| match entry {
            Entry::Wrote { id, mark, .. } => Some((*id, mark.parse::<Mark>().ok())),
            _ => None,
        });
        if let Some((id, mark)) = last {
            let began = now_us();
            let count = "select (select count(*) from writes where id = $1), inet_server_port()";
            let count = sqlx::query_as::<_, (i64, i32)>(count).bind(id as i64);
            let found = sticky::seeing(&db, mark, count.fetch_one(&db)).await;
            if let Some((found, port)) = note(&journal, began, found)? {
                journal.note(&Entry::Read { id, began, found, port: port as u16 })?;
            }
        }
        tokio::time::sleep(PAUSE).await;
    }
}
