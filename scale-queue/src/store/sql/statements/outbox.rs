//! Jobs to be moved into a store that is not this database.

scale_sql::statements! {
    pub(crate) Statements;
    put = "insert into scale_queue_outbox \
            (id, app, queue, delay_ms, group_key, unique_key, unique_ms, body, \
            debounce_key, debounce_ms, once_key, once_ms) \
        values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12)";
    take = "select seq, id, queue, delay_ms, unique_key, unique_ms, body, \
            debounce_key, debounce_ms, once_key, once_ms from scale_queue_outbox \
        where app = $1 order by seq limit $2 {lock}";
    // One relay at a time moves jobs, so that they keep their order: the one that has locked the
    // oldest row.
    first_unlocked = "select seq from scale_queue_outbox where app = $1 \
        order by seq limit 1 {claim}";
    oldest = "select seq from scale_queue_outbox where app = $1 order by seq limit 1";
    // Rows that another relay has deleted and not committed are counted too.
    is_empty = "select count(*) from (select 1 from scale_queue_outbox \
        where app = $1 limit 1) as first_one";
    drop = "delete from scale_queue_outbox where seq = $1";
    // Rows of versions without application names.
    adopt = "update scale_queue_outbox set app = $1 where app = ''";
}
