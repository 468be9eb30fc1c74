create table products (
    id bigint not null auto_increment primary key,
    name varchar(255) not null,
    category varchar(64) not null,
    description text not null,
    price_cents bigint not null,
    stock bigint not null check (stock >= 0),
    key products_by_category (category, id)
) character set utf8mb4;

create table users (
    id bigint not null auto_increment primary key,
    email varchar(255) not null unique,
    name varchar(255) not null,
    password varchar(512) not null
) character set utf8mb4;

-- Browsers that have logged in to an account; the cookie's hash.
create table devices (
    token varchar(64) character set ascii collate ascii_bin primary key,
    account varchar(255) not null,
    since_ms bigint not null
) character set utf8mb4;

create table orders (
    id bigint not null auto_increment primary key,
    token varchar(255) character set ascii collate ascii_bin not null unique,
    -- The account it was placed from; empty for guests.
    account varchar(255) not null,
    email varchar(255) not null,
    total_cents bigint not null,
    placed_ms bigint not null,
    key orders_by_account (account, id)
) character set utf8mb4;

create table order_items (
    order_id bigint not null,
    product_id bigint not null,
    name varchar(255) not null,
    quantity bigint not null,
    price_cents bigint not null,
    primary key (order_id, product_id),
    foreign key (order_id) references orders (id),
    foreign key (product_id) references products (id)
) character set utf8mb4;

create table receipts (
    order_id bigint primary key,
    body text not null,
    attempt bigint not null,
    sent_ms bigint not null,
    foreign key (order_id) references orders (id)
) character set utf8mb4;

-- The shop sends no mail: what would go out lies here.
create table mails (
    id bigint not null auto_increment primary key,
    address varchar(255) not null,
    subject text not null,
    body text not null,
    sent_ms bigint not null
) character set utf8mb4;
