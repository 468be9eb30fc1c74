-- `customer`, `staff` (sees the queues).
alter table users add column role varchar(16) not null default 'customer';
