//! Which of several nodes: the power of two choices.
//!
//! Two nodes are drawn at random and the less loaded one is taken: almost as even as asking all, without the herd that "always the
//! least loaded" makes of many processes. (Mitzenmacher, *The Power of Two Choices in Randomized Load Balancing*, 2001; latency
//! weighing after Finagle's peak-EWMA.)

/// Draws a candidate; `cost` is in-flight work times latency, in any unit.
pub(crate) fn pick<T>(candidates: &[T], cost: impl Fn(&T) -> f64) -> Option<&T> {
    match candidates {
        [] => None,
        [one] => Some(one),
        [a, b] => Some(cheaper(a, b, cost)),
        many => {
            let first = fastrand::usize(..many.len());
            let other = (first + fastrand::usize(1..many.len())) % many.len();
            Some(cheaper(&many[first], &many[other], cost))
        }
    }
}

fn cheaper<'a, T>(a: &'a T, b: &'a T, cost: impl Fn(&T) -> f64) -> &'a T {
    match cost(a).total_cmp(&cost(b)) {
        std::cmp::Ordering::Less => a,
        std::cmp::Ordering::Greater => b,
        std::cmp::Ordering::Equal => fastrand::choice([a, b]).unwrap_or(a),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_busy_node_gets_less_and_an_idle_pair_shares() {
        let mut seen = [0_u32; 3];
        for _ in 0..3_000 {
            seen[*pick(&[0, 1, 2], |n| if *n == 2 { 100.0 } else { 1.0 }).unwrap()] += 1;
        }
        assert_eq!(seen[2], 0, "with two idle nodes a busy one never wins a pair");
        assert!(seen[0] > 1_000 && seen[1] > 1_000, "{seen:?}");
        assert_eq!(pick(&[] as &[u8], |_| 0.0), None);
    }
}
