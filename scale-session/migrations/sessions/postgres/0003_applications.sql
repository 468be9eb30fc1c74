-- Each table has the application's name in its keys. What was signed before it is accepted no more,
-- so what is known of it goes.
drop table scale_session_fields;
drop table scale_session_owners;
drop table scale_sessions;
create table scale_sessions (
    app text collate "C" not null,
    handle text collate "C" not null,
    proofs text collate "C" not null,
    renewed_ms bigint not null,
    expires_ms bigint not null,
    ends_ms bigint not null,
    seen bigint not null default 0,
    frozen_ms bigint,
    owner text collate "C",
    number bigint not null default 0,
    primary key (app, handle)
);
create index scale_sessions_owner on scale_sessions (app, owner)
    where owner is not null;
create index scale_sessions_expiry on scale_sessions (expires_ms);
create table scale_session_owners (
    app text collate "C" not null,
    owner text collate "C" not null,
    last bigint not null,
    revoked bigint not null,
    until_ms bigint not null,
    primary key (app, owner)
);
create index scale_session_owners_until on scale_session_owners (until_ms);
create table scale_session_fields (
    app text collate "C" not null,
    handle text collate "C" not null,
    field text collate "C" not null,
    value bytea not null,
    primary key (app, handle, field)
);
