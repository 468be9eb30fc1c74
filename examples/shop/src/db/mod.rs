//! Queries, and the migrations of `migrations/`. The same SQL runs on SQLite, Postgres and MariaDB;
//! only the tables are defined three times.

pub(crate) mod catalogue;
pub(crate) mod devices;
pub(crate) mod exports;
pub(crate) mod factors;
pub(crate) mod mails;
pub(crate) mod orders;
pub(crate) mod search;
pub(crate) mod seed;
pub(crate) mod users;

use std::time::SystemTime;

use anyhow::{Context, Result};
use scale_db::Dialect;
use scale_db::cluster::{NodeStatus, Role};
use scale_queue::relay::Relay;
use scale_queue::store::System;
use scale_session::store::{Database as Pool, Options};
use sqlx::{AssertSqlSafe, SqlSafeStr, SqlStr};

use crate::app::Database;
use crate::config::Config;

/// Migrates the tables: those of the shop, and those of the queue and the sessions if they are in a
/// database.
pub(crate) async fn migrate(config: &Config) -> Result<()> {
    let db: Database = config.database.clone().connect().await.context("[database]")?;
    let migrations = match db.dialect() {
        Dialect::Sqlite => sqlx::migrate!("migrations/sqlite"),
        Dialect::Postgres => sqlx::migrate!("migrations/postgres"),
        Dialect::MySql => sqlx::migrate!("migrations/mysql"),
        other => anyhow::bail!("[database] the shop has no tables for {other:?}"),
    };
    migrations.run(db.unlimited()).await.context("[database] migrating")?;
    search::complete(&db).await.context("indexing the products")?;
    let primary = from_primary(&db, config.nodes()).remove(0);
    if System::of(config.queue_url()).is_some() {
        let pool = Pool::connect(&primary, &Options::default()).await.context("[queue]")?;
        scale_queue::store::migrate(pool).await.context("[queue]")?;
    } else {
        let pool = Pool::connect(&primary, &Options::default()).await.context("[database]")?;
        Relay::migrate(pool).await.context("creating the outbox")?;
    }
    // Of the audit log, and of the sessions if they are in a database.
    let mut urls = vec![primary.as_str()];
    if System::of(config.session_url()).is_some() && config.session_url() != config.database.url {
        urls.push(config.session_url());
    }
    for url in urls {
        let pool = Pool::connect(url, &Options::default()).await.context("[session]")?;
        scale_session::store::migrate(pool).await.context("[session]")?;
    }
    Ok(())
}

/// Returns the addresses of a database's nodes, the one that is the primary now first.
pub(crate) fn from_primary(db: &Database, mut addresses: Vec<String>) -> Vec<String> {
    let is_primary = |node: &NodeStatus| node.fit && node.role == Role::Primary;
    let primary = db.nodes().iter().find(|node| is_primary(node)).map(|node| node.number);
    if let Some(number) = primary.filter(|number| *number < addresses.len()) {
        addresses.swap(0, number);
    }
    addresses
}

/// Returns a statement with the database's form of parameters: MariaDB has no `$1`, and binds
/// parameters in order.
pub(crate) fn sql(db: &Database, text: &'static str) -> SqlStr {
    if db.dialect() == Dialect::MySql { sql_of(db, text) } else { text.into_sql_str() }
}

/// Does the same for a statement whose number of parameters varies. It must contain no value.
pub(crate) fn sql_of(db: &Database, text: &str) -> SqlStr {
    if db.dialect() != Dialect::MySql {
        return AssertSqlSafe(text.to_owned()).into_sql_str();
    }
    let mut written = String::with_capacity(text.len());
    for (number, piece) in text.split('$').enumerate() {
        if number > 0 {
            written.push('?');
        }
        written.push_str(if number == 0 {
            piece
        } else {
            piece.trim_start_matches(|c: char| c.is_ascii_digit())
        });
    }
    AssertSqlSafe(written).into_sql_str()
}

/// Returns milliseconds since 1970, the form in which all times are stored.
pub(crate) fn now_ms() -> i64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_millis() as i64
}
