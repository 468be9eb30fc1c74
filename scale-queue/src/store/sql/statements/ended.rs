//! Jobs that have ended, and their tags.

scale_sql::statements! {
    pub(crate) Statements;
    keep = "insert into scale_queue_ended (app, queue, id, ended_ms, record) \
        values ($1, $2, $3, {now}, $4) \
        {conflict:app, queue, id} ended_ms = {new:ended_ms}, record = {new:record}";
    tag = "insert into scale_queue_ended_tags (app, queue, tag, id, ended_ms) \
        values ($1, $2, $3, $4, {now}) {conflict:app, queue, tag, id} ended_ms = {new:ended_ms}";
    too_old = "select id from scale_queue_ended \
        where app = $1 and queue = $2 and ended_ms < {now} - $3 order by ended_ms, id limit 500";
    too_many = "select id from scale_queue_ended where app = $1 and queue = $2 \
        order by ended_ms desc, id desc limit 500 offset $3";
    remove = "delete from scale_queue_ended where app = $1 and queue = $2 and id {list:3}";
    remove_tags = "delete from scale_queue_ended_tags \
        where app = $1 and queue = $2 and id {list:3}";
    list = "select ended_ms, record from scale_queue_ended where app = $1 and queue = $2 \
        order by ended_ms desc, id desc limit $3 offset $4";
    with_tag = "select job.ended_ms, job.record from scale_queue_ended_tags as known \
        join scale_queue_ended as job on job.app = known.app and job.queue = known.queue \
            and job.id = known.id \
        where known.app = $1 and known.queue = $2 and known.tag = $3 \
        order by known.ended_ms desc, known.id desc limit $4 offset $5";
}
