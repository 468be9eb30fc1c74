-- As made by commit d21ee62.
create table if not exists scale_sessions (
    app text not null,
    handle text not null,
    proofs text not null,
    renewed_ms bigint not null,
    expires_ms bigint not null,
    ends_ms bigint not null,
    seen bigint not null default 0,
    frozen_ms bigint,
    next text,
    owner text,
    number bigint not null default 0,
    primary key (app, handle)
);
create index if not exists scale_sessions_owner on scale_sessions (app, owner) where owner is not null;
create index if not exists scale_sessions_expiry on scale_sessions (expires_ms);
create table if not exists scale_session_owners (
    app text not null,
    owner text not null,
    last bigint not null,
    revoked bigint not null,
    until_ms bigint not null,
    primary key (app, owner)
);
create index if not exists scale_session_owners_until on scale_session_owners (until_ms);
create table if not exists scale_session_fields (
    app text not null,
    handle text not null,
    field text not null,
    value blob not null,
    primary key (app, handle, field)
);
create table if not exists scale_ledger (
    app text not null,
    key text not null,
    next bigint not null,
    taken_ms bigint not null,
    ends_ms bigint not null,
    primary key (app, key)
);
create index if not exists scale_ledger_end on scale_ledger (ends_ms);
create table if not exists scale_audit (
    app text not null,
    number bigint not null,
    at_ms bigint not null,
    actor text not null,
    action text not null,
    object text not null,
    details text not null,
    seal blob not null,
    primary key (app, number)
);
