-- The secret is encrypted; of recovery codes, hashes are stored.
create table second_factors (
    account varchar(255) character set utf8mb4 collate utf8mb4_bin primary key,
    secret varchar(512) character set ascii collate ascii_bin not null,
    recovery varchar(1024) character set ascii collate ascii_bin not null
);

-- What the shop knows about an account, for its owner to download.
create table exports (
    account varchar(255) character set utf8mb4 collate utf8mb4_bin primary key,
    body longtext character set utf8mb4 not null,
    -- Job that made it.
    job varchar(64) character set ascii not null,
    made_ms bigint not null
);
