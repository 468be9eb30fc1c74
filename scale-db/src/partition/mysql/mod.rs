//! Partitions of MySQL and MariaDB: parts of one table, exchanged with a separate table when they
//! are removed.
//!
//! | partitioning of the table | a bound is |
//! | --- | --- |
//! | `by range columns (at)`, a date or datetime | `'2026-01-01 00:00:00'` |
//! | `by range (to_days(at))` | a number of days |
//! | `by range (unix_timestamp(at))` | a number of seconds |

mod columns;
mod place;

use std::path::Path;

use data_encoding::HEXUPPER_PERMISSIVE;
use sqlx::mysql::MySqlConnection;
use sqlx::{AssertSqlSafe, Connection, MySql};

use self::columns::{Kind, archive, columns};
use self::place::{Place, ident, literal, mark};
use super::archive::{Archived, failed};
use super::restore::Archive;
use super::sealed::Engine;
use super::{Every, Old, Partitioned, Partitions, Report};
use crate::backend::Backend;
use crate::db::Db;
use crate::error::Error;

/// Maximum characters of a name.
const LONGEST: usize = 64;
/// Maximum rows of one insert, their values, and their bytes (one row may have more).
const ROWS: usize = 100;
const PLACEHOLDERS: usize = 65_535;
const PACKET: usize = 1 << 20;

const WHAT: &str = "the file cannot be restored";

impl Partitioned for MySql {}

impl Engine for MySql {
    async fn maintain(what: &Partitions, db: &Db<Self>) -> Result<Report, Error> {
        // A separate connection, which ends with this call however it ends, and releases the locks.
        let mut own = db.acquire().await?.detach();
        let wait = db.0.config.lock_timeout.as_secs().max(1);
        let (place, name) = Place::split(&what.table);
        let mut work = Work {
            what,
            table: place.quoted(name),
            name: name.to_owned(),
            place,
            own: &mut own,
            report: Report::default(),
        };
        let result = work.run(wait).await;
        let report = work.report;
        // The server releases the lock by itself, but a little after this call returns.
        let _ = tell(&mut own, "rollback; do release_all_locks()".into()).await;
        let _ = own.close().await;
        result.map(|()| report)
    }

    async fn restore(db: &Db<Self>, table: &str, mut archive: Archive) -> Result<u64, Error> {
        let mut tx = db.begin().await?;
        tell(&mut tx, SESSION.into()).await?;
        let (place, name) = Place::split(table);
        let known = columns(&mut tx, &place.condition(name)).await?;
        let (mut names, mut values, mut kinds) = (Vec::new(), Vec::new(), Vec::new());
        for name in &archive.columns {
            let column = known.iter().find(|column| column.name == *name);
            let missing = || {
                std::io::Error::new(
                    std::io::ErrorKind::NotFound,
                    format!("the table has no column `{name}` to write to"),
                )
            };
            let column = column.ok_or_else(missing).map_err(failed(WHAT))?;
            names.push(ident(name));
            values.push(column.kind.parameter());
            kinds.push(column.kind);
        }
        let (row, mut rows, table) = (format!("({})", values.join(", ")), 0, place.quoted(name));
        let most = (PLACEHOLDERS / kinds.len().max(1)).clamp(1, ROWS);
        while let Some(mut batch) = archive.next().await? {
            while !batch.is_empty() {
                let (mut count, mut bytes) = (0, 0);
                for record in batch.iter().take(most) {
                    bytes += record.iter().flatten().map(Vec::len).sum::<usize>();
                    if count > 0 && bytes > PACKET {
                        break;
                    }
                    count += 1;
                }
                let all = vec![row.as_str(); count].join(", ");
                let mut query = sqlx::query(AssertSqlSafe(format!(
                    "insert into {table} ({}) values {all}",
                    names.join(", ")
                )))
                .persistent(false);
                for (n, field) in batch.drain(..count).flatten().enumerate() {
                    query = match kinds[n % kinds.len()] {
                        Kind::Binary => {
                            let bytes =
                                field.map(|hex| HEXUPPER_PERMISSIVE.decode(&hex)).transpose();
                            query.bind(bytes.map_err(std::io::Error::other).map_err(failed(WHAT))?)
                        }
                        _ => query.bind(
                            field
                                .map(String::from_utf8)
                                .transpose()
                                .map_err(std::io::Error::other)
                                .map_err(failed(WHAT))?,
                        ),
                    };
                }
                rows += query.execute(&mut *tx).await?.rows_affected();
            }
        }
        let rows = archive.took(rows)?;
        tx.commit().await?;
        Ok(rows)
    }
}

/// UTC, no special meaning of backslashes, and zeros stored as zeros.
const SESSION: &str = "set names utf8mb4; set time_zone = '+00:00'; \
    set sql_mode = 'NO_AUTO_VALUE_ON_ZERO,ALLOW_INVALID_DATES,STRICT_ALL_TABLES' /*M! , \
    max_statement_time = 0 */ /*!80000 , max_execution_time = 0 */";

/// A partition: its name, and its end in seconds of Unix time; `None` for `maxvalue`.
struct Part {
    name: String,
    stop: Option<i64>,
}

/// One call for one table.
struct Work<'a> {
    what: &'a Partitions,
    /// The table's quoted name.
    table: String,
    name: String,
    place: Place,
    own: &'a mut MySqlConnection,
    report: Report,
}

impl Work<'_> {
    async fn run(&mut self, wait: u64) -> Result<(), Error> {
        tell(self.own, format!("{SESSION}; set lock_wait_timeout = {wait}")).await?;
        let name = format!(
            "concat('scale-db ', left(sha2(concat(database(), '/', {}), 256), 40))",
            literal(&self.what.table)
        );
        if one(self.own, format!("select cast(get_lock({name}, 0) as char)")).await?.as_deref()
            != Some("1")
        {
            self.report.busy = true;
            return Ok(());
        }
        let by = self.partitioned_by().await?;
        self.create(&by).await?;
        match &self.what.old {
            Old::Stay => {}
            Old::Archive { keep, folder } => {
                self.detach(*keep, &by).await?;
                self.leave(Some(folder)).await?;
            }
            Old::Drop { keep } => {
                self.detach(*keep, &by).await?;
                self.leave(None).await?;
            }
        }
        Ok(())
    }

    async fn note(&mut self, partition: &str, result: Result<(), Error>) -> Result<bool, Error> {
        let Err(error) = result else { return Ok(true) };
        // If the connection is lost, the call fails.
        tell(self.own, "unlock tables".into()).await?;
        self.report.fail(partition, error);
        Ok(false)
    }

    /// Reads by which expression the table is partitioned.
    async fn partitioned_by(&mut self) -> Result<By, Error> {
        let sql = format!(
            "select cast(partition_method as char), cast(partition_expression as char),
             (select cast(table_type as char) from information_schema.tables where {0}) \
             from information_schema.partitions
             where {0} limit 1",
            self.place.condition(&self.name)
        );
        let row = MySql::rows(self.own, sql).await?.into_iter().next().unwrap_or_default();
        let by = match &row[..] {
            [Some(method), Some(expression), Some(kind)] if kind == "BASE TABLE" => {
                By::of(method, expression)
            }
            _ => None,
        };
        let by = match by {
            Some(By::Columns(column)) => {
                self.is_of_days(&column).await?.then_some(By::Columns(column))
            }
            by => by,
        };
        by.ok_or_else(|| {
            let why = "unsupported partitioning: expected range columns (one date or datetime), \
                range (to_days(column)) or range (unix_timestamp(column)), \
                without system versioning";
            sqlx::Error::Configuration(why.into()).into()
        })
    }

    async fn is_of_days(&mut self, column: &str) -> Result<bool, Error> {
        let sql = format!(
            "select cast(lower(data_type) as char) from information_schema.columns \
             where {} and column_name = {}",
            self.place.condition(&self.name),
            literal(column)
        );
        Ok(one(self.own, sql)
            .await?
            .is_some_and(|kind| ["date", "datetime"].contains(&kind.as_str())))
    }

    /// Returns the table's partitions, in order.
    async fn parts(&mut self, by: &By) -> Result<Vec<Part>, Error> {
        let sql = format!(
            "select cast(partition_name as char), case when partition_description = 'MAXVALUE' \
             then null
                 else cast({} as char) end
             from information_schema.partitions where {}
             group by partition_name, partition_description \
             order by min(partition_ordinal_position)",
            by.seconds("partition_description"),
            self.place.condition(&self.name)
        );
        let part = |row: Vec<Option<String>>| {
            let mut row = row.into_iter();
            let name = row.next()??;
            Some(Part { name, stop: row.next().flatten().and_then(|stop| stop.parse().ok()) })
        };
        Ok(MySql::rows(self.own, sql).await?.into_iter().filter_map(part).collect())
    }

    /// Returns the ends of the periods from the current one on, in seconds and as text; the first
    /// entry is the beginning of the current period.
    async fn periods(&mut self, count: u32) -> Result<Vec<(i64, String)>, Error> {
        let (begin, unit) = (begin_of(self.what.every), self.what.every.unit());
        // MySQL limits recursion to 1,000 steps.
        let sql = format!(
            "with recursive p (n, at) as (
                 select 0, cast({begin} as datetime) union all \
                 select n + 1, {begin} + interval (n + 1) {unit} from p where n < {count}
             ) select cast(timestampdiff(second, '1970-01-01', at) as char), cast(at as char) \
             from p order by n",
            count = count.min(999)
        );
        let period = |row: Vec<Option<String>>| {
            let mut row = row.into_iter();
            Some((row.next()??.parse().ok()?, row.next()??))
        };
        Ok(MySql::rows(self.own, sql).await?.into_iter().filter_map(period).collect())
    }

    /// Creates the missing partitions, one for each period that no partition reaches into.
    async fn create(&mut self, by: &By) -> Result<(), Error> {
        let parts = self.parts(by).await?;
        let last = parts.iter().filter_map(|part| part.stop).max();
        let rest = parts.iter().find(|part| part.stop.is_none()).map(|part| part.name.clone());
        let periods = self.periods(self.what.ahead + 1).await?;
        let date = |n: usize| periods[n].1.split(' ').next().unwrap_or_default();
        for (n, (stop, _)) in periods.iter().enumerate() {
            if last.is_some_and(|last| *stop <= last) {
                continue;
            }
            let mut name = match n {
                // Rows from before the current period get a partition of their own.
                0 => format!("until_{}", date(0).replace('-', "")),
                _ => format!("p{}", date(n - 1).replace('-', "")),
            };
            while parts.iter().any(|part| part.name.eq_ignore_ascii_case(&name)) {
                name.push('x');
            }
            let new =
                format!("partition {} values less than ({})", ident(&name), by.bound(date(n)));
            let made = match &rest {
                Some(rest) => {
                    format!(
                        "reorganize partition `{rest}` into ({new}, partition `{rest}` \
                         values less than (maxvalue))"
                    )
                }
                None => format!("add partition ({new})"),
            };
            let made = tell(self.own, format!("alter table {} {made}", self.table)).await;
            // A later partition must not take the place of the failed one.
            if !self.note(&name, made).await? {
                return Ok(());
            }
            self.report.created.push(name);
        }
        Ok(())
    }

    /// Exchanges old partitions with separate tables, and drops the emptied partitions.
    async fn detach(&mut self, keep: u32, by: &By) -> Result<(), Error> {
        let cut = format!(
            "select cast(timestampdiff(second, '1970-01-01', {} - interval {keep} {}) as char)",
            begin_of(self.what.every),
            self.what.every.unit()
        );
        let cut: i64 =
            one(self.own, cut).await?.and_then(|cut| cut.parse().ok()).unwrap_or(i64::MIN);
        let parts = self.parts(by).await?;
        for part in parts.iter().filter(|part| part.stop.is_some_and(|stop| stop <= cut)) {
            if self.report.detached.len() + 1 >= parts.len() {
                // A table must keep at least one partition.
                break;
            }
            let done = self.detach_one(&part.name).await;
            if self.note(&part.name, done).await? {
                self.report.detached.push(part.name.clone());
            }
        }
        Ok(())
    }

    async fn detach_one(&mut self, part: &str) -> Result<(), Error> {
        let (table, part_as) = (self.table.clone(), ident(part));
        let count = format!("select cast(count(*) as char) from {table} partition ({part_as})");
        let is_empty = |count: Option<String>| count.as_deref() == Some("0");
        if !is_empty(one(self.own, count.clone()).await?) {
            let name = self.free_name(part).await?;
            let aside = self.place.quoted(&name);
            tell(self.own, format!("create table if not exists {aside} like {table}")).await?;
            // Marked while it is empty: a later call that finds it empty drops it.
            let mark = format!(
                "select concat({}, {}, '.')",
                mark(&self.place, &self.name),
                literal(&name)
            );
            let mark = literal(&one(self.own, mark).await?.unwrap_or_default());
            tell(self.own, format!("alter table {aside} comment = {mark} remove partitioning"))
                .await?;
            tell(
                self.own,
                format!("alter table {table} exchange partition {part_as} with table {aside}"),
            )
            .await?;
        }
        // Rows that arrived meanwhile stay, and are removed by the next call.
        tell(self.own, format!("lock tables {table} write")).await?;
        if is_empty(one(self.own, count).await?) {
            tell(self.own, format!("alter table {table} drop partition {part_as}")).await?;
        }
        tell(self.own, "unlock tables".into()).await
    }

    /// Returns a name for the table of a partition that is unused, or used by an empty table that
    /// an interrupted call left unmarked.
    async fn free_name(&mut self, part: &str) -> Result<String, Error> {
        let whole = format!("{}_{part}", self.name);
        let hash = format!("_{:08x}", xxhash_rust::xxh3::xxh3_64(whole.as_bytes()) as u32);
        for number in 1.. {
            let end = if number == 1 { String::new() } else { format!("_{number}") };
            let name = if whole.chars().count() + end.len() <= LONGEST {
                format!("{whole}{end}")
            } else {
                let room = LONGEST - hash.len() - end.len();
                format!("{}{hash}{end}", whole.chars().take(room).collect::<String>())
            };
            let taken = format!(
                "select cast(create_options like '%partitioned%' \
                 and table_comment not like 'Detached by %' as char) \
                 from information_schema.tables where {}",
                self.place.condition(&name)
            );
            match one(self.own, taken).await?.as_deref() {
                None => return Ok(name),
                Some("1") => {
                    let empty = format!(
                        "select cast(not exists (select 1 from {}) as char)",
                        self.place.quoted(&name)
                    );
                    if one(self.own, empty).await?.as_deref() == Some("1") {
                        return Ok(name);
                    }
                }
                Some(_) => {}
            }
        }
        unreachable!("some name is free")
    }

    /// Archives and drops the detached tables of this call and of interrupted ones.
    async fn leave(&mut self, folder: Option<&Path>) -> Result<(), Error> {
        let detached = format!(
            "select cast(table_name as char) from information_schema.tables
             where table_schema = {} and binary table_comment = binary concat({}, table_name, '.') \
             order by table_name",
            self.place.schema(),
            mark(&self.place, &self.name)
        );
        for row in MySql::rows(self.own, detached).await? {
            let Some(name) = row.into_iter().next().flatten() else { continue };
            let left = self.leave_one(&name, folder).await;
            let _ =
                tell(self.own, "unlock tables; set character_set_results = utf8mb4".into()).await;
            match left {
                Ok(Some(archived)) if archived.rows > 0 => self.report.archived.push(archived),
                Ok(Some(_)) => {}
                Ok(None) => self.report.dropped.push(name),
                Err(error) => {
                    self.note(&name, Err(error)).await?;
                }
            }
        }
        Ok(())
    }

    async fn leave_one(
        &mut self,
        name: &str,
        folder: Option<&Path>,
    ) -> Result<Option<Archived>, Error> {
        let table = self.place.quoted(name);
        // No row may change between being read and the drop.
        tell(self.own, format!("lock tables {table} write")).await?;
        let count = one(self.own, format!("select cast(count(*) as char) from {table}")).await?;
        let count: u64 = count.and_then(|count| count.parse().ok()).unwrap_or_default();
        let archived = match folder {
            Some(_) if count == 0 => Some(Archived {
                table: name.into(),
                path: "".into(),
                rows: 0,
                sha256: String::new(),
            }),
            Some(folder) => Some(archive(self.own, &self.place, name, count, folder).await?),
            None => None,
        };
        tell(self.own, format!("drop table {table}")).await?;
        if let Some(Archived { rows, path, .. }) = archived.as_ref().filter(|a| a.rows > 0) {
            tracing::info!(
                table = name, rows, path = %path.display(),
                "archived and dropped a partition",
            );
        }
        Ok(archived)
    }
}

/// Partitioning expression of a table.
enum By {
    /// A plain column.
    Columns(String),
    ToDays,
    UnixTimestamp,
}

impl By {
    fn of(method: &str, expression: &str) -> Option<Self> {
        let expression = expression.replace(['`', ' '], "").to_ascii_lowercase();
        match method.to_ascii_uppercase().as_str() {
            "RANGE COLUMNS" => (!expression.contains(',')).then_some(Self::Columns(expression)),
            "RANGE" if expression.starts_with("to_days(") => Some(Self::ToDays),
            "RANGE" if expression.starts_with("unix_timestamp(") => Some(Self::UnixTimestamp),
            _ => None,
        }
    }

    /// Returns an expression for a bound in seconds.
    fn seconds(&self, bound: &str) -> String {
        match self {
            Self::Columns(_) => format!(
                "timestampdiff(second, '1970-01-01', cast(trim(both '''' \
                 from {bound}) as datetime))"
            ),
            Self::ToDays => format!("(cast({bound} as signed) - to_days('1970-01-01')) * 86400"),
            Self::UnixTimestamp => format!("cast({bound} as signed)"),
        }
    }

    /// Returns the beginning of a date as a bound.
    fn bound(&self, time: &str) -> String {
        match self {
            Self::Columns(_) => format!("'{time}'"),
            Self::ToDays => format!("to_days('{time}')"),
            Self::UnixTimestamp => format!("unix_timestamp('{time}')"),
        }
    }
}

fn begin_of(every: Every) -> &'static str {
    match every {
        Every::Day => "utc_date()",
        Every::Week => "(utc_date() - interval weekday(utc_date()) day)",
        Every::Month => "date_format(utc_date(), '%Y-%m-01')",
        Every::Year => "date_format(utc_date(), '%Y-01-01')",
    }
}

async fn tell(connection: &mut MySqlConnection, sql: String) -> Result<(), Error> {
    Ok(MySql::tell(connection, sql).await?)
}

async fn one(connection: &mut MySqlConnection, sql: String) -> Result<Option<String>, Error> {
    Ok(MySql::rows(connection, sql)
        .await?
        .into_iter()
        .next()
        .and_then(|row| row.into_iter().next())
        .flatten())
}
