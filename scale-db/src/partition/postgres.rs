//! Partitions of Postgres: separate tables that are attached and detached.

use std::path::Path;

use futures_util::TryStreamExt;
use sqlx::postgres::PgConnection;
use sqlx::{AssertSqlSafe, Connection, Postgres};

use super::archive::{Archived, Writer, failed};
use super::restore::Archive;
use super::sealed::Engine;
use super::{Old, Partitioned, Partitions, Report};
use crate::Dialect;
use crate::backend::Backend;
use crate::db::Db;
use crate::error::Error;

/// Maximum bytes of a name.
const LONGEST: usize = 63;

impl Partitioned for Postgres {}

impl Engine for Postgres {
    async fn maintain(what: &Partitions, db: &Db<Self>) -> Result<Report, Error> {
        // A separate connection, which ends with this call however it ends, and releases the lock.
        let mut own = db.acquire().await?.detach();
        let table = Dialect::Postgres.quoted(&what.table);
        let mut work = Work {
            what,
            literal: Dialect::Postgres.literal(&table),
            table,
            own: &mut own,
            report: Report::default(),
        };
        let result = work.run().await;
        let report = work.report;
        // The server releases the lock by itself, but a little after this call returns.
        let _ = tell(&mut own, "rollback; select pg_advisory_unlock_all()".into()).await;
        let _ = own.close().await;
        result.map(|()| report)
    }

    async fn restore(db: &Db<Self>, table: &str, mut archive: Archive) -> Result<u64, Error> {
        let dialect = Dialect::Postgres;
        let columns: Vec<_> = archive.columns.iter().map(|name| identifier(name)).collect();
        let mut tx = db.begin().await?;
        tell(&mut tx, "set local statement_timeout = 0; set local datestyle = 'ISO'".into())
            .await?;
        let statement =
            format!("copy {} ({}) from stdin", dialect.quoted(table), columns.join(", "));
        let mut copy = tx.copy_in_raw(&statement).await?;
        let mut text = Vec::new();
        while let Some(batch) = archive.next().await? {
            text.clear();
            // Not as CSV: a line `\.` within a text would end the data.
            for record in &batch {
                push_line(&mut text, record);
            }
            copy.send(&text[..]).await?;
        }
        let rows = archive.took(copy.finish().await?)?;
        tx.commit().await?;
        Ok(rows)
    }
}

/// Appends a record in the text format of `COPY`.
fn push_line(text: &mut Vec<u8>, record: &[Option<Vec<u8>>]) {
    for (n, field) in record.iter().enumerate() {
        if n > 0 {
            text.push(b'\t');
        }
        let Some(field) = field else {
            text.extend_from_slice(b"\\N");
            continue;
        };
        for byte in field {
            match byte {
                b'\\' => text.extend_from_slice(b"\\\\"),
                b'\n' => text.extend_from_slice(b"\\n"),
                b'\r' => text.extend_from_slice(b"\\r"),
                b'\t' => text.extend_from_slice(b"\\t"),
                other => text.push(*other),
            }
        }
    }
    text.push(b'\n');
}

/// One call for one table.
struct Work<'a> {
    what: &'a Partitions,
    /// The table's quoted name.
    table: String,
    /// The quoted name as a literal.
    literal: String,
    own: &'a mut PgConnection,
    report: Report,
}

/// A default partition, and the column that decides about its rows.
struct Default {
    part: String,
    column: String,
}

impl Work<'_> {
    async fn run(&mut self) -> Result<(), Error> {
        tell(
            self.own,
            "set timezone = 'UTC'; set datestyle = 'ISO'; set statement_timeout = 0; \
            set row_security = off"
                .into(),
        )
        .await?;
        let turn = format!(
            "select pg_try_advisory_lock(hashtextextended('scale-db partitions of ' || \
             {}::regclass::oid, 0))::text",
            self.literal
        );
        if one(self.own, turn).await?.as_deref() != Some("true") {
            self.report.busy = true;
            return Ok(());
        }
        self.check().await?;
        self.create().await?;
        match &self.what.old {
            Old::Stay => {}
            Old::Archive { keep, folder } => {
                self.detach(*keep).await?;
                self.leave(Some(folder)).await?;
            }
            Old::Drop { keep } => {
                self.detach(*keep).await?;
                self.leave(None).await?;
            }
        }
        Ok(())
    }

    /// Records the failure of one partition, and prepares the connection for the next.
    async fn note(&mut self, partition: &str, result: Result<(), Error>) -> Result<bool, Error> {
        let Err(error) = result else { return Ok(true) };
        // If the connection is lost, the call fails.
        tell(self.own, "rollback".into()).await?;
        self.report.fail(partition, error);
        Ok(false)
    }

    /// Refuses a table that is not partitioned by time.
    async fn check(&mut self) -> Result<(), Error> {
        let sql = format!(
            "select exists (select from pg_partitioned_table \
             join pg_attribute on attrelid = partrelid and attnum = partattrs[0]
            where partrelid = {}::regclass and partstrat = 'r' and partnatts = 1
            and atttypid in ('date'::regtype, 'timestamp'::regtype, 'timestamptz'::regtype))::text",
            self.literal
        );
        if one(self.own, sql).await?.as_deref() == Some("true") {
            return Ok(());
        }
        let why = "not partitioned by time: expected range partitioning over one column of type \
            date, timestamp or timestamptz";
        Err(sqlx::Error::Configuration(why.into()).into())
    }

    /// Creates the missing partitions: for each period, the parts that no partition covers.
    async fn create(&mut self) -> Result<(), Error> {
        let (unit, ahead) = (self.what.every.unit(), self.what.ahead);
        let missing = format!(
            "with periods as (
                select tstzrange(start, start + interval '1 {unit}') as period
                from generate_series(date_trunc('{unit}', now()), date_trunc('{unit}', now()) + \
                {ahead} * interval '1 {unit}', interval '1 {unit}') start
            ), taken as (select coalesce(range_agg(tstzrange(start, stop)), '{{}}') as ranges \
            from ({bounds}) b)
            select to_char(lower(gap), case when lower(gap) = date_trunc('day', lower(gap)) \
            then 'YYYYMMDD' else 'YYYYMMDD\"t\"HH24MISS' end),
                lower(gap)::text, upper(gap)::text
            from periods, taken, unnest(tstzmultirange(period) - ranges) gap order by gap",
            bounds = bounds(&self.literal)
        );
        let default = self.default().await?;
        for row in Postgres::rows(self.own, missing).await? {
            let [Some(from), Some(start), Some(stop)] = &row[..] else { continue };
            let name = part_name(&self.what.table, from);
            let made = self.create_one(&name, start, stop, default.as_ref()).await;
            if self.note(&name, made).await? {
                self.report.created.push(name);
            }
        }
        Ok(())
    }

    /// Creates one partition. `create table … partition of` would block all readers, so it is
    /// created as a separate table and then attached.
    async fn create_one(
        &mut self,
        name: &str,
        start: &str,
        stop: &str,
        default: Option<&Default>,
    ) -> Result<(), Error> {
        let (table, new) = (&self.table, Dialect::Postgres.quoted(name));
        tell(
            self.own,
            format!(
                "begin;
                create table {new} (like {table} including defaults including constraints \
                including generated including storage);
                comment on table {new} is 'A partition made by scale-db.'"
            ),
        )
        .await?;
        let attach = format!(
            "alter table {table} attach partition {new} for values from ('{start}') to ('{stop}')"
        );
        let Some(Default { part, column }) = default else {
            return tell(self.own, format!("{attach}; commit")).await;
        };
        // Rows of this period are in the default partition if it had no partition before.
        let there = format!("{column} >= '{start}' and {column} < '{stop}'");
        tell(self.own, format!("lock table {part} in share row exclusive mode")).await?;
        let found =
            one(self.own, format!("select exists (select from {part} where {there})::text"))
                .await?;
        if found.as_deref() != Some("true") {
            return tell(self.own, format!("{attach}; commit")).await;
        }
        let columns = columns(self.own, part).await?.join(", ");
        // A detached partition has neither the foreign keys that refer to its rows, whose actions a
        // deletion would trigger, nor the table's triggers. If a row is referred to, the partition
        // cannot be detached.
        tell(
            self.own,
            format!(
                "alter table {table} detach partition {part};
                alter table {part} disable trigger user;
                with moved as (delete from {part} where {there} returning {columns})
                insert into {new} ({columns}) overriding system value select {columns} from moved;
                alter table {part} enable trigger user;
                {attach};
                alter table {table} attach partition {part} default;
                commit"
            ),
        )
        .await
    }

    async fn default(&mut self) -> Result<Option<Default>, Error> {
        let sql = format!(
            "select partdefid::regclass::text, quote_ident(attname) from pg_partitioned_table
            left join pg_attribute on attrelid = partrelid and attnum = partattrs[0]
            where partrelid = {}::regclass and partdefid <> 0 and partnatts = 1",
            self.literal
        );
        let row = Postgres::rows(self.own, sql).await?.into_iter().next();
        Ok(row.and_then(|row| {
            let [Some(part), Some(column)] = &row[..] else { return None };
            Some(Default { part: part.clone(), column: column.clone() })
        }))
    }

    /// Detaches old partitions from the table.
    async fn detach(&mut self, keep: u32) -> Result<(), Error> {
        let (table, literal) = (self.table.clone(), self.literal.clone());
        let pending = format!(
            "select inhrelid::regclass::text from pg_inherits \
             where inhparent = {literal}::regclass and inhdetachpending"
        );
        for row in Postgres::rows(self.own, pending).await? {
            let Some(part) = row.into_iter().next().flatten() else { continue };
            let done =
                tell(self.own, format!("alter table {table} detach partition {part} finalize"))
                    .await;
            if self.note(&part, done).await? {
                self.report.detached.push(part);
            }
        }
        let unit = self.what.every.unit();
        let old = format!(
            "select b.part, (select partdefid <> 0 from pg_partitioned_table \
             where partrelid = {literal}::regclass)::text
            from ({bounds}) b where b.stop <= date_trunc('{unit}', now()) - {keep} * interval '1 \
            {unit}' order by b.stop",
            bounds = bounds(&literal)
        );
        for row in Postgres::rows(self.own, old).await? {
            let [Some(part), Some(default)] = &row[..] else { continue };
            let concurrently = if default == "true" { "" } else { " concurrently" };
            let this = Dialect::Postgres.literal(part);
            // Its own comment, in case it is not detached.
            let before = one(
                self.own,
                format!("select quote_literal(obj_description({this}::regclass, 'pg_class'))"),
            )
            .await?;
            let mark = one(
                self.own,
                format!(
                    "select quote_literal({})",
                    mark(&literal, &format!("{this}::regclass::oid"))
                ),
            )
            .await?;
            let done = async {
                tell(
                    self.own,
                    format!("comment on table {part} is {}", mark.as_deref().unwrap_or("null")),
                )
                .await?;
                tell(self.own, format!("alter table {table} detach partition {part}{concurrently}"))
                    .await
            };
            let done = done.await;
            if self.note(part, done).await? {
                self.report.detached.push(part.clone());
                continue;
            }
            // An operator who detaches it by hand wants to keep it.
            let attached = format!(
                "select exists (select from pg_inherits where inhrelid = {this}::regclass \
                 and not inhdetachpending)::text"
            );
            if one(self.own, attached).await?.as_deref() == Some("true") {
                tell(
                    self.own,
                    format!("comment on table {part} is {}", before.as_deref().unwrap_or("null")),
                )
                .await?;
            }
        }
        Ok(())
    }

    /// Archives and drops the detached tables of this call and of interrupted ones.
    async fn leave(&mut self, folder: Option<&Path>) -> Result<(), Error> {
        let detached = format!(
            "select c.oid::regclass::text, c.relname from pg_class c
            where c.relkind in ('r', 'p') and obj_description(c.oid, 'pg_class') = {}
            and not exists (select from pg_inherits where inhrelid = c.oid) order by c.relname",
            mark(&self.literal, "c.oid")
        );
        for row in Postgres::rows(self.own, detached).await? {
            let [Some(part), Some(name)] = &row[..] else { continue };
            let left = self.leave_one(part, name, folder).await;
            match left {
                Ok(Some(archived)) => self.report.archived.push(archived),
                Ok(None) => self.report.dropped.push(name.clone()),
                Err(error) => {
                    self.note(name, Err(error)).await?;
                }
            }
        }
        Ok(())
    }

    async fn leave_one(
        &mut self,
        part: &str,
        name: &str,
        folder: Option<&Path>,
    ) -> Result<Option<Archived>, Error> {
        let mut tx = self.own.begin().await?;
        // No row may change between being read and the drop.
        tell(
            &mut tx,
            format!("set local synchronize_seqscans = off; lock table {part} in share mode"),
        )
        .await?;
        let archived = match folder {
            Some(folder) => Some(archive(&mut tx, part, name, folder).await?),
            None => None,
        };
        tell(&mut tx, format!("drop table {part}")).await?;
        tx.commit().await?;
        if let Some(Archived { rows, path, .. }) = &archived {
            tracing::info!(
                table = name, rows, path = %path.display(),
                "archived and dropped a partition",
            );
        }
        Ok(archived)
    }
}

/// Writes a table's rows to a file, and verifies them.
async fn archive(
    tx: &mut PgConnection,
    part: &str,
    name: &str,
    folder: &Path,
) -> Result<Archived, Error> {
    let literal = Dialect::Postgres.literal(part);
    let hidden = format!("select row_security_active({literal}::regclass)::text");
    if one(tx, hidden).await?.as_deref() != Some("false") {
        let cause = std::io::Error::new(
            std::io::ErrorKind::PermissionDenied,
            "row-level security hides rows from this role",
        );
        return Err(failed("not all rows are visible")(cause));
    }
    let columns = columns(tx, part).await?.join(", ");
    let writer = Writer::begin(folder, name);
    {
        let from = format!("(select {columns} from {part})");
        let mut rows =
            tx.copy_out_raw(&format!("copy {from} to stdout (format csv, header)")).await?;
        while let Some(chunk) = rows.try_next().await? {
            writer.write(chunk).await;
        }
    }
    // Count with another plan than the copy, if there is an index.
    tell(tx, "set local enable_seqscan = off".into()).await?;
    let count = one(tx, format!("select count(*)::text from {part}"))
        .await?
        .and_then(|count| count.parse().ok());
    writer.finish(count.unwrap_or_default()).await
}

/// Returns the quoted columns that can be written, which are all but generated ones.
async fn columns(connection: &mut PgConnection, part: &str) -> Result<Vec<String>, Error> {
    let sql = format!(
        "select quote_ident(attname) from pg_attribute where attrelid = {}::regclass \
         and attnum > 0 and not attisdropped
        and attgenerated = '' order by attnum",
        Dialect::Postgres.literal(part)
    );
    Ok(Postgres::rows(connection, sql)
        .await?
        .into_iter()
        .filter_map(|row| row.into_iter().next().flatten())
        .collect())
}

/// Quotes a name, including its dots.
fn identifier(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// Returns the name of the partition that starts at a time. A table's name that is too long is
/// shortened, and made unique by its hash.
fn part_name(table: &str, from: &str) -> String {
    let (schema, name) = table
        .rsplit_once('.')
        .map_or((String::new(), table), |(schema, name)| (format!("{schema}."), name));
    let room = LONGEST - "_p".len() - from.len();
    if name.len() <= room {
        return format!("{schema}{name}_p{from}");
    }
    let hash = format!("_{:08x}", xxhash_rust::xxh3::xxh3_64(name.as_bytes()) as u32);
    let mut end = room - hash.len();
    while !name.is_char_boundary(end) {
        end -= 1;
    }
    format!("{schema}{}{hash}_p{from}", &name[..end])
}

/// Returns a query for the table's partitions, with their quoted names and bounds, without the
/// default partition. An open bound is null.
fn bounds(literal: &str) -> String {
    let bound =
        |word: &str| format!(r"(regexp_match(bound, '{word} \(''([^'']+)''\)'))[1]::timestamptz");
    format!(
        "select part, {} as start, {} as stop from (
            select inhrelid::regclass::text as part, pg_get_expr(c.relpartbound, c.oid) as bound
            from pg_inherits join pg_class c on c.oid = inhrelid
            where inhparent = {literal}::regclass and not inhdetachpending
        ) p where bound <> 'DEFAULT'",
        bound("FROM"),
        bound("TO")
    )
}

/// Returns an expression for the comment that marks a former partition, identified by its oid, as
/// to be removed. No other table and no copy has this comment.
fn mark(literal: &str, oid: &str) -> String {
    format!("'Detached by scale-db: table ' || {oid} || ' of ' || {literal}::regclass::oid || '.'")
}

async fn tell(connection: &mut PgConnection, sql: String) -> Result<(), Error> {
    Ok(Postgres::tell(connection, sql).await?)
}

async fn one(connection: &mut PgConnection, sql: String) -> Result<Option<String>, Error> {
    Ok(sqlx::query_scalar(AssertSqlSafe(sql)).fetch_one(connection).await?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_fit_and_differ() {
        assert_eq!(part_name("shop.events", "20260101"), "shop.events_p20260101");
        let long = "a".repeat(61);
        let (one, other) =
            (part_name(&long, "20260101"), part_name(&format!("{long}b"), "20260101"));
        assert!(one != other && one.len() <= LONGEST && other.len() <= LONGEST, "{one} {other}");
        assert_ne!(one, part_name(&long, "20260201"));
        assert!(part_name(&"ü".repeat(31), "20260101t010203").len() <= LONGEST);
    }

    #[test]
    fn a_line_that_would_end_the_text_does_not() {
        let mut text = Vec::new();
        push_line(&mut text, &[Some(b"a\n\\.\nb\t".to_vec()), None, Some(Vec::new())]);
        assert_eq!(text, b"a\\n\\\\.\\nb\\t\t\\N\t\n");
    }
}
