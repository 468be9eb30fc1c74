-- The audit log. MySQL is served since this version.
create table if not exists scale_audit (
    app varbinary(255) not null,
    number bigint not null,
    at_ms bigint not null,
    actor mediumtext character set utf8mb4 not null,
    action mediumtext character set utf8mb4 not null,
    object mediumtext character set utf8mb4 not null,
    details mediumtext character set utf8mb4 not null,
    seal varbinary(255) not null,
    primary key (app, number)
) engine = InnoDB;
