//! Fetches and acknowledgements.

/// Condition of a job of a rank that may be taken once it is due. The rank is the column `suspect`:
/// 0 for normal priority, 1 for suspects, 2 for high and 3 for low priority. SQLite uses the index
/// of the last two only if its condition, `suspect > 1`, is in the statement.
macro_rules! ready {
    ($rank:literal) => {
        concat!("app = $1 and queue = $2 and worker is null and line is null and suspect ", $rank)
    };
}

/// Condition that a job of `scale_queue_jobs` may begin: its queue is not paused, and its limit has
/// no line.
macro_rules! may_begin {
    ($line:literal) => {
        concat!(
            "not exists (select 1 from scale_queue_queues \
                where app = $1 and queue = $2 and paused = 1) \
            and (group_key is null or not exists (select 1 from scale_queue_lines as known \
                where known.app = $1 and known.queue = $2 and known.line = ",
            $line,
            "))"
        )
    };
}

/// Selects whether a job of high priority is due. Used where none is known of: if there is one, no
/// other job is taken, and the worker looks for it first.
macro_rules! none_is_high {
    () => {
        concat!(
            " and not exists (select 1 from scale_queue_jobs as high \
                where high.app = $1 and high.queue = $2 and high.worker is null \
                and high.line is null and high.suspect > 1 and high.suspect = 2 \
                and high.due_ms <= {now})"
        )
    };
}

/// Acknowledges and fetches in one round trip, on PostgreSQL.
macro_rules! ack_and_fetch {
    ($rank:literal, $also:expr) => {
        concat!(
            "with acked as (\
            delete from scale_queue_jobs \
            where app = $1 and queue = $2 and worker = $3 and id {list:4} returning 1), \
        picked as (\
            select ctid as row, id, due_ms, octet_length(body) as size from scale_queue_jobs \
            where ",
            ready!($rank),
            " and due_ms <= {now} and ",
            may_begin!("'limit:' || group_key"),
            $also,
            " \
            order by due_ms, id limit $5 for update skip locked), \
        sized as (\
            select row, id, row_number() over place as n, \
                sum(size) over place - size as before from picked \
            window place as (order by due_ms, id)), \
        taken as (\
            update scale_queue_jobs set worker = $3 \
            where ctid = any(array(select row from sized where before < $6)) \
            returning id, body, cancelled), \
        leased as (\
            insert into scale_queue_workers \
                (app, queue, worker, until_ms, done, failed, ended, unbegun, trial) \
            select $1, $2, $3, {now} + $7, (select count(*) from acked), 0, 0, \
                coalesce((select string_agg(id, ',') from sized \
                where before < $6 and n > $8), ''), '' \
            where $9 = 1 or exists (select 1 from taken) or exists (select 1 from acked) \
            on conflict (app, queue, worker) do update set until_ms = excluded.until_ms, \
                done = scale_queue_workers.done + excluded.done, \
                unbegun = excluded.unbegun, trial = '' \
            returning 1) \
        select 0::bigint, \
            coalesce((select worker from scale_queue_workers \
                where app = $1 and queue = $2 and worker <> $3 and until_ms <= {now} \
                order by until_ms limit 1), ''), \
            ''::bytea, (select count(*) from acked), \
            (select count(*) from (select 1 from scale_queue_lines \
                where app = $1 and queue = $2 limit 1) as first_one), \
            (select count(*) from (select 1 from scale_queue_jobs \
                where app = $1 and queue = $2 and suspect = 1 and worker is null \
                limit 1) as first_one), \
            (select count(*) from (select 1 from scale_queue_jobs \
                where ",
            ready!("> 1"),
            " limit 1) as first_one), \
            (select count(*) from leased) \
        union all \
        select sized.n, taken.id, taken.body, taken.cancelled, 0, 0, 0, 0 \
        from taken join sized on sized.id = taken.id"
        )
    };
}

/// Picks jobs on SQLite, in one row, because a row costs its driver more than the job in it.
macro_rules! pick {
    ($rank:literal, $also:expr) => {
        concat!(
            "select coalesce(group_concat(id, ',' order by due_ms, id), ''), \
                coalesce(group_concat(size, ',' order by due_ms, id), '') \
            from (select id, due_ms, length(body) as size from scale_queue_jobs \
                where ",
            ready!($rank),
            " and due_ms <= {now} and ",
            may_begin!("concat('limit:', group_key)"),
            $also,
            " order by due_ms, id limit $3) as picked"
        )
    };
}

/// Picks jobs on MySQL. Small bodies are returned too. Entries of completed jobs stay in the index
/// for a while, so a pick starts where the last one ended.
macro_rules! pick_rows {
    ($rank:literal, $also:expr) => {
        concat!(
            "select id, length(body), cancelled, \
                case when length(body) <= 4096 then body end, due_ms \
            from scale_queue_jobs force index (scale_queue_jobs_ready) \
            where ",
            ready!($rank),
            " and due_ms >= $4 and due_ms <= {now} and ",
            may_begin!("concat('limit:', group_key)"),
            $also,
            " order by due_ms, id limit $3 {claim}"
        )
    };
}

/// Selects the first due time of jobs that may be taken.
macro_rules! first_due {
    ($rank:literal) => {
        concat!(
            "select due_ms from scale_queue_jobs where ",
            ready!($rank),
            " and not exists (select 1 from scale_queue_queues \
                where app = $1 and queue = $2 and paused = 1) \
            order by due_ms, id limit 1"
        )
    };
}

scale_sql::statements! {
    pub(crate) Statements;
    done = "delete from scale_queue_jobs \
        where app = $1 and queue = $2 and worker = $3 and id {list:4}";
    // PostgreSQL only. The first row has the counts.
    ack_and_fetch = ack_and_fetch!("= 0", none_is_high!());
    ack_and_fetch_high = ack_and_fetch!("> 1 and suspect = 2", "");
    ack_and_fetch_normal = ack_and_fetch!("= 0", "");
    ack_and_fetch_low = ack_and_fetch!("> 1 and suspect = 3", "");
    // The other systems do the same in steps.
    pick = pick!("= 0", none_is_high!()),
        mysql pick_rows!("= 0", none_is_high!());
    pick_high = pick!("> 1 and suspect = 2", ""),
        mysql pick_rows!("> 1 and suspect = 2", "");
    pick_normal = pick!("= 0", ""),
        mysql pick_rows!("= 0", "");
    pick_low = pick!("> 1 and suspect = 3", ""),
        mysql pick_rows!("> 1 and suspect = 3", "");
    claim = "update scale_queue_jobs set worker = $3, line = null, \
            suspect = case when suspect = 1 then 0 else suspect end \
        where app = $1 and queue = $2 and worker is null and id {list:4}";
    // For rows that this transaction has locked.
    claim_locked = "update scale_queue_jobs set worker = $1 where id {list:2}";
    claimed = "select id, body, cancelled from scale_queue_jobs \
        where app = $1 and queue = $2 and worker = $3 and id {list:4}";
    // SQLite only: all jobs in one row, in the order of the ids.
    claimed_in_order = "select coalesce(group_concat(job.cancelled || hex(job.body), ',' \
                order by wanted.key), '') \
        from json_each($4) as wanted \
        cross join scale_queue_jobs as job on job.id = wanted.value \
            and app = $1 and queue = $2 and worker = $3";
    is_paused = "select count(*) from scale_queue_queues \
        where app = $1 and queue = $2 and paused = 1";
    lease = "insert into scale_queue_workers \
            (app, queue, worker, until_ms, done, failed, ended, unbegun, trial) \
        values ($1, $2, $3, {now} + $4, $5, 0, 0, $6, $7) \
        {conflict:app, queue, worker} until_ms = {new:until_ms}, \
            done = scale_queue_workers.done + {new:done}, \
            unbegun = {new:unbegun}, trial = {new:trial}";
    begun = "update scale_queue_workers set unbegun = $5, done = done + $4 \
        where app = $1 and queue = $2 and worker = $3";
    tell_trial = "update scale_queue_workers set trial = $4 \
        where app = $1 and queue = $2 and worker = $3";
    hints = concat!("select coalesce((select worker from scale_queue_workers \
            where app = $1 and queue = $2 and worker <> $3 and until_ms <= {now} \
            order by until_ms limit 1), ''), \
        (select count(*) from (select 1 from scale_queue_lines \
            where app = $1 and queue = $2 limit 1) as first_one), \
        (select count(*) from (select 1 from scale_queue_jobs \
            where ", ready!("= 1"), " limit 1) as first_one), \
        (select count(*) from (select 1 from scale_queue_jobs \
            where ", ready!("> 1"), " limit 1) as first_one)");
    suspect = "select id from scale_queue_jobs \
        where app = $1 and queue = $2 and suspect = 1 and worker is null and line is null \
        order by due_ms, id limit 1 {claim}";
    next = concat!("select {now}, \
        (select min(due_ms) from (", first_due!("= 0"), ") as first_one), \
        (select min(until_ms) from scale_queue_workers \
            where app = $1 and queue = $2 and worker <> $3), \
        (select min(retry_ms) from scale_queue_lines where app = $1 and queue = $2 \
            and not exists (select 1 from scale_queue_queues \
                where app = $1 and queue = $2 and paused = 1)), \
        (select min(due_ms) from (", first_due!("> 1 and suspect = 2"), ") as first_one), \
        (select min(due_ms) from (", first_due!("> 1 and suspect = 3"), ") as first_one)");
    // For databases without notifications: whether there are jobs to take, or lines to try.
    is_due = concat!("select count(*) from (", first_due!("= 0"), ") as first_one \
            where due_ms <= {now} \
        union all select count(*) from (", first_due!("> 1 and suspect = 2"), ") as first_one \
            where due_ms <= {now} \
        union all select count(*) from (", first_due!("> 1 and suspect = 3"), ") as first_one \
            where due_ms <= {now} \
        union all select count(*) from (select 1 from scale_queue_lines \
            where app = $1 and queue = $2 and retry_ms <= {now} \
            and not exists (select 1 from scale_queue_queues \
                where app = $1 and queue = $2 and paused = 1) limit 1) as first_line \
        order by 1 desc limit 1");
    cancelled = "select id from scale_queue_jobs where cancelled = 1 and app = $1 limit 10000",
        // MySQL has no partial index, so cancellations are registry entries there.
        mysql "select name from scale_queue_present \
            where app = $1 and kind = '!cancel' and until_ms > {now} limit 10000";
}
