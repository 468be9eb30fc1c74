-- A database that once held nothing but an outbox has some of the tables.
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
-- Whether a batch has left jobs out.
alter table scale_queue_batches add column skipped bigint not null default 0;
