-- Two addresses are the same account only if they are the same, letter by letter: the default
-- collation takes `ä` for `a`.
alter table users modify email varchar(255) character set utf8mb4 collate utf8mb4_bin not null;
alter table devices modify account varchar(255) character set utf8mb4 collate utf8mb4_bin not null;
alter table orders modify account varchar(255) character set utf8mb4 collate utf8mb4_bin not null;
alter table categories modify name varchar(64) character set utf8mb4 collate utf8mb4_bin not null;
alter table products modify category varchar(64) character set utf8mb4 collate utf8mb4_bin not null;
