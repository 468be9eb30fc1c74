//! Partitions of MySQL and MariaDB: parts of one table, exchanged with a table of their own when they leave.
//!
//! | the table is partitioned | a bound reads |
//! | --- | --- |
//! | `by range columns (at)`, a date or datetime | `'2026-01-01 00:00:00'` |
//! | `by range (to_days(at))` | a number of days |
//! | `by range (unix_timestamp(at))` | a number of seconds |

use std::path::Path;

use bytes::Bytes;
use futures_util::TryStreamExt;
use sqlx::mysql::{MySqlConnection, MySqlRow};
use sqlx::{AssertSqlSafe, Connection, MySql, Row};

use super::archive::{Archived, Writer, failed};
use super::restore::Archive;
use super::sealed::Engine;
use super::{Every, Old, Partitioned, Partitions, Report, csv};
use crate::Dialect;
use crate::backend::Backend;
use crate::db::Db;
use crate::error::Error;

/// Bytes of a name at most.
const LONGEST: usize = 64;
/// Bytes of text handed to the file at a time.
const CHUNK: usize = 1 << 16;
/// Rows of one insert.
const ROWS: usize = 100;

impl Partitioned for MySql {}

impl Engine for MySql {
    async fn maintain(what: &Partitions, db: &Db<Self>) -> Result<Report, Error> {
        // A connection of our own, which ends with this call however it ends, and our locks with it.
        let mut own = db.acquire().await?.detach();
        let wait = db.0.config.lock_timeout.as_secs().max(1);
        let mut work = Work { what, table: Dialect::MySql.quoted(&what.table), own: &mut own, report: Report::default() };
        let result = work.run(wait).await;
        let report = work.report;
        let _ = own.close().await;
        result.map(|()| report)
    }

    async fn restore(db: &Db<Self>, table: &str, mut archive: Archive) -> Result<u64, Error> {
        let dialect = Dialect::MySql;
        let mut tx = db.begin().await?;
        tell(&mut tx, SESSION.into()).await?;
        let known = columns(&mut tx, &place(table)).await?;
        let mut names = Vec::new();
        let mut values = Vec::new();
        for name in &archive.columns {
            let column = known.iter().find(|column| column.name == *name);
            let missing =
                || std::io::Error::new(std::io::ErrorKind::NotFound, format!("the table has no column `{name}` to write to"));
            let column = column.ok_or_else(missing).map_err(failed("its file cannot be restored"))?;
            names.push(format!("`{}`", name.replace('`', "``")));
            values.push(column.kind.placeholder());
        }
        let (row, mut rows) = (format!("({})", values.join(", ")), 0);
        let table = dialect.quoted(table);
        while let Some(batch) = archive.next().await? {
            for records in batch.chunks(ROWS) {
                let all = vec![row.as_str(); records.len()].join(", ");
                let insert = format!("insert into {table} ({}) values {all}", names.join(", "));
                let mut query = sqlx::query(AssertSqlSafe(insert));
                for field in records.iter().flatten() {
                    let text = field.clone().map(String::from_utf8).transpose();
                    query = query.bind(text.map_err(std::io::Error::other).map_err(failed("its file cannot be restored"))?);
                }
                rows += query.execute(&mut *tx).await?.rows_affected();
            }
        }
        let rows = archive.took(rows)?;
        tx.commit().await?;
        Ok(rows)
    }
}

/// UTC, and neither backslashes nor zeros that mean something else.
const SESSION: &str = "set names utf8mb4; set time_zone = '+00:00'; \
    set sql_mode = 'NO_AUTO_VALUE_ON_ZERO,STRICT_ALL_TABLES' /*M! , max_statement_time = 0 */ /*!80000 , max_execution_time = 0 */";

/// Form of a column's values as text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Text,
    /// Its digits as a double: as a float it shows six of them.
    Float,
    /// Bytes, in hexadecimal.
    Binary,
    Bit,
}

impl Kind {
    /// Returns `None` for what cannot be written as text.
    fn of(data_type: &str) -> Option<Self> {
        Some(match data_type {
            "binary" | "varbinary" | "tinyblob" | "blob" | "mediumblob" | "longblob" => Self::Binary,
            "bit" => Self::Bit,
            "float" => Self::Float,
            "geometry" | "point" | "linestring" | "polygon" | "multipoint" | "multilinestring" | "multipolygon"
            | "geometrycollection" | "geomcollection" | "vector" => return None,
            _ => Self::Text,
        })
    }

    fn to_text(self, column: &str) -> String {
        match self {
            Self::Text => format!("cast({column} as char)"),
            Self::Float => format!("cast({column} + 0e0 as char)"),
            Self::Binary => format!("cast(hex({column}) as char)"),
            Self::Bit => format!("cast({column} + 0 as char)"),
        }
    }

    fn placeholder(self) -> String {
        match self {
            Self::Binary => "unhex(?)".into(),
            Self::Bit => "cast(? as unsigned)".into(),
            _ => "?".into(),
        }
    }
}

struct Column {
    name: String,
    kind: Kind,
}

/// One partition: its name, and where it ends in seconds of Unix time; `None` for `maxvalue`.
struct Part {
    name: String,
    stop: Option<i64>,
}

/// One call on one table.
struct Work<'a> {
    what: &'a Partitions,
    /// The table's name as SQL takes it.
    table: String,
    own: &'a mut MySqlConnection,
    report: Report,
}

impl Work<'_> {
    async fn run(&mut self, wait: u64) -> Result<(), Error> {
        tell(self.own, format!("{SESSION}; set lock_wait_timeout = {wait}")).await?;
        let name = format!("concat('scale-db ', left(sha2(concat(database(), '/', {}), 256), 40))", literal(&self.what.table));
        if one(self.own, format!("select cast(get_lock({name}, 0) as char)")).await?.as_deref() != Some("1") {
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
        // A connection that is lost fails the call.
        tell(self.own, "unlock tables".into()).await?;
        self.report.fail(partition, error);
        Ok(false)
    }

    /// Learns by what the table is partitioned.
    async fn partitioned_by(&mut self) -> Result<By, Error> {
        let sql = format!(
            "select cast(partition_method as char), cast(partition_expression as char) from information_schema.partitions
             where {} limit 1",
            place(&self.what.table)
        );
        let row = MySql::rows(self.own, sql).await?.into_iter().next().unwrap_or_default();
        let by = match &row[..] {
            [Some(method), Some(expression)] => By::of(method, expression),
            _ => None,
        };
        by.ok_or_else(|| {
            let why = "a table to maintain is partitioned by range columns (one date or datetime), range (to_days(column)) or \
                       range (unix_timestamp(column))";
            sqlx::Error::Configuration(why.into()).into()
        })
    }

    /// The table's partitions, in order.
    async fn parts(&mut self, by: &By) -> Result<Vec<Part>, Error> {
        let sql = format!(
            "select cast(partition_name as char), case when partition_description = 'MAXVALUE' then null
                 else cast({} as char) end
             from information_schema.partitions where {} order by partition_ordinal_position",
            by.seconds("partition_description"),
            place(&self.what.table)
        );
        let part = |row: Vec<Option<String>>| {
            let mut row = row.into_iter();
            let name = row.next()??;
            Some(Part { name, stop: row.next().flatten().and_then(|stop| stop.parse().ok()) })
        };
        Ok(MySql::rows(self.own, sql).await?.into_iter().filter_map(part).collect())
    }

    /// Ends of the periods from the present one on, the first being the present one's beginning: seconds, and as a time.
    async fn periods(&mut self, count: u32) -> Result<Vec<(i64, String)>, Error> {
        let (begin, unit) = (begin_of(self.what.every), self.what.every.unit());
        // A recursive statement may run a thousand times.
        let sql = format!(
            "with recursive p (n, at) as (
                 select 0, cast({begin} as datetime) union all select n + 1, {begin} + interval (n + 1) {unit} from p where n < {count}
             ) select cast(timestampdiff(second, '1970-01-01', at) as char), cast(at as char) from p order by n",
            count = count.min(999)
        );
        let period = |row: Vec<Option<String>>| {
            let mut row = row.into_iter();
            Some((row.next()??.parse().ok()?, row.next()??))
        };
        Ok(MySql::rows(self.own, sql).await?.into_iter().filter_map(period).collect())
    }

    /// Makes the partitions that are missing, one for each period that none reaches into.
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
                // What is there of before the present period has one of its own.
                0 => format!("until_{}", date(0).replace('-', "")),
                _ => format!("p{}", date(n - 1).replace('-', "")),
            };
            while parts.iter().any(|part| part.name.eq_ignore_ascii_case(&name)) {
                name.push('x');
            }
            let new = format!("partition `{name}` values less than ({})", by.bound(date(n)));
            let made = match &rest {
                Some(rest) => {
                    format!("reorganize partition `{rest}` into ({new}, partition `{rest}` values less than (maxvalue))")
                }
                None => format!("add partition ({new})"),
            };
            let made = tell(self.own, format!("alter table {} {made}", self.table)).await;
            // The next would take its place.
            if !self.note(&name, made).await? {
                return Ok(());
            }
            self.report.created.push(name);
        }
        Ok(())
    }

    /// Exchanges old partitions with tables of their own, and drops what is left of them.
    async fn detach(&mut self, keep: u32, by: &By) -> Result<(), Error> {
        let cut = format!(
            "select cast(timestampdiff(second, '1970-01-01', {} - interval {keep} {}) as char)",
            begin_of(self.what.every),
            self.what.every.unit()
        );
        let cut: i64 = one(self.own, cut).await?.and_then(|cut| cut.parse().ok()).unwrap_or(i64::MIN);
        let parts = self.parts(by).await?;
        for part in parts.iter().filter(|part| part.stop.is_some_and(|stop| stop <= cut)) {
            if self.report.detached.len() + 1 >= parts.len() {
                // A table keeps one partition at least.
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
        let table = self.table.clone();
        let count = format!("select cast(count(*) as char) from {table} partition (`{part}`)");
        let is_empty = |count: Option<String>| count.as_deref() == Some("0");
        if !is_empty(one(self.own, count.clone()).await?) {
            let aside = Dialect::MySql.quoted(&self.free_name(part).await?);
            tell(self.own, format!("create table if not exists {aside} like {table}")).await?;
            // Marked while it is empty: whoever finds it empty drops it.
            tell(self.own, format!("alter table {aside} comment = {} remove partitioning", mark(&self.what.table))).await?;
            tell(self.own, format!("alter table {table} exchange partition `{part}` with table {aside}")).await?;
        }
        // Rows that arrived meanwhile stay, and leave with the next call.
        tell(self.own, format!("lock tables {table} write")).await?;
        if is_empty(one(self.own, count).await?) {
            tell(self.own, format!("alter table {table} drop partition `{part}`")).await?;
        }
        tell(self.own, "unlock tables".into()).await
    }

    /// Returns a name for the table of a partition that is used by none, or by an empty table that a call left before it was marked.
    async fn free_name(&mut self, part: &str) -> Result<String, Error> {
        let (schema, name) = match self.what.table.rsplit_once('.') {
            Some((schema, name)) => (format!("{schema}."), name),
            None => (String::new(), self.what.table.as_str()),
        };
        for number in 1.. {
            let end = if number == 1 { format!("_{part}") } else { format!("_{part}_{number}") };
            let hash = format!("_{:08x}", xxhash_rust::xxh3::xxh3_64(name.as_bytes()) as u32);
            let mut room = LONGEST.saturating_sub(end.len());
            let own = if name.chars().count() <= room {
                format!("{name}{end}")
            } else {
                room = room.saturating_sub(hash.len());
                format!("{}{hash}{end}", name.chars().take(room).collect::<String>())
            };
            let full = format!("{schema}{own}");
            let taken = format!(
                "select cast(create_options like '%partitioned%' and table_comment not like 'Detached by %' as char) \
                 from information_schema.tables where {}",
                place(&full)
            );
            match one(self.own, taken).await?.as_deref() {
                None => return Ok(full),
                Some("1") => {
                    let empty = format!("select cast(not exists (select 1 from {}) as char)", Dialect::MySql.quoted(&full));
                    if one(self.own, empty).await?.as_deref() == Some("1") {
                        return Ok(full);
                    }
                }
                Some(_) => {}
            }
        }
        unreachable!("some name is free")
    }

    /// Archives and drops what was detached, now or by a call that did not come to its end.
    async fn leave(&mut self, folder: Option<&Path>) -> Result<(), Error> {
        let schema = match self.what.table.rsplit_once('.') {
            Some((schema, _)) => literal(schema),
            None => "database()".into(),
        };
        let detached = format!(
            "select cast(table_name as char) from information_schema.tables
             where table_schema = {schema} and table_comment = {} order by table_name",
            mark(&self.what.table)
        );
        for row in MySql::rows(self.own, detached).await? {
            let Some(name) = row.into_iter().next().flatten() else { continue };
            let left = self.leave_one(&name, folder).await;
            let _ = tell(self.own, "unlock tables".into()).await;
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

    async fn leave_one(&mut self, name: &str, folder: Option<&Path>) -> Result<Option<Archived>, Error> {
        let full = match self.what.table.rsplit_once('.') {
            Some((schema, _)) => format!("{schema}.{name}"),
            None => name.to_owned(),
        };
        let table = Dialect::MySql.quoted(&full);
        // Nobody changes a row between its being read and the drop.
        tell(self.own, format!("lock tables {table} write")).await?;
        let count = one(self.own, format!("select cast(count(*) as char) from {table}")).await?;
        let count: u64 = count.and_then(|count| count.parse().ok()).unwrap_or_default();
        let archived = match folder {
            Some(_) if count == 0 => Some(Archived { table: name.into(), path: "".into(), rows: 0, sha256: String::new() }),
            Some(folder) => Some(archive(self.own, &full, name, count, folder).await?),
            None => None,
        };
        tell(self.own, format!("drop table {table}")).await?;
        if let Some(Archived { rows, path, .. }) = archived.as_ref().filter(|a| a.rows > 0) {
            tracing::info!(table = name, rows, path = %path.display(), "a partition is archived");
        }
        Ok(archived)
    }
}

/// Writes a table's rows to a file, and proves that they are there.
async fn archive(own: &mut MySqlConnection, full: &str, name: &str, count: u64, folder: &Path) -> Result<Archived, Error> {
    let columns = columns(own, &place(full)).await?;
    let mut text = Vec::new();
    csv::push(&mut text, columns.iter().map(|column| Some(column.name.as_bytes())));
    let quoted = |column: &Column| column.kind.to_text(&format!("`{}`", column.name.replace('`', "``")));
    let values: Vec<_> = columns.iter().map(quoted).collect();
    let sql = format!("select {} from {}", values.join(", "), Dialect::MySql.quoted(full));
    let writer = Writer::begin(folder, name);
    {
        let mut rows = sqlx::raw_sql(AssertSqlSafe(sql)).fetch(&mut *own);
        while let Some(row) = rows.try_next().await? {
            let fields = (0..columns.len()).map(|n| bytes_of(&row, n)).collect::<Result<Vec<_>, _>>()?;
            csv::push(&mut text, fields);
            if text.len() >= CHUNK {
                writer.write(Bytes::from(std::mem::take(&mut text))).await;
            }
        }
    }
    writer.write(Bytes::from(text)).await;
    writer.finish(count).await
}

fn bytes_of(row: &MySqlRow, n: usize) -> Result<Option<&[u8]>, sqlx::Error> {
    row.try_get_unchecked::<Option<&[u8]>, _>(n)
}

/// Returns the columns of a table that can be written: all but generated ones.
async fn columns(own: &mut MySqlConnection, place: &str) -> Result<Vec<Column>, Error> {
    let sql = format!(
        "select cast(column_name as char), cast(lower(data_type) as char) from information_schema.columns
         where {place} and coalesce(generation_expression, '') = '' order by ordinal_position"
    );
    let mut columns = Vec::new();
    for row in MySql::rows(own, sql).await? {
        let [Some(name), Some(data_type)] = &row[..] else { continue };
        let unwritable =
            || std::io::Error::new(std::io::ErrorKind::Unsupported, format!("column `{name}` is of the type {data_type}"));
        let kind = Kind::of(data_type).ok_or_else(unwritable).map_err(failed("a column cannot be written as text"))?;
        columns.push(Column { name: name.clone(), kind });
    }
    Ok(columns)
}

/// Expression by which a table is partitioned.
enum By {
    Columns,
    ToDays,
    UnixTimestamp,
}

impl By {
    fn of(method: &str, expression: &str) -> Option<Self> {
        let expression = expression.replace(['`', ' '], "").to_ascii_lowercase();
        match method.to_ascii_uppercase().as_str() {
            "RANGE COLUMNS" => (!expression.contains(',')).then_some(Self::Columns),
            "RANGE" if expression.starts_with("to_days(") => Some(Self::ToDays),
            "RANGE" if expression.starts_with("unix_timestamp(") => Some(Self::UnixTimestamp),
            _ => None,
        }
    }

    /// A bound's text as seconds.
    fn seconds(&self, bound: &str) -> String {
        match self {
            Self::Columns => format!("timestampdiff(second, '1970-01-01', cast(trim(both '''' from {bound}) as datetime))"),
            Self::ToDays => format!("(cast({bound} as signed) - to_days('1970-01-01')) * 86400"),
            Self::UnixTimestamp => format!("cast({bound} as signed)"),
        }
    }

    /// A date's beginning as a bound.
    fn bound(&self, time: &str) -> String {
        match self {
            Self::Columns => format!("'{time}'"),
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

/// The condition that finds a table in `information_schema`.
fn place(table: &str) -> String {
    match table.rsplit_once('.') {
        Some((schema, name)) => format!("table_schema = {} and table_name = {}", literal(schema), literal(name)),
        None => format!("table_schema = database() and table_name = {}", literal(table)),
    }
}

/// Returns the comment that says that a table was a partition of this one and is on its way out.
fn mark(table: &str) -> String {
    literal(&format!("Detached by scale-db from {table}."))
}

fn literal(text: &str) -> String {
    Dialect::MySql.literal(text)
}

async fn tell(connection: &mut MySqlConnection, sql: String) -> Result<(), Error> {
    Ok(MySql::tell(connection, sql).await?)
}

async fn one(connection: &mut MySqlConnection, sql: String) -> Result<Option<String>, Error> {
    Ok(MySql::rows(connection, sql).await?.into_iter().next().and_then(|row| row.into_iter().next()).flatten())
}
