//! Pushes.

use std::sync::OnceLock;

use scale_sql::{Statement, System};

scale_sql::statements! {
    pub(crate) Statements;
    clock = "select {now}";
    know = "{insert} scale_queue_queues (app, queue, paused, done, failed, ended) \
        values ($1, $2, 0, 0, 0, 0) {or_nothing}";
    free_late = "update scale_queue_jobs set unique_key = null \
        where app = $1 and queue = $2 and unique_key = $3 and unique_until_ms <= {now}";
    // The scheduled job of a debounce key, which is stored as its unique key.
    debounced = "select id, body from scale_queue_jobs where app = $1 and queue = $2 \
        and unique_key = $3 and worker is null and line is null and due_ms > {now} {lock}";
    replace = "update scale_queue_jobs set body = $4, suspect = $5, group_key = $6, \
            due_ms = case when {now} + $7 < $8 then {now} + $7 else $8 end \
        where app = $1 and queue = $2 and id = $3";
    // It is not scheduled any more.
    release_debounce = "update scale_queue_jobs set unique_key = null \
        where app = $1 and queue = $2 and unique_key = $3 \
        and (worker is not null or line is not null or due_ms <= {now})";
    release_unique = "update scale_queue_jobs set unique_key = null \
        where app = $1 and queue = $2 and unique_key = $3 and id = $4";
    push = "{insert} scale_queue_jobs \
            (id, app, queue, due_ms, group_key, unique_key, unique_until_ms, body, suspect) \
        values ($1, $2, $3, coalesce($10, {now}) + $4, $5, $6, {now} + $7, $8, $9) {or_nothing}";
    // PostgreSQL only: pushes many jobs without keys in one round trip.
    push_plain = "with pushed as (\
            insert into scale_queue_jobs (id, app, queue, due_ms, body) \
            select job.id, $1, $2, {now} + job.delay, job.body \
            from unnest($3::text[], $4::bigint[], $5::bytea[]) as job(id, delay, body) \
            on conflict do nothing) \
        select pg_notify('scale_queue', $6)::text";
    notify = "select pg_notify('scale_queue', $1)::text";
    forget_late_once = "delete from scale_queue_once \
        where app = $1 and queue = $2 and once_key = $3 and until_ms <= {now}";
    once = "{insert} scale_queue_once (app, queue, once_key, id, until_ms) \
        values ($1, $2, $3, $4, {now} + $5) {or_nothing}";
    // A locking read sees current rows, not those of the time at which the transaction began.
    once_holder = "select id, case when until_ms <= {now} then 1 else 0 end from scale_queue_once \
        where app = $1 and queue = $2 and once_key = $3",
        mysql "select id, case when until_ms <= {now} then 1 else 0 end from scale_queue_once \
            where app = $1 and queue = $2 and once_key = $3 lock in share mode";
    expire_once = "update scale_queue_once set until_ms = {now} + $4 \
        where app = $1 and queue = $2 and once_key {list:3} and until_ms > {now} + $4";
    holder = "select id, case when unique_until_ms <= {now} then 1 else 0 end \
        from scale_queue_jobs \
        where app = $1 and queue = $2 and unique_key = $3",
        mysql "select id, case when unique_until_ms <= {now} then 1 else 0 end \
            from scale_queue_jobs \
            where app = $1 and queue = $2 and unique_key = $3 lock in share mode";
    // Rows of versions without application names.
    unclaimed = "select \
        (select count(*) from (select 1 from scale_queue_queues where app = '' limit 1) as q) + \
        (select count(*) from (select 1 from scale_queue_dead where app = '' limit 1) as d) + \
        (select count(*) from (select 1 from scale_queue_jobs where app = '' \
            and worker is null and line is null and suspect = 0 limit 1) as j)";
}

impl Statements {
    /// Returns a push of `count` rows, a power of two, for MySQL. Its parameters are the
    /// application, the queue, then id, delay and body of each row.
    pub(crate) fn rows(count: usize) -> Statement {
        static KNOWN: [OnceLock<Statement>; 16] = [const { OnceLock::new() }; 16];
        let make = || {
            let row = |n: usize| {
                format!("(${}, $1, $2, {{now}} + ${}, ${})", 3 * n, 3 * n + 1, 3 * n + 2)
            };
            let rows: Vec<_> = (1..=count).map(row).collect();
            let text = format!(
                "{{insert}} scale_queue_jobs (id, app, queue, due_ms, body) \
                 values {} {{or_nothing}}",
                rows.join(", ")
            );
            Statement::new(System::MySql, &text)
        };
        KNOWN[count.ilog2() as usize % KNOWN.len()].get_or_init(make).clone()
    }
}
