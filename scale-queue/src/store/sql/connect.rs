//! Opening of the store: pools, checks of the schema, the tasks that belong to it.

use std::sync::Arc;

use parking_lot::Mutex;
use scale_common::clock::ServerClock;
use scale_sql::{Database, Statement, System};

use super::listener::Listener;
use super::settings::Settings;
use super::statements::Statements;
use super::text::app_text;
use super::{LONGEST_APP, SqlStore, again, failed};
use crate::error::Error;
use crate::store::History;

/// Migrates the tables of a database to this version of the crate: those of queues, and the outbox
/// of jobs pushed inside transactions. Run it where the application migrates its own tables, with a
/// role that may create tables.
///
/// One process migrates at a time; the others wait. On PostgreSQL and SQLite the migration happens
/// completely or not at all.
///
/// # Errors
/// [`Error::Schema`] if a migration fails or the tables are newer than this version;
/// [`Error::Store`] if the database does not answer.
pub async fn migrate(database: impl Into<Database>) -> Result<(), Error> {
    let database = database.into();
    super::schema::QUEUE.migrate(&database).await?;
    Ok(super::schema::OUTBOX.migrate(&database).await?)
}

/// Returns the files that [`migrate`] applies on a system, in order: their names and contents. They
/// are in the crate's folder `migrations`, for teams that apply such files with their own tool.
pub fn migrations(system: System) -> Vec<(String, &'static str)> {
    let name = |migration: &scale_sql::Migration| {
        (format!("{:04}_{}.sql", migration.version, migration.name), migration.sql)
    };
    [super::schema::QUEUE, super::schema::OUTBOX]
        .iter()
        .flat_map(|schema| schema.migrations(system).iter().map(name))
        .collect()
}

impl SqlStore {
    /// Uses the application's own pool; otherwise like [`connect`](Self::connect).
    ///
    /// # Errors
    /// The errors of [`connect`](Self::connect).
    pub async fn with_pool(pool: impl Into<Database>, app: &str) -> Result<Self, Error> {
        Self::open(pool.into(), app, &Settings::default()).await
    }

    pub(crate) async fn open(
        database: Database,
        app: &str,
        settings: &Settings,
    ) -> Result<Self, Error> {
        let app_text = app_text(app);
        if app_text.len() > LONGEST_APP {
            return Err(Error::Setting("the application's name is longer than 255 bytes"));
        }
        database.look().await.map_err(failed)?;
        if settings.migrate.unwrap_or(database.system() == System::Sqlite) {
            migrate(database.clone()).await?;
        } else {
            super::schema::QUEUE.check(&database).await?;
        }
        let store = Self {
            app: app.to_owned(),
            app_text,
            texts: Statements::of(database.system()),
            database,
            idle: Arc::default(),
            synchronous: settings.synchronous,
            history: History::default(),
            clock: ServerClock::default(),
            known: Arc::default(),
            hints: Mutex::default(),
            unbegun: Mutex::default(),
            groups: Mutex::default(),
            listening: Mutex::default(),
        };
        store.adopt().await?;
        let now = store.texts.push.clock.query().fetch_one(&store.database).await;
        store.clock.set(now.and_then(|row| row.get(0)).map_err(failed)?);
        store.listen();
        Ok(store)
    }

    /// Sets how many dead jobs are kept, and for how long.
    pub fn history(mut self, history: History) -> Self {
        self.history = history;
        self
    }

    /// Assigns rows of versions without application names to this application.
    pub(super) async fn adopt(&self) -> Result<(), Error> {
        // MySQL was not supported by those versions.
        if self.system() == System::MySql {
            return Ok(());
        }
        let unclaimed =
            self.texts.push.unclaimed.query().fetch_one(&self.database).await.map_err(failed)?;
        if unclaimed.get::<i64>(0).map_err(failed)? == 0 {
            return Ok(());
        }
        again(|| self.adopt_all()).await
    }

    pub(super) async fn adopt_all(&self) -> Result<(), Error> {
        let mut tx = self.database.begin().await.map_err(failed)?;
        let of_both = |table: &str, keys: &[&str]| {
            let same: Vec<_> =
                keys.iter().map(|key| format!("ours.{key} = scale_queue_{table}.{key}")).collect();
            format!(
                "app = '' and exists (select 1 from scale_queue_{table} as ours \
                 where ours.app = $1 and {})",
                same.join(" and ")
            )
        };
        // Rows that this application already has take precedence.
        let keys: [(&str, &[&str]); 5] = [
            ("queues", &["queue"]),
            ("once", &["queue", "once_key"]),
            ("batches", &["id"]),
            ("batch_ends", &["id", "number"]),
            ("notes", &["note_key"]),
        ];
        let mut steps: Vec<String> = keys
            .iter()
            .map(|(table, keys)| {
                format!("delete from scale_queue_{table} where {}", of_both(table, keys))
            })
            .collect();
        let held = of_both("jobs", &["queue", "unique_key"]);
        steps.push(format!("update scale_queue_jobs set unique_key = null where {held}"));
        for step in steps {
            let step = Statement::new(self.system(), &step).bind(self.app_text.clone());
            step.execute(&mut tx).await.map_err(failed)?;
        }
        for table in ["jobs", "dead", "once", "batches", "batch_ends", "notes", "queues"] {
            let adopt = format!("update scale_queue_{table} set app = $1 where app = ''");
            let adopt = Statement::new(self.system(), &adopt).bind(self.app_text.clone());
            adopt.execute(&mut tx).await.map_err(failed)?;
        }
        tx.commit().await.map_err(failed)
    }

    pub(super) fn system(&self) -> System {
        self.database.system()
    }

    /// Starts the listener, again if the runtime of the previous one has ended.
    pub(super) fn listen(&self) {
        let mut listening = self.listening.lock();
        if listening.as_ref().is_none_or(tokio::task::JoinHandle::is_finished) {
            *listening = Some(self.listener().spawn());
        }
    }

    pub(super) fn listener(&self) -> Listener {
        Listener {
            app: self.app_text.clone(),
            idle: Arc::downgrade(&self.idle),
            database: self.database.clone(),
            texts: self.texts,
        }
    }
}
