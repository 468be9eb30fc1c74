//! Groups: turns of their jobs, and their lines.

scale_sql::statements! {
    pub(crate) Statements;
    // Locks the group until the transaction ends. Each call gives a later place in line, whatever
    // the clocks.
    enter = "insert into scale_queue_groups (app, queue, name, at_once, taken, last_ms) \
        values ($1, $2, $3, $4, 0, {now}) \
        {conflict:app, queue, name} \
            last_ms = case when scale_queue_groups.last_ms >= {new:last_ms} \
                then scale_queue_groups.last_ms + 1 else {new:last_ms} end";
    entered = "select taken, last_ms, at_once from scale_queue_groups \
        where app = $1 and queue = $2 and name = $3";
    take_turns = "update scale_queue_groups set taken = $4 \
        where app = $1 and queue = $2 and name = $3";
    turn = "{insert} scale_queue_group_turns (app, queue, id, name) \
        values ($1, $2, $3, $4) {or_nothing}";
    put_in_line = "update scale_queue_jobs set line = $4, due_ms = $5, since_ms = {now}, \
            suspect = 0 \
        where app = $1 and queue = $2 and id = $3";
    rejoin = "update scale_queue_jobs set line = $4, suspect = 0 \
        where app = $1 and queue = $2 and id = $3 and worker is null and not exists \
            (select 1 from scale_queue_group_turns as turn \
            where turn.app = $1 and turn.queue = $2 and turn.id = $3)";
    end_turn = "delete from scale_queue_group_turns where app = $1 and queue = $2 and id = $3";
    group = "select at_once from scale_queue_groups \
        where app = $1 and queue = $2 and name = $3 {claim}";
    taken = "select count(*) from scale_queue_group_turns \
        where app = $1 and queue = $2 and name = $3";
    first = "select id, body from scale_queue_jobs \
        where app = $1 and queue = $2 and worker is null and line = $3 \
        order by due_ms, id limit $4 {lock}",
        mysql "select id, body from scale_queue_jobs force index (scale_queue_jobs_ready) \
        where app = $1 and queue = $2 and worker is null and line = $3 \
        order by suspect, due_ms, id limit $4 {lock}";
    join = "update scale_queue_jobs set line = null, due_ms = {now}, suspect = $4 \
        where app = $1 and queue = $2 and id = $3";
    leave = "delete from scale_queue_groups where app = $1 and queue = $2 and name = $3";
    // Left by a fault.
    lost_turns = "select id from scale_queue_group_turns as turn \
        where app = $1 and queue = $2 and not exists \
            (select 1 from scale_queue_jobs as job where job.id = turn.id) limit 1000";
    idle = "select name from scale_queue_groups as known where app = $1 and queue = $2 \
        and taken > (select count(*) from scale_queue_group_turns as turn \
            where turn.app = $1 and turn.queue = $2 and turn.name = known.name) limit 1000";
}
