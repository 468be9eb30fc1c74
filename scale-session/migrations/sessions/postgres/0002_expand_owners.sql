-- Whose session it is.
alter table scale_sessions add column owner text;
alter table scale_sessions add column number bigint not null default 0;
create index scale_sessions_owner on scale_sessions (owner) where owner is not null;
create table scale_session_owners (
    owner text primary key,
    last bigint not null,
    revoked bigint not null,
    until_ms bigint not null
);
