-- Options of a push: debouncing, and a key of its own against duplicates. One statement, which MySQL
-- applies as a whole.
alter table scale_queue_outbox
    add column debounce_key varbinary(1100),
    add column debounce_ms bigint,
    add column once_key varbinary(1100),
    add column once_ms bigint;
