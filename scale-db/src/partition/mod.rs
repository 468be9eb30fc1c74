//! Tables split by time, in Postgres, MySQL and MariaDB: partitions made ahead of time, and old ones archived and dropped.
//!
//! The application makes the table (`create table events (…) partition by range (at)`, on MySQL `partition by range columns (at) (…)`) and
//! calls [`Partitions::maintain`] once a day or an hour, from as many processes as it likes. Old rows leave in steps, and each step leaves
//! something from which the next call goes on:
//!
//! | step | what holds if the process dies after it |
//! | --- | --- |
//! | partitions are made, up to [`ahead`](Partitions::ahead) periods from now | made ones stay; none is made twice |
//! | an old one is marked and detached (MySQL: exchanged with a marked, empty table) | it is a table of its own, with all its rows; what is half done is finished next time |
//! | its rows are written to `NAME.csv.zst`, with `NAME.csv.zst.sha256` beside it, both synced to disk | the table still has every row; the files are written again, and only replaced by what has equal content |
//! | the file is read again: checksum, and records counted against the table's rows | nothing was dropped; what does not fit stops here, with [`Error::Archive`] |
//! | the table is dropped, under the lock that kept its rows from changing since they were read | the rows are in the file, and only there |
//!
//! | when | then |
//! | --- | --- |
//! | two processes maintain one table | one does it, the other returns at once with [`Report::busy`] |
//! | a partition of yours covers a period, or a part of one | it is taken as it is, whatever its name; the rest of the period gets one beside it. It is archived when all of it is old |
//! | there is a default partition (MySQL: one for `maxvalue`) | its rows move into the partitions that are made; on Postgres, detaching locks the table for a moment, since it cannot be done concurrently then |
//! | one partition cannot be made, detached or archived (a foreign key, a lock, a full disk) | it is in [`Report::failed`], and the others are done |
//! | row-level security hides rows from the role | nothing is archived: [`Error::Archive`] |
//! | a row of MySQL is larger than a packet (`max_allowed_packet`) | it is archived; it cannot be restored before the server takes larger ones |
//! | a table of MariaDB keeps its history (`with system versioning`), or is split by anything but time | refused |
//! | rows arrive for a period that was archived | Postgres refuses them, or puts them into your default partition; on MySQL they are in the oldest partition, and leave with it |
//! | a row lock or a long query stands in the way | after [`lock_timeout`](crate::Config::lock_timeout) that partition fails, and the next call goes on |
//!
//! [`restore`] puts a file's rows back, after it has checked the file. It needs nothing of ours, though:
//!
//! - A file is CSV with a line of column names, nulls being empty and not in quotes. Binary columns of MySQL, and texts of other character
//!   sets than UTF-8, are in hexadecimal.
//! - `sha256sum -c events_p20260101.csv.zst.sha256` checks it.
//! - On Postgres, `zstd -dc FILE | psql -c 'copy events (COLUMNS OF ITS FIRST LINE) from stdin (format csv, header)'` reads it.
//!
//! Files whose names begin with a dot are drafts; old ones were left by processes that died, and may go. Periods begin at midnight UTC.
//! Postgres 14, MySQL 8, MariaDB 10.6 or newer.

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

/// Period of time that one partition holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Every {
    /// From midnight to midnight, UTC.
    Day,
    /// From Monday.
    Week,
    /// From the first.
    Month,
    /// From January.
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

/// Settings of a table that is split by time.
///
/// ```no_run
/// # async fn example(db: scale_db::Db<sqlx::Postgres>) -> Result<(), scale_db::Error> {
/// use scale_db::partition::{Every, Partitions};
///
/// let events = Partitions::of("events", Every::Month).ahead(3).archive_after(12, "/var/lib/shop/archive");
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

/// Something that one partition would not let happen.
#[derive(Debug)]
#[non_exhaustive]
pub struct Failed {
    /// Its name.
    pub partition: String,
    /// Why.
    pub error: Error,
}

/// Report of one call.
#[derive(Debug, Default)]
#[non_exhaustive]
pub struct Report {
    /// Somebody else is at it; this call did nothing.
    pub busy: bool,
    /// Partitions made.
    pub created: Vec<String>,
    /// Partitions detached.
    pub detached: Vec<String>,
    /// Tables whose rows are in a file now, verified, and nowhere else.
    pub archived: Vec<Archived>,
    /// Tables dropped without an archive, as asked for.
    pub dropped: Vec<String>,
    /// Partitions that could not be made, detached, archived or dropped; the next call tries again.
    pub failed: Vec<Failed>,
}

impl Partitions {
    /// Takes a table that is partitioned by range over one column of a time or date (on MySQL `range columns (at)`, `range (to_days(at))` or
    /// `range (unix_timestamp(at))`). The name may have a schema.
    pub fn of(table: &str, every: Every) -> Self {
        Self { table: table.to_owned(), every, ahead: 2, old: Old::Stay }
    }

    /// Periods after the present one for which there is always a partition. Default: 2.
    pub fn ahead(mut self, periods: u32) -> Self {
        self.ahead = periods.min(1_000);
        self
    }

    /// Partitions that ended `periods` before the present one are written to files in `folder`, verified, and dropped. The folder must
    /// exist; a disk of its own, or one that is backed up, is a good place.
    pub fn archive_after(mut self, periods: u32, folder: impl Into<PathBuf>) -> Self {
        self.old = Old::Archive { keep: periods, folder: folder.into() };
        self
    }

    /// Partitions that ended `periods` before the present one are dropped: their rows are gone.
    pub fn drop_after(mut self, periods: u32) -> Self {
        self.old = Old::Drop { keep: periods };
        self
    }

    /// Does what is due. Safe to call at any time, from anywhere.
    ///
    /// # Errors
    /// [`Error::Sql`] if the table cannot be looked at. What happens to one partition alone is in [`Report::failed`].
    pub async fn maintain<DB: Partitioned>(&self, db: &Db<DB>) -> Result<Report, Error> {
        Box::pin(DB::maintain(self, db)).await
    }
}

/// A database whose tables can be split: Postgres, MySQL and MariaDB.
pub trait Partitioned: Backend + sealed::Engine {}

mod sealed {
    use super::{Db, Error, Partitions, Report};
    use crate::backend::Backend;
    use crate::partition::restore::Archive;

    /// Does the work on one system.
    pub trait Engine: Backend {
        #[doc(hidden)]
        fn maintain(what: &Partitions, db: &Db<Self>) -> impl Future<Output = Result<Report, Error>> + Send;

        #[doc(hidden)]
        fn restore(db: &Db<Self>, table: &str, archive: Archive) -> impl Future<Output = Result<u64, Error>> + Send;
    }
}

impl Report {
    fn fail(&mut self, partition: &str, error: Error) {
        tracing::error!(partition, %error, "a partition is not as it should be");
        self.failed.push(Failed { partition: partition.to_owned(), error });
    }
}
