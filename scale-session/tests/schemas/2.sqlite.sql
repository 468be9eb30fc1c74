-- As made by commit 8744ec7.
create table if not exists scale_sessions (
    handle text primary key,
    renewed_ms bigint not null,
    expires_ms bigint not null,
    ends_ms bigint not null,
    moved_to text
);
create index if not exists scale_sessions_expiry on scale_sessions (expires_ms);
create table if not exists scale_session_fields (
    handle text not null,
    field text not null,
    value blob not null,
    primary key (handle, field)
);
create table if not exists scale_ledger (
    key text primary key,
    next bigint not null,
    taken_ms bigint not null,
    ends_ms bigint not null
);
create index if not exists scale_ledger_end on scale_ledger (ends_ms);
