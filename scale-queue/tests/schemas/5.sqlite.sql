-- As made by commit 454a1cc.
create table if not exists scale_queue_jobs (
    id text primary key,
    app text not null,
    queue text not null,
    due_ms bigint not null,
    worker text,
    suspect bigint not null default 0,
    line text,
    since_ms bigint,
    group_key text,
    unique_key text,
    unique_until_ms bigint,
    cancelled bigint not null default 0,
    body blob not null
);
create index if not exists scale_queue_jobs_ready on scale_queue_jobs (app, queue, due_ms, id)
    where worker is null and line is null and suspect = 0;
create index if not exists scale_queue_jobs_held on scale_queue_jobs (app, queue, worker) where worker is not null;
create index if not exists scale_queue_jobs_suspect on scale_queue_jobs (app, queue, due_ms, id)
    where suspect = 1 and worker is null;
create index if not exists scale_queue_jobs_line on scale_queue_jobs (app, queue, line, due_ms, id) where line is not null;
create index if not exists scale_queue_jobs_group on scale_queue_jobs (app, queue, group_key, due_ms, id)
    where group_key is not null and worker is null and line is null;
create unique index if not exists scale_queue_jobs_unique on scale_queue_jobs (app, queue, unique_key)
    where unique_key is not null;
create index if not exists scale_queue_jobs_cancelled on scale_queue_jobs (id) where cancelled = 1;
create table if not exists scale_queue_workers (
    app text not null,
    queue text not null,
    worker text not null,
    until_ms bigint not null,
    done bigint not null,
    failed bigint not null,
    ended bigint not null,
    unbegun text not null,
    trial text not null,
    primary key (app, queue, worker)
);
create index if not exists scale_queue_workers_until on scale_queue_workers (app, queue, until_ms);
create table if not exists scale_queue_lines (
    app text not null,
    queue text not null,
    line text not null,
    retry_ms bigint not null,
    pace_us bigint not null,
    unhandled bigint not null,
    primary key (app, queue, line)
);
create index if not exists scale_queue_lines_retry on scale_queue_lines (app, queue, retry_ms);
create index if not exists scale_queue_lines_name on scale_queue_lines (app, line);
create table if not exists scale_queue_dead (
    seq integer primary key autoincrement,
    app text not null,
    queue text not null,
    id text not null,
    died_ms bigint not null,
    reason text not null,
    body blob not null
);
create index if not exists scale_queue_dead_time on scale_queue_dead (app, queue, died_ms, seq);
create index if not exists scale_queue_dead_id on scale_queue_dead (app, queue, id);
create table if not exists scale_queue_queues (
    app text not null,
    queue text not null,
    paused bigint not null,
    done bigint not null,
    failed bigint not null,
    ended bigint not null,
    primary key (app, queue)
);
create table if not exists scale_queue_samples (
    app text not null,
    queue text not null,
    resolution text not null,
    at_ms bigint not null,
    sample blob not null,
    primary key (app, queue, resolution, at_ms)
);
create table if not exists scale_queue_once (
    app text not null,
    queue text not null,
    once_key text not null,
    id text not null,
    until_ms bigint not null,
    primary key (app, queue, once_key)
);
create index if not exists scale_queue_once_until on scale_queue_once (until_ms);
create table if not exists scale_queue_outbox (
    seq integer primary key autoincrement,
    app text not null,
    id text not null,
    queue text not null,
    delay_ms bigint not null,
    group_key text,
    unique_key text,
    unique_ms bigint,
    body blob not null
);
create index if not exists scale_queue_outbox_app on scale_queue_outbox (app, seq);
create table if not exists scale_queue_batches (
    app text not null,
    id text not null,
    total bigint not null,
    done bigint not null,
    dead bigint not null,
    cancelled bigint not null,
    followed bigint not null,
    lenient bigint not null,
    plan blob not null,
    life_ms bigint not null,
    until_ms bigint not null,
    primary key (app, id)
);
create index if not exists scale_queue_batches_until on scale_queue_batches (until_ms);
create table if not exists scale_queue_batch_ends (
    app text not null,
    id text not null,
    number bigint not null,
    dead bigint not null,
    primary key (app, id, number)
);
create table if not exists scale_queue_rates (
    app text not null,
    limit_key text not null,
    next_us bigint not null,
    primary key (app, limit_key)
);
create index if not exists scale_queue_rates_next on scale_queue_rates (next_us);
create table if not exists scale_queue_permits (
    app text not null,
    limit_key text not null,
    permit bigint not null,
    holder text not null,
    until_ms bigint not null,
    primary key (app, limit_key, permit)
);
create index if not exists scale_queue_permits_until on scale_queue_permits (until_ms);
create table if not exists scale_queue_present (
    app text not null,
    kind text not null,
    name text not null,
    about blob not null,
    until_ms bigint not null,
    primary key (app, kind, name)
);
create index if not exists scale_queue_present_until on scale_queue_present (app, kind, until_ms);
create table if not exists scale_queue_notes (
    app text not null,
    note_key text not null,
    value blob not null,
    until_ms bigint not null,
    primary key (app, note_key)
);
create index if not exists scale_queue_notes_until on scale_queue_notes (until_ms);
