//! The statements. They are the same for both systems but for a handful of words.
//!
//! | table | holds |
//! | --- | --- |
//! | `scale_queue_jobs` | every job that waits, is scheduled, blocked or leased: a leased one names its worker, a blocked one its line |
//! | `scale_queue_workers` | leases, and what each worker has done: a row of its own, so that nobody waits for another |
//! | `scale_queue_lines` | what blocked jobs wait for, and when the first in line is to be tried |
//! | `scale_queue_dead` | jobs given up |
//! | `scale_queue_once` | keys of jobs that must not be pushed twice, until they expire |
//! | `scale_queue_queues` | pauses, and the sums of workers that are gone |
//! | `scale_queue_samples` | a queue's counts by minute and hour, for charts |
//! | `scale_queue_batches`, `scale_queue_batch_ends` | how far batches are, and which of their jobs have ended |
//! | `scale_queue_rates`, `scale_queue_permits` | limits: when the next job of a rate is due; who has which permit |
//! | `scale_queue_present` | workers, schedules and batches that are there |
//! | `scale_queue_notes` | progress, for a while |
//! | `scale_queue_outbox` | jobs pushed inside a transaction, on their way into a store that is not this database |
//!
//! Every table has the application's name in each of its keys.
//!
//! Times are read once a statement (`statement_timestamp`): a time that may change with each row is a filter, and no index helps with it.

use std::sync::Arc;

use sqlx::AssertSqlSafe;
use sqlx::any::AnyArguments;

/// A database system that can hold jobs. Public only for the sealed trait that names it.
#[allow(unreachable_pub)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum System {
    #[cfg(feature = "postgres")]
    Postgres,
    #[cfg(feature = "sqlite")]
    Sqlite,
}

impl System {
    pub(crate) fn of(url: &str) -> Option<Self> {
        match url.split(':').next()? {
            #[cfg(feature = "postgres")]
            "postgres" | "postgresql" => Some(Self::Postgres),
            #[cfg(feature = "sqlite")]
            "sqlite" => Some(Self::Sqlite),
            _ => None,
        }
    }

    /// Expands words in braces.
    fn expand(self, text: &str) -> Arc<str> {
        let words: [(&str, &str); 11] = match self {
            #[cfg(feature = "postgres")]
            Self::Postgres => [
                ("{now}", "(extract(epoch from statement_timestamp()) * 1000)::bigint"),
                ("{now_us}", "(extract(epoch from statement_timestamp()) * 1000000)::bigint"),
                ("{claim}", "for update skip locked"),
                ("{lock}", "for update"),
                ("{serial}", "bigint generated always as identity primary key"),
                ("{bytes}", "bytea"),
                ("{text}", "text collate \"C\""),
                // An array is looked up in an index, whatever the planner thinks of how many a subquery returns.
                ("{each}", "unnest(string_to_array($1, ','))"),
                ("{absent}", "to_regclass(name) is null"),
                ("{one_of}", "= any(array("),
                ("{end}", "))"),
            ],
            #[cfg(feature = "sqlite")]
            Self::Sqlite => [
                ("{now}", "cast(unixepoch('subsec') * 1000 as integer)"),
                ("{now_us}", "cast(unixepoch('subsec') * 1000000 as integer)"),
                ("{claim}", ""),
                ("{lock}", ""),
                ("{serial}", "integer primary key autoincrement"),
                ("{bytes}", "blob"),
                ("{text}", "text"),
                ("{each}", "json_each('[\"' || replace($1, ',', '\",\"') || '\"]')"),
                ("{absent}", "name.value not in (select known.name from sqlite_master as known)"),
                ("{one_of}", "in ("),
                ("{end}", ")"),
            ],
        };
        let mut text = words.iter().fold(text.to_owned(), |text, (word, own)| text.replace(word, own));
        // A list of parameter n, `{list:n}`: texts without a comma, separated by commas.
        for n in 1..=9 {
            let list = match self {
                #[cfg(feature = "postgres")]
                // In a subquery, so that the list is read once, not once a row.
                Self::Postgres => format!("= any(array(select unnest(string_to_array(${n}, ','))))"),
                #[cfg(feature = "sqlite")]
                Self::Sqlite => format!("in (select value from json_each('[\"' || replace(${n}, ',', '\",\"') || '\"]'))"),
            };
            text = text.replace(&format!("{{list:{n}}}"), &list);
        }
        text.into()
    }
}

/// A statement, ready to be asked.
#[derive(Clone, Debug)]
pub(crate) struct Statement(Arc<str>);

impl Statement {
    pub(crate) fn query(&self) -> sqlx::query::Query<'static, sqlx::Any, AnyArguments> {
        // Made of the constants of this file alone.
        sqlx::query(AssertSqlSafe(Arc::clone(&self.0)))
    }

    pub(crate) fn text(&self) -> Arc<str> {
        Arc::clone(&self.0)
    }
}

macro_rules! statements {
    ($($name:ident = $text:expr;)*) => {
        #[derive(Debug)]
        pub(crate) struct Texts { $(pub(crate) $name: Statement,)* }

        impl Texts {
            pub(crate) fn new(system: System) -> Self {
                Self { $($name: Statement(system.expand($text)),)* }
            }

            /// All of them, by name.
            pub(crate) fn all(&self) -> Vec<(&'static str, Arc<str>)> {
                vec![$((stringify!($name), self.$name.text()),)*]
            }
        }
    };
}

statements! {
    tables = "
        create table if not exists scale_queue_jobs (
            id {text} primary key,
            app {text} not null,
            queue {text} not null,
            due_ms bigint not null,
            worker {text},
            suspect bigint not null default 0,
            line {text},
            since_ms bigint,
            group_key {text},
            unique_key {text},
            unique_until_ms bigint,
            cancelled bigint not null default 0,
            body {bytes} not null
        );
        create index if not exists scale_queue_jobs_ready on scale_queue_jobs (app, queue, due_ms, id)
            where worker is null and line is null and suspect = 0;
        create index if not exists scale_queue_jobs_held on scale_queue_jobs (app, queue, worker) where worker is not null;
        create index if not exists scale_queue_jobs_suspect on scale_queue_jobs (app, queue, due_ms, id)
            where suspect = 1 and worker is null;
        create index if not exists scale_queue_jobs_line on scale_queue_jobs (app, queue, line, due_ms, id) where line is not null;
        create index if not exists scale_queue_jobs_group on scale_queue_jobs (app, queue, group_key, due_ms, id)
            where group_key is not null and worker is null and line is null;
        create unique index if not exists scale_queue_jobs_unique on scale_queue_jobs (app, queue, unique_key)
            where unique_key is not null;
        create index if not exists scale_queue_jobs_cancelled on scale_queue_jobs (id) where cancelled = 1;
        create table if not exists scale_queue_workers (
            app {text} not null,
            queue {text} not null,
            worker {text} not null,
            until_ms bigint not null,
            done bigint not null,
            failed bigint not null,
            ended bigint not null,
            unbegun {text} not null,
            trial {text} not null,
            primary key (app, queue, worker)
        );
        create index if not exists scale_queue_workers_until on scale_queue_workers (app, queue, until_ms);
        create table if not exists scale_queue_lines (
            app {text} not null,
            queue {text} not null,
            line {text} not null,
            retry_ms bigint not null,
            pace_us bigint not null,
            unhandled bigint not null,
            primary key (app, queue, line)
        );
        create index if not exists scale_queue_lines_retry on scale_queue_lines (app, queue, retry_ms);
        create index if not exists scale_queue_lines_name on scale_queue_lines (app, line);
        create table if not exists scale_queue_dead (
            seq {serial},
            app {text} not null,
            queue {text} not null,
            id {text} not null,
            died_ms bigint not null,
            reason text not null,
            body {bytes} not null
        );
        create index if not exists scale_queue_dead_time on scale_queue_dead (app, queue, died_ms, seq);
        create index if not exists scale_queue_dead_id on scale_queue_dead (app, queue, id);
        create table if not exists scale_queue_queues (
            app {text} not null,
            queue {text} not null,
            paused bigint not null,
            done bigint not null,
            failed bigint not null,
            ended bigint not null,
            primary key (app, queue)
        );
        create table if not exists scale_queue_samples (
            app {text} not null,
            queue {text} not null,
            resolution {text} not null,
            at_ms bigint not null,
            sample {bytes} not null,
            primary key (app, queue, resolution, at_ms)
        );
        create table if not exists scale_queue_once (
            app {text} not null,
            queue {text} not null,
            once_key {text} not null,
            id {text} not null,
            until_ms bigint not null,
            primary key (app, queue, once_key)
        );
        create index if not exists scale_queue_once_until on scale_queue_once (until_ms);
        create table if not exists scale_queue_outbox (
            seq {serial},
            app {text} not null,
            id {text} not null,
            queue {text} not null,
            delay_ms bigint not null,
            group_key {text},
            unique_key {text},
            unique_ms bigint,
            body {bytes} not null
        );
        create index if not exists scale_queue_outbox_app on scale_queue_outbox (app, seq);";
    shared_tables = "
        create table if not exists scale_queue_batches (
            app {text} not null,
            id {text} not null,
            total bigint not null,
            done bigint not null,
            dead bigint not null,
            cancelled bigint not null,
            skipped bigint not null default 0,
            followed bigint not null,
            lenient bigint not null,
            plan {bytes} not null,
            life_ms bigint not null,
            until_ms bigint not null,
            primary key (app, id)
        );
        create index if not exists scale_queue_batches_until on scale_queue_batches (until_ms);
        create table if not exists scale_queue_batch_ends (
            app {text} not null,
            id {text} not null,
            number bigint not null,
            dead bigint not null,
            primary key (app, id, number)
        );
        create table if not exists scale_queue_rates (
            app {text} not null,
            limit_key {text} not null,
            next_us bigint not null,
            primary key (app, limit_key)
        );
        create index if not exists scale_queue_rates_next on scale_queue_rates (next_us);
        create table if not exists scale_queue_permits (
            app {text} not null,
            limit_key {text} not null,
            permit bigint not null,
            holder {text} not null,
            until_ms bigint not null,
            primary key (app, limit_key, permit)
        );
        create index if not exists scale_queue_permits_until on scale_queue_permits (until_ms);
        create table if not exists scale_queue_present (
            app {text} not null,
            kind {text} not null,
            name {text} not null,
            about {bytes} not null,
            until_ms bigint not null,
            primary key (app, kind, name)
        );
        create index if not exists scale_queue_present_until on scale_queue_present (app, kind, until_ms);
        create table if not exists scale_queue_notes (
            app {text} not null,
            note_key {text} not null,
            value {bytes} not null,
            until_ms bigint not null,
            primary key (app, note_key)
        );
        create index if not exists scale_queue_notes_until on scale_queue_notes (until_ms);";
    missing = "select count(*) from {each} as name where {absent}";
    clock = "select {now}";
    know = "insert into scale_queue_queues (app, queue, paused, done, failed, ended) values ($1, $2, 0, 0, 0, 0) \
        on conflict do nothing";
    free_late = "update scale_queue_jobs set unique_key = null \
        where app = $1 and queue = $2 and unique_key = $3 and unique_until_ms <= {now}";
    push = "insert into scale_queue_jobs (id, app, queue, due_ms, group_key, unique_key, unique_until_ms, body) \
        values ($1, $2, $3, {now} + $4, $5, $6, {now} + $7, $8) on conflict do nothing";
    // Postgres alone: ids, delays and ends of bodies as lists, bodies one after the other.
    push_plain = "with pushed as (insert into scale_queue_jobs (id, app, queue, due_ms, body) \
        select job.id, $1, $2, {now} + job.delay::bigint, substr($6::bytea, job.start::int + 1, job.size::int) \
        from unnest(string_to_array($3, ','), string_to_array($4, ','), string_to_array($5, ','), string_to_array($7, ',')) \
            as job(id, delay, start, size) \
        on conflict do nothing) select pg_notify('scale_queue', $8)::text";
    forget_late_once = "delete from scale_queue_once where app = $1 and queue = $2 and once_key = $3 and until_ms <= {now}";
    once = "insert into scale_queue_once (app, queue, once_key, id, until_ms) values ($1, $2, $3, $4, {now} + $5) \
        on conflict do nothing";
    once_holder = "select id from scale_queue_once where app = $1 and queue = $2 and once_key = $3";
    expire_once = "update scale_queue_once set until_ms = {now} + $4 where app = $1 and queue = $2 and once_key {list:3} \
        and until_ms > {now} + $4";
    holder = "select id from scale_queue_jobs where app = $1 and queue = $2 and unique_key = $3";
    done = "delete from scale_queue_jobs where app = $1 and queue = $2 and worker = $3 and id {list:4}";
    // Postgres alone: everything a worker says and asks in one round trip. The first row has the counts.
    ack_and_fetch = "with acked as (\
            delete from scale_queue_jobs where app = $1 and queue = $2 and worker = $3 and id {list:4} returning 1), \
        picked as (\
            select ctid as row, id, due_ms, octet_length(body) as size from scale_queue_jobs \
            where app = $1 and queue = $2 and worker is null and line is null and suspect = 0 and due_ms <= {now} \
            and not exists (select 1 from scale_queue_queues where app = $1 and queue = $2 and paused = 1) \
            and (group_key is null or not exists (select 1 from scale_queue_lines as known where known.app = $1 and known.queue = $2 \
                and known.line = 'limit:' || group_key)) \
            order by due_ms, id limit $5 for update skip locked), \
        sized as (\
            select row, id, row_number() over place as n, sum(size) over place - size as before from picked \
            window place as (order by due_ms, id)), \
        taken as (\
            update scale_queue_jobs set worker = $3 where ctid = any(array(select row from sized where before < $6)) \
            returning id, body, cancelled), \
        leased as (\
            insert into scale_queue_workers (app, queue, worker, until_ms, done, failed, ended, unbegun, trial) \
            select $1, $2, $3, {now} + $7, (select count(*) from acked), 0, 0, \
                coalesce((select string_agg(id, ',') from sized where before < $6 and n > $8), ''), '' \
            where $9 = 1 or exists (select 1 from taken) or exists (select 1 from acked) \
            on conflict (app, queue, worker) do update set until_ms = excluded.until_ms, \
                done = scale_queue_workers.done + excluded.done, unbegun = excluded.unbegun, trial = '' returning 1) \
        select 0::bigint, coalesce((select worker from scale_queue_workers where app = $1 and queue = $2 and worker <> $3 \
                and until_ms <= {now} order by until_ms limit 1), ''), ''::bytea, (select count(*) from acked), \
            (select count(*) from (select 1 from scale_queue_lines where app = $1 and queue = $2 limit 1) as first_one), \
            (select count(*) from (select 1 from scale_queue_jobs where app = $1 and queue = $2 and suspect = 1 \
                and worker is null limit 1) as first_one), (select count(*) from leased) \
        union all select sized.n, taken.id, taken.body, taken.cancelled, 0, 0, 0 from taken join sized on sized.id = taken.id";
    // SQLite alone: the same in steps.
    // One row for all: a row costs SQLite's driver more than the job in it.
    pick = "select coalesce(group_concat(id, ',' order by due_ms, id), ''), \
            coalesce(group_concat(size, ',' order by due_ms, id), '') \
        from (select id, due_ms, length(body) as size from scale_queue_jobs \
            where app = $1 and queue = $2 and worker is null and line is null and suspect = 0 and due_ms <= {now} \
            and not exists (select 1 from scale_queue_queues where app = $1 and queue = $2 and paused = 1) \
            and (group_key is null or not exists (select 1 from scale_queue_lines as known where known.app = $1 and known.queue = $2 \
                and known.line = 'limit:' || group_key)) \
            order by due_ms, id limit $3)";
    claimed = "select coalesce(group_concat(job.cancelled || hex(job.body), ',' order by wanted.key), '') \
        from json_each('[\"' || replace($4, ',', '\",\"') || '\"]') as wanted \
        cross join scale_queue_jobs as job on job.id = wanted.value and app = $1 and queue = $2 and worker = $3";
    claim = "update scale_queue_jobs set worker = $3, line = null, suspect = 0 \
        where app = $1 and queue = $2 and worker is null and id {list:4} returning id, body, cancelled";
    is_paused = "select count(*) from scale_queue_queues where app = $1 and queue = $2 and paused = 1";
    lease = "insert into scale_queue_workers (app, queue, worker, until_ms, done, failed, ended, unbegun, trial) \
        values ($1, $2, $3, {now} + $4, $5, 0, 0, $6, $7) on conflict (app, queue, worker) do update set \
        until_ms = excluded.until_ms, done = scale_queue_workers.done + excluded.done, unbegun = excluded.unbegun, \
        trial = excluded.trial";
    begun = "update scale_queue_workers set unbegun = $5, done = done + $4 where app = $1 and queue = $2 and worker = $3";
    suspect_again = "update scale_queue_jobs set worker = null, suspect = 1 \
        where app = $1 and queue = $2 and worker = $3 and id = $4";
    tell_trial = "update scale_queue_workers set trial = $4 where app = $1 and queue = $2 and worker = $3";
    hints = "select coalesce((select worker from scale_queue_workers where app = $1 and queue = $2 and worker <> $3 \
            and until_ms <= {now} order by until_ms limit 1), ''), \
        (select count(*) from (select 1 from scale_queue_lines where app = $1 and queue = $2 limit 1) as first_one), \
        (select count(*) from (select 1 from scale_queue_jobs where app = $1 and queue = $2 and suspect = 1 \
            and worker is null limit 1) as first_one)";
    suspect = "select id from scale_queue_jobs where app = $1 and queue = $2 and suspect = 1 and worker is null \
        order by due_ms, id limit 1 {claim}";
    first_of_lines = "select id from scale_queue_jobs where app = $1 and queue = $2 and line {list:3} and worker is null \
        order by due_ms, id limit $4 {claim}";
    overdue = "select id from scale_queue_jobs where app = $1 and queue = $2 and line = $3 and since_ms <= {now} - $4 \
        order by due_ms, id limit 50 {claim}";
    due_lines = "select line, retry_ms, pace_us, unhandled, {now} from scale_queue_lines \
        where app = $1 and queue = $2 and retry_ms <= {now} order by retry_ms limit 20 {claim}";
    retry_line = "update scale_queue_lines set retry_ms = $4 where app = $1 and queue = $2 and line = $3";
    unhandled_lines = "select line from scale_queue_lines where app = $1 and queue = $2 and unhandled = 1 limit 100";
    sweep_line = "update scale_queue_jobs set line = $3 where id {one_of}select id from scale_queue_jobs \
        where app = $1 and queue = $2 and group_key = $4 and worker is null and line is null order by due_ms, id limit 5000 {claim}{end}";
    // Locked in one order by all, so that nobody closes a line into which jobs are being put.
    limit_lines = "select line from scale_queue_lines where app = $1 and queue = $2 and unhandled = 0 and line {one_of}select line \
        from scale_queue_lines where app = $1 and queue = $2 and unhandled = 0 order by retry_ms limit 1000{end} order by line {lock}";
    promote = "update scale_queue_jobs set line = null, group_key = null, due_ms = 0 where id {one_of}select id from scale_queue_jobs \
        where app = $1 and queue = $2 and line = $3 order by due_ms, id limit $4 {claim}{end}";
    line_queues = "select queue from scale_queue_lines where app = $1 and line = $2 \
        and not exists (select 1 from scale_queue_queues as q where q.app = $1 and q.queue = scale_queue_lines.queue and q.paused = 1) order by retry_ms limit 100";
    block = "update scale_queue_jobs set worker = null, line = $5, since_ms = {now} \
        where app = $1 and queue = $2 and worker = $3 and id {list:4} returning id";
    open_line = "insert into scale_queue_lines (app, queue, line, retry_ms, pace_us, unhandled) values ($1, $2, $3, {now} + $4, $5, $6) \
        on conflict (app, queue, line) do update set pace_us = excluded.pace_us, retry_ms = excluded.retry_ms";
    lock_line = "select 1 from scale_queue_lines where app = $1 and queue = $2 and line = $3 {lock}";
    line_is_used = "select count(*) from (select 1 from scale_queue_jobs where app = $1 and queue = $2 and line = $3 limit 1) as first_one";
    close_line = "delete from scale_queue_lines where app = $1 and queue = $2 and line = $3";
    lost_lines = "select distinct line from scale_queue_jobs where app = $1 and queue = $2 and line is not null and not exists \
        (select 1 from scale_queue_lines as known where known.app = $1 and known.queue = $2 and known.line = scale_queue_jobs.line) \
        limit 100";
    next = "select {now}, \
        (select min(due_ms) from scale_queue_jobs where app = $1 and queue = $2 and worker is null and line is null and suspect = 0 \
            and not exists (select 1 from scale_queue_queues where app = $1 and queue = $2 and paused = 1)), \
        (select min(until_ms) from scale_queue_workers where app = $1 and queue = $2 and worker <> $3), \
        (select min(retry_ms) from scale_queue_lines where app = $1 and queue = $2 \
            and not exists (select 1 from scale_queue_queues where app = $1 and queue = $2 and paused = 1))";
    count_ended = "update scale_queue_workers set done = done + $4, failed = failed + $5, ended = ended + $6 \
        where app = $1 and queue = $2 and worker = $3";
    release = "update scale_queue_jobs set worker = null, body = coalesce($5, body), \
        due_ms = case when $6 < 0 then due_ms else {now} + $6 end where app = $1 and queue = $2 and worker = $3 and id = $4";
    take_back = "update scale_queue_jobs set worker = null, body = $4, suspect = $5 where app = $1 and queue = $2 and id = $3";
    bury = "insert into scale_queue_dead (app, queue, id, died_ms, reason, body) values ($1, $2, $3, {now}, $4, $5)";
    trim_old = "delete from scale_queue_dead where seq {one_of}select seq from scale_queue_dead \
        where app = $1 and queue = $2 and died_ms < {now} - $3 order by died_ms, seq limit 1000{end}";
    trim_many = "delete from scale_queue_dead where seq {one_of}select seq from scale_queue_dead \
        where app = $1 and queue = $2 order by died_ms desc, seq desc limit 1000 offset $3{end}";
    held = "select id from scale_queue_jobs where app = $1 and queue = $2 and worker = $3";
    held_sizes = "select id, length(body) from scale_queue_jobs where app = $1 and queue = $2 and worker = $3 and id {list:4}";
    held_jobs = "select id, body from scale_queue_jobs where app = $1 and queue = $2 and worker = $3 and id {list:4}";
    held_some = "select id, body from scale_queue_jobs where app = $1 and queue = $2 and worker = $3 limit 100";
    beat = "update scale_queue_workers set until_ms = {now} + $4 where app = $1 and queue = $2 and worker = $3";
    expired = "select unbegun, trial, case when until_ms <= {now} then 1 else 0 end from scale_queue_workers \
        where app = $1 and queue = $2 and worker = $3 {lock}";
    blame = "update scale_queue_workers set trial = '!' where app = $1 and queue = $2 and worker = $3";
    dismiss = "delete from scale_queue_workers where app = $1 and queue = $2 and worker = $3 and not exists \
        (select 1 from scale_queue_jobs where app = $1 and queue = $2 and worker = $3) returning done, failed, ended";
    idle_expired = "select worker from scale_queue_workers as gone where app = $1 and queue = $2 and until_ms <= {now} and not exists \
        (select 1 from scale_queue_jobs as job where job.app = $1 and job.queue = $2 and job.worker = gone.worker) limit 100";
    orphans = "select distinct worker from scale_queue_jobs where app = $1 and queue = $2 and worker is not null and not exists \
        (select 1 from scale_queue_workers as known where known.app = $1 and known.queue = $2 and known.worker = scale_queue_jobs.worker)";
    fold = "update scale_queue_queues set done = done + $3, failed = failed + $4, ended = ended + $5 where app = $1 and queue = $2";
    try_line = "update scale_queue_lines set retry_ms = {now} where app = $1 and queue = $2 and line = $3 and pace_us = 0 \
        and retry_ms > {now}";
    try_lines = "update scale_queue_lines set retry_ms = {now} where app = $1 and queue = $2 and retry_ms > {now}";
    pause = "update scale_queue_queues set paused = $3 where app = $1 and queue = $2";
    stats = "select \
        (select count(*) from scale_queue_jobs where app = $1 and queue = $2 and worker is null and line is null and suspect = 0 \
            and due_ms <= {now}) + (select count(*) from scale_queue_jobs where app = $1 and queue = $2 and worker is null \
            and suspect = 1), \
        (select count(*) from scale_queue_jobs where app = $1 and queue = $2 and worker is null and line is null and suspect = 0 \
            and due_ms > {now}), \
        (select count(*) from scale_queue_jobs where app = $1 and queue = $2 and line is not null), \
        (select count(*) from scale_queue_jobs where app = $1 and queue = $2 and worker is not null), \
        (select count(*) from scale_queue_dead where app = $1 and queue = $2), \
        (select cast(coalesce(sum(done), 0) as bigint) from (select done from scale_queue_queues where app = $1 and queue = $2 \
            union all select done from scale_queue_workers where app = $1 and queue = $2) as counts), \
        (select cast(coalesce(sum(failed), 0) as bigint) from (select failed from scale_queue_queues where app = $1 and queue = $2 \
            union all select failed from scale_queue_workers where app = $1 and queue = $2) as counts), \
        (select cast(coalesce(sum(ended), 0) as bigint) from (select ended from scale_queue_queues where app = $1 and queue = $2 \
            union all select ended from scale_queue_workers where app = $1 and queue = $2) as counts), \
        (select coalesce(max(paused), 0) from scale_queue_queues where app = $1 and queue = $2), \
        (select body from scale_queue_jobs where app = $1 and queue = $2 and worker is null and line is null and suspect = 0 \
            and due_ms <= {now} order by due_ms, id limit 1)";
    record = "insert into scale_queue_samples (app, queue, resolution, at_ms, sample) values ($1, $2, $3, $4, $5) on conflict do nothing";
    forget_samples = "delete from scale_queue_samples where app = $1 and queue = $2 and resolution = $3 and at_ms <= $4";
    samples = "select sample from scale_queue_samples where app = $1 and queue = $2 and resolution = $3 and at_ms >= $4 order by at_ms";
    dead_sizes = "select id, length(body) from scale_queue_dead where app = $1 and queue = $2 \
        order by died_ms desc, seq desc limit $3 offset $4";
    dead = "select body, reason, died_ms from scale_queue_dead where app = $1 and queue = $2 \
        order by died_ms desc, seq desc limit $3 offset $4";
    take_dead = "delete from scale_queue_dead where seq = (select min(seq) from scale_queue_dead \
        where app = $1 and queue = $2 and id = $3 and died_ms = $4) returning body";
    cancel = "delete from scale_queue_jobs where app = $1 and queue = $2 and id = $3 and worker is null returning body";
    cancel_leased = "update scale_queue_jobs set cancelled = 1 where app = $1 and queue = $2 and id = $3";
    cancelled = "select id from scale_queue_jobs where cancelled = 1 limit 10000";
    sizes_waiting = "select id, length(body) from scale_queue_jobs where app = $1 and queue = $2 and worker is null and line is null \
        and suspect = 0 and due_ms <= {now} order by due_ms, id limit $3 offset $4";
    list_waiting = "select body, due_ms, worker, line from scale_queue_jobs where app = $1 and queue = $2 and worker is null \
        and line is null and suspect = 0 and due_ms <= {now} order by due_ms, id limit $3 offset $4";
    sizes_suspect = "select id, length(body) from scale_queue_jobs where app = $1 and queue = $2 and worker is null and suspect = 1 \
        order by due_ms, id limit $3 offset $4";
    list_suspect = "select body, due_ms, worker, line from scale_queue_jobs where app = $1 and queue = $2 and worker is null \
        and suspect = 1 order by due_ms, id limit $3 offset $4";
    count_suspect = "select count(*) from scale_queue_jobs where app = $1 and queue = $2 and worker is null and suspect = 1";
    sizes_scheduled = "select id, length(body) from scale_queue_jobs where app = $1 and queue = $2 and worker is null and line is null \
        and suspect = 0 and due_ms > {now} order by due_ms, id limit $3 offset $4";
    list_scheduled = "select body, due_ms, worker, line from scale_queue_jobs where app = $1 and queue = $2 and worker is null \
        and line is null and suspect = 0 and due_ms > {now} order by due_ms, id limit $3 offset $4";
    sizes_blocked = "select id, length(body) from scale_queue_jobs where app = $1 and queue = $2 and line is not null \
        order by line, due_ms, id limit $3 offset $4";
    list_blocked = "select body, due_ms, worker, line from scale_queue_jobs where app = $1 and queue = $2 and line is not null \
        order by line, due_ms, id limit $3 offset $4";
    sizes_leased = "select id, length(body) from scale_queue_jobs where app = $1 and queue = $2 and worker is not null \
        order by worker, id limit $3 offset $4";
    list_leased = "select body, due_ms, worker, line from scale_queue_jobs where app = $1 and queue = $2 and worker is not null \
        order by worker, id limit $3 offset $4";
    pick_any = "select * from (select id, length(body) as size from scale_queue_jobs where app = $1 and queue = $2 and worker is null \
            and line is null and suspect = 0 order by due_ms, id limit 1000) as ready \
        union all select * from (select id, length(body) as size from scale_queue_jobs where app = $1 and queue = $2 \
            and line is not null order by line, due_ms, id limit 1000) as blocked \
        union all select * from (select id, length(body) as size from scale_queue_jobs where app = $1 and queue = $2 and suspect = 1 \
            and worker is null order by due_ms, id limit 1000) as suspects";
    queues = "select queue from scale_queue_queues where app = $1 order by queue";
    batch_open = "insert into scale_queue_batches (app, id, total, done, dead, cancelled, followed, lenient, plan, life_ms, until_ms) \
        values ($1, $2, $3, 0, 0, 0, 0, $4, $5, $6, {now} + $6) on conflict do nothing";
    batch_touch = "update scale_queue_batches set until_ms = case when followed = 1 then until_ms else {now} + life_ms end \
        where app = $1 and id = $2 and until_ms > {now} returning total, done, dead, cancelled, followed, skipped, lenient";
    batch_save = "update scale_queue_batches set done = $3, dead = $4, cancelled = $5, skipped = $6 where app = $1 and id = $2";
    batch_cancel = "update scale_queue_batches set cancelled = case when cancelled = 0 then 1 else cancelled end \
        where app = $1 and id = $2 and until_ms > {now}";
    batch_is_cancelled = "select count(*) from scale_queue_batches where app = $1 and id = $2 and cancelled > 0 and until_ms > {now} \
        and not exists (select 1 from scale_queue_batch_ends where app = $1 and id = $2 and number = $3 and dead = 1)";
    batch_conclude = "update scale_queue_batches set followed = 1, until_ms = {now} + $3 where app = $1 and id = $2";
    batch = "select total, done, dead, cancelled, followed, skipped, plan from scale_queue_batches where app = $1 and id = $2 and until_ms > {now}";
    end_known = "select dead from scale_queue_batch_ends where app = $1 and id = $2 and number = $3";
    end_put = "insert into scale_queue_batch_ends (app, id, number, dead) values ($1, $2, $3, $4) \
        on conflict (app, id, number) do update set dead = excluded.dead";
    end_drop = "delete from scale_queue_batch_ends where app = $1 and id = $2";
    // A free permit is one that nobody has or whose time is over. Two that choose the same one at once: one of them gets nothing.
    // Of many permits, as few are looked at as there must be a free one among.
    acquire = "with recursive bound(most) as (select case when count(*) * 2 + 64 < $5 then count(*) * 2 + 64 else $5 end \
            from scale_queue_permits where app = $1 and limit_key = $2), \
        permits(n) as (select 1 union all select n + 1 from permits where n < (select most from bound)) \
        insert into scale_queue_permits (app, limit_key, permit, holder, until_ms) \
        select $1, $2, n, $3, {now} + $4 from permits where not exists (select 1 from scale_queue_permits as taken \
            where taken.app = $1 and taken.limit_key = $2 and taken.permit = permits.n and taken.until_ms > {now}) \
        and (select count(*) from scale_queue_permits as held where held.app = $1 and held.limit_key = $2 and held.until_ms > {now}) < $5 \
        order by random() limit 1 \
        on conflict (app, limit_key, permit) do update set holder = excluded.holder, until_ms = excluded.until_ms \
            where scale_queue_permits.until_ms <= {now}";
    taken = "select count(*), coalesce(min(until_ms) - {now}, 0) from scale_queue_permits where app = $1 and limit_key = $2 and until_ms > {now}";
    renew = "update scale_queue_permits set until_ms = {now} + $4 where app = $1 and limit_key = $2 and holder = $3 and until_ms > {now}";
    give_back = "delete from scale_queue_permits where app = $1 and limit_key = $2 and holder = $3";
    // Postgres alone: gives back, promotes the first in line and says so, in one round trip.
    release_and_wake = "with freed as (\
            delete from scale_queue_permits where app = $1 and limit_key = $2 and holder = $3 returning 1), \
        chosen as (select queue from scale_queue_lines where app = $1 and line = $4 \
            and not exists (select 1 from scale_queue_queues as q where q.app = $1 and q.queue = scale_queue_lines.queue and q.paused = 1) \
            order by array_position(string_to_array($5, ','), queue) nulls last, retry_ms limit 1), \
        heads as (select job.id from chosen join scale_queue_jobs as job on job.app = $1 and job.queue = chosen.queue \
            and job.line = $4 order by job.due_ms, job.id limit 1 for update of job skip locked), \
        promoted as (update scale_queue_jobs as job set line = null, group_key = null, due_ms = 0 from heads \
            where job.id = heads.id returning job.id) \
        select chosen.queue, (select count(*) from promoted), \
            (select count(*) from (select 1 from scale_queue_jobs as job where job.app = $1 and job.queue = chosen.queue \
                and job.line = $4 limit 2) as two), \
            pg_notify('scale_queue', $6 || chosen.queue)::text from chosen";
    // Postgres alone: leases the next in line and passes the permit on to it, in one round trip.
    pass_on = "with chosen as (select queue from scale_queue_lines where app = $1 and line = $3 and queue {list:4} \
            and not exists (select 1 from scale_queue_queues as q where q.app = $1 and q.queue = scale_queue_lines.queue and q.paused = 1) \
            and (select count(*) from scale_queue_permits as held where held.app = $1 and held.limit_key = $2 and held.until_ms > {now}) <= $10 \
            order by array_position(string_to_array($4, ','), queue), retry_ms limit 1), \
        heads as (select job.id from chosen join scale_queue_jobs as job on job.app = $1 and job.queue = chosen.queue \
            and job.line = $3 order by job.due_ms, job.id limit 1 for update of job skip locked), \
        taken as (update scale_queue_jobs as job set worker = $5, line = null, group_key = null from heads \
            where job.id = heads.id and job.cancelled = 0 returning job.queue, job.body), \
        leased as (insert into scale_queue_workers (app, queue, worker, until_ms, done, failed, ended, unbegun, trial) \
            select $1, queue, $5, {now} + $6, 0, 0, 0, '', '' from taken \
            on conflict (app, queue, worker) do update set until_ms = excluded.until_ms returning 1), \
        passed as (update scale_queue_permits set holder = $8, until_ms = {now} + $9 where app = $1 and limit_key = $2 and holder = $7 \
            and until_ms > {now} and exists (select 1 from taken) returning 1) \
        select queue, body, (select count(*) from passed), (select count(*) from leased), \
            (select count(*) from scale_queue_permits as held where held.app = $1 and held.limit_key = $2 and held.until_ms > {now}) \
        from taken";
    pass_permit = "update scale_queue_permits set holder = $4, until_ms = {now} + $5 \
        where app = $1 and limit_key = $2 and holder = $3 and until_ms > {now}";
    touch_lease = "insert into scale_queue_workers (app, queue, worker, until_ms, done, failed, ended, unbegun, trial) \
        values ($1, $2, $3, {now} + $4, 0, 0, 0, '', '') on conflict (app, queue, worker) do update set until_ms = excluded.until_ms";
    take_first = "update scale_queue_jobs set worker = $4, line = null, group_key = null where id = (select id from scale_queue_jobs \
        where app = $1 and queue = $2 and line = $3 and cancelled = 0 order by due_ms, id limit 1 {claim}) returning body";
    admit = "insert into scale_queue_rates (app, limit_key, next_us) select $1, $2, {now_us} + $3 where not exists (\
            select 1 from scale_queue_lines where app = $1 and line = $5 and queue {list:6} and retry_ms <= {now} + $7 \
            and not exists (select 1 from scale_queue_queues as q where q.app = $1 and q.queue = scale_queue_lines.queue and q.paused = 1)) \
        on conflict (app, limit_key) do update set next_us = \
            case when scale_queue_rates.next_us > {now_us} then scale_queue_rates.next_us else {now_us} end + $3 \
            where scale_queue_rates.next_us - $4 <= {now_us}";
    rate_wait = "select next_us - {now_us} from scale_queue_rates where app = $1 and limit_key = $2";
    refund = "update scale_queue_rates set next_us = next_us - $3 where app = $1 and limit_key = $2";
    announce = "insert into scale_queue_present (app, kind, name, about, until_ms) values ($1, $2, $3, $4, {now} + $5) \
        on conflict (app, kind, name) do update set about = excluded.about, until_ms = excluded.until_ms";
    forget_present = "delete from scale_queue_present where app = $1 and kind = $2 and (until_ms <= {now} or until_ms < \
        (select until_ms from scale_queue_present where app = $1 and kind = $2 order by until_ms desc limit 1 offset $3))";
    withdraw = "delete from scale_queue_present where app = $1 and kind = $2 and name = $3";
    present = "select name, about from scale_queue_present where app = $1 and kind = $2 and until_ms > {now} \
        order by until_ms desc, name desc limit $3 offset $4";
    note = "insert into scale_queue_notes (app, note_key, value, until_ms) values ($1, $2, $3, {now} + $4) \
        on conflict (app, note_key) do update set value = excluded.value, until_ms = excluded.until_ms";
    noted = "select value from scale_queue_notes where app = $1 and note_key = $2 and until_ms > {now}";
    late_batches = "select app, id from scale_queue_batches where until_ms <= {now} limit 100";
    sweep_batch = "delete from scale_queue_batches where app = $1 and id = $2 and until_ms <= {now}";
    sweep_rates = "delete from scale_queue_rates where next_us < {now_us}";
    sweep_permits = "delete from scale_queue_permits where until_ms <= {now} - 60000";
    sweep_notes = "delete from scale_queue_notes where until_ms <= {now}";
    sweep_once = "delete from scale_queue_once where until_ms <= {now}";
    outbox_take = "select seq, id, queue, delay_ms, unique_key, unique_ms, body from scale_queue_outbox where app = $1 order by seq limit $2 {claim}";
    outbox_drop = "delete from scale_queue_outbox where seq = $1";
    outbox_put = "insert into scale_queue_outbox (id, app, queue, delay_ms, group_key, unique_key, unique_ms, body) \
        values ($1, $2, $3, $4, $5, $6, $7, $8)";
}
