//! Tables partitioned by time, in Postgres, MySQL and MariaDB: partitions are created ahead of
//! time, and old ones archived and dropped.
//!
//! The application creates the table (`create table events (…) partition by range (at)`, on MySQL
//! `partition by range columns (at) (…)`) and calls [`Partitions::maintain`] once a day or an hour,
//! from any number of processes. Old rows are removed in steps, and each step leaves a state from
//! which the next call continues:
//!
//! | step | what holds if the process dies after it |
//! | --- | --- |
//! | partitions are created, up to [`ahead`](Partitions::ahead) periods from now | created ones stay; none is created twice |
//! | an old one is marked and detached (MySQL: exchanged with a marked, empty table) | it is a table of its own, with all its rows; an interrupted detach is finished by the next call |
//! | its rows are written to `NAME.csv.zst`, with `NAME.csv.zst.sha256` next to it, both synced to disk | the table still has every row; the files are written again, and a file is reused only if its content is equal |
//! | the file is read back: its checksum, and its records against the table's rows | nothing was dropped; a mismatch ends here, with [`Error::Archive`] |
//! | the table is dropped, under the lock that has kept its rows unchanged since they were read | the rows are in the file, and only there |
//!
//! | when | then |
//! | --- | --- |
//! | two processes maintain one table | one does the work, the other returns at once with [`Report::busy`] |
//! | a partition of yours covers a period, or a part of one | it is used as it is, whatever its name; a new partition covers the rest of the period. It is archived when all of it is old |
//! | there is a default partition (MySQL: one for `maxvalue`) | its rows move into the new partitions; on Postgres, detaching briefly locks the table, because it cannot be done concurrently then |
//! | one partition cannot be created, detached or archived (a foreign key, a lock, a full disk) | it is in [`Report::failed`], and the others are processed |
//! | row-level security hides rows from the role | nothing is archived: [`Error::Archive`] |
//! | a row of MySQL is larger than a packet (`max_allowed_packet`) | it is archived; it can only be restored on a server that accepts larger packets |
//! | a table of MariaDB keeps its history (`with system versioning`), or is not partitioned by time | it is refused |
//! | rows arrive for a period that was archived | Postgres refuses them, or puts them into your default partition; on MySQL they are in the oldest partition, and are archived with it |
//! | a row lock or a long query blocks the work | after [`lock_timeout`](crate::Config::lock_timeout) that partition fails, and the next call continues |
//!
//! [`restore`] checks a file and puts its rows back. The files can also be used without this crate:
//!
//! - A file is CSV with a line of column names; nulls are empty fields without quotes. Binary
//!   columns of MySQL, and texts in other character sets than UTF-8, are in hexadecimal.
//! - `sha256sum -c events_p20260101.csv.zst.sha256` verifies it.
//! - On Postgres, `zstd -dc FILE | psql -c 'copy events (COLUMNS) from stdin (format csv, header)'`
//!   reads it; the columns are those of its first line.
//!
//! Files whose names begin with a dot are drafts; old ones were left by processes that died, and
//! can be deleted. Periods begin at midnight UTC. Requires Postgres 14, MySQL 8, MariaDB 10.6 or
//! newer.

mod archive;
mod csv;
#[cfg(feature = "mysql")]
mod mysql;
#[cfg(feature = "postgres")]
mod postgres;
mod restore;

use std::path::PathBuf;

pub use self::archive::Archived;
pub use self::restore::restore;
use crate::backend::Backend;
use crate::db::Db;
use crate::error::Error;

/// Period covered by one partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Every {
    /// A day, from midnight UTC.
    Day,
    /// A week, from Monday.
    Week,
    /// A month, from its first day.
    Month,
    /// A year, from January.
    Year,
}

impl Every {
    fn unit(self) -> &'static str {
        match self {
            Self::Day => "day",
            Self::Week => "week",
            Self::Month => "month",
            Self::Year => "year",
        }
    }
}

#[derive(Clone, Debug)]
enum Old {
    Stay,
    Archive { keep: u32, folder: PathBuf },
    Drop { keep: u32 },
}

/// Settings of a table partitioned by time.
///
/// ```no_run
/// # async fn example(db: scale_db::Db<sqlx::Postgres>) -> Result<(), scale_db::Error> {
/// use scale_db::partition::{Every, Partitions};
///
/// let events = Partitions::of("events", Every::Month)
///     .ahead(3)
///     .archive_after(12, "/var/lib/shop/archive");
/// let report = events.maintain(&db).await?;
/// for old in &report.archived {
///     println!("{}: {} rows in {}", old.table, old.rows, old.path.display());
/// }
/// # Ok(()) }
/// ```
#[derive(Clone, Debug)]
#[must_use]
pub struct Partitions {
    table: String,
    every: Every,
    ahead: u32,
    old: Old,
}

/// Failure of one partition.
#[derive(Debug)]
#[non_exhaustive]
pub struct Failed {
    /// Name of the partition.
    pub partition: String,
    /// Cause of the failure.
    pub error: Error,
}

/// Result of one call.
#[derive(Debug, Default)]
#[non_exhaustive]
pub struct Report {
    /// True if another process is maintaining the table; this call did nothing.
    pub busy: bool,
    /// Created partitions.
    pub created: Vec<String>,
    /// Detached partitions.
    pub detached: Vec<String>,
    /// Tables whose rows are only in a file now, which was verified.
    pub archived: Vec<Archived>,
    /// Tables dropped without an archive, as configured.
    pub dropped: Vec<String>,
    /// Partitions that could not be created, detached, archived or dropped; the next call tries
    /// again.
    pub failed: Vec<Failed>,
}

impl Partitions {
    /// Configures a table that is partitioned by range over one column with a time or date (on
    /// MySQL `range columns (at)`, `range (to_days(at))` or `range (unix_timestamp(at))`). The name
    /// may include a schema.
    pub fn of(table: &str, every: Every) -> Self {
        Self { table: table.to_owned(), every, ahead: 2, old: Old::Stay }
    }

    /// Sets for how many periods after the current one there are always partitions. Default: 2.
    pub fn ahead(mut self, periods: u32) -> Self {
        self.ahead = periods.min(1_000);
        self
    }

    /// Archives partitions that ended `periods` before the current one to files in `folder`,
    /// verifies the files, and drops the partitions. The folder must exist; a separate or backed-up
    /// disk is recommended.
    pub fn archive_after(mut self, periods: u32, folder: impl Into<PathBuf>) -> Self {
        self.old = Old::Archive { keep: periods, folder: folder.into() };
        self
    }

    /// Drops partitions that ended `periods` before the current one; their rows are lost.
    pub fn drop_after(mut self, periods: u32) -> Self {
        self.old = Old::Drop { keep: periods };
        self
    }

    /// Does the work that is due. Safe to call at any time, from any process.
    ///
    /// # Errors
    /// [`Error::Sql`] if the table cannot be inspected. Failures of single partitions are in
    /// [`Report::failed`].
    pub async fn maintain<DB: Partitioned>(&self, db: &Db<DB>) -> Result<Report, Error> {
        Box::pin(DB::maintain(self, db)).await
    }
}

/// Databases with support for partitions: Postgres, MySQL and MariaDB.
pub trait Partitioned: Backend + sealed::Engine {}

mod sealed {
    use super::{Db, Error, Partitions, Report};
    use crate::backend::Backend;
    use crate::partition::restore::Archive;

    /// Implementation for one system.
    pub trait Engine: Backend {
        #[doc(hidden)]
        fn maintain(
            what: &Partitions,
            db: &Db<Self>,
        ) -> impl Future<Output = Result<Report, Error>> + Send;

        #[doc(hidden)]
        fn restore(
            db: &Db<Self>,
            table: &str,
            archive: Archive,
        ) -> impl Future<Output = Result<u64, Error>> + Send;
    }
}

impl Report {
    fn fail(&mut self, partition: &str, error: Error) {
        tracing::error!(
            partition, %error,
            "maintenance of a partition failed; the next call tries again",
        );
        self.failed.push(Failed { partition: partition.to_owned(), error });
    }
}
