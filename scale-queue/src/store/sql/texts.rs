//! The statements. They are the same for both systems but for a handful of words.
//!
//! | table | holds |
//! | --- | --- |
//! | `scale_queue_jobs` | every job that waits, is scheduled or leased; a leased one names its worker |
//! | `scale_queue_workers` | leases, and what each worker has done: a row of its own, so that nobody waits for another |
//! | `scale_queue_dead` | jobs given up |
//! | `scale_queue_once` | keys of jobs that must not be pushed twice, until they expire |
//! | `scale_queue_queues` | pauses, and the sums of workers that are gone |
//! | `scale_queue_batches`, `scale_queue_batch_ends` | how far batches are, and which of their jobs have ended |
//! | `scale_queue_turns`, `scale_queue_places`, `scale_queue_holds` | limits: when the next turn is; who has a place |
//! | `scale_queue_present` | workers, schedules and batches that are there |
//! | `scale_queue_notes` | progress, for a while |
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
            cancelled bigint not null default 0,
            body {bytes} not null
        );
        create index if not exists scale_queue_jobs_due on scale_queue_jobs (queue, due_ms, seq) where worker is null;
        create index if not exists scale_queue_jobs_held on scale_queue_jobs (queue, worker) where worker is not null;
        create unique index if not exists scale_queue_jobs_unique on scale_queue_jobs (queue, unique_key) where unique_key is not null;
        create index if not exists scale_queue_jobs_cancelled on scale_queue_jobs (id) where cancelled = 1;
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
    ledgers = "
        create table if not exists scale_queue_batches (
            id text primary key,
            total bigint not null,
            done bigint not null,
            dead bigint not null,
            cancelled bigint not null,
            lenient bigint not null,
            plan {bytes} not null,
            life_ms bigint not null,
            until_ms bigint not null
        );
        create table if not exists scale_queue_batch_ends (
            id text not null,
            number bigint not null,
            dead bigint not null,
            primary key (id, number)
        );
        create table if not exists scale_queue_turns (turn_key text primary key, next_us bigint not null);
        create table if not exists scale_queue_places (place_key text primary key, uses bigint not null);
        create table if not exists scale_queue_holds (
            place_key text not null,
            holder text not null,
            until_ms bigint not null,
            primary key (place_key, holder)
        );
        create table if not exists scale_queue_present (
            kind text not null,
            name text not null,
            about {bytes} not null,
            until_ms bigint not null,
            primary key (kind, name)
        );
        create index if not exists scale_queue_present_until on scale_queue_present (kind, until_ms);
        create table if not exists scale_queue_notes (note_key text primary key, value {bytes} not null, until_ms bigint not null);";
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
        order by due_ms, seq limit $3 {claim}) returning seq, body, id, cancelled";
    lease = "insert into scale_queue_workers (queue, worker, until_ms, done, failed) values ($1, $2, {now} + $3, $4, 0) \
        on conflict (queue, worker) do update set until_ms = {now} + $3, done = scale_queue_workers.done + $4";
    next = "select {now}, \
        (select min(due_ms) from scale_queue_jobs where queue = $1 and worker is null \
            and not exists (select 1 from scale_queue_queues where queue = $1 and paused = 1)), \
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
    cancel = "delete from scale_queue_jobs where queue = $1 and id = $2 and worker is null returning body";
    cancel_leased = "update scale_queue_jobs set cancelled = 1 where queue = $1 and id = $2";
    cancelled = "select id from scale_queue_jobs where cancelled = 1";
    list_waiting = "select body, due_ms, worker from scale_queue_jobs where queue = $1 and worker is null and due_ms <= {now} \
        order by due_ms, seq limit $2 offset $3";
    list_scheduled = "select body, due_ms, worker from scale_queue_jobs where queue = $1 and worker is null and due_ms > {now} \
        order by due_ms, seq limit $2 offset $3";
    list_leased = "select body, due_ms, worker from scale_queue_jobs where queue = $1 and worker is not null \
        order by worker, seq limit $2 offset $3";
    drain = "delete from scale_queue_jobs where seq in (select seq from scale_queue_jobs where queue = $1 and worker is null \
        order by due_ms, seq limit 1000 {claim}) returning body";
    queues = "select queue from scale_queue_queues order by queue";
    batch_open = "insert into scale_queue_batches (id, total, done, dead, cancelled, lenient, plan, life_ms, until_ms) \
        values ($1, $2, 0, 0, 0, $3, $4, $5, {now} + $5) on conflict do nothing";
    batch_touch = "update scale_queue_batches set until_ms = {now} + life_ms where id = $1 and until_ms > {now} \
        returning total, done, dead, cancelled, lenient";
    batch_save = "update scale_queue_batches set done = $2, dead = $3, cancelled = $4 where id = $1";
    batch_cancel = "update scale_queue_batches set cancelled = 1 where id = $1 and until_ms > {now}";
    batch = "select total, done, dead, cancelled, plan from scale_queue_batches where id = $1 and until_ms > {now}";
    end_known = "select dead from scale_queue_batch_ends where id = $1 and number = $2";
    end_put = "insert into scale_queue_batch_ends (id, number, dead) values ($1, $2, $3) \
        on conflict (id, number) do update set dead = excluded.dead";
    turn = "insert into scale_queue_turns (turn_key, next_us) values ($1, {now} * 1000 + $2) on conflict (turn_key) do update set \
        next_us = case when scale_queue_turns.next_us > {now} * 1000 then scale_queue_turns.next_us else {now} * 1000 end + $2 \
        returning next_us, {now} * 1000";
    hold_lock = "insert into scale_queue_places (place_key, uses) values ($1, 1) \
        on conflict (place_key) do update set uses = scale_queue_places.uses + 1";
    hold_late = "delete from scale_queue_holds where place_key = $1 and until_ms <= {now}";
    hold_others = "select count(*) from scale_queue_holds where place_key = $1 and holder <> $2";
    hold_put = "insert into scale_queue_holds (place_key, holder, until_ms) values ($1, $2, {now} + $3) \
        on conflict (place_key, holder) do update set until_ms = excluded.until_ms";
    hold_drop = "delete from scale_queue_holds where place_key = $1 and holder = $2";
    announce = "insert into scale_queue_present (kind, name, about, until_ms) values ($1, $2, $3, {now} + $4) \
        on conflict (kind, name) do update set about = excluded.about, until_ms = excluded.until_ms";
    forget_present = "delete from scale_queue_present where kind = $1 and (until_ms <= {now} or until_ms < \
        (select until_ms from scale_queue_present where kind = $1 order by until_ms desc limit 1 offset $2))";
    withdraw = "delete from scale_queue_present where kind = $1 and name = $2";
    present = "select name, about from scale_queue_present where kind = $1 and until_ms > {now} \
        order by until_ms desc, name desc limit $2 offset $3";
    note = "insert into scale_queue_notes (note_key, value, until_ms) values ($1, $2, {now} + $3) \
        on conflict (note_key) do update set value = excluded.value, until_ms = excluded.until_ms";
    noted = "select value from scale_queue_notes where note_key = $1 and until_ms > {now}";
    sweep_batches = "delete from scale_queue_batches where until_ms <= {now}";
    sweep_ends = "delete from scale_queue_batch_ends where not exists \
        (select 1 from scale_queue_batches where scale_queue_batches.id = scale_queue_batch_ends.id)";
    sweep_turns = "delete from scale_queue_turns where next_us < {now} * 1000";
    sweep_notes = "delete from scale_queue_notes where until_ms <= {now}";
    outbox_take = "select seq, id, queue, delay_ms, unique_key, unique_ms, body from scale_queue_outbox order by seq limit $1 {claim}";
    outbox_drop = "delete from scale_queue_outbox where seq = $1";
    outbox_put = "insert into scale_queue_outbox (id, queue, delay_ms, unique_key, unique_ms, body) values ($1, $2, $3, $4, $5, $6)";
}
