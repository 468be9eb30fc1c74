-- As made by commit b146f8b.
create table if not exists scale_queue_jobs (
    seq integer primary key autoincrement,
    id text not null unique,
    queue text not null,
    due_ms bigint not null,
    worker text,
    unique_key text,
    unique_until_ms bigint,
    body blob not null
);
create index if not exists scale_queue_jobs_due on scale_queue_jobs (queue, due_ms, seq) where worker is null;
create index if not exists scale_queue_jobs_held on scale_queue_jobs (queue, worker) where worker is not null;
create unique index if not exists scale_queue_jobs_unique on scale_queue_jobs (queue, unique_key) where unique_key is not null;
create table if not exists scale_queue_workers (
    queue text not null,
    worker text not null,
    until_ms bigint not null,
    done bigint not null,
    failed bigint not null,
    primary key (queue, worker)
);
create table if not exists scale_queue_dead (
    seq integer primary key autoincrement,
    queue text not null,
    died_ms bigint not null,
    reason text not null,
    body blob not null
);
create index if not exists scale_queue_dead_time on scale_queue_dead (queue, died_ms, seq);
create table if not exists scale_queue_queues (
    queue text primary key,
    paused bigint not null,
    done bigint not null,
    failed bigint not null
);
create table if not exists scale_queue_once (
    queue text not null,
    once_key text not null,
    id text not null,
    until_ms bigint not null,
    primary key (queue, once_key)
);
create table if not exists scale_queue_outbox (
    seq integer primary key autoincrement,
    id text not null,
    queue text not null,
    delay_ms bigint not null,
    unique_key text,
    unique_ms bigint,
    body blob not null
);
create table if not exists scale_queue_batches (
    id text primary key,
    total bigint not null,
    done bigint not null,
    dead bigint not null,
    cancelled bigint not null,
    lenient bigint not null,
    plan blob not null,
    life_ms bigint not null,
    until_ms bigint not null
);
create table if not exists scale_queue_batch_ends (
    id text not null,
    number bigint not null,
    dead bigint not null,
    primary key (id, number)
);
create table if not exists scale_queue_turns (turn_key text primary key, next_us bigint not null);
create table if not exists scale_queue_places (place_key text primary key, uses bigint not null);
create table if not exists scale_queue_holds (
    place_key text not null,
    holder text not null,
    until_ms bigint not null,
    primary key (place_key, holder)
);
create table if not exists scale_queue_notes (note_key text primary key, value blob not null, until_ms bigint not null);
