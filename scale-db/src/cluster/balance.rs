//! Choice among several nodes: two are drawn, and the one with less load is more likely chosen.
//!
//! Drawing two and comparing them balances almost as well as comparing all (Mitzenmacher, *The
//! Power of Two Choices in Randomized Load Balancing*, 2001; weighing by latency after Finagle's
//! peak-EWMA). Each node of the pair is chosen with a probability inverse to its cost, instead of
//! always choosing the cheaper one. With two replicas, "always" would send the whole fleet to one
//! of them, and would never try again a node that was slow once.

/// Draws a candidate; `cost` is the number of running statements times latency, in any unit.
pub(crate) fn pick<T>(candidates: &[T], cost: impl Fn(&T) -> f64) -> Option<&T> {
    match candidates {
        [] => None,
        [one] => Some(one),
        [a, b] => Some(likelier(a, b, cost)),
        many => {
            let first = fastrand::usize(..many.len());
            let other = (first + fastrand::usize(1..many.len())) % many.len();
            Some(likelier(&many[first], &many[other], cost))
        }
    }
}

fn likelier<'a, T>(a: &'a T, b: &'a T, cost: impl Fn(&T) -> f64) -> &'a T {
    let (of_a, of_b) = (cost(a), cost(b));
    if fastrand::f64() * (of_a + of_b) < of_b { a } else { b }
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
        assert!(seen[2] < 100, "a hundredth in each pair it is drawn into: {seen:?}");
        assert!(seen[0] > 1_200 && seen[1] > 1_200, "{seen:?}");
        assert_eq!(pick(&[] as &[u8], |_| 0.0), None);
    }
}
