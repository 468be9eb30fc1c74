//! Checks in process, by algorithm. `cargo bench -p scale-limit`
#![allow(missing_docs)]

use divan::{AllocProfiler, Bencher, black_box};
use futures_util::FutureExt;
use scale_limit::policy::Algorithm;
use scale_limit::{Limiter, Policy};

#[global_allocator]
static ALLOCATIONS: AllocProfiler = AllocProfiler::system();

fn main() {
    divan::main();
}

const ALGORITHMS: [Algorithm; 3] =
    [Algorithm::Gcra, Algorithm::SlidingWindow, Algorithm::FixedWindow];

#[divan::bench(args = ALGORITHMS)]
fn check(bencher: Bencher<'_, '_>, algorithm: Algorithm) {
    let (limiter, policy) =
        (Limiter::memory(), Policy::per_second("hot", 1_000_000_000).algorithm(algorithm));
    bencher.bench(|| limiter.check(&policy, black_box("203.0.113.7")).now_or_never());
}

/// Benchmarks one key from two threads at once.
#[divan::bench(threads = [1, 2])]
fn check_by_many(bencher: Bencher<'_, '_>) {
    let (limiter, policy) = (Limiter::memory(), Policy::per_second("hot", 1_000_000_000));
    bencher.bench(|| limiter.check(&policy, black_box("203.0.113.7")).now_or_never());
}

#[divan::bench]
fn check_three(bencher: Bencher<'_, '_>) {
    let policies = ["a", "b", "c"].map(|name| Policy::per_second(name, 1_000_000_000));
    let limiter = Limiter::memory();
    bencher.bench(|| {
        let [a, b, c] = &policies;
        limiter
            .check_all(&[(a, "203.0.113.7", 1), (b, "somebody", 1), (c, "everybody", 1)])
            .now_or_never()
    });
}
