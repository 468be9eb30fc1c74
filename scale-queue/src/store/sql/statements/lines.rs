//! Lines: jobs that wait for a limit, or for a worker that can handle them.

/// Condition that the queue of a row of `scale_queue_lines` is not paused.
macro_rules! runs {
    () => {
        "not exists (select 1 from scale_queue_queues as q where q.app = $1 \
            and q.queue = scale_queue_lines.queue and q.paused = 1)"
    };
}

scale_sql::statements! {
    pub(crate) Statements;
    // MySQL locks all rows it reads, including those it filters out later. So locking statements
    // read in the order of their index.
    overdue = "select id from scale_queue_jobs \
        where app = $1 and queue = $2 and worker is null and line = $3 and since_ms <= {now} - $4 \
        order by due_ms, id limit 50 {claim}",
        mysql "select id from scale_queue_jobs force index (scale_queue_jobs_ready) \
        where app = $1 and queue = $2 and worker is null and line = $3 and since_ms <= {now} - $4 \
        order by suspect, due_ms, id limit 50 {claim}";
    due_lines = "select line, retry_ms, pace_us, unhandled, {now} from scale_queue_lines \
        where app = $1 and queue = $2 and retry_ms <= {now} order by retry_ms limit 20 {claim}";
    retry_line = "update scale_queue_lines set retry_ms = $4 \
        where app = $1 and queue = $2 and line = $3";
    unhandled_lines = "select line from scale_queue_lines \
        where app = $1 and queue = $2 and unhandled = 1 limit 100";
    limit_lines = "select line from scale_queue_lines \
        where app = $1 and queue = $2 and unhandled = 0 order by retry_ms limit 1000";
    // Locked by all transactions in the same order, so that no line is closed while jobs are put
    // into it.
    lock_lines = "select line from scale_queue_lines \
        where app = $1 and queue = $2 and line {list:3} order by line {lock}";
    of_group = "select id from scale_queue_jobs \
        where app = $1 and queue = $2 and group_key = $3 and worker is null and line is null \
        order by due_ms, id limit 5000 {claim}",
        mysql "select id from scale_queue_jobs force index (scale_queue_jobs_group) \
        where app = $1 and queue = $2 and group_key = $3 and worker is null and line is null \
        order by due_ms, id limit 5000 {claim}";
    // In a line there are no priorities: its jobs are in the order of their pushes.
    put_in_line = "update scale_queue_jobs set line = $1, \
            suspect = case when suspect > 1 then 0 else suspect end \
        where id {list:2}";
    first_in_line = "select id from scale_queue_jobs \
        where app = $1 and queue = $2 and worker is null and line = $3 \
        order by due_ms, id limit $4 {claim}",
        mysql "select id from scale_queue_jobs force index (scale_queue_jobs_ready) \
        where app = $1 and queue = $2 and worker is null and line = $3 \
        order by suspect, due_ms, id limit $4 {claim}";
    promote = "update scale_queue_jobs set line = null, group_key = null, due_ms = 0 \
        where id {list:1}";
    line_queues = concat!(
        "select queue from scale_queue_lines where app = $1 and line = $2 and ",
        runs!(),
        " order by retry_ms limit 100",
    );
    block = "update scale_queue_jobs set worker = null, line = $5, since_ms = {now}, \
            suspect = case when suspect > 1 then 0 else suspect end \
        where app = $1 and queue = $2 and worker = $3 and id {list:4}";
    open_line = "insert into scale_queue_lines (app, queue, line, retry_ms, pace_us, unhandled) \
        values ($1, $2, $3, {now} + $4, $5, $6) \
        {conflict:app, queue, line} pace_us = {new:pace_us}, retry_ms = {new:retry_ms}";
    lock_line = "select 1 from scale_queue_lines where app = $1 and queue = $2 \
        and line = $3 {lock}";
    line_is_used = "select count(*) from (select 1 from scale_queue_jobs \
        where app = $1 and queue = $2 and worker is null and line = $3 \
        order by due_ms, id limit 1) as first_one",
        mysql "select count(*) from (select 1 from scale_queue_jobs force index \
            (scale_queue_jobs_ready) \
        where app = $1 and queue = $2 and worker is null and line = $3 limit 1) as first_one";
    close_line = "delete from scale_queue_lines where app = $1 and queue = $2 and line = $3";
    lost_lines = "select distinct line from scale_queue_jobs \
        where app = $1 and queue = $2 and worker is null and line is not null \
        and line not like 'group:%' and not exists \
            (select 1 from scale_queue_lines as known where known.app = $1 \
            and known.queue = $2 and known.line = scale_queue_jobs.line) limit 100";
    try_line = "update scale_queue_lines set retry_ms = {now} \
        where app = $1 and queue = $2 and line = $3 and pace_us = 0 and retry_ms > {now}";
    try_lines = "update scale_queue_lines set retry_ms = {now} \
        where app = $1 and queue = $2 and retry_ms > {now}";
    take_first = "select id, body from scale_queue_jobs \
        where app = $1 and queue = $2 and worker is null and line = $3 and cancelled = 0 \
        order by due_ms, id limit 1 {claim}",
        mysql "select id, body from scale_queue_jobs force index (scale_queue_jobs_ready) \
        where app = $1 and queue = $2 and worker is null and line = $3 and cancelled = 0 \
        order by suspect, due_ms, id limit 1 {claim}";
    take = "update scale_queue_jobs set worker = $2, line = null, group_key = null where id = $1";
}
