//! Round trips to the store: the next request, the processing of its answer, and fetched jobs.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use tokio::time::Instant;

use super::{Engine, LONGEST_LAST_PAUSE};
use crate::format::{Envelope, Unreadable, tag_of};
use crate::store::{CANCELLED, Destination, Settlement, Trial};
use crate::worker::CancelReason;
use crate::worker::admission::{PassedOn, TakenOver};
use crate::worker::event::{Event, Outcome};
use crate::worker::handler::Routes;
use crate::worker::queue_state::QueueState;
use crate::worker::round_trip::{Answer, Ask, round_trip};

/// Number of leases after which trouble with the store no longer keeps the worker from reclaiming
/// the jobs of dead workers.
const OUTAGE: u32 = 10;
/// Time after a failure of the store during which no jobs are reclaimed.
const CALM: Duration = Duration::from_secs(2);
/// Time for which an expired lease must be observed before its jobs are reclaimed.
const CONFIRM: Duration = Duration::from_millis(400);
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);
/// Largest and smallest limit on the bytes of one fetch.
pub(super) const MOST_BYTES: usize = 4 * 1024 * 1024;
const LEAST_BYTES: usize = 64 * 1024;
/// Time after which an answer is late: the next fetch is made smaller.
const LATE: Duration = Duration::from_millis(250);

impl Engine {
    /// Returns the next request to the store, if there is one.
    pub(super) fn next_ask(&mut self, stopping: bool) -> Option<Ask> {
        let now = Instant::now();
        if self.pause.is_some_and(|(until, _)| now < until) {
            return None;
        }
        let urgent = (0..self.lanes.len()).find(|n| {
            let lane = &self.lanes[*n];
            lane.is_urgent(now)
                || !stopping
                    && !self.quiet.is_quiet()
                    && lane.is_held_up()
                    && self.alone.is_none()
                    && self.slots.may_begin(&self.lanes, *n)
        });
        let lane = urgent.or_else(|| {
            if stopping || self.alone.is_some() || self.quiet.is_quiet() {
                None
            } else {
                self.slots.choose(&self.lanes, now, fastrand::f64())
            }
        });
        let lane = lane.or_else(|| {
            // Otherwise it is reported with the next fetch, or when the maximum delay is over.
            let news = self.lanes.iter().position(QueueState::has_news);
            news.filter(|_| stopping || self.quiet.is_quiet())
        })?;
        // While a job is tried alone, no other is taken.
        let takes = !stopping && self.alone.is_none() && !self.quiet.is_quiet();
        let looks = takes && self.lanes[lane].wants_look(now);
        let max = if looks { self.slots.portion(&self.lanes, lane, now) } else { 0 };
        let free =
            self.slots.concurrency.saturating_sub(self.lanes.iter().map(|lane| lane.running).sum());
        let trial = match &self.alone {
            Some(alone) if alone.lane == lane && alone.is_announced => {
                Trial::Running(*alone.id.bytes())
            }
            Some(alone) if alone.lane == lane => Trial::Waiting(*alone.id.bytes()),
            Some(alone) if alone.is_announced => Trial::Elsewhere,
            Some(_) => Trial::None,
            None if stopping || self.quiet.is_quiet() => Trial::None,
            None => Trial::Next,
        };
        let (max_bytes, unhandled_for) = (self.max_bytes, self.hand_back_for);
        let may_reclaim = self.may_reclaim(lane, now);
        let state = &mut self.lanes[lane];
        state.begin_look(now);
        self.telling_trial = std::mem::take(&mut state.tell_trial);
        Some(Ask {
            lane,
            queue: Arc::clone(&state.name),
            done: state.take_done(),
            settlements: std::mem::take(&mut state.settlements),
            doubtful: now - self.heard > self.lease / 2,
            may_reclaim,
            max,
            max_bytes,
            begins: free.saturating_sub(state.ready().len()),
            trial,
            lines: state.handler_lines.clone(),
            unhandled_for,
            unsure: std::mem::take(&mut state.unsure),
            missing: std::mem::take(&mut state.missing),
        })
    }

    /// Returns whether expired leases may be reclaimed. After an outage of the store, or a
    /// suspension of this machine, leases of live workers have expired too, so they get time to
    /// renew them. An outage that never ends is no longer treated as one.
    pub(super) fn may_reclaim(&self, lane: usize, now: Instant) -> bool {
        let is_calm = |(first, last)| {
            now - last >= self.lease.min(CALM) || now - first >= self.lease * OUTAGE
        };
        // An old observation does not count: a full worker has not looked since.
        let is_sure = |(first, last)| now - first >= CONFIRM && now - last < self.lease.max(CALM);
        self.trouble.is_none_or(is_calm) && self.lanes[lane].expired.is_some_and(is_sure)
    }

    /// Updates the store's health after a round trip.
    pub(super) fn note_health(&mut self, now: Instant, is_answered: bool) {
        if is_answered {
            self.heard = self.last_round_trip;
        }
        if !is_answered || now - self.last_round_trip > self.lease {
            let goes_on = |(_, last): &(Instant, Instant)| {
                self.last_round_trip - *last < self.lease.max(CALM)
            };
            let first = self.trouble.filter(goes_on).map_or(now, |(first, _)| first);
            self.trouble = Some((first, now));
        }
    }

    /// Returns the time before which the store is not called again after a failure, and the length
    /// of the pause.
    pub(super) fn longer_pause(&self, now: Instant) -> (Instant, Duration) {
        let longest =
            if self.terms.stopping.is_cancelled() { LONGEST_LAST_PAUSE } else { LONGEST_PAUSE };
        let wait = self.pause.map_or(FIRST_PAUSE, |(_, last)| (last * 2).min(longest));
        (now + wait.mul_f64(0.5 + fastrand::f64() / 2.0), wait)
    }

    pub(super) fn round_trip(&mut self, ask: Ask) -> BoxFuture<'static, Answer> {
        self.last_round_trip = Instant::now();
        self.taken_since.clear();
        self.lanes.iter_mut().for_each(|lane| lane.ended = 0);
        Box::pin(round_trip(Arc::clone(&self.store), self.worker.clone(), self.lease, ask))
    }

    /// Processes the answer of a round trip.
    pub(super) fn learn(&mut self, answer: Answer) {
        let Answer { ask, held, found, fetched, refused, settle_failed } = answer;
        let now = Instant::now();
        let took = now - self.last_round_trip;
        self.note_health(now, fetched.is_ok());
        if fetched.is_err() && self.telling_trial {
            self.lanes[ask.lane].tell_trial = true;
        }
        self.telling_trial = false;
        self.slots.look_ahead(&mut self.lanes);
        metrics::histogram!("scale_queue_round_trip_seconds").record(took.as_secs_f64());
        if let Some(held) = held {
            self.reconcile(ask.lane, held, &ask.done);
        }
        match found {
            Some(found) => self.take_missing(ask.lane, ask.missing, found),
            None => self.lanes[ask.lane].missing.extend(ask.missing),
        }
        let ready = self.lanes[ask.lane].ready().len();
        let longer_pause = self.longer_pause(now);
        let lane = &mut self.lanes[ask.lane];
        lane.settlements.extend(ask.settlements);
        let (mut fenced, total) = (refused, ask.done.len());
        match fetched {
            Ok(fetched) => {
                self.pause = match self.pause {
                    _ if settle_failed => Some(longer_pause),
                    // The store has answered which jobs are held; whether it can lease more is not
                    // known yet.
                    Some((_, wait)) if ask.unsure => Some((now, wait)),
                    _ => None,
                };
                lane.unsure |= settle_failed && ask.unsure;
                fenced += total.saturating_sub(fetched.acknowledged);
                // Jobs that were here before this answer may begin.
                lane.cleared = ready;
                if ask.max > 0 && fetched.expired.is_some() {
                    let known = lane
                        .expired
                        .filter(|(_, last)| self.last_round_trip - *last < self.lease.max(CALM));
                    lane.expired = Some((known.map_or(now, |(first, _)| first), now));
                    lane.look_by(now + CONFIRM);
                } else if ask.max > 0 {
                    lane.expired = None;
                }
                if ask.max > 0 {
                    lane.handler_lines = fetched
                        .lines
                        .into_iter()
                        .filter(|line| handles(&self.routes, line))
                        .collect();
                    if fetched.armed && lane.handler_lines.is_empty() {
                        lane.arm(fetched.look_again, now, fastrand::f64());
                    } else {
                        lane.disarm();
                    }
                    self.max_bytes =
                        adapted(self.max_bytes, took, fetched.jobs.iter().map(Vec::len).sum());
                }
                for bytes in fetched.jobs {
                    let tag = tag_of(&bytes);
                    if fetched.cancelled.iter().any(|known| known == tag) {
                        self.give_up(ask.lane, bytes, CANCELLED);
                    } else if fetched.overdue.iter().any(|known| known == tag) {
                        let reason =
                            format!("no worker could handle it within {:?}", self.hand_back_for);
                        self.give_up(ask.lane, bytes, &reason);
                    } else {
                        self.take(ask.lane, bytes, fetched.suspect);
                    }
                }
                let lane = &mut self.lanes[ask.lane];
                lane.cleared = lane.ready().len().min(ready + ask.begins);
                self.pass_wake_on(ask.lane);
            }
            Err(error) => {
                lane.keep_done(ask.done, now);
                // The store may have leased jobs before it failed.
                lane.unsure |= ask.max > 0 || ask.unsure;
                lane.disarm();
                self.max_bytes = (self.max_bytes / 2).max(LEAST_BYTES);
                self.pause = Some(longer_pause);
                tracing::warn!(
                    %error, queue = &*ask.queue, "the queue's store failed; the worker tries again",
                );
                metrics::counter!("scale_queue_store_errors_total").increment(1);
            }
        }
        if fenced > 0 {
            metrics::counter!("scale_queue_fenced_total").increment(fenced as u64);
        }
    }

    pub(super) fn take(&mut self, lane: usize, bytes: Vec<u8>, is_suspect: bool) {
        let line = match Envelope::decode(&bytes) {
            // Lost and leased again to this worker while the job is still here: it must not run
            // twice.
            Ok(envelope) if self.is_here(&envelope.id) => return,
            Ok(envelope) if self.routes.handles(&envelope.body.name) => {
                // A suspect that was in a limit's line arrives without the flag of the fetch.
                if is_suspect || envelope.suspect {
                    return self.try_alone(lane, envelope, bytes, is_suspect);
                }
                return self.lanes[lane].push(envelope, bytes);
            }
            Ok(envelope) => format!("kind:{}", envelope.body.name),
            Err(Unreadable::Version(version)) => format!("format:{version}"),
            Err(Unreadable::Newer) => "format:newer".to_owned(),
            Err(reason) => {
                tracing::error!(%reason, "a job cannot be decoded; it is dead");
                self.tell(lane, None, Duration::ZERO, || Outcome::Dead {
                    reason: reason.to_string(),
                });
                let tag = tag_of(&bytes).to_vec();
                let to = Destination::Dead { bytes, reason: reason.to_string(), has_failed: false };
                let settlement = Settlement { tag, unique: None, group: None, to };
                self.lanes[lane].settlements.push(settlement.into());
                return;
            }
        };
        if self.hand_back_for.is_zero() {
            return self.give_up(lane, bytes, &format!("no handler for `{line}` on this worker"));
        }
        tracing::warn!(
            line,
            "no handler for a job on this worker; the job waits for a worker that can handle it",
        );
        metrics::counter!(
            "scale_queue_unhandled_total", "queue" => Arc::clone(&self.lanes[lane].name),
        )
        .increment(1);
        let queue = Arc::clone(&self.lanes[lane].name);
        self.listeners.tell(|| Event::Unhandled { queue, line: line.clone() });
        let settlement = Settlement {
            tag: tag_of(&bytes).to_vec(),
            unique: None,
            group: None,
            to: Destination::Unhandled(line),
        };
        self.lanes[lane].settlements.push(settlement.into());
    }

    /// Adds a job that was next in line when a job of this worker ended, in front of all others:
    /// for the store it has begun.
    pub(super) fn take_over(&mut self, hand_over: PassedOn) {
        let TakenOver { queue, bytes, permit } = match hand_over {
            PassedOn::Job(job) => job,
            PassedOn::Unknown(queues) => {
                let lanes = self
                    .lanes
                    .iter_mut()
                    .filter(|lane| queues.iter().any(|queue| **queue == *lane.name));
                return lanes.for_each(|lane| lane.unsure = true);
            }
        };
        let Some(lane) = self.lanes.iter().position(|lane| *lane.name == *queue) else { return };
        self.taken_since.insert(tag_of(&bytes).to_vec());
        match Envelope::decode(&bytes) {
            Ok(envelope)
                if self.routes.handles(&envelope.body.name)
                    && !self.running.contains_key(&envelope.id) =>
            {
                permit.and_then(|held| self.held.insert(envelope.id, held));
                if envelope.suspect {
                    self.try_alone(lane, envelope, bytes, false);
                    // Another suspect is being tried: the permit is given back.
                    return self.drop_unused_permits();
                }
                self.lanes[lane].push_first(envelope, bytes);
            }
            // The permit is given back.
            _ => self.take(lane, bytes, false),
        }
    }

    /// Corrects the set of held jobs by the store's answer.
    pub(super) fn reconcile(&mut self, lane: usize, held: Vec<Vec<u8>>, told: &[Vec<u8>]) {
        let since = std::mem::take(&mut self.taken_since);
        let theirs: HashSet<&[u8]> = held.iter().chain(&since).map(Vec::as_slice).collect();
        self.lanes[lane].retain(|bytes| theirs.contains(tag_of(bytes)));
        self.drop_unused_permits();
        for running in self
            .running
            .values()
            .filter(|r| r.lane == lane && !theirs.contains(tag_of(&r.run.bytes)))
        {
            running.cancel.cancel(CancelReason::LeaseLost);
        }
        let known = &mut self.lanes[lane];
        if known.suspect.as_ref().is_some_and(|(_, bytes)| !theirs.contains(tag_of(bytes))) {
            known.suspect = None;
            self.end_alone();
        }
        let known = &self.lanes[lane];
        let ours: HashSet<Vec<u8>> = known
            .ready()
            .iter()
            .chain(&known.suspect)
            .map(|(_, bytes)| tag_of(bytes).to_vec())
            .chain(self.running.values().map(|r| tag_of(&r.run.bytes).to_vec()))
            .chain(known.settlements.iter().map(|ended| ended.settlement.tag.clone()))
            .chain(known.done().iter().chain(told).cloned())
            .collect();
        self.lanes[lane].missing = held.into_iter().filter(|tag| !ours.contains(tag)).collect();
    }

    /// Gives back permits that were taken over for jobs which are not here any more.
    pub(super) fn drop_unused_permits(&mut self) {
        let lanes = &self.lanes;
        self.held.retain(|id, _| lanes.iter().any(|lane| lane.has(id)));
    }

    /// Adds jobs that were leased to this worker without its knowledge. Those that did not fit into
    /// the answer are requested in the next round trip.
    pub(super) fn take_missing(&mut self, lane: usize, asked: Vec<Vec<u8>>, found: Vec<Vec<u8>>) {
        if !found.is_empty() {
            let got: HashSet<Vec<u8>> = found.iter().map(|bytes| tag_of(bytes).to_vec()).collect();
            self.lanes[lane].missing.extend(asked.into_iter().filter(|tag| !got.contains(tag)));
        }
        for bytes in found {
            self.take(lane, bytes, false);
        }
    }
}

/// Returns whether this worker can handle jobs of that line.
pub(super) fn handles(routes: &Routes, line: &str) -> bool {
    match line.split_once(':') {
        Some(("kind", name)) => routes.handles(name),
        Some(("format", version)) => {
            version.parse().is_ok_and(|version: u8| Envelope::can_read(version))
        }
        _ => false,
    }
}

/// Adapts the byte limit of the next fetch to the duration and size of the last one.
pub(super) fn adapted(max_bytes: usize, took: Duration, got: usize) -> usize {
    if took > LATE && got > LEAST_BYTES {
        (max_bytes.min(got) / 2).max(LEAST_BYTES)
    } else if took < LATE / 2 {
        (max_bytes + max_bytes / 4).min(MOST_BYTES)
    } else {
        max_bytes
    }
}
