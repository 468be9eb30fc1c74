//! Registrations, and notes with a limited life.

scale_sql::statements! {
    pub(crate) Statements;
    announce = "insert into scale_queue_present (app, kind, name, about, until_ms) \
        values ($1, $2, $3, $4, {now} + $5) \
        {conflict:app, kind, name} about = {new:about}, until_ms = {new:until_ms}";
    forget = "delete from scale_queue_present where app = $1 and kind = $2 \
        and (until_ms <= {now} or until_ms < (select until_ms from (select until_ms \
            from scale_queue_present where app = $1 and kind = $2 \
            order by until_ms desc limit 1 offset $3) as last_kept))";
    withdraw = "delete from scale_queue_present where app = $1 and kind = $2 and name = $3";
    list = "select name, about from scale_queue_present \
        where app = $1 and kind = $2 and until_ms > {now} \
        order by until_ms desc, name desc limit $3 offset $4";
    note = "insert into scale_queue_notes (app, note_key, value, until_ms) \
        values ($1, $2, $3, {now} + $4) \
        {conflict:app, note_key} value = {new:value}, until_ms = {new:until_ms}";
    noted = "select value from scale_queue_notes \
        where app = $1 and note_key = $2 and until_ms > {now}";
    forget_notes = "delete from scale_queue_notes where app = $1 and note_key {list:2}";
    sweep_notes = "delete from scale_queue_notes where until_ms <= {now}";
    sweep_once = "delete from scale_queue_once where until_ms <= {now}";
}
