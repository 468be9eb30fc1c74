//! Ends of jobs that this worker holds: after an attempt, handed back, or cancelled; and how they
//! are stored.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::{Engine, Running};
use crate::batch::Member;
use crate::chain;
use crate::ended;
use crate::format::{Envelope, tag_of};
use crate::job::JobId;
use crate::outcome::{Blocked, Ending, Policy, Verdict};
use crate::push::Encoded;
use crate::result;
use crate::retry::RetryRules;
use crate::store::{CANCELLED, Destination, End, EndingJob, Entry, Settlement};
use crate::worker::death::Died;
use crate::worker::event::{self, Event, Outcome};
use crate::worker::queue_state::Ended;
use crate::worker::{CancelReason, LONGEST};

/// Delay after which a job that cannot be read is tried by another worker.
const UNFIT_AT_FIRST: Duration = Duration::from_millis(500);
const UNFIT_AT_MOST: Duration = Duration::from_mins(1);
/// Time for which the push of a job at a death is remembered, to reject duplicates.
const DEATH_REMEMBERED: Duration = Duration::from_hours(1);
/// Additional time after which this worker looks for that job, so that others look first.
const STEP_BACK: Duration = Duration::from_millis(1_500);

impl Engine {
    /// Records the end of an attempt, to be stored in the next round trip.
    pub(super) fn end(&mut self, id: JobId, ending: Ending) {
        let Some(Running { lane, name, run, plain, retry, withdrawn, since, .. }) =
            self.running.remove(&id)
        else {
            return;
        };
        // As it was fetched, or as its last checkpoint has stored it.
        let latest = run.take_latest();
        let bytes = latest.as_ref().unwrap_or(&run.bytes);
        self.end_trial(id);
        let number = lane;
        let lane = &mut self.lanes[lane];
        lane.running -= 1;
        lane.ended += 1;
        let label = ending.label();
        metrics::counter!(
            "scale_queue_jobs_total",
            "queue" => Arc::clone(&lane.name), "job" => name, "ending" => label,
        )
        .increment(1);
        let tag = tag_of(bytes).to_vec();
        if matches!(ending, Ending::Done) && plain && self.keep_ended.is_none() {
            lane.keep_done([tag], Instant::now());
            if !self.listeners.is_empty() {
                let envelope = Envelope::decode(bytes).ok();
                self.tell(number, envelope.as_ref(), since.elapsed(), || Outcome::Done);
            }
            return;
        }
        let Ok(mut envelope) = Envelope::decode(bytes) else { return };
        let (mut next, mut counts, mut waits_for, mut for_others) = (None, None, None, false);
        let mut notes = Vec::new();
        let skipped = matches!(ending, Ending::Skipped);
        let now_ms = self.store.now_ms();
        let options = &envelope.body.options;
        let no_rules = RetryRules::new();
        let policy = Policy {
            retry,
            rules: self.routes.find(&envelope.body.name).map_or(&no_rules, |route| &route.rules),
            failed: envelope.failed,
            by_rule: &options.by_rule,
            time_left: options
                .retry_until_ms
                .map(|until| Duration::from_millis(until.saturating_sub(now_ms))),
        };
        let verdict = ending.judged(&policy, fastrand::f64());
        self.tell(number, Some(&envelope), since.elapsed(), || {
            outcome_of(&verdict, skipped, withdrawn)
        });
        let lane = &mut self.lanes[number];
        let to = match verdict {
            Verdict::Done => {
                next = chain::next(&envelope, &*self.store).filter(|_| !skipped);
                if !skipped && result::is_kept(&envelope) {
                    let (result, encryption) = (run.take_result(), self.encryption.as_ref());
                    notes = result::notes_of_done(&envelope, result, encryption);
                }
                // Of a chain in a batch, the last job counts.
                if next.is_none() {
                    counts = Some(if skipped { End::Skipped } else { End::Done });
                }
                Destination::Done
            }
            Verdict::Expired => {
                tracing::warn!(
                    job = envelope.body.name, %id,
                    "a job has not begun before it expired; it is removed",
                );
                counts = Some(End::Dead);
                Destination::Removed
            }
            Verdict::HandBack if withdrawn => {
                counts = Some(End::Dead);
                notes.extend(result::note_of_death(&envelope, CANCELLED));
                next = self.after_death(number, &envelope, CANCELLED);
                let bytes = bytes.clone();
                Destination::Dead { bytes, reason: CANCELLED.into(), has_failed: false }
            }
            Verdict::HandBack => Destination::Waiting,
            Verdict::Defer(delay) => Destination::Deferred(None, delay.min(LONGEST)),
            Verdict::Block(Blocked { line, retry_in, pace, permits }) => {
                waits_for = permits;
                lane.look_by(Instant::now() + retry_in);
                Destination::Blocked { line, retry_in, pace }
            }
            Verdict::Unfit(reason) => {
                let since_ms = *envelope.body.extra.unfit_ms.get_or_insert(now_ms);
                let age = Duration::from_millis(now_ms.saturating_sub(since_ms));
                if age >= self.hand_back_for {
                    tracing::error!(
                        job = envelope.body.name,
                        %id,
                        reason,
                        "no worker could read the job in time; it is dead",
                    );
                    envelope.fail(&reason, now_ms);
                    counts = Some(End::Dead);
                    notes.extend(result::note_of_death(&envelope, &reason));
                    next = self.after_death(number, &envelope, &reason);
                    Destination::Dead { bytes: envelope.encode(), reason, has_failed: false }
                } else {
                    tracing::warn!(
                        job = envelope.body.name,
                        %id,
                        reason,
                        "the payload does not fit the job's type; the job is handed back",
                    );
                    envelope.body.last_error = Some(reason);
                    let delay = (age / 8)
                        .clamp(UNFIT_AT_FIRST, UNFIT_AT_MOST)
                        .mul_f64(0.5 + fastrand::f64());
                    for_others = true;
                    lane.step_back(Instant::now() + delay + STEP_BACK);
                    Destination::Deferred(Some(envelope.encode()), delay)
                }
            }
            Verdict::Retry { delay, reason, rule } => {
                tracing::warn!(
                    job = envelope.body.name,
                    %id,
                    attempt = envelope.failed + 1,
                    ?delay,
                    reason,
                    "an attempt failed; the job is retried after the delay",
                );
                envelope.fail(&reason, now_ms);
                if let Some(rule) = rule {
                    envelope.body.options.count_by_rule(rule);
                }
                envelope.body.last_error = Some(reason);
                envelope.suspect = false;
                Destination::Retry(envelope.encode(), delay.min(LONGEST))
            }
            Verdict::Dead { reason } => {
                tracing::error!(
                    job = envelope.body.name,
                    %id,
                    attempt = envelope.failed + 1,
                    reason,
                    "an attempt failed; the job is dead",
                );
                envelope.fail(&reason, now_ms);
                counts = Some(End::Dead);
                notes.extend(result::note_of_death(&envelope, &reason));
                next = self.after_death(number, &envelope, &reason);
                Destination::Dead { bytes: envelope.encode(), reason, has_failed: true }
            }
        };
        let kept = self.kept(&envelope, &to, skipped, since.elapsed());
        let counts = Member::of(&envelope).zip(counts);
        let group = envelope.body.options.group.clone();
        let settlement = Settlement { tag, unique: envelope.body.unique, group, to };
        self.lanes[number].settlements.push(Ended {
            settlement,
            next,
            counts,
            notes,
            kept,
            permits: waits_for,
            for_others,
        });
    }

    /// Returns the record of a job that is done or dead, if ended jobs are kept.
    fn kept(
        &self,
        job: &Envelope,
        to: &Destination,
        skipped: bool,
        took: Duration,
    ) -> Option<EndingJob> {
        let keep = self.keep_ended?;
        let reason = match to {
            Destination::Done if !skipped => None,
            Destination::Dead { reason, .. } => Some(&**reason),
            _ => return None,
        };
        ended::ending(keep, job, reason, took, &self.worker)
    }

    /// Returns the job that the application pushes at this death.
    fn after_death(&self, lane: usize, dead: &Envelope, reason: &str) -> Option<(String, Entry)> {
        let on_death = self.on_death.as_ref()?;
        let died = Died::of(&self.queue, &self.lanes[lane].name, dead, reason);
        // The function is the application's code: it may panic.
        let follow = std::panic::AssertUnwindSafe(|| on_death.0(&self.queue, &died));
        match std::panic::catch_unwind(follow) {
            Ok(Ok(follower)) => {
                let Encoded { queue, mut entry, .. } = follower?;
                entry.once = Some((format!("death:{}", dead.id), DEATH_REMEMBERED));
                Some((queue.into_owned(), entry))
            }
            Ok(Err(error)) => {
                tracing::error!(
                    %error, job = dead.body.name, id = %dead.id,
                    "the job that follows a death cannot be encoded; it is not pushed",
                );
                None
            }
            Err(_) => {
                tracing::error!(
                    job = dead.body.name, id = %dead.id,
                    "the function that handles a death panicked; no job is pushed",
                );
                None
            }
        }
    }

    /// Tells the listeners of the end of an attempt.
    pub(super) fn tell(
        &self,
        lane: usize,
        envelope: Option<&Envelope>,
        took: Duration,
        outcome: impl FnOnce() -> Outcome,
    ) {
        self.listeners.tell(|| {
            Event::Ended(event::Ended {
                id: envelope.map(|envelope| envelope.id),
                name: envelope.map(|envelope| envelope.body.name.clone()).unwrap_or_default(),
                queue: Arc::clone(&self.lanes[lane].name),
                attempt: envelope.map_or(0, |envelope| envelope.failed.saturating_add(1)),
                took,
                outcome: outcome(),
            })
        });
    }

    /// Hands back the jobs that have not begun.
    pub(super) fn hand_back(&mut self) {
        // Permits that were taken over are given back too, and a suspect that has not begun.
        self.held.clear();
        if self.alone.as_ref().is_some_and(|alone| !alone.has_begun()) {
            self.end_alone();
        }
        for lane in &mut self.lanes {
            for (envelope, bytes) in lane.take_ready().rev() {
                let tag = tag_of(&bytes).to_vec();
                lane.settlements.push(
                    Settlement {
                        tag,
                        unique: envelope.body.unique,
                        group: None,
                        to: Destination::Waiting,
                    }
                    .into(),
                );
            }
        }
    }

    /// Makes a job dead that is not to begin.
    pub(super) fn give_up(&mut self, lane: usize, bytes: Vec<u8>, reason: &str) {
        let (tag, envelope) = (tag_of(&bytes).to_vec(), Envelope::decode(&bytes).ok());
        self.tell(lane, envelope.as_ref(), Duration::ZERO, || Outcome::Dead {
            reason: reason.to_owned(),
        });
        let next = envelope.as_ref().and_then(|envelope| self.after_death(lane, envelope, reason));
        let note = envelope.as_ref().and_then(|envelope| result::note_of_death(envelope, reason));
        let counts = envelope.as_ref().and_then(Member::of).map(|member| (member, End::Dead));
        let to = Destination::Dead { bytes, reason: reason.into(), has_failed: false };
        let kept =
            envelope.as_ref().and_then(|envelope| self.kept(envelope, &to, false, Duration::ZERO));
        let group = envelope.as_ref().and_then(|envelope| envelope.body.options.group.clone());
        let unique = envelope.and_then(|envelope| envelope.body.unique);
        let settlement = Settlement { tag, unique, group, to };
        self.lanes[lane].settlements.push(Ended {
            settlement,
            next,
            counts,
            notes: note.into_iter().collect(),
            kept,
            permits: None,
            for_others: false,
        });
    }

    /// Cancels a job that this worker holds.
    pub(super) fn cancel(&mut self, tag: &[u8]) {
        if let Some(running) =
            self.running.values_mut().find(|running| tag_of(&running.run.bytes) == tag)
        {
            running.withdrawn = true;
            running.cancel.cancel(CancelReason::Requested);
        }
        for lane in 0..self.lanes.len() {
            for bytes in self.lanes[lane].retain(|bytes| tag_of(bytes) != tag) {
                self.drop_unused_permits();
                self.give_up(lane, bytes, CANCELLED);
            }
            if let Some((_, bytes)) =
                self.lanes[lane].suspect.take_if(|(_, bytes)| tag_of(bytes) == tag)
            {
                self.end_alone();
                self.give_up(lane, bytes, CANCELLED);
            }
        }
    }
}

/// Returns the consequence of a verdict, as listeners hear it.
fn outcome_of(verdict: &Verdict, skipped: bool, withdrawn: bool) -> Outcome {
    match verdict {
        Verdict::Done if skipped => Outcome::Skipped,
        Verdict::Done => Outcome::Done,
        Verdict::Expired => Outcome::Expired,
        Verdict::Retry { delay, reason, .. } => {
            Outcome::Retried { reason: reason.clone(), delay: *delay }
        }
        Verdict::Defer(delay) => Outcome::Deferred { delay: *delay },
        Verdict::Block(_) => Outcome::Blocked,
        Verdict::Dead { reason } => Outcome::Dead { reason: reason.clone() },
        Verdict::HandBack if withdrawn => Outcome::Dead { reason: CANCELLED.into() },
        Verdict::HandBack | Verdict::Unfit(_) => Outcome::HandedBack,
    }
}
