//! Distribution of a worker's slots among its queues. Pure: the engine calls the store.

use tokio::time::Instant;

use super::Order;
use super::queue_state::QueueState;

/// Maximum number of jobs of a queue leased beyond those that can run at once.
const MOST_AHEAD: usize = 1_000;

#[derive(Debug)]
pub(super) struct Slots {
    pub(super) order: Order,
    /// Number of jobs that run at a time.
    pub(super) concurrency: usize,
}

impl Slots {
    /// Returns the queue whose next job begins.
    pub(super) fn next(&self, lanes: &[QueueState]) -> Option<usize> {
        let mut able =
            (0..lanes.len()).filter(|n| lanes[*n].cleared > 0 && self.may_begin(lanes, *n));
        match self.order {
            Order::Strict => able.next(),
            Order::Weighted | Order::Balanced => {
                let now = Instant::now();
                let filled = |n: &usize| lanes[*n].running as f64 / self.share(lanes, *n, now);
                able.map(|n| (n, filled(&n)))
                    .filter(|(_, filled)| *filled < 1.0)
                    .min_by(|(_, a), (_, b)| a.total_cmp(b))
                    .map(|(n, _)| n)
            }
        }
    }

    /// Returns whether one more job of the queue leaves the slots that are kept for the others.
    pub(super) fn may_begin(&self, lanes: &[QueueState], lane: usize) -> bool {
        let taken: usize = lanes
            .iter()
            .enumerate()
            .map(|(n, l)| if n == lane { l.running } else { l.running.max(l.least) })
            .sum();
        lanes[lane].running < lanes[lane].most && taken < self.concurrency
    }

    /// Sets how many jobs are prefetched: twice the number that ended during the last round trip,
    /// or none if those were few compared with the queue's slots.
    pub(super) fn look_ahead(&self, lanes: &mut [QueueState]) {
        let weights: usize = lanes.iter().map(|lane| lane.weight as usize).sum();
        for lane in lanes {
            let share = match self.order {
                Order::Strict => self.concurrency,
                Order::Weighted | Order::Balanced => {
                    self.concurrency * lane.weight as usize / weights
                }
            };
            let ended = std::mem::take(&mut lane.ended);
            lane.ahead =
                if ended > share.min(lane.most) / 4 { (ended * 2).min(MOST_AHEAD) } else { 0 };
        }
    }

    /// Returns how many more jobs of the queue may be leased.
    pub(super) fn room(&self, lanes: &[QueueState], lane: usize) -> usize {
        let ahead: usize = lanes.iter().map(|lane| lane.ahead).sum();
        let taken: usize = lanes
            .iter()
            .enumerate()
            .map(|(n, l)| if n == lane { l.held() } else { l.held().max(l.least) })
            .sum();
        (self.concurrency + ahead)
            .saturating_sub(taken)
            .min(self.most(&lanes[lane]).saturating_sub(lanes[lane].held()))
    }

    /// Returns how many jobs of the queue may be leased in total.
    fn most(&self, lane: &QueueState) -> usize {
        lane.most.min(self.concurrency) + lane.ahead
    }

    /// Returns whether the worker needs jobs: a slot is free, or no leased job may begin.
    pub(super) fn starved(&self, lanes: &[QueueState]) -> bool {
        lanes.iter().map(|l| l.running).sum::<usize>() < self.concurrency
            || lanes.iter().all(|lane| lane.cleared == 0)
    }

    /// Returns the queue to fetch from next.
    pub(super) fn choose(&self, lanes: &[QueueState], now: Instant, dice: f64) -> Option<usize> {
        let starved = self.starved(lanes);
        // Room for a few jobs is not worth a round trip while there are jobs to run.
        let worth = |n: &usize| {
            let (lane, room) = (&lanes[*n], self.room(lanes, *n));
            lane.wants_look(now)
                && room > 0
                && (starved && lane.cleared == 0 || room * 2 >= self.most(lane))
        };
        let mut open = (0..lanes.len()).filter(worth);
        if self.order == Order::Strict {
            return open.next();
        }
        let open: Vec<(usize, f64)> = open.map(|n| (n, self.short(lanes, n, now))).collect();
        // A queue's expected jobs = probability of being drawn × portion = its deficit.
        let chance = |short: f64| if short > 0.0 { short / short.ceil() } else { 0.0 };
        let mut left = dice * open.iter().map(|(_, short)| chance(*short)).sum::<f64>();
        let drawn = open.iter().find(|(_, short)| {
            left -= chance(*short);
            left < 0.0
        });
        drawn.map(|(n, _)| *n)
    }

    /// Returns how many jobs to ask the queue for.
    pub(super) fn portion(&self, lanes: &[QueueState], lane: usize, now: Instant) -> usize {
        let room = self.room(lanes, lane);
        match self.order {
            // A queue visited only to acknowledge jobs must not bypass the priority order.
            Order::Strict if (0..lane).any(|earlier| self.is_open(lanes, earlier, now)) => 0,
            Order::Strict => room,
            Order::Weighted | Order::Balanced => {
                room.min(self.short(lanes, lane, now).ceil() as usize)
            }
        }
    }

    /// Returns whether the queue may have jobs, and there is room for them.
    fn is_open(&self, lanes: &[QueueState], lane: usize, now: Instant) -> bool {
        lanes[lane].wants_look(now) && self.room(lanes, lane) > 0
    }

    /// Returns the queue's deficit: its share plus prefetch, minus the jobs it holds.
    fn short(&self, lanes: &[QueueState], lane: usize, now: Instant) -> f64 {
        (self.share(lanes, lane, now) + lanes[lane].ahead as f64 - lanes[lane].held() as f64)
            .max(0.0)
    }

    /// Returns the queue's share, by weight, of the slots of all queues that may have jobs. The
    /// part of a share above a queue's maximum goes to the others.
    fn share(&self, lanes: &[QueueState], lane: usize, now: Instant) -> f64 {
        let has = |n: usize| n == lane || !lanes[n].ready().is_empty() || lanes[n].wants_look(now);
        let others = (0..lanes.len())
            .filter(|n| !has(*n))
            .map(|n| lanes[n].running.max(lanes[n].least))
            .sum();
        let places = self.concurrency.saturating_sub(others);
        // Slots per unit of weight; it grows as queues turn out to be at their maximum.
        let mut level = 0.0;
        loop {
            let (mut left, mut weights) = (places as f64, 0.0);
            for bounded in (0..lanes.len()).filter(|n| has(*n)) {
                let (most, weight) = (lanes[bounded].most as f64, f64::from(lanes[bounded].weight));
                if most < level * weight { left -= most } else { weights += weight }
            }
            let next = if weights > 0.0 { left / weights } else { level };
            if next <= level {
                break;
            }
            level = next;
        }
        (level * f64::from(lanes[lane].weight)).min(lanes[lane].most as f64)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::format::{Body, Envelope};
    use crate::job::{JobId, Priority};

    fn lanes(weights: &[(&str, u32)]) -> Vec<QueueState> {
        weights
            .iter()
            .map(|(name, weight)| QueueState::new(name, *weight, Instant::now()))
            .collect()
    }

    fn places(order: Order, concurrency: usize) -> Slots {
        Slots { order, concurrency }
    }

    fn job() -> Envelope {
        Envelope {
            id: JobId::new(),
            failed: 0,
            suspect: false,
            pushed_ms: 0,
            priority: Priority::Normal,
            group: None,
            body: Body::default(),
        }
    }

    /// Returns how many jobs of each queue run once all slots are used, if every queue always has
    /// jobs.
    fn filled(places: &Slots, mut lanes: Vec<QueueState>) -> Vec<usize> {
        let now = Instant::now();
        while let Some(n) = places.choose(&lanes, now, fastrand::f64()) {
            let portion = places.portion(&lanes, n, now);
            assert!(portion > 0, "{lanes:?}");
            lanes[n].running += portion;
        }
        lanes.iter().map(|lane| lane.running).collect()
    }

    #[tokio::test]
    async fn strict_takes_the_first_that_may_have_something() {
        let (places, mut lanes, now) =
            (places(Order::Strict, 4), lanes(&[("high", 1), ("low", 1)]), Instant::now());
        assert_eq!(places.choose(&lanes, now, 0.9), Some(0));
        assert_eq!((places.portion(&lanes, 0, now), places.portion(&lanes, 1, now)), (4, 0));
        lanes[0].arm(None, now, 0.0);
        assert_eq!((places.choose(&lanes, now, 0.0), places.portion(&lanes, 1, now)), (Some(1), 4));
        lanes[1].arm(Some(Duration::from_secs(1)), now, 0.0);
        assert_eq!(places.choose(&lanes, now, 0.0), None);
        assert_eq!(
            places.choose(&lanes, now + Duration::from_secs(1), 0.0),
            Some(1),
            "its alarm rings"
        );
        assert_eq!(
            places.choose(&lanes, now + Duration::from_secs(40), 0.0),
            Some(0),
            "the longest delay after a lost wake-up"
        );
    }

    #[tokio::test]
    async fn weights_are_shares_of_the_places() {
        for _ in 0..20 {
            assert_eq!(
                filled(&places(Order::Weighted, 10), lanes(&[("high", 7), ("low", 3)])),
                [7, 3]
            );
        }
        assert_eq!(filled(&places(Order::Weighted, 10), lanes(&[("only", 1)])), [10]);
        let mut quiet = lanes(&[("high", 7), ("low", 3)]);
        quiet[0].arm(None, Instant::now(), 0.0);
        assert_eq!(
            filled(&places(Order::Weighted, 10), quiet),
            [0, 10],
            "the slots of a queue without jobs are used by the others"
        );
    }

    #[tokio::test]
    async fn where_every_job_is_done_at_once_shares_are_those_of_jobs_and_nobody_starves() {
        for concurrency in [1, 2, 3, 10, 100] {
            let (places, lanes, now) = (
                places(Order::Weighted, concurrency),
                lanes(&[("high", 9), ("low", 1)]),
                Instant::now(),
            );
            let mut jobs = [0; 2];
            for n in 0..10_000 {
                let lane = places.choose(&lanes, now, f64::from(n) / 10_000.0).unwrap();
                jobs[lane] += places.portion(&lanes, lane, now);
            }
            let share = jobs[1] as f64 / (jobs[0] + jobs[1]) as f64;
            assert!((0.09..0.11).contains(&share), "{jobs:?} of {concurrency} at a time");
        }
    }

    #[tokio::test]
    async fn a_queue_has_no_more_than_its_most_and_no_less_than_its_least() {
        let limited = |order| {
            let mut lanes = lanes(&[("flood", 1_000), ("narrow", 1), ("quiet", 1)]);
            lanes[1].most = 2;
            lanes[2].least = 3;
            lanes[2].arm(None, Instant::now(), 0.0);
            filled(&places(order, 10), lanes)
        };
        assert_eq!(limited(Order::Strict), [7, 0, 0], "three are kept for the quiet one");
        assert_eq!(limited(Order::Weighted)[2], 0);
        let mut lanes = lanes(&[("narrow", 1), ("other", 1)]);
        lanes[0].most = 2;
        for order in [Order::Strict, Order::Weighted, Order::Balanced] {
            let mut lanes = self::lanes(&[("narrow", 9), ("other", 1)]);
            lanes[0].most = 2;
            assert_eq!(filled(&places(order, 10), lanes), [2, 8], "{order:?}");
        }
        // Prefetched jobs begin within the same bounds.
        lanes[1].least = 9;
        let held = |lane: &mut QueueState, count| {
            (0..count).for_each(|_| lane.push(job(), Vec::new()));
            lane.cleared = count;
        };
        held(&mut lanes[0], 3);
        let places = places(Order::Strict, 10);
        assert_eq!(places.next(&lanes), Some(0));
        lanes[0].running = 1;
        assert_eq!(places.next(&lanes), None, "nine are kept");
        held(&mut lanes[1], 9);
        assert_eq!(places.next(&lanes), Some(1));
    }
}
