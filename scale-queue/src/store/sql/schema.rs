//! Migrations of the tables: `migrations/queue` and `migrations/outbox`.

use scale_sql::{Mark, Migration, Schema};

macro_rules! migration {
    ($version:literal, $folder:literal, $name:literal, $mark:expr) => {
        Migration {
            version: $version,
            name: $name,
            sql: include_str!(concat!(
                "../../../migrations/", $folder, "/000", $version, "_", $name, ".sql"
            )),
            mark: $mark,
        }
    };
}

/// Tables of queues.
pub(crate) const QUEUE: Schema = Schema {
    name: "scale_queue",
    lock: 7_222_011,
    postgres: &[
        migration!(1, "queue/postgres", "jobs", Mark::Table("scale_queue_jobs")),
        migration!(2, "queue/postgres", "expand_once", Mark::Table("scale_queue_once")),
        migration!(
            3,
            "queue/postgres",
            "expand_batches_and_limits",
            Mark::Table("scale_queue_batches")
        ),
        migration!(
            4,
            "queue/postgres",
            "expand_cancelling",
            Mark::Column("scale_queue_jobs", "cancelled")
        ),
        migration!(5, "queue/postgres", "applications", Mark::Column("scale_queue_jobs", "app")),
        migration!(
            6,
            "queue/postgres",
            "expand_skipped",
            Mark::Column("scale_queue_batches", "skipped")
        ),
        migration!(
            7,
            "queue/postgres",
            "expand_priorities",
            Mark::Index("scale_queue_jobs_priority")
        ),
        migration!(8, "queue/postgres", "expand_ended", Mark::Table("scale_queue_ended")),
        migration!(9, "queue/postgres", "expand_groups", Mark::Table("scale_queue_groups")),
    ],
    mysql: &[
        migration!(6, "queue/mysql", "queue", Mark::Table("scale_queue_locks")),
        migration!(8, "queue/mysql", "expand_ended", Mark::Table("scale_queue_ended")),
        migration!(9, "queue/mysql", "expand_groups", Mark::Table("scale_queue_groups")),
    ],
    sqlite: &[
        migration!(1, "queue/sqlite", "jobs", Mark::Table("scale_queue_jobs")),
        migration!(2, "queue/sqlite", "expand_once", Mark::Table("scale_queue_once")),
        migration!(
            3,
            "queue/sqlite",
            "expand_batches_and_limits",
            Mark::Table("scale_queue_batches")
        ),
        migration!(
            4,
            "queue/sqlite",
            "expand_cancelling",
            Mark::Column("scale_queue_jobs", "cancelled")
        ),
        migration!(5, "queue/sqlite", "applications", Mark::Column("scale_queue_jobs", "app")),
        migration!(
            6,
            "queue/sqlite",
            "expand_skipped",
            Mark::Column("scale_queue_batches", "skipped")
        ),
        migration!(
            7,
            "queue/sqlite",
            "expand_priorities",
            Mark::Index("scale_queue_jobs_priority")
        ),
        migration!(8, "queue/sqlite", "expand_ended", Mark::Table("scale_queue_ended")),
        migration!(9, "queue/sqlite", "expand_groups", Mark::Table("scale_queue_groups")),
    ],
};

/// Table of jobs to be moved into a store that is not this database.
pub(crate) const OUTBOX: Schema = Schema {
    name: "scale_queue_outbox",
    lock: 7_222_011,
    postgres: &[
        migration!(1, "outbox/postgres", "outbox", Mark::Table("scale_queue_outbox")),
        migration!(2, "outbox/postgres", "applications", Mark::Column("scale_queue_outbox", "app")),
        migration!(
            3,
            "outbox/postgres",
            "expand_options",
            Mark::Column("scale_queue_outbox", "once_ms")
        ),
    ],
    mysql: &[
        migration!(2, "outbox/mysql", "outbox", Mark::Table("scale_queue_outbox")),
        migration!(
            3,
            "outbox/mysql",
            "expand_options",
            Mark::Column("scale_queue_outbox", "once_ms")
        ),
    ],
    sqlite: &[
        migration!(1, "outbox/sqlite", "outbox", Mark::Table("scale_queue_outbox")),
        migration!(2, "outbox/sqlite", "applications", Mark::Column("scale_queue_outbox", "app")),
        migration!(
            3,
            "outbox/sqlite",
            "expand_options",
            Mark::Column("scale_queue_outbox", "once_ms")
        ),
    ],
};
