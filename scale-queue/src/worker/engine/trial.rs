//! Suspects: jobs whose handler had begun when their worker died. Each is tried alone, so that
//! another crash identifies the job that causes it.

use std::time::Duration;

use tokio::time::Instant;

use super::Engine;
use crate::format::{Envelope, tag_of};
use crate::job::JobId;
use crate::store::{Destination, Settlement};

/// Time for which a suspect runs alone after its first crash; four times as long after each further
/// crash.
const FIRST: Duration = Duration::from_millis(250);
const LONGEST: Duration = Duration::from_secs(16);

/// A suspect that runs alone, or will.
pub(super) struct Alone {
    pub(super) lane: usize,
    pub(super) id: JobId,
    time: Duration,
    /// True if the suspect's begin was reported to the store, or is being reported.
    pub(super) is_announced: bool,
    /// Time at which the suspect has run alone for long enough; `None` while it waits for the
    /// others.
    until: Option<Instant>,
}

impl Alone {
    pub(super) fn has_begun(&self) -> bool {
        self.until.is_some()
    }
}

/// Returns how long a job with this number of failed attempts runs alone.
fn time_alone(failed: u16) -> Duration {
    FIRST.saturating_mul(4_u32.saturating_pow(u32::from(failed.saturating_sub(1)))).min(LONGEST)
}

impl Engine {
    /// Adds a suspect: no other job begins until it has run alone for long enough. `is_told`: the
    /// store knows that the suspect is here and has not begun.
    pub(super) fn try_alone(
        &mut self,
        lane: usize,
        envelope: Envelope,
        bytes: Vec<u8>,
        is_told: bool,
    ) {
        if self.alone.is_some() {
            // Only one suspect at a time.
            let (tag, unique) = (tag_of(&bytes).to_vec(), envelope.body.unique);
            return self.lanes[lane]
                .settlements
                .push(Settlement { tag, unique, group: None, to: Destination::Suspect }.into());
        }
        let (id, time) = (envelope.id, time_alone(envelope.failed));
        tracing::warn!(
            job = envelope.body.name, %id, ?time,
            "the worker of a job died while it ran; the job is tried alone",
        );
        self.lanes[lane].suspect = Some((envelope, bytes));
        self.alone = Some(Alone { lane, id, time, is_announced: false, until: None });
        self.lanes[lane].tell_trial |= !is_told;
        self.stop_sleeping();
    }

    /// Ends the trial; the next round trip reports it to the store.
    pub(super) fn end_alone(&mut self) {
        if self.alone.take().is_some() {
            self.lanes
                .iter_mut()
                .filter(|lane| lane.holds() > 0)
                .for_each(|lane| lane.tell_trial = true);
        }
    }

    /// Begins the suspect when it is time. Returns `true` if no other job may begin now.
    pub(super) fn tend_trial(&mut self) -> bool {
        let (now, waits_until) = (Instant::now(), self.others_have_run_alone());
        let is_untold = self.telling_trial || self.lanes.iter().any(|lane| lane.tell_trial);
        let Some(alone) = &mut self.alone else { return false };
        match alone.until {
            Some(until) if now >= until => {
                self.end_alone();
                return false;
            }
            Some(_) => return true,
            None if waits_until.is_some_and(|at| now < at) || is_untold => return true,
            // If the worker dies from now on, this suspect is at fault, and no other job that the
            // worker holds in any queue.
            None if !alone.is_announced => {
                alone.is_announced = true;
                let own = alone.lane;
                let holders = self
                    .lanes
                    .iter_mut()
                    .enumerate()
                    .filter(|(n, lane)| *n == own || lane.holds() > 0);
                holders.for_each(|(_, lane)| lane.tell_trial = true);
                return true;
            }
            None => alone.until = Some(now + alone.time),
        }
        let lane = alone.lane;
        let Some((envelope, bytes)) = self.lanes[lane].suspect.take() else {
            self.end_alone();
            return false;
        };
        let id = envelope.id;
        self.start(lane, envelope, bytes);
        // `start` may have given the job up.
        if !self.running.contains_key(&id) {
            self.end_alone();
        }
        self.alone.is_some()
    }

    /// Returns the time at which every running job has run for as long as the suspect is to be
    /// alone. If the worker is alive then, none of them is at fault.
    fn others_have_run_alone(&self) -> Option<Instant> {
        let time = self.alone.as_ref()?.time;
        self.running.values().map(|running| running.since + time).max()
    }

    pub(super) fn trial_alarm(&self) -> Option<Instant> {
        // Nothing begins, so nothing waits for the end of the trial.
        if self.quiet.is_quiet() || self.terms.stopping.is_cancelled() {
            return None;
        }
        self.alone.as_ref()?.until.or_else(|| self.others_have_run_alone())
    }

    /// Ends the trial if this job was the one that ran alone, so that other jobs may begin.
    pub(super) fn end_trial(&mut self, id: JobId) {
        if self.alone.as_ref().is_some_and(|alone| alone.id == id) {
            self.end_alone();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_crash_makes_the_time_alone_longer() {
        let times: Vec<_> = (1..=6).map(|failed| time_alone(failed).as_millis()).collect();
        assert_eq!(times, [250, 1_000, 4_000, 16_000, 16_000, 16_000]);
        assert_eq!(time_alone(u16::MAX), LONGEST);
    }
}
