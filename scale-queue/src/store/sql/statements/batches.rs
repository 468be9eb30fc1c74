//! Batches.

scale_sql::statements! {
    pub(crate) Statements;
    open = "{insert} scale_queue_batches \
            (app, id, total, done, dead, cancelled, followed, lenient, plan, life_ms, until_ms) \
        values ($1, $2, $3, 0, 0, 0, 0, $4, $5, $6, {now} + $6) {or_nothing}";
    touch = "update scale_queue_batches \
        set until_ms = case when followed = 1 then until_ms else {now} + life_ms end \
        where app = $1 and id = $2 and until_ms > {now}";
    state = "select total, done, dead, cancelled, followed, skipped, lenient, life_ms \
        from scale_queue_batches where app = $1 and id = $2";
    save = "update scale_queue_batches set done = $3, dead = $4, cancelled = $5, skipped = $6 \
        where app = $1 and id = $2";
    grow = "update scale_queue_batches set total = total + $3 where app = $1 and id = $2";
    cancel = "update scale_queue_batches \
        set cancelled = case when cancelled = 0 then $3 else cancelled end \
        where app = $1 and id = $2 and until_ms > {now}";
    is_cancelled = "select count(*) from scale_queue_batches \
        where app = $1 and id = $2 and cancelled > 0 and until_ms > {now} \
        and not exists (select 1 from scale_queue_batch_ends \
            where app = $1 and id = $2 and number = $3 and dead = 1)";
    conclude = "update scale_queue_batches set followed = 1, until_ms = {now} + $3 \
        where app = $1 and id = $2";
    get = "select total, done, dead, cancelled, followed, skipped, plan \
        from scale_queue_batches where app = $1 and id = $2 and until_ms > {now}";
    ends = "select number, dead from scale_queue_batch_ends \
        where app = $1 and id = $2 and number < $3";
    end_known = "select dead from scale_queue_batch_ends \
        where app = $1 and id = $2 and number = $3";
    end_put = "insert into scale_queue_batch_ends (app, id, number, dead) \
        values ($1, $2, $3, $4) {conflict:app, id, number} dead = {new:dead}";
    end_drop = "delete from scale_queue_batch_ends where app = $1 and id = $2";
    late = "select app, id from scale_queue_batches where until_ms <= {now} limit 100";
    sweep = "delete from scale_queue_batches where app = $1 and id = $2 and until_ms <= {now}";
}
