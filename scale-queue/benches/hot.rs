//! A push to the memory store: the part of any push that this crate costs. `cargo bench -p
//! scale-queue`
#![allow(missing_docs)]

use divan::{AllocProfiler, Bencher};
use scale_queue::{Job, Queue};
use serde::{Deserialize, Serialize};

#[global_allocator]
static ALLOCATIONS: AllocProfiler = AllocProfiler::system();

fn main() {
    divan::main();
}

#[derive(Clone, Serialize, Deserialize)]
struct Small {
    n: usize,
    text: String,
}

impl Job for Small {
    const NAME: &'static str = "small";
}

fn jobs(count: usize) -> Vec<Small> {
    (0..count)
        .map(|n| Small {
            n,
            text: "a payload of about a hundred bytes, which is what most jobs carry around".into(),
        })
        .collect()
}

/// Benchmarks pushes of `count` jobs at the same time.
#[divan::bench(args = [1, 1_000])]
fn push_many(bencher: Bencher<'_, '_>, count: usize) {
    let Ok(runtime) = tokio::runtime::Builder::new_current_thread().enable_all().build() else {
        return;
    };
    bencher
        .with_inputs(|| (Queue::memory(), jobs(count)))
        .counter(divan::counter::ItemsCount::new(count))
        .bench_values(|(queue, jobs)| runtime.block_on(queue.push_many(jobs)));
}
