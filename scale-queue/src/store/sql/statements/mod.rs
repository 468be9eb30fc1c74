//! SQL statements by theme. All systems share them, with a few placeholders that
//! [`System::expand`](scale_sql::System::expand) lists.
//!
//! | table | holds |
//! | --- | --- |
//! | `scale_queue_jobs` | every waiting, scheduled, blocked or leased job: a leased one names its worker, a blocked one its line |
//! | `scale_queue_workers` | leases, and the counts of each worker: a row each, so that workers do not wait for each other |
//! | `scale_queue_lines` | the lines of blocked jobs, and when the first job of each is to be tried |
//! | `scale_queue_dead` | dead jobs |
//! | `scale_queue_ended`, `scale_queue_ended_tags` | jobs that have ended, if a worker keeps them, and their tags |
//! | `scale_queue_groups`, `scale_queue_group_turns` | groups whose jobs take turns, and the jobs that have one |
//! | `scale_queue_once` | keys of jobs that must not be pushed twice, until they expire |
//! | `scale_queue_queues` | pauses, and the counts of workers that are gone |
//! | `scale_queue_samples` | a queue's counts by minute and hour, for charts |
//! | `scale_queue_batches`, `scale_queue_batch_ends` | progress of batches, and which of their jobs have ended |
//! | `scale_queue_rates`, `scale_queue_permits` | limits: when the next job of a rate is due; holders of permits |
//! | `scale_queue_present` | registered workers, schedules and batches |
//! | `scale_queue_notes` | progress reports, for a limited time |
//! | `scale_queue_outbox` | jobs pushed inside a transaction, to be moved into a store that is not this database |
//! | `scale_queue_locks` | MySQL only: a row to lock while a limit's permits are counted |
//!
//! Every table has the application's name in each of its keys.

mod batches;
mod dead;
mod ended;
mod fetch;
mod groups;
mod leases;
mod limits;
mod lines;
mod look;
mod outbox;
mod push;
mod registry;

use std::sync::OnceLock;

use scale_sql::{Statement, System};

pub(crate) use self::push::Statements as PushStatements;

/// All statements of a store.
#[derive(Debug)]
pub(crate) struct Statements {
    pub(crate) push: push::Statements,
    pub(crate) fetch: fetch::Statements,
    pub(crate) groups: groups::Statements,
    pub(crate) leases: leases::Statements,
    pub(crate) lines: lines::Statements,
    pub(crate) limits: limits::Statements,
    pub(crate) batches: batches::Statements,
    pub(crate) dead: dead::Statements,
    pub(crate) ended: ended::Statements,
    pub(crate) look: look::Statements,
    pub(crate) registry: registry::Statements,
    pub(crate) outbox: outbox::Statements,
}

impl Statements {
    /// Returns the statements for a system; they are built once per process.
    pub(crate) fn of(system: System) -> &'static Self {
        static KNOWN: [OnceLock<Statements>; 3] = [const { OnceLock::new() }; 3];
        KNOWN[system as usize].get_or_init(|| Self {
            push: push::Statements::new(system),
            fetch: fetch::Statements::new(system),
            groups: groups::Statements::new(system),
            leases: leases::Statements::new(system),
            lines: lines::Statements::new(system),
            limits: limits::Statements::new(system),
            batches: batches::Statements::new(system),
            dead: dead::Statements::new(system),
            ended: ended::Statements::new(system),
            look: look::Statements::new(system),
            registry: registry::Statements::new(system),
            outbox: outbox::Statements::new(system),
        })
    }

    /// Returns all statements by name.
    pub(crate) fn all(&self) -> Vec<(&'static str, Statement)> {
        let themes = [
            self.push.all(),
            self.fetch.all(),
            self.groups.all(),
            self.leases.all(),
            self.lines.all(),
            self.limits.all(),
            self.batches.all(),
            self.dead.all(),
            self.ended.all(),
            self.look.all(),
            self.registry.all(),
            self.outbox.all(),
        ];
        themes.concat()
    }
}
