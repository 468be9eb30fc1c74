//! Fetches and acknowledgements.

/// Condition of a job that may be taken once it is due.
macro_rules! ready {
    () => {
        "app = $1 and queue = $2 and worker is null and line is null and suspect = 0"
    };
}

scale_sql::statements! {
    pub(crate) Statements;
    done = "delete from scale_queue_jobs \
        where app = $1 and queue = $2 and worker = $3 and id {list:4}";
    // PostgreSQL only: acknowledges and fetches in one round trip. The first row has the counts.
    ack_and_fetch = "with acked as (\
            delete from scale_queue_jobs \
            where app = $1 and queue = $2 and worker = $3 and id {list:4} returning 1), \
        picked as (\
            select ctid as row, id, due_ms, octet_length(body) as size from scale_queue_jobs \
            where app = $1 and queue = $2 and worker is null and line is null and suspect = 0 \
            and due_ms <= {now} \
            and not exists (select 1 from scale_queue_queues \
                where app = $1 and queue = $2 and paused = 1) \
            and (group_key is null or not exists (select 1 from scale_queue_lines as known \
                where known.app = $1 and known.queue = $2 \
                and known.line = 'limit:' || group_key)) \
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
            (select count(*) from leased) \
        union all \
        select sized.n, taken.id, taken.body, taken.cancelled, 0, 0, 0 \
        from taken join sized on sized.id = taken.id";
    // The other systems do the same in steps. SQLite returns one row for all jobs, because a row
    // costs its driver more than the job in it.
    pick = concat!("select coalesce(group_concat(id, ',' order by due_ms, id), ''), \
            coalesce(group_concat(size, ',' order by due_ms, id), '') \
        from (select id, due_ms, length(body) as size from scale_queue_jobs \
            where ", ready!(), " and due_ms <= {now} \
            and not exists (select 1 from scale_queue_queues \
                where app = $1 and queue = $2 and paused = 1) \
            and (group_key is null or not exists (select 1 from scale_queue_lines as known \
                where known.app = $1 and known.queue = $2 \
                and known.line = concat('limit:', group_key))) \
            order by due_ms, id limit $3) as picked"),
        // Small bodies are returned too. Entries of completed jobs stay in the index for a while,
        // so a pick starts where the last one ended.
        mysql concat!("select id, length(body), cancelled, \
                case when length(body) <= 4096 then body end, due_ms \
            from scale_queue_jobs force index (scale_queue_jobs_ready) \
            where ", ready!(), " and due_ms >= $4 and due_ms <= {now} \
            and not exists (select 1 from scale_queue_queues \
                where app = $1 and queue = $2 and paused = 1) \
            and (group_key is null or not exists (select 1 from scale_queue_lines as known \
                where known.app = $1 and known.queue = $2 \
                and known.line = concat('limit:', group_key))) \
            order by due_ms, id limit $3 {claim}");
    claim = "update scale_queue_jobs set worker = $3, line = null, suspect = 0 \
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
    hints = "select coalesce((select worker from scale_queue_workers \
            where app = $1 and queue = $2 and worker <> $3 and until_ms <= {now} \
            order by until_ms limit 1), ''), \
        (select count(*) from (select 1 from scale_queue_lines \
            where app = $1 and queue = $2 limit 1) as first_one), \
        (select count(*) from (select 1 from scale_queue_jobs \
            where app = $1 and queue = $2 and suspect = 1 and worker is null and line is null \
            limit 1) as first_one)";
    suspect = "select id from scale_queue_jobs \
        where app = $1 and queue = $2 and suspect = 1 and worker is null and line is null \
        order by due_ms, id limit 1 {claim}";
    next = concat!("select {now}, \
        (select due_ms from scale_queue_jobs where ", ready!(), " \
            and not exists (select 1 from scale_queue_queues \
                where app = $1 and queue = $2 and paused = 1) \
            order by due_ms, id limit 1), \
        (select min(until_ms) from scale_queue_workers \
            where app = $1 and queue = $2 and worker <> $3), \
        (select min(retry_ms) from scale_queue_lines where app = $1 and queue = $2 \
            and not exists (select 1 from scale_queue_queues \
                where app = $1 and queue = $2 and paused = 1))");
    // For databases without notifications: whether there are jobs to take.
    is_due = concat!("select count(*) from (select 1 from scale_queue_jobs \
            where ", ready!(), " and due_ms <= {now} \
            and not exists (select 1 from scale_queue_queues \
                where app = $1 and queue = $2 and paused = 1) \
            order by due_ms, id limit 1) as first_one");
    cancelled = "select id from scale_queue_jobs where cancelled = 1 and app = $1 limit 10000",
        // MySQL has no partial index, so cancellations are registry entries there.
        mysql "select name from scale_queue_present \
            where app = $1 and kind = '!cancel' and until_ms > {now} limit 10000";
}
