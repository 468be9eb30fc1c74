-- What is used once, or up to a number.
create table scale_ledger (
    key text primary key,
    next bigint not null,
    taken_ms bigint not null,
    ends_ms bigint not null
);
create index scale_ledger_end on scale_ledger (ends_ms);
