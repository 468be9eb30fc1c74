-- The application's name in the key, and the group of a job.
alter table scale_queue_outbox rename to scale_queue_outbox_4;
create table scale_queue_outbox (
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
insert into scale_queue_outbox (app, id, queue, delay_ms, unique_key, unique_ms, body)
    select '', id, queue, delay_ms, replace(replace(unique_key, '\', '\\'), ',', '\c'), unique_ms, body
    from scale_queue_outbox_4 order by seq;
drop table scale_queue_outbox_4;
create index scale_queue_outbox_app on scale_queue_outbox (app, seq);
