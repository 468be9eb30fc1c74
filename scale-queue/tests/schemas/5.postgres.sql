-- As made by commit 454a1cc.
create table if not exists scale_queue_jobs (
    id text collate "C" primary key,
    app text collate "C" not null,
    queue text collate "C" not null,
    due_ms bigint not null,
    worker text collate "C",
    suspect bigint not null default 0,
    line text collate "C",
    since_ms bigint,
    group_key text collate "C",
    unique_key text collate "C",
    unique_until_ms bigint,
    cancelled bigint not null default 0,
    body bytea not null
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
    app text collate "C" not null,
    queue text collate "C" not null,
    worker text collate "C" not null,
    until_ms bigint not null,
    done bigint not null,
    failed bigint not null,
    ended bigint not null,
    unbegun text collate "C" not null,
    trial text collate "C" not null,
    primary key (app, queue, worker)
);
create index if not exists scale_queue_workers_until on scale_queue_workers (app, queue, until_ms);
create table if not exists scale_queue_lines (
    app text collate "C" not null,
    queue text collate "C" not null,
    line text collate "C" not null,
    retry_ms bigint not null,
    pace_us bigint not null,
    unhandled bigint not null,
    primary key (app, queue, line)
);
create index if not exists scale_queue_lines_retry on scale_queue_lines (app, queue, retry_ms);
create index if not exists scale_queue_lines_name on scale_queue_lines (app, line);
create table if not exists scale_queue_dead (
    seq bigint generated always as identity primary key,
    app text collate "C" not null,
    queue text collate "C" not null,
    id text collate "C" not null,
    died_ms bigint not null,
    reason text not null,
    body bytea not null
);
create index if not exists scale_queue_dead_time on scale_queue_dead (app, queue, died_ms, seq);
create index if not exists scale_queue_dead_id on scale_queue_dead (app, queue, id);
create table if not exists scale_queue_queues (
    app text collate "C" not null,
    queue text collate "C" not null,
    paused bigint not null,
    done bigint not null,
    failed bigint not null,
    ended bigint not null,
    primary key (app, queue)
);
create table if not exists scale_queue_samples (
    app text collate "C" not null,
    queue text collate "C" not null,
    resolution text collate "C" not null,
    at_ms bigint not null,
    sample bytea not null,
    primary key (app, queue, resolution, at_ms)
);
create table if not exists scale_queue_once (
    app text collate "C" not null,
    queue text collate "C" not null,
    once_key text collate "C" not null,
    id text collate "C" not null,
    until_ms bigint not null,
    primary key (app, queue, once_key)
);
create index if not exists scale_queue_once_until on scale_queue_once (until_ms);
create table if not exists scale_queue_outbox (
    seq bigint generated always as identity primary key,
    app text collate "C" not null,
    id text collate "C" not null,
    queue text collate "C" not null,
    delay_ms bigint not null,
    group_key text collate "C",
    unique_key text collate "C",
    unique_ms bigint,
    body bytea not null
);
create index if not exists scale_queue_outbox_app on scale_queue_outbox (app, seq);
create table if not exists scale_queue_batches (
    app text collate "C" not null,
    id text collate "C" not null,
    total bigint not null,
    done bigint not null,
    dead bigint not null,
    cancelled bigint not null,
    followed bigint not null,
    lenient bigint not null,
    plan bytea not null,
    life_ms bigint not null,
    until_ms bigint not null,
    primary key (app, id)
);
create index if not exists scale_queue_batches_until on scale_queue_batches (until_ms);
create table if not exists scale_queue_batch_ends (
    app text collate "C" not null,
    id text collate "C" not null,
    number bigint not null,
    dead bigint not null,
    primary key (app, id, number)
);
create table if not exists scale_queue_rates (
    app text collate "C" not null,
    limit_key text collate "C" not null,
    next_us bigint not null,
    primary key (app, limit_key)
);
create index if not exists scale_queue_rates_next on scale_queue_rates (next_us);
create table if not exists scale_queue_permits (
    app text collate "C" not null,
    limit_key text collate "C" not null,
    permit bigint not null,
    holder text collate "C" not null,
    until_ms bigint not null,
    primary key (app, limit_key, permit)
);
create index if not exists scale_queue_permits_until on scale_queue_permits (until_ms);
create table if not exists scale_queue_present (
    app text collate "C" not null,
    kind text collate "C" not null,
    name text collate "C" not null,
    about bytea not null,
    until_ms bigint not null,
    primary key (app, kind, name)
);
create index if not exists scale_queue_present_until on scale_queue_present (app, kind, until_ms);
create table if not exists scale_queue_notes (
    app text collate "C" not null,
    note_key text collate "C" not null,
    value bytea not null,
    until_ms bigint not null,
    primary key (app, note_key)
);
create index if not exists scale_queue_notes_until on scale_queue_notes (until_ms);
