-- Jobs pushed inside a transaction, on their way to a store that is not this database.
create table scale_queue_outbox (
    seq bigint generated always as identity primary key,
    id text not null,
    queue text not null,
    delay_ms bigint not null,
    unique_key text,
    unique_ms bigint,
    body bytea not null
);
