-- Keys of jobs that must not be pushed twice.
create table scale_queue_once (
    queue text not null,
    once_key text not null,
    id text not null,
    until_ms bigint not null,
    primary key (queue, once_key)
);
