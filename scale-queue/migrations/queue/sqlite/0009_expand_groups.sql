-- Groups, whose jobs take turns: the number of turns taken, and the jobs that have one.
create table if not exists scale_queue_groups (
    app text not null,
    queue text not null,
    name text not null,
    at_once bigint not null,
    taken bigint not null,
    last_ms bigint not null,
    primary key (app, queue, name)
);
create table if not exists scale_queue_group_turns (
    app text not null,
    queue text not null,
    id text not null,
    name text not null,
    primary key (app, queue, id)
);
create index if not exists scale_queue_group_turns_name on scale_queue_group_turns (app, queue, name);
