-- The audit log.
create table scale_audit (
    number bigint primary key,
    at_ms bigint not null,
    actor text not null,
    action text not null,
    object text not null,
    details text not null,
    seal bytea not null
);
