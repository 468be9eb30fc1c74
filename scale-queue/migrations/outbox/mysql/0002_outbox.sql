-- Jobs pushed inside a transaction, on their way to a store that is not this database. MySQL is
-- served since this version.
create table if not exists scale_queue_outbox (
    seq bigint not null auto_increment primary key,
    app varbinary(255) not null,
    id varbinary(64) not null,
    queue varbinary(64) not null,
    delay_ms bigint not null,
    group_key varbinary(1100),
    unique_key varbinary(1100),
    unique_ms bigint,
    body longblob not null,
    key scale_queue_outbox_app (app, seq)
) engine = InnoDB;
