//! Counts, lists and samples of a queue, and its pause.

/// Condition of a job of a rank that waits or is scheduled: see `fetch`.
macro_rules! ready {
    ($rank:literal) => {
        concat!("app = $1 and queue = $2 and worker is null and line is null and suspect ", $rank)
    };
}

/// Selects ids and sizes of jobs of one rank, up to the end of a page.
macro_rules! of_rank {
    ($place:literal, $rank:literal, $due:literal) => {
        concat!(
            "select * from (select id, length(body) as size, due_ms, ",
            $place,
            " as place \
                from scale_queue_jobs where ",
            ready!($rank),
            $due,
            " \
                order by due_ms, id limit $5) as rank_",
            $place
        )
    };
}

/// Selects a page of ids and sizes of jobs of all priorities. `$5` is the end of the page.
macro_rules! of_all_ranks {
    ($due:literal, $order:literal) => {
        concat!(
            "select id, size from (",
            of_rank!(1, "> 1 and suspect = 2", $due),
            " union all ",
            of_rank!(2, "= 0", $due),
            " union all ",
            of_rank!(3, "> 1 and suspect = 3", $due),
            ") as ranks order by ",
            $order,
            "due_ms, id limit $3 offset $4"
        )
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
        (select count(*) from scale_queue_jobs where ", ready!("= 0"), " and due_ms <= {now}) \
            + (select count(*) from scale_queue_jobs where ", ready!("> 1"), " \
                and due_ms <= {now}) \
            + (select count(*) from scale_queue_jobs where ", suspect!(), "), \
        (select count(*) from scale_queue_jobs where ", ready!("= 0"), " and due_ms > {now}) \
            + (select count(*) from scale_queue_jobs where ", ready!("> 1"), " \
                and due_ms > {now}), \
        (select count(*) from scale_queue_jobs \
            where app = $1 and queue = $2 and worker is null and line is not null), \
        (select count(*) from scale_queue_jobs \
            where app = $1 and queue = $2 and worker is not null), \
        (select count(*) from scale_queue_dead where app = $1 and queue = $2), ",
        sum!("done"), ", ", sum!("failed"), ", ", sum!("ended"), ", \
        (select coalesce(max(paused), 0) from scale_queue_queues where app = $1 and queue = $2), \
        (select body from scale_queue_jobs where ", ready!("= 0"), " \
            and due_ms <= {now} order by due_ms, id limit 1), \
        (select body from scale_queue_jobs where ", ready!("> 1 and suspect = 2"), " \
            and due_ms <= {now} order by due_ms, id limit 1), \
        (select body from scale_queue_jobs where ", ready!("> 1 and suspect = 3"), " \
            and due_ms <= {now} order by due_ms, id limit 1)");
    record = "{insert} scale_queue_samples (app, queue, resolution, at_ms, sample) \
        values ($1, $2, $3, $4, $5) {or_nothing}";
    forget_samples = "delete from scale_queue_samples \
        where app = $1 and queue = $2 and resolution = $3 and at_ms <= $4";
    samples = "select sample from scale_queue_samples \
        where app = $1 and queue = $2 and resolution = $3 and at_ms >= $4 order by at_ms";
    waiting = of_all_ranks!(" and due_ms <= {now}", "place, ");
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
    scheduled = of_all_ranks!(" and due_ms > {now}", "");
    ranked = "select id, body, due_ms from scale_queue_jobs \
        where app = $1 and queue = $2 and id {list:3}";
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
