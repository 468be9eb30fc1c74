//! Every interleaving of the breaker's atomics, with loom:
//!
//! ```text
//! RUSTFLAGS="--cfg loom" cargo test -p scale-common --release --test loom
//! ```
#![cfg(loom)]

use std::time::Duration;

use loom::sync::Arc;
use loom::thread;
use scale_common::circuit_breaker::{CircuitBreaker, Rules};

const PAUSE: u64 = 100;

fn breaker() -> Arc<CircuitBreaker> {
    let pause = Duration::from_nanos(PAUSE);
    Arc::new(CircuitBreaker::new(Rules { failures: 1, first_pause: pause, longest_pause: pause }))
}

#[test]
fn one_caller_tries_in_the_half_open_state() {
    loom::model(|| {
        let breaker = breaker();
        breaker.failed(0);
        let other = Arc::clone(&breaker);
        let theirs = thread::spawn(move || other.allows(PAUSE));
        let ours = breaker.allows(PAUSE);
        assert!(ours ^ theirs.join().unwrap());
    });
}

#[test]
fn a_success_closes_it_whatever_failed_at_the_same_time() {
    loom::model(|| {
        let breaker = breaker();
        let other = Arc::clone(&breaker);
        let failing = thread::spawn(move || other.failed(0));
        breaker.succeeded();
        failing.join().unwrap();
        assert!(breaker.allows(PAUSE), "closed, or half-open");
        breaker.succeeded();
        assert!(breaker.allows(PAUSE) && breaker.allows(PAUSE), "closed");
    });
}

#[test]
fn a_failure_opens_it_although_another_call_succeeds_half_way() {
    loom::model(|| {
        let breaker = breaker();
        breaker.failed(0);
        let other = Arc::clone(&breaker);
        let succeeding = thread::spawn(move || other.succeeded());
        breaker.failed(PAUSE);
        succeeding.join().unwrap();
        breaker.failed(2 * PAUSE);
        assert!(!breaker.allows(3 * PAUSE - 1) && breaker.allows(3 * PAUSE));
    });
}
