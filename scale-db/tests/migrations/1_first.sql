create table migrated (id bigint primary key, name text not null);
