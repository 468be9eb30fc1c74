-- The beginnings of each product's words, and its category after `=`: what a search asks for is
-- one of these, in the order of the products.
create table product_words (
    beginning text collate "C" not null,
    product_id bigint not null references products (id) on delete cascade,
    primary key (beginning, product_id)
);
create index product_words_by_product on product_words (product_id);

create table categories (name text primary key);
insert into categories (name) select distinct category from products;

-- A product is deleted without a look at all orders.
create index order_items_by_product on order_items (product_id);
