//! The statements. They are the same for both systems but for a handful of words.
//!
//! | table | holds |
//! | --- | --- |
//! | `scale_queue_jobs` | every job that waits, is scheduled or leased; a leased one names its worker |
//! | `scale_queue_workers` | leases, and what each worker has done: a row of its own, so that nobody waits for another |
//! | `scale_queue_dead` | jobs given up |
//! | `scale_queue_once` | keys of jobs that must not be pushed twice, until they expire |
//! | `scale_queue_queues` | pauses, and the sums of workers that are gone |
//! | `scale_queue_outbox` | jobs pushed inside a transaction, on their way into a store that is not this database |

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

    /// Words in braces as this system says them.
    fn say(self, text: &str) -> Arc<str> {
        let words: [(&str, &str); 5] = match self {
            #[cfg(feature = "postgres")]
            Self::Postgres => [
                ("{now}", "(extract(epoch from clock_timestamp()) * 1000)::bigint"),
                ("{ids}", "= any(string_to_array($3, ','))"),
                ("{claim}", "for update skip locked"),
                ("{serial}", "bigint generated always as identity primary key"),
                ("{bytes}", "bytea"),
            ],
            #[cfg(feature = "sqlite")]
            Self::Sqlite => [
                ("{now}", "cast(unixepoch('subsec') * 1000 as integer)"),
                ("{ids}", "in (select value from json_each('[\"' || replace($3, ',', '\",\"') || '\"]'))"),
                ("{claim}", ""),
                ("{serial}", "integer primary key autoincrement"),
                ("{bytes}", "blob"),
            ],
        };
        words.iter().fold(text.to_owned(), |text, (word, own)| text.replace(word, own)).into()
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
                Self { $($name: Statement(system.say($text)),)* }
            }
        }
    };
}

statements! {
    tables = "
        create table if not exists scale_queue_jobs (
            seq {serial},
            id text not null unique,
            queue text not null,
            due_ms bigint not null,
            worker text,
            unique_key text,
            unique_until_ms bigint,
            body {bytes} not null
        );
        create index if not exists scale_queue_jobs_due on scale_queue_jobs (queue, due_ms, seq) where worker is null;
        create index if not exists scale_queue_jobs_held on scale_queue_jobs (queue, worker) where worker is not null;
        create unique index if not exists scale_queue_jobs_unique on scale_queue_jobs (queue, unique_key) where unique_key is not null;
        create table if not exists scale_queue_workers (
            queue text not null,
            worker text not null,
            until_ms bigint not null,
            done bigint not null,
            failed bigint not null,
            primary key (queue, worker)
        );
        create table if not exists scale_queue_dead (
            seq {serial},
            queue text not null,
            died_ms bigint not null,
            reason text not null,
            body {bytes} not null
        );
        create index if not exists scale_queue_dead_time on scale_queue_dead (queue, died_ms, seq);
        create table if not exists scale_queue_queues (
            queue text primary key,
            paused bigint not null,
            done bigint not null,
            failed bigint not null
        );
        create table if not exists scale_queue_once (
            queue text not null,
            once_key text not null,
            id text not null,
            until_ms bigint not null,
            primary key (queue, once_key)
        );
        create table if not exists scale_queue_outbox (
            seq {serial},
            id text not null,
            queue text not null,
            delay_ms bigint not null,
            unique_key text,
            unique_ms bigint,
            body {bytes} not null
        );";
    clock = "select {now}";
    know = "insert into scale_queue_queues (queue, paused, done, failed) values ($1, 0, 0, 0) on conflict do nothing";
    free_late = "update scale_queue_jobs set unique_key = null where queue = $1 and unique_key = $2 and unique_until_ms <= {now}";
    push = "insert into scale_queue_jobs (id, queue, due_ms, unique_key, unique_until_ms, body) \
        values ($1, $2, {now} + $3, $4, {now} + $5, $6) on conflict (queue, unique_key) where unique_key is not null do nothing";
    forget_once = "delete from scale_queue_once where queue = $1 and until_ms <= {now}";
    once = "insert into scale_queue_once (queue, once_key, id, until_ms) values ($1, $2, $3, {now} + $4) on conflict do nothing";
    once_holder = "select id from scale_queue_once where queue = $1 and once_key = $2";
    holder = "select id from scale_queue_jobs where queue = $1 and unique_key = $2";
    done = "delete from scale_queue_jobs where queue = $1 and worker = $2 and id {ids}";
    fetch = "update scale_queue_jobs set worker = $2 where seq in (\
        select seq from scale_queue_jobs where queue = $1 and worker is null and due_ms <= {now} \
        and not exists (select 1 from scale_queue_queues where queue = $1 and paused = 1) \
        order by due_ms, seq limit $3 {claim}) returning seq, body";
    lease = "insert into scale_queue_workers (queue, worker, until_ms, done, failed) values ($1, $2, {now} + $3, $4, 0) \
        on conflict (queue, worker) do update set until_ms = {now} + $3, done = scale_queue_workers.done + $4";
    next = "select {now}, \
        (select min(due_ms) from scale_queue_jobs where queue = $1 and worker is null and due_ms > {now}), \
        (select min(until_ms) from scale_queue_workers where queue = $1 and worker <> $2), \
        (select min(worker) from scale_queue_workers where queue = $1 and worker <> $2 and until_ms <= {now})";
    count_failed = "update scale_queue_workers set failed = failed + 1 where queue = $1 and worker = $2";
    count_done = "update scale_queue_workers set done = done + 1 where queue = $1 and worker = $2";
    release = "update scale_queue_jobs set worker = null, body = $4, due_ms = case when $5 < 0 then due_ms else {now} + $5 end \
        where queue = $1 and worker = $2 and id = $3";
    bury = "insert into scale_queue_dead (queue, died_ms, reason, body) values ($1, {now}, $2, $3)";
    trim = "delete from scale_queue_dead where queue = $1 and (died_ms < {now} - $2 or seq <= \
        (select seq from scale_queue_dead where queue = $1 order by died_ms desc, seq desc limit 1 offset $3))";
    held = "select body from scale_queue_jobs where queue = $1 and worker = $2";
    beat = "update scale_queue_workers set until_ms = {now} + $3 where queue = $1 and worker = $2";
    expire = "delete from scale_queue_workers where queue = $1 and worker = $2 and until_ms <= {now} returning done, failed";
    fold = "update scale_queue_queues set done = done + $2, failed = failed + $3 where queue = $1";
    pause = "update scale_queue_queues set paused = $2 where queue = $1";
    stats = "select \
        (select count(*) from scale_queue_jobs where queue = $1 and worker is null and due_ms <= {now}), \
        (select count(*) from scale_queue_jobs where queue = $1 and worker is null and due_ms > {now}), \
        (select count(*) from scale_queue_jobs where queue = $1 and worker is not null), \
        (select count(*) from scale_queue_dead where queue = $1), \
        (select cast(coalesce(sum(done), 0) as bigint) from (select done from scale_queue_queues where queue = $1 \
            union all select done from scale_queue_workers where queue = $1) as counts), \
        (select cast(coalesce(sum(failed), 0) as bigint) from (select failed from scale_queue_queues where queue = $1 \
            union all select failed from scale_queue_workers where queue = $1) as counts), \
        (select coalesce(max(paused), 0) from scale_queue_queues where queue = $1), \
        (select body from scale_queue_jobs where queue = $1 and worker is null and due_ms <= {now} order by due_ms, seq limit 1)";
    dead = "select body, reason, died_ms from scale_queue_dead where queue = $1 order by died_ms desc, seq desc limit $2 offset $3";
    exhume = "delete from scale_queue_dead where seq = \
        (select min(seq) from scale_queue_dead where queue = $1 and died_ms = $2 and reason = $3 and body = $4)";
    queues = "select queue from scale_queue_queues order by queue";
    outbox_take = "select seq, id, queue, delay_ms, unique_key, unique_ms, body from scale_queue_outbox order by seq limit $1 {claim}";
    outbox_drop = "delete from scale_queue_outbox where seq = $1";
    outbox_put = "insert into scale_queue_outbox (id, queue, delay_ms, unique_key, unique_ms, body) values ($1, $2, $3, $4, $5, $6)";
}
