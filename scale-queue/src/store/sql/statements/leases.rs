//! Ends of leases: settlements, reclaims, and workers that leave.

scale_sql::statements! {
    pub(crate) Statements;
    held = "select id from scale_queue_jobs where app = $1 and queue = $2 and worker = $3";
    held_sizes = "select id, length(body) from scale_queue_jobs \
        where app = $1 and queue = $2 and worker = $3 and id {list:4}";
    held_jobs = "select id, body from scale_queue_jobs \
        where app = $1 and queue = $2 and worker = $3 and id {list:4}";
    held_of = "select id from scale_queue_jobs \
        where app = $1 and queue = $2 and worker = $3 and id {list:4} order by id {lock}";
    // The order is that of the lines of groups, to which a drain that died returns its jobs.
    held_some = "select id, body from scale_queue_jobs \
        where app = $1 and queue = $2 and worker = $3 order by due_ms, id limit 100";
    count_ended = "update scale_queue_workers \
        set done = done + $4, failed = failed + $5, ended = ended + $6 \
        where app = $1 and queue = $2 and worker = $3";
    checkpoint = "update scale_queue_jobs set body = $5 \
        where app = $1 and queue = $2 and worker = $3 and id = $4";
    release = "update scale_queue_jobs set worker = null, body = coalesce($5, body), \
            suspect = coalesce($7, suspect), \
            unique_key = case when $8 = 1 then null else unique_key end, \
            due_ms = case when $6 < 0 then due_ms else {now} + $6 end \
        where app = $1 and queue = $2 and worker = $3 and id = $4";
    suspect_again = "update scale_queue_jobs set worker = null, suspect = 1 \
        where app = $1 and queue = $2 and worker = $3 and id = $4";
    // Another worker may hold the job by now.
    take_back = "update scale_queue_jobs set worker = null, body = $4, suspect = $5 \
        where app = $1 and queue = $2 and id = $3 and worker = $6";
    beat = "update scale_queue_workers set until_ms = {now} + $4 \
        where app = $1 and queue = $2 and worker = $3";
    expired = "select unbegun, trial, case when until_ms <= {now} then 1 else 0 end \
        from scale_queue_workers where app = $1 and queue = $2 and worker = $3 {lock}";
    blame = "update scale_queue_workers set trial = '!' \
        where app = $1 and queue = $2 and worker = $3";
    leaving = "select done, failed, ended from scale_queue_workers \
        where app = $1 and queue = $2 and worker = $3 and not exists \
            (select 1 from scale_queue_jobs where app = $1 and queue = $2 and worker = $3) {lock}";
    dismiss = "delete from scale_queue_workers where app = $1 and queue = $2 and worker = $3";
    idle_expired = "select worker from scale_queue_workers as gone \
        where app = $1 and queue = $2 and until_ms <= {now} and not exists \
            (select 1 from scale_queue_jobs as job \
            where job.app = $1 and job.queue = $2 and job.worker = gone.worker) limit 100";
    orphans = "select distinct worker from scale_queue_jobs \
        where app = $1 and queue = $2 and worker is not null and not exists \
            (select 1 from scale_queue_workers as known \
            where known.app = $1 and known.queue = $2 and known.worker = scale_queue_jobs.worker)";
    fold = "update scale_queue_queues \
        set done = done + $3, failed = failed + $4, ended = ended + $5 \
        where app = $1 and queue = $2";
    waiting = "select body from scale_queue_jobs \
        where app = $1 and queue = $2 and id = $3 and worker is null {lock}";
    remove = "delete from scale_queue_jobs where app = $1 and queue = $2 and id = $3";
    cancel_leased = "update scale_queue_jobs set cancelled = 1 \
        where app = $1 and queue = $2 and id = $3";
    pick_any = "select * from (select id, length(body) as size from scale_queue_jobs \
            where app = $1 and queue = $2 and worker is null and line is null and suspect = 0 \
            order by due_ms, id limit 1000) as ready \
        union all select * from (select id, length(body) as size from scale_queue_jobs \
            where app = $1 and queue = $2 and worker is null and line is not null \
            order by line, due_ms, id limit 1000) as blocked \
        union all select * from (select id, length(body) as size from scale_queue_jobs \
            where app = $1 and queue = $2 and worker is null and line is null and suspect = 1 \
            order by due_ms, id limit 1000) as suspects \
        union all select * from (select id, length(body) as size from scale_queue_jobs \
            where app = $1 and queue = $2 and worker is null and line is null and suspect > 1 \
            order by suspect, due_ms, id limit 1000) as ranked",
        mysql "select * from (select id, length(body) as size from scale_queue_jobs \
            where app = $1 and queue = $2 and worker is null and line is null and suspect = 0 \
            order by due_ms, id limit 1000) as ready \
        union all select * from (select id, length(body) as size from scale_queue_jobs \
            where app = $1 and queue = $2 and worker is null and line is not null \
            order by line, suspect, due_ms, id limit 1000) as blocked \
        union all select * from (select id, length(body) as size from scale_queue_jobs \
            where app = $1 and queue = $2 and worker is null and line is null and suspect = 1 \
            order by due_ms, id limit 1000) as suspects \
        union all select * from (select id, length(body) as size from scale_queue_jobs \
            where app = $1 and queue = $2 and worker is null and line is null and suspect > 1 \
            order by suspect, due_ms, id limit 1000) as ranked";
}
