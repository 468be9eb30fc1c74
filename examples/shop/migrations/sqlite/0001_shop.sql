create table products (
    id integer primary key,
    name text not null,
    category text not null,
    description text not null,
    price_cents integer not null,
    stock integer not null check (stock >= 0)
);
create index products_by_category on products (category, id);

create table users (
    id integer primary key,
    email text not null unique,
    name text not null,
    password text not null
);

-- Browsers that have logged in to an account; the cookie's hash.
create table devices (
    token text primary key,
    account text not null,
    since_ms integer not null
);

create table orders (
    id integer primary key,
    token text not null unique,
    -- The account it was placed from; empty for guests.
    account text not null,
    email text not null,
    total_cents integer not null,
    placed_ms integer not null
);

create index orders_by_account on orders (account, id);

create table order_items (
    order_id integer not null references orders (id),
    product_id integer not null references products (id),
    name text not null,
    quantity integer not null,
    price_cents integer not null,
    primary key (order_id, product_id)
);

create table receipts (
    order_id integer primary key references orders (id),
    body text not null,
    attempt integer not null,
    sent_ms integer not null
);

-- The shop sends no mail: what would go out lies here.
create table mails (
    id integer primary key,
    address text not null,
    subject text not null,
    body text not null,
    sent_ms bigint not null
);
