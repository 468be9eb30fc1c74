-- `customer`, `staff` (sees the queues).
alter table users add column role text not null default 'customer';
