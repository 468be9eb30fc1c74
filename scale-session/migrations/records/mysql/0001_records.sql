-- API tokens, and who stays signed in where.
create table if not exists scale_auth_records (
    app varbinary(255) not null,
    owner varbinary(128) not null,
    id varbinary(255) not null,
    record mediumblob not null,
    ends_ms bigint,
    primary key (app, owner, id),
    key scale_auth_records_end (ends_ms)
) engine = InnoDB;
-- A row is locked for as long as a transaction counts a user's records.
create table if not exists scale_auth_locks (
    name varbinary(255) not null primary key
) engine = InnoDB;
