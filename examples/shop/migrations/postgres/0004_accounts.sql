-- The secret is encrypted; of recovery codes, hashes are stored.
create table second_factors (
    account text primary key,
    secret text not null,
    recovery text not null
);

-- What the shop knows about an account, for its owner to download.
create table exports (
    account text primary key,
    body text not null,
    -- Job that made it.
    job text not null,
    made_ms bigint not null
);
