-- Each table has the application's name in its keys. What was signed before it is accepted no more,
-- so what is known of it goes.
drop table scale_session_fields;
drop table scale_session_owners;
drop table scale_sessions;
create table scale_sessions (
    app text not null,
    handle text not null,
    proofs text not null,
    renewed_ms bigint not null,
    expires_ms bigint not null,
    ends_ms bigint not null,
    seen bigint not null default 0,
    frozen_ms bigint,
    owner text,
    number bigint not null default 0,
    primary key (app, handle)
);
create index scale_sessions_owner on scale_sessions (app, owner)
    where owner is not null;
create index scale_sessions_expiry on scale_sessions (expires_ms);
create table scale_session_owners (
    app text not null,
    owner text not null,
    last bigint not null,
    revoked bigint not null,
    until_ms bigint not null,
    primary key (app, owner)
);
create index scale_session_owners_until on scale_session_owners (until_ms);
create table scale_session_fields (
    app text not null,
    handle text not null,
    field text not null,
    value blob not null,
    primary key (app, handle, field)
);
