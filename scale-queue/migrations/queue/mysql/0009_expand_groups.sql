-- Groups, whose jobs take turns: the number of turns taken, and the jobs that have one.
create table if not exists scale_queue_groups (
    app varbinary(255) not null,
    queue varbinary(255) not null,
    name varbinary(1100) not null,
    at_once bigint not null,
    taken bigint not null,
    last_ms bigint not null,
    primary key (app, queue, name)
) engine = InnoDB;
create table if not exists scale_queue_group_turns (
    app varbinary(255) not null,
    queue varbinary(255) not null,
    id varbinary(64) not null,
    name varbinary(1100) not null,
    primary key (app, queue, id),
    key scale_queue_group_turns_name (app, queue, name)
) engine = InnoDB;
