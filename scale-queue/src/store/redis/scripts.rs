//! Lua scripts of the store, sent by digest.

use redis::Script;

pub(super) struct Scripts {
    pub(super) push: Script,
    pub(super) ack_and_fetch: Script,
    pub(super) settle_job: Script,
    pub(super) renew_lease: Script,
    pub(super) reclaim_jobs: Script,
    pub(super) stats: Script,
    pub(super) wake_workers: Script,
    pub(super) wake_line: Script,
    pub(super) take_all: Script,
    pub(super) take_dead: Script,
    pub(super) list_page: Script,
    pub(super) record_sample: Script,
    pub(super) keep_ended: Script,
    pub(super) release_unique: Script,
    pub(super) checkpoint: Script,
}

impl Scripts {
    pub(super) fn new() -> Self {
        let shared = |own: &str| Script::new(&format!("{}\n{own}", include_str!("shared.lua")));
        Self {
            push: shared(include_str!("push.lua")),
            ack_and_fetch: shared(include_str!("ack_and_fetch.lua")),
            settle_job: shared(include_str!("settle_job.lua")),
            renew_lease: shared(include_str!("renew_lease.lua")),
            reclaim_jobs: shared(include_str!("reclaim_jobs.lua")),
            stats: Script::new(include_str!("stats.lua")),
            wake_workers: shared(include_str!("wake_workers.lua")),
            wake_line: shared(include_str!("wake_line.lua")),
            take_all: shared(include_str!("take_all.lua")),
            take_dead: shared(include_str!("take_dead.lua")),
            list_page: Script::new(include_str!("list_page.lua")),
            record_sample: Script::new(include_str!("record_sample.lua")),
            checkpoint: Script::new(include_str!("checkpoint.lua")),
            keep_ended: shared(include_str!("keep_ended.lua")),
            release_unique: Script::new(include_str!("release_unique.lua")),
        }
    }
}
