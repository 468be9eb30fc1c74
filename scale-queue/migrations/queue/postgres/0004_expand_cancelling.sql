-- Jobs that are cancelled while they run, and who is there.
alter table scale_queue_jobs add column cancelled bigint not null default 0;
create index scale_queue_jobs_cancelled on scale_queue_jobs (id) where cancelled = 1;
create table scale_queue_present (
    kind text not null,
    name text not null,
    about bytea not null,
    until_ms bigint not null,
    primary key (kind, name)
);
create index scale_queue_present_until on scale_queue_present (kind, until_ms);
