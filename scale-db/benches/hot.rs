//! Cost before each statement: the router's verdict. `cargo bench -p scale-db`
#![allow(missing_docs)]

use divan::{AllocProfiler, Bencher, black_box};
use scale_db::Dialect;
use scale_db::router::Router;

#[global_allocator]
static ALLOCATIONS: AllocProfiler = AllocProfiler::system();

fn main() {
    divan::main();
}

const READ: &str = "select id, title, price from products where category = $1 and price < $2 \
    order by price limit 20";

/// A known statement: a lookup in a table.
#[divan::bench(threads = [1, 2])]
fn known(bencher: Bencher<'_, '_>) {
    let router = Router::new(Dialect::Postgres, [""; 0]);
    router.verdict(READ);
    bencher.bench(|| router.verdict(black_box(READ)));
}

/// A new statement: it is parsed.
#[divan::bench]
fn new(bencher: Bencher<'_, '_>) {
    bencher
        .with_inputs(|| Router::new(Dialect::Postgres, [""; 0]))
        .bench_refs(|router| router.verdict(black_box(READ)));
}
