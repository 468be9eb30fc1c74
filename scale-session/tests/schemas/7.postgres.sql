-- As made by commit 82c38d3.
create table if not exists scale_sessions (
    app text collate "C" not null,
    handle text collate "C" not null,
    proofs text collate "C" not null,
    renewed_ms bigint not null,
    expires_ms bigint not null,
    ends_ms bigint not null,
    seen bigint not null default 0,
    frozen_ms bigint,
    next text collate "C",
    owner text collate "C",
    number bigint not null default 0,
    primary key (app, handle)
);
create index if not exists scale_sessions_owner on scale_sessions (app, owner) where owner is not null;
create index if not exists scale_sessions_expiry on scale_sessions (expires_ms);
create table if not exists scale_session_owners (
    app text collate "C" not null,
    owner text collate "C" not null,
    last bigint not null,
    revoked bigint not null,
    until_ms bigint not null,
    primary key (app, owner)
);
create index if not exists scale_session_owners_until on scale_session_owners (until_ms);
create table if not exists scale_session_fields (
    app text collate "C" not null,
    handle text collate "C" not null,
    field text collate "C" not null,
    value bytea not null,
    primary key (app, handle, field)
);
create table if not exists scale_ledger (
    app text collate "C" not null,
    key text collate "C" not null,
    next bigint not null,
    taken_ms bigint not null,
    ends_ms bigint not null,
    primary key (app, key)
);
create index if not exists scale_ledger_end on scale_ledger (ends_ms);
create table if not exists scale_audit (
    app text collate "C" not null,
    number bigint not null,
    at_ms bigint not null,
    actor text not null,
    action text not null,
    object text not null,
    details text not null,
    seal bytea not null,
    primary key (app, number)
);
create table if not exists scale_auth_records (
    app text collate "C" not null,
    owner text collate "C" not null,
    id text collate "C" not null,
    record bytea not null,
    ends_ms bigint,
    primary key (app, owner, id)
);
create index if not exists scale_auth_records_end on scale_auth_records (ends_ms);
