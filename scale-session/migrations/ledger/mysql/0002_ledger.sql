-- What is used once, or up to a number. MySQL is served since this version.
create table if not exists scale_ledger (
    app varbinary(255) not null,
    `key` varbinary(255) not null,
    next bigint not null,
    taken_ms bigint not null,
    ends_ms bigint not null,
    primary key (app, `key`),
    key scale_ledger_end (ends_ms)
) engine = InnoDB;
