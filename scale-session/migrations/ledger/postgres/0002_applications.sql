-- Each table has the application's name in its keys. What was signed before it is accepted no more,
-- so what is known of it goes.
drop table scale_ledger;
create table scale_ledger (
    app text collate "C" not null,
    key text collate "C" not null,
    next bigint not null,
    taken_ms bigint not null,
    ends_ms bigint not null,
    primary key (app, key)
);
create index scale_ledger_end on scale_ledger (ends_ms);
