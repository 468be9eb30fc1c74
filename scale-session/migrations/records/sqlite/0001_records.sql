-- API tokens, and who stays signed in where.
create table scale_auth_records (
    app text not null,
    owner text not null,
    id text not null,
    record blob not null,
    ends_ms bigint,
    primary key (app, owner, id)
);
create index scale_auth_records_end on scale_auth_records (ends_ms);
