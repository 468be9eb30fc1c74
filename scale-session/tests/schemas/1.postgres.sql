-- As made by commit dea8a5f.
create table if not exists scale_sessions (
    handle text primary key,
    renewed_ms bigint not null,
    expires_ms bigint not null,
    ends_ms bigint not null,
    moved_to text
);
create index if not exists scale_sessions_expiry on scale_sessions (expires_ms);
create table if not exists scale_session_fields (
    handle text not null,
    field text not null,
    value bytea not null,
    primary key (handle, field)
);
