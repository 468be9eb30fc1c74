-- Everything at once: MySQL is served since this version. Keys are bytes: their comparison is exact,
-- whatever the server's collation.
create table if not exists scale_sessions (
    app varbinary(255) not null,
    handle varbinary(128) not null,
    proofs varbinary(2048) not null,
    renewed_ms bigint not null,
    expires_ms bigint not null,
    ends_ms bigint not null,
    seen bigint not null default 0,
    frozen_ms bigint,
    next varbinary(128),
    owner varbinary(128),
    number bigint not null default 0,
    primary key (app, handle),
    key scale_sessions_owner (app, owner),
    key scale_sessions_expiry (expires_ms)
) engine = InnoDB;
create table if not exists scale_session_owners (
    app varbinary(255) not null,
    owner varbinary(128) not null,
    last bigint not null,
    revoked bigint not null,
    until_ms bigint not null,
    primary key (app, owner),
    key scale_session_owners_until (until_ms)
) engine = InnoDB;
create table if not exists scale_session_fields (
    app varbinary(255) not null,
    handle varbinary(128) not null,
    field varbinary(512) not null,
    value longblob not null,
    primary key (app, handle, field)
) engine = InnoDB;
