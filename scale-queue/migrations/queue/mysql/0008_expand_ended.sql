-- Jobs that have ended, as a worker keeps them when asked, and their tags.
create table if not exists scale_queue_ended (
    app varbinary(255) not null,
    queue varbinary(255) not null,
    id varbinary(64) not null,
    ended_ms bigint not null,
    record longblob not null,
    primary key (app, queue, id),
    key scale_queue_ended_time (app, queue, ended_ms, id)
) engine = InnoDB;
create table if not exists scale_queue_ended_tags (
    app varbinary(255) not null,
    queue varbinary(255) not null,
    tag varbinary(255) not null,
    id varbinary(64) not null,
    ended_ms bigint not null,
    primary key (app, queue, tag, id),
    key scale_queue_ended_tags_time (app, queue, tag, ended_ms, id),
    key scale_queue_ended_tags_job (app, queue, id)
) engine = InnoDB;
