-- As made by commit 837f601.
create table if not exists scale_sessions (
    handle text primary key,
    renewed_ms bigint not null,
    expires_ms bigint not null,
    ends_ms bigint not null,
    moved_to text,
    owner text,
    number bigint not null default 0
);
create index if not exists scale_sessions_owner on scale_sessions (owner) where owner is not null;
create table if not exists scale_session_owners (
    owner text primary key,
    last bigint not null,
    revoked bigint not null,
    until_ms bigint not null
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
create table if not exists scale_audit (
    number bigint primary key,
    at_ms bigint not null,
    actor text not null,
    action text not null,
    object text not null,
    details text not null,
    seal blob not null
);
