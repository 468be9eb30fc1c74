//! Dead jobs.

scale_sql::statements! {
    pub(crate) Statements;
    bury = "insert into scale_queue_dead (app, queue, id, died_ms, reason, body) \
        values ($1, $2, $3, {now}, $4, $5)";
    too_old = "select seq from scale_queue_dead \
        where app = $1 and queue = $2 and died_ms < {now} - $3 order by died_ms, seq limit 1000";
    too_many = "select seq from scale_queue_dead where app = $1 and queue = $2 \
        order by died_ms desc, seq desc limit 1000 offset $3";
    remove = "delete from scale_queue_dead where seq {list:1}";
    sizes = "select id, length(body) from scale_queue_dead where app = $1 and queue = $2 \
        order by died_ms desc, seq desc limit $3 offset $4";
    list = "select body, reason, died_ms from scale_queue_dead where app = $1 and queue = $2 \
        order by died_ms desc, seq desc limit $3 offset $4";
    one = "select seq, body from scale_queue_dead \
        where app = $1 and queue = $2 and id = $3 and died_ms = $4 order by seq limit 1 {lock}";
}
