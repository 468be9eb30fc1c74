-- Options of a push: debouncing, and a key of its own against duplicates.
alter table scale_queue_outbox add column debounce_key text collate "C";
alter table scale_queue_outbox add column debounce_ms bigint;
alter table scale_queue_outbox add column once_key text collate "C";
alter table scale_queue_outbox add column once_ms bigint;
