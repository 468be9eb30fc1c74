-- Jobs that have ended, as a worker keeps them when asked, and their tags.
create table if not exists scale_queue_ended (
    app text not null,
    queue text not null,
    id text not null,
    ended_ms bigint not null,
    record bytea not null,
    primary key (app, queue, id)
);
create index if not exists scale_queue_ended_time on scale_queue_ended (app, queue, ended_ms, id);
create table if not exists scale_queue_ended_tags (
    app text not null,
    queue text not null,
    tag text not null,
    id text not null,
    ended_ms bigint not null,
    primary key (app, queue, tag, id)
);
create index if not exists scale_queue_ended_tags_time on scale_queue_ended_tags (app, queue, tag, ended_ms, id);
create index if not exists scale_queue_ended_tags_job on scale_queue_ended_tags (app, queue, id);
