//! Rates and permits.

scale_sql::statements! {
    pub(crate) Statements;
    // A permit is free if it has no holder or has expired. If two transactions choose the same one,
    // one of them gets none. Of many permits, only as many are considered as are needed to include
    // a free one.
    acquire = "with recursive bound(most) as (\
            select case when count(*) * 2 + 64 < $5 then count(*) * 2 + 64 else $5 end \
            from scale_queue_permits where app = $1 and limit_key = $2), \
        permits(n) as (select 1 union all \
            select n + 1 from permits where n < (select most from bound)) \
        insert into scale_queue_permits (app, limit_key, permit, holder, until_ms) \
        select $1, $2, n, $3, {now} + $4 from permits \
        where not exists (select 1 from scale_queue_permits as taken \
            where taken.app = $1 and taken.limit_key = $2 and taken.permit = permits.n \
            and taken.until_ms > {now}) \
        and (select count(*) from scale_queue_permits as held \
            where held.app = $1 and held.limit_key = $2 and held.until_ms > {now}) < $5 \
        order by random() limit 1 \
        on conflict (app, limit_key, permit) do update \
            set holder = excluded.holder, until_ms = excluded.until_ms \
            where scale_queue_permits.until_ms <= {now}",
        // One process counts at a time; expired permits are removed before.
        mysql "insert into scale_queue_permits (app, limit_key, permit, holder, until_ms) \
            select $1, $2, known.last + 1, $3, {now} + $4 \
            from (select coalesce(max(permit), 0) as last, count(*) as taken \
                from scale_queue_permits where app = $1 and limit_key = $2) as known \
            where known.taken < $5";
    lock_limit = "insert into scale_queue_locks (name) values ($1) on duplicate key update name = \
        values(name)";
    drop_late_permits = "delete from scale_queue_permits \
        where app = $1 and limit_key = $2 and until_ms <= {now}";
    taken = "select count(*), coalesce(min(until_ms) - {now}, 0) from scale_queue_permits \
        where app = $1 and limit_key = $2 and until_ms > {now}";
    renew = "update scale_queue_permits set until_ms = {now} + $4 \
        where app = $1 and limit_key = $2 and holder = $3 and until_ms > {now}";
    give_back = "delete from scale_queue_permits \
        where app = $1 and limit_key = $2 and holder = $3";
    // PostgreSQL only: releases, promotes the first job in line, and notifies, in one round trip.
    release_and_wake = "with freed as (\
            delete from scale_queue_permits \
            where app = $1 and limit_key = $2 and holder = $3 returning 1), \
        chosen as (select queue from scale_queue_lines where app = $1 and line = $4 \
            and not exists (select 1 from scale_queue_queues as q \
                where q.app = $1 and q.queue = scale_queue_lines.queue and q.paused = 1) \
            order by array_position($5::text[], queue) nulls last, retry_ms limit 1), \
        heads as (select job.id from chosen join scale_queue_jobs as job \
            on job.app = $1 and job.queue = chosen.queue and job.line = $4 \
            order by job.due_ms, job.id limit 1 for update of job skip locked), \
        promoted as (update scale_queue_jobs as job \
            set line = null, group_key = null, due_ms = 0 from heads \
            where job.id = heads.id returning job.id) \
        select chosen.queue, (select count(*) from promoted), \
            (select count(*) from (select 1 from scale_queue_jobs as job \
                where job.app = $1 and job.queue = chosen.queue and job.line = $4 \
                limit 2) as two), \
            pg_notify('scale_queue', $6 || chosen.queue)::text from chosen";
    // PostgreSQL only: leases the next job in line and passes the permit on to it, in one round
    // trip.
    pass_on = "with chosen as (select queue from scale_queue_lines \
            where app = $1 and line = $3 and queue {list:4} \
            and not exists (select 1 from scale_queue_queues as q \
                where q.app = $1 and q.queue = scale_queue_lines.queue and q.paused = 1) \
            and (select count(*) from scale_queue_permits as held \
                where held.app = $1 and held.limit_key = $2 and held.until_ms > {now}) <= $10 \
            order by array_position($4::text[], queue), retry_ms limit 1), \
        heads as (select job.id from chosen join scale_queue_jobs as job \
            on job.app = $1 and job.queue = chosen.queue and job.line = $3 \
            order by job.due_ms, job.id limit 1 for update of job skip locked), \
        taken as (update scale_queue_jobs as job \
            set worker = $5, line = null, group_key = null from heads \
            where job.id = heads.id and job.cancelled = 0 returning job.queue, job.body), \
        leased as (insert into scale_queue_workers \
                (app, queue, worker, until_ms, done, failed, ended, unbegun, trial) \
            select $1, queue, $5, {now} + $6, 0, 0, 0, '', '' from taken \
            on conflict (app, queue, worker) do update set until_ms = excluded.until_ms \
            returning 1), \
        passed as (update scale_queue_permits set holder = $8, until_ms = {now} + $9 \
            where app = $1 and limit_key = $2 and holder = $7 and until_ms > {now} \
            and exists (select 1 from taken) returning 1) \
        select queue, body, (select count(*) from passed), (select count(*) from leased), \
            (select count(*) from scale_queue_permits as held \
                where held.app = $1 and held.limit_key = $2 and held.until_ms > {now}) \
        from taken";
    pass_permit = "update scale_queue_permits set holder = $4, until_ms = {now} + $5 \
        where app = $1 and limit_key = $2 and holder = $3 and until_ms > {now}";
    touch_lease = "insert into scale_queue_workers \
            (app, queue, worker, until_ms, done, failed, ended, unbegun, trial) \
        values ($1, $2, $3, {now} + $4, 0, 0, 0, '', '') \
        {conflict:app, queue, worker} until_ms = {new:until_ms}";
    admit = "insert into scale_queue_rates (app, limit_key, next_us) \
        select $1, $2, {now_us} + $3 where not exists (\
            select 1 from scale_queue_lines \
            where app = $1 and line = $5 and queue {list:6} and retry_ms <= {now} + $7 \
            and not exists (select 1 from scale_queue_queues as q \
                where q.app = $1 and q.queue = scale_queue_lines.queue and q.paused = 1)) \
        on conflict (app, limit_key) do update set next_us = \
            case when scale_queue_rates.next_us > {now_us} \
                then scale_queue_rates.next_us else {now_us} end + $3 \
            where scale_queue_rates.next_us - $4 <= {now_us}",
        // The row exists and is locked at this point.
        mysql "update scale_queue_rates set next_us = {greatest}(next_us, {now_us}) + $3 \
            where app = $1 and limit_key = $2 and next_us - $4 <= {now_us} and not exists (\
                select 1 from scale_queue_lines \
                where app = $1 and line = $5 and queue {list:6} and retry_ms <= {now} + $7 \
                and not exists (select 1 from scale_queue_queues as q \
                    where q.app = $1 and q.queue = scale_queue_lines.queue and q.paused = 1))";
    know_rate = "{insert} scale_queue_rates (app, limit_key, next_us) \
        values ($1, $2, 0) {or_nothing}";
    rate_wait = "select next_us - {now_us} from scale_queue_rates \
        where app = $1 and limit_key = $2";
    refund = "update scale_queue_rates set next_us = next_us - $3 \
        where app = $1 and limit_key = $2";
    sweep_rates = "delete from scale_queue_rates where next_us < {now_us}";
    sweep_permits = "delete from scale_queue_permits where until_ms <= {now} - 60000";
}
