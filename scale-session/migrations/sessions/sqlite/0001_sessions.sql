-- Sessions and their fields.
create table scale_sessions (
    handle text primary key,
    renewed_ms bigint not null,
    expires_ms bigint not null,
    ends_ms bigint not null,
    moved_to text
);
create index scale_sessions_expiry on scale_sessions (expires_ms);
create table scale_session_fields (
    handle text not null,
    field text not null,
    value blob not null,
    primary key (handle, field)
);
