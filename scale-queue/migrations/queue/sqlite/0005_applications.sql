-- Each table has the application's name in its keys. Rows of before it have none (''): the first
-- application that connects takes them over. Jobs that were leased wait again.
alter table scale_queue_jobs rename to scale_queue_jobs_4;
create table scale_queue_jobs (
    id text primary key,
    app text not null,
    queue text not null,
    due_ms bigint not null,
    worker text,
    suspect bigint not null default 0,
    line text,
    since_ms bigint,
    group_key text,
    unique_key text,
    unique_until_ms bigint,
    cancelled bigint not null default 0,
    body blob not null
);
insert into scale_queue_jobs (id, app, queue, due_ms, unique_key, unique_until_ms, cancelled, body)
    select id, '', queue, due_ms, replace(replace(unique_key, '\', '\\'), ',', '\c'), unique_until_ms, cancelled, body
    from scale_queue_jobs_4;
drop table scale_queue_jobs_4;
create index scale_queue_jobs_ready on scale_queue_jobs (app, queue, due_ms, id)
    where worker is null and line is null and suspect = 0;
create index scale_queue_jobs_held on scale_queue_jobs (app, queue, worker)
    where worker is not null;
create index scale_queue_jobs_suspect on scale_queue_jobs (app, queue, due_ms, id)
    where suspect = 1 and worker is null;
create index scale_queue_jobs_line on scale_queue_jobs (app, queue, line, due_ms, id)
    where line is not null;
create index scale_queue_jobs_group on scale_queue_jobs (app, queue, group_key, due_ms, id)
    where group_key is not null and worker is null and line is null;
create unique index scale_queue_jobs_unique on scale_queue_jobs (app, queue, unique_key)
    where unique_key is not null;
create index scale_queue_jobs_cancelled on scale_queue_jobs (id)
    where cancelled = 1;
alter table scale_queue_queues rename to scale_queue_queues_4;
create table scale_queue_queues (
    app text not null,
    queue text not null,
    paused bigint not null,
    done bigint not null,
    failed bigint not null,
    ended bigint not null,
    primary key (app, queue)
);
insert into scale_queue_queues (app, queue, paused, done, failed, ended)
    select '', queue, paused,
        done + coalesce((select sum(w.done) from scale_queue_workers w where w.queue = q.queue), 0),
        failed + coalesce((select sum(w.failed) from scale_queue_workers w where w.queue = q.queue), 0),
        0
    from scale_queue_queues_4 q;
drop table scale_queue_queues_4;
drop table scale_queue_workers;
create table scale_queue_workers (
    app text not null,
    queue text not null,
    worker text not null,
    until_ms bigint not null,
    done bigint not null,
    failed bigint not null,
    ended bigint not null,
    unbegun text not null,
    trial text not null,
    primary key (app, queue, worker)
);
create index scale_queue_workers_until on scale_queue_workers (app, queue, until_ms);
alter table scale_queue_dead rename to scale_queue_dead_4;
create table scale_queue_dead (
    seq integer primary key autoincrement,
    app text not null,
    queue text not null,
    id text not null,
    died_ms bigint not null,
    reason text not null,
    body blob not null
);
insert into scale_queue_dead (app, queue, id, died_ms, reason, body)
    select '', queue, lower(hex(substr(body, 2, 16))), died_ms, reason, body
    from scale_queue_dead_4 order by seq;
drop table scale_queue_dead_4;
create index scale_queue_dead_time on scale_queue_dead (app, queue, died_ms, seq);
create index scale_queue_dead_id on scale_queue_dead (app, queue, id);
alter table scale_queue_once rename to scale_queue_once_4;
create table scale_queue_once (
    app text not null,
    queue text not null,
    once_key text not null,
    id text not null,
    until_ms bigint not null,
    primary key (app, queue, once_key)
);
insert into scale_queue_once (app, queue, once_key, id, until_ms)
    select '', queue, replace(replace(once_key, '\', '\\'), ',', '\c'), id, until_ms
    from scale_queue_once_4;
drop table scale_queue_once_4;
create index scale_queue_once_until on scale_queue_once (until_ms);
alter table scale_queue_batches rename to scale_queue_batches_4;
create table scale_queue_batches (
    app text not null,
    id text not null,
    total bigint not null,
    done bigint not null,
    dead bigint not null,
    cancelled bigint not null,
    followed bigint not null,
    lenient bigint not null,
    plan blob not null,
    life_ms bigint not null,
    until_ms bigint not null,
    primary key (app, id)
);
insert into scale_queue_batches (app, id, total, done, dead, cancelled, followed, lenient, plan, life_ms, until_ms)
    select '', id, total, done, dead, cancelled, case when done + dead >= total then 1 else 0 end,
        lenient, plan, life_ms, until_ms
    from scale_queue_batches_4;
drop table scale_queue_batches_4;
create index scale_queue_batches_until on scale_queue_batches (until_ms);
alter table scale_queue_batch_ends rename to scale_queue_batch_ends_4;
create table scale_queue_batch_ends (
    app text not null,
    id text not null,
    number bigint not null,
    dead bigint not null,
    primary key (app, id, number)
);
insert into scale_queue_batch_ends (app, id, number, dead)
    select '', id, number, dead
    from scale_queue_batch_ends_4;
drop table scale_queue_batch_ends_4;
drop table scale_queue_present;
create table scale_queue_present (
    app text not null,
    kind text not null,
    name text not null,
    about blob not null,
    until_ms bigint not null,
    primary key (app, kind, name)
);
create index scale_queue_present_until on scale_queue_present (app, kind, until_ms);
drop table scale_queue_turns;
drop table scale_queue_places;
drop table scale_queue_holds;
alter table scale_queue_notes rename to scale_queue_notes_4;
create table scale_queue_notes (
    app text not null,
    note_key text not null,
    value blob not null,
    until_ms bigint not null,
    primary key (app, note_key)
);
insert into scale_queue_notes (app, note_key, value, until_ms)
    select '', replace(replace(note_key, '\', '\\'), ',', '\c'), value, until_ms
    from scale_queue_notes_4;
drop table scale_queue_notes_4;
create index scale_queue_notes_until on scale_queue_notes (until_ms);
create table scale_queue_lines (
    app text not null,
    queue text not null,
    line text not null,
    retry_ms bigint not null,
    pace_us bigint not null,
    unhandled bigint not null,
    primary key (app, queue, line)
);
create index scale_queue_lines_retry on scale_queue_lines (app, queue, retry_ms);
create index scale_queue_lines_name on scale_queue_lines (app, line);
create table scale_queue_samples (
    app text not null,
    queue text not null,
    resolution text not null,
    at_ms bigint not null,
    sample blob not null,
    primary key (app, queue, resolution, at_ms)
);
create table scale_queue_rates (
    app text not null,
    limit_key text not null,
    next_us bigint not null,
    primary key (app, limit_key)
);
create index scale_queue_rates_next on scale_queue_rates (next_us);
create table scale_queue_permits (
    app text not null,
    limit_key text not null,
    permit bigint not null,
    holder text not null,
    until_ms bigint not null,
    primary key (app, limit_key, permit)
);
create index scale_queue_permits_until on scale_queue_permits (until_ms);
