//! Customers who buy all the time, and count what they have lost.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::Result;
use serde::Serialize;
use testkit::Postgres;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::load::{Client, Visitor};

/// Time between two purchases of a customer.
const PAUSE: Duration = Duration::from_millis(100);

#[derive(Default)]
struct Ledger {
    /// Orders that the shop has acknowledged.
    orders: Mutex<BTreeSet<i64>>,
    requests: AtomicU64,
    failures: AtomicU64,
    /// Times that a customer's earlier order was not in their list.
    sessions_lost: AtomicU64,
}

/// Count of what the customers have got, and of what is missing.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub(super) struct Account {
    pub(super) requests: u64,
    /// Requests without the answer that was expected.
    pub(super) failures: u64,
    /// Orders that were acknowledged.
    pub(super) orders: usize,
    /// Acknowledged orders that are not in the database.
    pub(super) orders_lost: usize,
    /// Acknowledged orders whose receipt has not been sent.
    pub(super) receipts_missing: usize,
    pub(super) sessions_lost: u64,
}

pub(super) struct Customers {
    ledger: Arc<Ledger>,
    stop: watch::Sender<bool>,
    tasks: Mutex<Vec<JoinHandle<()>>>,
}

impl Customers {
    pub(super) fn start(shop: SocketAddr, count: usize) -> Self {
        let (ledger, (stop, stopped)) = (Arc::new(Ledger::default()), watch::channel(false));
        let tasks = (0..count as u64).map(|seed| {
            let (ledger, stopped) = (ledger.clone(), stopped.clone());
            tokio::spawn(async move { buy(shop, seed, &ledger, &stopped).await })
        });
        let tasks = Mutex::new(tasks.collect());
        Self { ledger, stop, tasks }
    }

    /// Lets every customer end their purchase, and go.
    pub(super) async fn stop(&self) {
        self.stop.send_replace(true);
        let tasks: Vec<_> =
            std::mem::take(&mut *self.tasks.lock().unwrap_or_else(|e| e.into_inner()));
        for task in tasks {
            let _ = task.await;
        }
    }

    pub(super) fn requests(&self) -> u64 {
        self.ledger.requests.load(Relaxed)
    }

    pub(super) fn failures(&self) -> u64 {
        self.ledger.failures.load(Relaxed)
    }

    /// Compares what was acknowledged with what the database has.
    pub(super) async fn account(&self, postgres: &Postgres, primary: usize) -> Result<Account> {
        let orders = self.ledger.orders.lock().unwrap_or_else(|e| e.into_inner()).clone();
        let ids = orders.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
        let sql = format!(
            "select count(o.id) || ' ' || count(r.order_id) from unnest('{{{ids}}}'::bigint[]) a \
             left join orders o on o.id = a left join receipts r on r.order_id = a"
        );
        let answer = postgres.node(primary).sql(&sql).await?;
        let mut counts = answer.split_whitespace().filter_map(|count| count.parse::<usize>().ok());
        let (found, sent) = (counts.next().unwrap_or(0), counts.next().unwrap_or(0));
        Ok(Account {
            requests: self.requests(),
            failures: self.failures(),
            orders: orders.len(),
            orders_lost: orders.len() - found,
            receipts_missing: orders.len() - sent,
            sessions_lost: self.ledger.sessions_lost.load(Relaxed),
        })
    }
}

/// Buys until the customers are stopped.
async fn buy(shop: SocketAddr, seed: u64, ledger: &Ledger, stopped: &watch::Receiver<bool>) {
    let (mut client, mut visitor) = (Client::new(shop), Visitor::new(seed));
    let mut known: Option<String> = None;
    while !*stopped.borrow() {
        let bought = visitor.purchase(&mut client).await;
        ledger.requests.fetch_add(bought.requests, Relaxed);
        ledger.failures.fetch_add(bought.failures, Relaxed);
        if let Some(order) = &bought.order
            && let Some(id) = order.rsplit('/').next().and_then(|id| id.parse().ok())
        {
            ledger.orders.lock().unwrap_or_else(|e| e.into_inner()).insert(id);
        }
        // The list of orders has what the session remembers.
        if let Some(list) = bought.list
            && let Some(order) = &known
            && !list.contains(&format!("\"{order}\""))
        {
            ledger.sessions_lost.fetch_add(1, Relaxed);
            known = None;
        }
        known = bought.order.or(known);
        tokio::time::sleep(PAUSE).await;
    }
}
