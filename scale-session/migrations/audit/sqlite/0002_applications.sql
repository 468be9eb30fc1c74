-- The application's name in the key. A log of before it belongs to the application of no name ('').
alter table scale_audit rename to scale_audit_4;
create table scale_audit (
    app text not null,
    number bigint not null,
    at_ms bigint not null,
    actor text not null,
    action text not null,
    object text not null,
    details text not null,
    seal blob not null,
    primary key (app, number)
);
insert into scale_audit (app, number, at_ms, actor, action, object, details, seal)
    select '', number, at_ms, actor, action, object, details, seal
    from scale_audit_4;
drop table scale_audit_4;
