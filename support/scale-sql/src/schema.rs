//! Tables of a crate: numbered migrations, with one history per crate.
//!
//! | database | version |
//! | --- | --- |
//! | without the tables | 0 |
//! | with a history (`…_migrations`) | that of its last row |
//! | with files applied by hand | the last one whose [`Mark`] exists |
//!
//! A migration whose name begins with `expand` keeps the tables compatible with the previous
//! version of the crate, so that both run side by side during a deployment. After any other
//! migration, older versions refuse to connect.

use std::borrow::Cow;
use std::time::Duration;

use sqlx::SqlSafeStr;
use sqlx::migrate::{MigrateError, Migration as SqlxMigration, MigrationType, Migrator};

use crate::connection::{Connection, Inner};
use crate::database::Database;
use crate::error::Error;
use crate::statement::{Query, Statement};
use crate::system::System;

/// Table, column or index that shows that a migration was applied, by whatever tool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Mark {
    /// A table created by the migration.
    Table(&'static str),
    /// A column added by the migration: table and column.
    Column(&'static str, &'static str),
    /// An index created by the migration.
    Index(&'static str),
}

/// One step of a schema.
#[derive(Clone, Copy, Debug)]
pub struct Migration {
    /// Number of the migration, from 1.
    pub version: i64,
    /// Name of the migration. One that begins with `expand` keeps the tables compatible with the
    /// previous version.
    pub name: &'static str,
    /// Statements of the migration. On MySQL, which commits each one separately, they must be
    /// repeatable.
    pub sql: &'static str,
    /// Mark that shows that the migration was applied.
    pub mark: Mark,
}

/// Tables of a crate on every system.
#[derive(Clone, Copy, Debug)]
pub struct Schema {
    /// Name of the crate in snake case: `scale_queue`. The name of the history's table begins with
    /// it.
    pub name: &'static str,
    /// Number of the advisory lock under which one process migrates at a time.
    pub lock: i64,
    /// Migrations for PostgreSQL, in order.
    pub postgres: &'static [Migration],
    /// Migrations for MySQL and MariaDB, in order.
    pub mysql: &'static [Migration],
    /// Migrations for SQLite, in order.
    pub sqlite: &'static [Migration],
}

impl Schema {
    /// Returns the migrations for a system.
    pub fn migrations(&self, system: System) -> &'static [Migration] {
        match system {
            System::Postgres => self.postgres,
            System::MySql => self.mysql,
            System::Sqlite => self.sqlite,
        }
    }

    /// Returns the name of the history's table.
    pub fn history(&self) -> String {
        format!("{}_migrations", self.name)
    }

    fn newest(&self, system: System) -> i64 {
        self.migrations(system).last().map_or(0, |migration| migration.version)
    }

    /// Checks that the tables fit this version of the crate. Changes nothing, and only needs
    /// permission to read the catalogue.
    ///
    /// # Errors
    /// [`Error::Older`], [`Error::Newer`]; [`Error::Sql`] if the database does not answer.
    pub async fn check(&self, database: &Database) -> Result<(), Error> {
        let mut connection = database.acquire().await?;
        // One snapshot of the catalogue, and one server connection behind a pooler.
        connection.begin(Duration::from_secs(5)).await?;
        let found = self.find(&mut connection).await?;
        let wanted = self.newest(database.system());
        if found.version < wanted {
            let (name, system) = (self.name, database.system());
            return Err(Error::Older { name, system, found: found.version, wanted });
        }
        match found.breaking {
            Some(version) => Err(Error::Newer { name: self.name, found: version, known: wanted }),
            None => Ok(()),
        }
    }

    /// Migrates the tables to this version of the crate. One process migrates at a time, the others
    /// wait; where the system supports it, everything happens in one transaction.
    ///
    /// # Errors
    /// [`Error::Migrate`] if a statement failed, or a migration's file differs from the applied
    /// one; [`Error::Newer`] if the tables are too new; [`Error::Sql`] if the database does not
    /// answer.
    pub async fn migrate(&self, database: &Database) -> Result<(), Error> {
        match self.check(database).await {
            Err(Error::Older { .. }) => {}
            other => return other,
        }
        self.migrate_on(database.acquire().await?).await?;
        self.check(database).await
    }

    async fn migrate_on(&self, mut connection: Connection<'static>) -> Result<(), Error> {
        // Building an index may take long.
        connection.deadline = None;
        match connection.system() {
            System::MySql => {
                // The lock belongs to the connection, and ends with it.
                connection.close_on_drop();
                let lock = Statement::new(System::MySql, "select get_lock($1, 600)");
                let locked = lock.bind(self.name).fetch_one(&mut connection).await?;
                if locked.get::<Option<i64>>(0)? != Some(1) {
                    return Err(Error::Busy(self.name));
                }
                self.run(&mut connection).await
            }
            System::Postgres => {
                // A waiting table lock blocks all later users of the table, so the wait is bounded.
                connection.begin(Duration::from_secs(10)).await?;
                let lock = Statement::new(System::Postgres, "select pg_advisory_xact_lock($1)");
                connection.tell("set local lock_timeout = 0").await?;
                // What `if not exists` finds is no news.
                connection.tell("set local client_min_messages = warning").await?;
                lock.bind(self.lock).fetch_all(&mut connection).await?;
                connection.tell("set local lock_timeout = '10s'").await?;
                // The migrator prepares statements: behind a pooler they would stay with the
                // server's connection, and conflict for its next user.
                let forget = if connection.is_pooled { "deallocate all" } else { "" };
                connection.tell(forget).await?;
                self.run(&mut connection).await?;
                connection.tell(forget).await?;
                if connection.is_pooled {
                    connection.close_on_drop();
                }
                Ok(connection.commit().await?)
            }
            System::Sqlite => {
                connection.begin(Duration::ZERO).await?;
                self.run(&mut connection).await?;
                Ok(connection.commit().await?)
            }
        }
    }

    async fn run(&self, connection: &mut Connection<'_>) -> Result<(), Error> {
        let system = connection.system();
        let found = self.find(connection).await?;
        if let Some(version) = found.breaking {
            return Err(Error::Newer {
                name: self.name,
                found: version,
                known: self.newest(system),
            });
        }
        let history = self.history();
        if system == System::MySql && has_table(connection, &history).await? {
            // An interrupted migration: its statements are run again.
            connection.tell(&format!("delete from {history} where success = false")).await?;
        }
        let steps = self.migrations(system).iter().map(|migration| {
            let sql = migration.sql.into_sql_str();
            SqlxMigration::new(
                migration.version,
                Cow::Borrowed(migration.name),
                MigrationType::Simple,
                sql,
                false,
            )
        });
        let mut migrator = Migrator::with_migrations(steps.collect());
        migrator.dangerous_set_table_name(history);
        // The crate's lock is held already; sqlx's lock is of a session, which poolers share.
        migrator.set_locking(false).set_ignore_missing(true);
        let failed = |source: MigrateError| Error::Migrate { name: self.name, source };
        // Tables without a history were created by hand, or by versions without one.
        if found.by_shape > 0 {
            apply(&migrator, connection, Some(found.by_shape)).await.map_err(failed)?;
        }
        apply(&migrator, connection, None).await.map_err(failed)
    }

    async fn find(&self, connection: &mut Connection<'_>) -> Result<Found, Error> {
        let system = connection.system();
        let mut by_shape = 0;
        for migration in self.migrations(system).iter().rev() {
            if migration.mark.is_there(connection).await? {
                by_shape = migration.version;
                break;
            }
        }
        let mut found = Found { version: by_shape, by_shape, breaking: None };
        let history = self.history();
        if !has_table(connection, &history).await? {
            return Ok(found);
        }
        if system == System::Postgres && !self.may_read(connection, &history).await? {
            return Ok(found);
        }
        let text = format!(
            "select version, description from {history} where success = true order by version"
        );
        let known = self.newest(system);
        for row in Statement::new(system, &text).query().fetch_all(&mut *connection).await? {
            let (version, name): (i64, String) = (row.get(0)?, row.get(1)?);
            found.version = found.version.max(version);
            if version > known && !name.starts_with("expand") {
                found.breaking = Some(version);
            }
        }
        Ok(found)
    }

    /// Returns whether the role may read the history; otherwise the tables alone count.
    async fn may_read(
        &self,
        connection: &mut Connection<'_>,
        history: &str,
    ) -> Result<bool, Error> {
        let text = "select case when has_table_privilege($1, 'select') then 1::bigint else 0 end";
        let may =
            Statement::new(System::Postgres, text).bind(history).fetch_one(connection).await?;
        Ok(may.get::<i64>(0)? == 1)
    }
}

/// Version of a schema found in a database.
#[derive(Debug)]
struct Found {
    version: i64,
    /// Version determined from the tables alone.
    by_shape: i64,
    /// A newer migration that makes the tables incompatible with this version.
    breaking: Option<i64>,
}

impl Mark {
    /// Checks in the catalogue whether the migration was applied.
    async fn is_there(&self, connection: &mut Connection<'_>) -> Result<bool, sqlx::Error> {
        let system = connection.system();
        match *self {
            Self::Table(table) => has_table(connection, table).await,
            Self::Column(table, column) => {
                let text = match system {
                    System::Postgres => {
                        "select count(*) from pg_attribute where attrelid = to_regclass($1) \
                         and attname = $2 and not attisdropped"
                    }
                    System::MySql => {
                        "select count(*) from information_schema.columns \
                         where table_schema = database() and table_name = $1 and column_name = $2"
                    }
                    System::Sqlite => "select count(*) from pragma_table_info($1) where name = $2",
                };
                exists(connection, Statement::new(system, text).bind(table).bind(column)).await
            }
            Self::Index(index) => {
                let text = match system {
                    System::Postgres => "select count(*) from pg_class where oid = to_regclass($1)",
                    System::MySql => {
                        "select count(*) from information_schema.statistics \
                         where table_schema = database() and index_name = $1"
                    }
                    System::Sqlite => {
                        "select count(*) from sqlite_master where type = 'index' and name = $1"
                    }
                };
                exists(connection, Statement::new(system, text).bind(index)).await
            }
        }
    }
}

async fn has_table(connection: &mut Connection<'_>, table: &str) -> Result<bool, sqlx::Error> {
    let system = connection.system();
    let text = match system {
        System::Postgres => "select count(*) from pg_class where oid = to_regclass($1)",
        System::MySql => {
            "select count(*) from information_schema.tables \
             where table_schema = database() and table_name = $1"
        }
        System::Sqlite => "select count(*) from sqlite_master where type = 'table' and name = $1",
    };
    exists(connection, Statement::new(system, text).bind(table)).await
}

async fn exists(connection: &mut Connection<'_>, ask: Query) -> Result<bool, sqlx::Error> {
    Ok(ask.fetch_one(connection).await?.get::<i64>(0)? > 0)
}

/// Runs the migrations, or records them as applied up to a version.
async fn apply(
    migrator: &Migrator,
    connection: &mut Connection<'_>,
    skip_to: Option<i64>,
) -> Result<(), MigrateError> {
    let _ = (migrator, skip_to);
    // `run` and `skip` return futures that are not `Send`; this is what they call.
    macro_rules! on {
        ($handle:ident) => {
            migrator.run_direct(skip_to, $handle.get()?, skip_to.is_some()).await
        };
    }
    match &mut connection.inner {
        #[cfg(feature = "postgres")]
        Inner::Postgres(handle) => on!(handle),
        #[cfg(feature = "mysql")]
        Inner::MySql(handle) => on!(handle),
        #[cfg(feature = "sqlite")]
        Inner::Sqlite(handle) => on!(handle),
        #[cfg(feature = "any")]
        Inner::Any(_) => Err(MigrateError::SkipNotSupported()),
        Inner::Never(never, _) => match *never {},
    }
}
