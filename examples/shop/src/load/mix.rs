//! Visits: their kinds, and how often each happens.
//!
//! | of 100 requests | what |
//! | --- | --- |
//! | 70 | a page of the catalogue: products, categories, the next page |
//! | 15 | a search |
//! | 4 | the cart is shown, or something is put into it |
//! | 8 | a purchase: something into the cart, the cart, the checkout, the order's page |
//! | 2.8 | staff: products, prices, orders, queues |
//! | 0.2 | a log-in |
//!
//! Shares by kind: browse 72 (with the orders' pages), search 15, cart 8, checkout 2.

use std::time::Duration;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Mix {
    Browse,
    Search,
    Cart,
    /// Four requests.
    Purchase,
    Staff,
    LogIn,
}

/// Shares of the visits, of which a purchase has four requests.
const SHARES: [(Mix, f64); 6] = [
    (Mix::Browse, 70.0),
    (Mix::Search, 15.0),
    (Mix::Cart, 4.0),
    (Mix::Purchase, 2.0),
    (Mix::Staff, 2.8),
    (Mix::LogIn, 0.2),
];
/// Requests of that many visits.
const REQUESTS: f64 = 100.0;

/// A visit, and the moment at which it arrives.
#[derive(Clone, Copy, Debug)]
pub(super) struct Arrival {
    pub(super) at: Duration,
    pub(super) what: Mix,
}

/// Returns arrivals of that many requests per second: independent of each other (a Poisson
/// process), so that there are bursts and pauses.
pub(super) fn arrivals(rate: u32, time: Duration, random: &mut fastrand::Rng) -> Vec<Arrival> {
    let all: f64 = SHARES.iter().map(|(_, share)| share).sum();
    let gap = REQUESTS / all / f64::from(rate);
    let (mut at, mut arrivals) = (0.0, Vec::new());
    loop {
        at -= gap * (1.0 - random.f64()).ln();
        if at >= time.as_secs_f64() {
            return arrivals;
        }
        let mut point = random.f64() * all;
        let kind = SHARES.iter().find(|(_, share)| {
            point -= share;
            point < 0.0
        });
        let what = kind.map_or(Mix::Browse, |(what, _)| *what);
        arrivals.push(Arrival { at: Duration::from_secs_f64(at), what });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arrivals_are_as_many_as_said_in_the_shares_said() {
        let time = Duration::from_secs(100);
        let all = arrivals(1_000, time, &mut fastrand::Rng::with_seed(7));
        let count = |kind: Mix| all.iter().filter(|a| a.what == kind).count() as f64;
        let requests = all.len() as f64 + 3.0 * count(Mix::Purchase);
        assert!((requests / 100_000.0 - 1.0).abs() < 0.02, "{requests}");
        for (kind, share) in SHARES {
            let off = count(kind) / (1_000.0 * share) - 1.0;
            assert!(off.abs() < 0.15, "{kind:?}: {off}");
        }
        assert!(all.is_sorted_by_key(|a| a.at) && all.iter().all(|a| a.at < time));
        let again = arrivals(1_000, time, &mut fastrand::Rng::with_seed(7));
        assert!(all.iter().zip(&again).all(|(a, b)| a.at == b.at && a.what == b.what));
    }
}
