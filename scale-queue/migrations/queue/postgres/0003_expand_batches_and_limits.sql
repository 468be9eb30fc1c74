-- Batches, and limits of rates and permits.
create table scale_queue_batches (
    id text primary key,
    total bigint not null,
    done bigint not null,
    dead bigint not null,
    cancelled bigint not null,
    lenient bigint not null,
    plan bytea not null,
    life_ms bigint not null,
    until_ms bigint not null
);
create table scale_queue_batch_ends (
    id text not null,
    number bigint not null,
    dead bigint not null,
    primary key (id, number)
);
create table scale_queue_turns (
    turn_key text primary key,
    next_us bigint not null
);
create table scale_queue_places (
    place_key text primary key,
    uses bigint not null
);
create table scale_queue_holds (
    place_key text not null,
    holder text not null,
    until_ms bigint not null,
    primary key (place_key, holder)
);
create table scale_queue_notes (
    note_key text primary key,
    value bytea not null,
    until_ms bigint not null
);
