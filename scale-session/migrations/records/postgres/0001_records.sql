-- API tokens, and who stays signed in where.
create table scale_auth_records (
    app text collate "C" not null,
    owner text collate "C" not null,
    id text collate "C" not null,
    record bytea not null,
    ends_ms bigint,
    primary key (app, owner, id)
);
create index scale_auth_records_end on scale_auth_records (ends_ms);
