//! Counts, lists and samples of a queue, and its pause.

/// Condition of a job that waits or is scheduled.
macro_rules! ready {
    () => {
        "app = $1 and queue = $2 and worker is null and line is null and suspect = 0"
    };
}

/// Condition of a suspect.
macro_rules! suspect {
    () => {
        "app = $1 and queue = $2 and worker is null and line is null and suspect = 1"
    };
}

macro_rules! sum {
    ($column:literal) => {
        concat!(
            "(select cast(coalesce(sum(",
            $column,
            "), 0) as {int}) from (select ",
            $column,
            " from scale_queue_queues where app = $1 and queue = $2 union all select ",
            $column,
            " from scale_queue_workers where app = $1 and queue = $2) as counts)"
        )
    };
}

scale_sql::statements! {
    pub(crate) Statements;
    pause = "update scale_queue_queues set paused = $3 where app = $1 and queue = $2";
    queues = "select queue from scale_queue_queues where app = $1 order by queue";
    stats = concat!("select \
        (select count(*) from scale_queue_jobs where ", ready!(), " and due_ms <= {now}) \
            + (select count(*) from scale_queue_jobs where ", suspect!(), "), \
        (select count(*) from scale_queue_jobs where ", ready!(), " and due_ms > {now}), \
        (select count(*) from scale_queue_jobs \
            where app = $1 and queue = $2 and worker is null and line is not null), \
        (select count(*) from scale_queue_jobs \
            where app = $1 and queue = $2 and worker is not null), \
        (select count(*) from scale_queue_dead where app = $1 and queue = $2), ",
        sum!("done"), ", ", sum!("failed"), ", ", sum!("ended"), ", \
        (select coalesce(max(paused), 0) from scale_queue_queues where app = $1 and queue = $2), \
        (select body from scale_queue_jobs where ", ready!(), " \
            and due_ms <= {now} order by due_ms, id limit 1)");
    record = "{insert} scale_queue_samples (app, queue, resolution, at_ms, sample) \
        values ($1, $2, $3, $4, $5) {or_nothing}";
    forget_samples = "delete from scale_queue_samples \
        where app = $1 and queue = $2 and resolution = $3 and at_ms <= $4";
    samples = "select sample from scale_queue_samples \
        where app = $1 and queue = $2 and resolution = $3 and at_ms >= $4 order by at_ms";
    sizes_waiting = concat!(
        "select id, length(body) from scale_queue_jobs where ",
        ready!(),
        " and due_ms <= {now} order by due_ms, id limit $3 offset $4",
    );
    list_waiting = concat!(
        "select body, due_ms, worker, line from scale_queue_jobs where ",
        ready!(),
        " and due_ms <= {now} order by due_ms, id limit $3 offset $4",
    );
    sizes_suspect = concat!(
        "select id, length(body) from scale_queue_jobs where ",
        suspect!(),
        " order by due_ms, id limit $3 offset $4",
    );
    list_suspect = concat!(
        "select body, due_ms, worker, line from scale_queue_jobs where ",
        suspect!(),
        " order by due_ms, id limit $3 offset $4",
    );
    count_suspect = concat!("select count(*) from scale_queue_jobs where ", suspect!());
    sizes_scheduled = concat!(
        "select id, length(body) from scale_queue_jobs where ",
        ready!(),
        " and due_ms > {now} order by due_ms, id limit $3 offset $4",
    );
    list_scheduled = concat!(
        "select body, due_ms, worker, line from scale_queue_jobs where ",
        ready!(),
        " and due_ms > {now} order by due_ms, id limit $3 offset $4",
    );
    sizes_blocked = "select id, length(body) from scale_queue_jobs \
        where app = $1 and queue = $2 and worker is null and line is not null \
        order by line, due_ms, id limit $3 offset $4",
        // In the order of its index.
        mysql "select id, length(body) from scale_queue_jobs \
        where app = $1 and queue = $2 and worker is null and line is not null \
        order by line, suspect, due_ms, id limit $3 offset $4";
    list_blocked = "select body, due_ms, worker, line from scale_queue_jobs \
        where app = $1 and queue = $2 and worker is null and line is not null \
        order by line, due_ms, id limit $3 offset $4",
        // In the order of its index.
        mysql "select body, due_ms, worker, line from scale_queue_jobs \
        where app = $1 and queue = $2 and worker is null and line is not null \
        order by line, suspect, due_ms, id limit $3 offset $4";
    sizes_leased = "select id, length(body) from scale_queue_jobs \
        where app = $1 and queue = $2 and worker is not null \
        order by worker, id limit $3 offset $4";
    list_leased = "select body, due_ms, worker, line from scale_queue_jobs \
        where app = $1 and queue = $2 and worker is not null \
        order by worker, id limit $3 offset $4";
}
