//! Tables split by time, in Postgres: partitions made ahead of time, and old ones archived and dropped.
//!
//! The application makes the table (`create table events (…) partition by range (at)`) and calls [`Partitions::maintain`] once a day or an
//! hour, from as many processes as it likes. Old rows leave in steps, and each step leaves something from which the next call goes on:
//!
//! | step | what holds if the process dies after it |
//! | --- | --- |
//! | partitions are made, up to [`ahead`](Partitions::ahead) periods from now | made ones stay; none is made twice |
//! | an old one is marked (a comment on the table), then detached | it is a table of its own, with all its rows; a detachment half done is finished next time |
//! | its rows are written to `NAME.csv.zst`, with `NAME.csv.zst.sha256` beside it, both synced to disk | the table still has every row; the files are written again, and only replaced by what has equal content |
//! | the file is read again: checksum, and records counted against the table's rows | nothing was dropped; what does not fit stops here, with [`Error::Archive`] |
//! | the table is dropped, in the transaction that kept its rows from changing since they were read | the rows are in the file, and only there |
//!
//! | when | then |
//! | --- | --- |
//! | two processes maintain one table | one does it, the other returns at once with [`Report::busy`] |
//! | a partition of yours covers a period | it is taken as it is, whatever its name; it is archived when all of it is old |
//! | there is a default partition | detaching locks the table for a moment, since Postgres cannot do it concurrently then |
//! | rows arrive for a period that was archived | Postgres refuses them, or puts them into your default partition |
//! | a row lock or a long query stands in the way | after [`lock_timeout`](crate::Config::lock_timeout) this call fails, and the next goes on |
//!
//! Restoring needs nothing of ours: `zstd -dc events_p20260101.csv.zst | psql -c 'copy events from stdin (format csv, header)'`, and
//! `sha256sum -c events_p20260101.csv.zst.sha256` checks the file. Files whose names
//! begin with a dot are drafts; old ones were left by processes that died, and may go. Periods begin at midnight UTC. Postgres 14 or newer.

mod archive;

use std::path::{Path, PathBuf};

use sqlx::postgres::PgConnection;
use sqlx::{AssertSqlSafe, Connection, Postgres};

pub use self::archive::Archived;
use crate::Dialect;
use crate::backend::Backend;
use crate::db::Db;
use crate::error::Error;

/// How much time one partition holds.
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

/// How a table is split, and for how long its rows stay.
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

/// What one call did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
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
}

impl Partitions {
    /// Of a table partitioned by range over a column of a time or date. The name may have a schema.
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
    /// [`Error::Archive`] for a folder that cannot be written to or a file that does not hold what the table does; else [`Error::Sql`].
    /// What was done stays done.
    pub async fn maintain(&self, db: &Db<Postgres>) -> Result<Report, Error> {
        // A connection of our own, which ends with this call however it ends, and our lock with it.
        let mut own = db.acquire().await?.detach();
        let table = Dialect::Postgres.quoted(&self.table);
        let literal = Dialect::Postgres.literal(&table);
        let result = async {
            tell(&mut own, "set timezone = 'UTC'; set datestyle = 'ISO'; set statement_timeout = 0".into()).await?;
            let turn = format!(
                "select pg_try_advisory_lock(hashtextextended('scale-db partitions of ' || {literal}::regclass::oid, 0))::text"
            );
            if one(&mut own, turn).await?.as_deref() != Some("true") {
                return Ok(Report { busy: true, ..Report::default() });
            }
            let mut report = Report::default();
            self.create(&mut own, &table, &literal, &mut report).await?;
            match &self.old {
                Old::Stay => {}
                Old::Archive { keep, folder } => {
                    self.detach(&mut own, &table, &literal, *keep, &mut report).await?;
                    self.leave(&mut own, &literal, Some(folder), &mut report).await?;
                }
                Old::Drop { keep } => {
                    self.detach(&mut own, &table, &literal, *keep, &mut report).await?;
                    self.leave(&mut own, &literal, None, &mut report).await?;
                }
            }
            Ok(report)
        }
        .await;
        // The server would give the lock back by itself, but a little after we have returned.
        let _ = tell(&mut own, "rollback; select pg_advisory_unlock_all()".into()).await;
        let _ = own.close().await;
        result
    }

    /// Makes the partitions that are missing.
    async fn create(&self, own: &mut PgConnection, table: &str, literal: &str, report: &mut Report) -> Result<(), Error> {
        let (unit, ahead) = (self.every.unit(), self.ahead);
        // As `create table … partition of` would lock all readers out, each is made beside the table, then attached.
        let missing = format!(
            "with periods as (
                select start, start + interval '1 {unit}' as stop
                from generate_series(date_trunc('{unit}', now()), date_trunc('{unit}', now()) + {ahead} * interval '1 {unit}', interval '1 {unit}') start
            )
            select to_char(start, 'YYYYMMDD'), start::text, stop::text from periods
            where not exists (select from ({bounds}) b where b.start < periods.stop and b.stop > periods.start)
            order by start",
            bounds = bounds(literal)
        );
        for row in Postgres::rows(own, missing).await? {
            let [Some(day), Some(start), Some(stop)] = &row[..] else { continue };
            let name = format!("{}_p{day}", self.table);
            let new = Dialect::Postgres.quoted(&name);
            tell(
                own,
                format!(
                    "begin;
                    create table {new} (like {table} including defaults including constraints including generated including storage);
                    comment on table {new} is 'A partition made by scale-db.';
                    alter table {table} attach partition {new} for values from ('{start}') to ('{stop}');
                    commit"
                ),
            )
            .await?;
            report.created.push(name);
        }
        Ok(())
    }

    /// Takes old partitions out of the table.
    async fn detach(
        &self,
        own: &mut PgConnection,
        table: &str,
        literal: &str,
        keep: u32,
        report: &mut Report,
    ) -> Result<(), Error> {
        let pending = format!(
            "select inhrelid::regclass::text from pg_inherits where inhparent = {literal}::regclass and inhdetachpending"
        );
        for row in Postgres::rows(own, pending).await? {
            let Some(part) = row.into_iter().next().flatten() else { continue };
            tell(own, format!("alter table {table} detach partition {part} finalize")).await?;
            report.detached.push(part);
        }
        let unit = self.every.unit();
        let old = format!(
            "select b.part, (select partdefid <> 0 from pg_partitioned_table where partrelid = {literal}::regclass)::text
            from ({bounds}) b where b.stop <= date_trunc('{unit}', now()) - {keep} * interval '1 {unit}' order by b.stop",
            bounds = bounds(literal)
        );
        for row in Postgres::rows(own, old).await? {
            let [Some(part), Some(default)] = &row[..] else { continue };
            tell(own, format!("comment on table {part} is {}", mark(literal))).await?;
            let concurrently = if default == "true" { "" } else { " concurrently" };
            tell(own, format!("alter table {table} detach partition {part}{concurrently}")).await?;
            report.detached.push(part.clone());
        }
        Ok(())
    }

    /// Archives and drops what was detached, now or by a call that did not come to its end.
    async fn leave(
        &self,
        own: &mut PgConnection,
        literal: &str,
        folder: Option<&Path>,
        report: &mut Report,
    ) -> Result<(), Error> {
        let detached = format!(
            "select c.oid::regclass::text, c.relname from pg_class c
            where c.relkind in ('r', 'p') and obj_description(c.oid, 'pg_class') = {}
            and not exists (select from pg_inherits where inhrelid = c.oid) order by c.relname",
            mark(literal)
        );
        for row in Postgres::rows(own, detached).await? {
            let [Some(part), Some(name)] = &row[..] else { continue };
            let mut tx = own.begin().await?;
            // Nobody changes a row between its being read and the drop.
            tell(&mut tx, format!("set local synchronize_seqscans = off; lock table {part} in share mode")).await?;
            if let Some(folder) = folder {
                let archived = archive::write(&mut tx, part, name, folder).await?;
                tell(&mut tx, format!("drop table {part}")).await?;
                tx.commit().await?;
                tracing::info!(table = name, rows = archived.rows, path = %archived.path.display(), "a partition is archived");
                report.archived.push(archived);
            } else {
                tell(&mut tx, format!("drop table {part}")).await?;
                tx.commit().await?;
                report.dropped.push(name.clone());
            }
        }
        Ok(())
    }
}

/// The table's partitions, each with its name as SQL takes it and its bounds; neither the default nor unbounded ones.
fn bounds(literal: &str) -> String {
    let bound = |word: &str| format!(r"(regexp_match(bound, '{word} \(''([^'']+)''\)'))[1]::timestamptz");
    format!(
        "select part, {} as start, {} as stop from (
            select inhrelid::regclass::text as part, pg_get_expr(c.relpartbound, c.oid) as bound
            from pg_inherits join pg_class c on c.oid = inhrelid
            where inhparent = {literal}::regclass and not inhdetachpending
        ) p",
        bound("FROM"),
        bound("TO")
    )
}

/// What says that a table was a partition of this one and is on its way out.
fn mark(literal: &str) -> String {
    Dialect::Postgres.literal(&format!("Detached by scale-db from {}.", literal.replace('\'', "")))
}

async fn tell(connection: &mut PgConnection, sql: String) -> Result<(), Error> {
    Ok(Postgres::tell(connection, sql).await?)
}

async fn one(connection: &mut PgConnection, sql: String) -> Result<Option<String>, Error> {
    Ok(sqlx::query_scalar(AssertSqlSafe(sql)).fetch_one(connection).await?)
}
