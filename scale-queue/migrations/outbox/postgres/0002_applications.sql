-- The application's name in the key, and the group of a job.
alter table scale_queue_outbox rename to scale_queue_outbox_4;
create table scale_queue_outbox (
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
insert into scale_queue_outbox (app, id, queue, delay_ms, unique_key, unique_ms, body)
    select '', id, queue, delay_ms, replace(replace(unique_key, '\', '\\'), ',', '\c'), unique_ms, body
    from scale_queue_outbox_4 order by seq;
drop table scale_queue_outbox_4;
create index scale_queue_outbox_app on scale_queue_outbox (app, seq);
