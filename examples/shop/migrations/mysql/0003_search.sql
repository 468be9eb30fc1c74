-- The beginnings of each product's words, and its category after `=`: what a search asks for is
-- one of these, in the order of the products.
create table product_words (
    beginning varchar(80) character set utf8mb4 collate utf8mb4_bin not null,
    product_id bigint not null,
    primary key (beginning, product_id),
    key product_words_by_product (product_id),
    foreign key (product_id) references products (id) on delete cascade
);

create table categories (name varchar(64) primary key) character set utf8mb4;
insert into categories (name) select distinct category from products;
