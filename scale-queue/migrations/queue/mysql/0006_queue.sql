-- Everything at once: MySQL is served since this version. Keys are bytes: their comparison is exact,
-- whatever the server's collation.
create table if not exists scale_queue_jobs (
    id varbinary(64) not null primary key,
    app varbinary(255) not null,
    queue varbinary(64) not null,
    due_ms bigint not null,
    worker varbinary(128),
    suspect bigint not null default 0,
    line varbinary(1100),
    since_ms bigint,
    group_key varbinary(1100),
    unique_key varbinary(1100),
    unique_until_ms bigint,
    cancelled bigint not null default 0,
    body longblob not null,
    key scale_queue_jobs_ready (app, queue, worker, line, suspect, due_ms, id),
    key scale_queue_jobs_group (app, queue, group_key, due_ms, id),
    unique key scale_queue_jobs_unique (app, queue, unique_key)
) engine = InnoDB;
create table if not exists scale_queue_workers (
    app varbinary(255) not null,
    queue varbinary(64) not null,
    worker varbinary(128) not null,
    until_ms bigint not null,
    done bigint not null,
    failed bigint not null,
    ended bigint not null,
    unbegun mediumblob not null,
    trial varbinary(64) not null,
    primary key (app, queue, worker),
    key scale_queue_workers_until (app, queue, until_ms)
) engine = InnoDB;
create table if not exists scale_queue_lines (
    app varbinary(255) not null,
    queue varbinary(64) not null,
    line varbinary(1100) not null,
    retry_ms bigint not null,
    pace_us bigint not null,
    unhandled bigint not null,
    primary key (app, queue, line),
    key scale_queue_lines_retry (app, queue, retry_ms),
    key scale_queue_lines_name (app, line),
    key scale_queue_lines_unhandled (app, queue, unhandled)
) engine = InnoDB;
create table if not exists scale_queue_dead (
    seq bigint not null auto_increment primary key,
    app varbinary(255) not null,
    queue varbinary(64) not null,
    id varbinary(64) not null,
    died_ms bigint not null,
    reason mediumtext character set utf8mb4 not null,
    body longblob not null,
    key scale_queue_dead_time (app, queue, died_ms, seq),
    key scale_queue_dead_id (app, queue, id)
) engine = InnoDB;
create table if not exists scale_queue_queues (
    app varbinary(255) not null,
    queue varbinary(64) not null,
    paused bigint not null,
    done bigint not null,
    failed bigint not null,
    ended bigint not null,
    primary key (app, queue)
) engine = InnoDB;
create table if not exists scale_queue_samples (
    app varbinary(255) not null,
    queue varbinary(64) not null,
    resolution varbinary(64) not null,
    at_ms bigint not null,
    sample blob not null,
    primary key (app, queue, resolution, at_ms)
) engine = InnoDB;
create table if not exists scale_queue_once (
    app varbinary(255) not null,
    queue varbinary(64) not null,
    once_key varbinary(1100) not null,
    id varbinary(64) not null,
    until_ms bigint not null,
    primary key (app, queue, once_key),
    key scale_queue_once_until (until_ms)
) engine = InnoDB;
create table if not exists scale_queue_batches (
    app varbinary(255) not null,
    id varbinary(255) not null,
    total bigint not null,
    done bigint not null,
    dead bigint not null,
    cancelled bigint not null,
    skipped bigint not null default 0,
    followed bigint not null,
    lenient bigint not null,
    plan longblob not null,
    life_ms bigint not null,
    until_ms bigint not null,
    primary key (app, id),
    key scale_queue_batches_until (until_ms)
) engine = InnoDB;
create table if not exists scale_queue_batch_ends (
    app varbinary(255) not null,
    id varbinary(255) not null,
    number bigint not null,
    dead bigint not null,
    primary key (app, id, number)
) engine = InnoDB;
create table if not exists scale_queue_rates (
    app varbinary(255) not null,
    limit_key varbinary(1100) not null,
    next_us bigint not null,
    primary key (app, limit_key),
    key scale_queue_rates_next (next_us)
) engine = InnoDB;
create table if not exists scale_queue_permits (
    app varbinary(255) not null,
    limit_key varbinary(1100) not null,
    permit bigint not null,
    holder varbinary(255) not null,
    until_ms bigint not null,
    primary key (app, limit_key, permit),
    key scale_queue_permits_until (until_ms)
) engine = InnoDB;
create table if not exists scale_queue_present (
    app varbinary(255) not null,
    kind varbinary(64) not null,
    name varbinary(1100) not null,
    about mediumblob not null,
    until_ms bigint not null,
    primary key (app, kind, name),
    key scale_queue_present_until (app, kind, until_ms)
) engine = InnoDB;
create table if not exists scale_queue_notes (
    app varbinary(255) not null,
    note_key varbinary(1100) not null,
    value mediumblob not null,
    until_ms bigint not null,
    primary key (app, note_key),
    key scale_queue_notes_until (until_ms)
) engine = InnoDB;
-- A row is locked for as long as a transaction counts permits of one limit.
create table if not exists scale_queue_locks (
    name varbinary(1400) not null primary key
) engine = InnoDB;
