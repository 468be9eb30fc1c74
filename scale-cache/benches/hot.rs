//! Cost of a hit in the first level, and of an invalidation. `cargo bench -p scale-cache`
#![allow(missing_docs)]

use std::future::ready;
use std::time::Duration;

use divan::{AllocProfiler, Bencher, black_box};
use futures_util::FutureExt;
use scale_cache::{Cache, Options, Space};

#[global_allocator]
static ALLOCATIONS: AllocProfiler = AllocProfiler::system();

fn main() {
    divan::main();
}

fn filled(cache: &Cache, options: Options) -> Space<String> {
    let space = cache.space::<String>("hot").options(options);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    for n in 0..1_000 {
        let load = space.get_or_load(n, |_| ready(Ok::<_, std::io::Error>("a value".to_owned())));
        assert!(runtime.as_ref().is_ok_and(|runtime| runtime.block_on(load).is_ok()));
    }
    space
}

/// Benchmarks a hit of an entry that carries `tags` tags.
#[divan::bench(args = [0, 3, 30])]
fn hit(bencher: Bencher<'_, '_>, tags: usize) {
    let tags: Vec<String> = (0..tags).map(|n| format!("tag{n}")).collect();
    let space = filled(&Cache::memory(), Options::ttl(Duration::from_hours(1)).tags(tags));
    bencher.bench(|| space.get(black_box(7)).now_or_never());
}

/// Benchmarks a hit from two threads at once.
#[divan::bench(threads = [1, 2])]
fn hit_by_many(bencher: Bencher<'_, '_>) {
    let space = filled(&Cache::memory(), Options::ttl(Duration::from_hours(1)));
    bencher.bench(|| space.get(black_box(7)).now_or_never());
}

#[divan::bench]
fn invalidate(bencher: Bencher<'_, '_>) {
    let cache = Cache::memory();
    bencher.bench(|| cache.invalidate_tags([black_box("product:7")]).now_or_never());
}
