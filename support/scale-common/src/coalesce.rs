//! Coalesces concurrent requests into fewer calls to a server.
//!
//! The first request is sent at once. Requests that arrive while calls are in progress wait, and
//! are sent together in the next one. So a single request costs one round trip, and a thousand
//! concurrent ones cost a few.
//!
//! | when | then |
//! | --- | --- |
//! | the caller is dropped | the call goes on, for the other callers of the same call |
//! | the runtime that makes the calls shuts down | the waiting requests have no answer, and the next request makes a call again |

use std::collections::HashMap;
use std::future::Future;
use std::hash::Hash;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;

/// Calls that a [`Coalescer`] makes.
pub trait Calls: Send + Sync + 'static {
    /// Distinguishes requests that must not share a call.
    type Key: Clone + Eq + Hash + Send;
    /// A request.
    type Request: Send;
    /// Answer to a request.
    type Answer: Send;

    /// Maximum number of calls in progress with one key. With two, one is prepared or decoded while
    /// the server works on the other.
    const AT_ONCE: usize;
    /// Maximum number of requests in one call.
    const BATCH: usize;
    /// `true` if a request whose caller was dropped before it was sent is not sent.
    const DROPS_ABANDONED: bool;

    /// Makes one call, and returns the answers in the order of the requests.
    fn call(
        &self,
        key: &Self::Key,
        requests: Vec<Self::Request>,
    ) -> impl Future<Output = Vec<Self::Answer>> + Send;
}

/// Requests, with the senders of their answers.
type Batch<C> = Vec<(<C as Calls>::Request, oneshot::Sender<<C as Calls>::Answer>)>;

/// Calls with one key. An entry exists while a call is in progress.
struct Lane<C: Calls> {
    calls: usize,
    /// Requests that wait for a call to end.
    waiting: Batch<C>,
}

/// Coalesces requests; see the module.
pub struct Coalescer<C: Calls> {
    calls: C,
    lanes: Mutex<HashMap<C::Key, Lane<C>>>,
}

impl<C: Calls> std::fmt::Debug for Coalescer<C> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Coalescer").finish_non_exhaustive()
    }
}

impl<C: Calls> Coalescer<C> {
    /// Creates a coalescer of these calls.
    pub fn new(calls: C) -> Arc<Self> {
        Arc::new(Self { calls, lanes: Mutex::default() })
    }

    /// Returns the calls.
    pub fn calls(&self) -> &C {
        &self.calls
    }

    /// Sends a request, and returns its answer; `None` if the runtime that sends it shuts down.
    /// Must be called inside a tokio runtime.
    pub async fn send(self: &Arc<Self>, key: C::Key, request: C::Request) -> Option<C::Answer> {
        let (sender, answer) = oneshot::channel();
        {
            let mut lanes = self.lock();
            let lane = lanes.entry(key.clone()).or_insert(Lane { calls: 0, waiting: Vec::new() });
            if lane.calls == C::AT_ONCE {
                lane.waiting.push((request, sender));
            } else {
                lane.calls += 1;
                let running = Running { coalescer: Arc::clone(self), key, is_over: false };
                // A task of its own: if this caller is dropped, the other callers still wait.
                tokio::spawn(running.run(vec![(request, sender)]));
            }
        }
        answer.await.ok()
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<C::Key, Lane<C>>> {
        self.lanes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A task that makes one call after another. It may be dropped with its runtime, during a call.
struct Running<C: Calls> {
    coalescer: Arc<Coalescer<C>>,
    key: C::Key,
    is_over: bool,
}

impl<C: Calls> Running<C> {
    async fn run(mut self, mut batch: Batch<C>) {
        loop {
            if C::DROPS_ABANDONED {
                batch.retain(|(_, sender)| !sender.is_closed());
            }
            if !batch.is_empty() {
                let (requests, senders): (Vec<_>, Vec<_>) = batch.into_iter().unzip();
                let answers = self.coalescer.calls.call(&self.key, requests).await;
                for (sender, answer) in senders.into_iter().zip(answers) {
                    let _ = sender.send(answer);
                }
            }
            let coalescer = Arc::clone(&self.coalescer);
            let mut lanes = coalescer.lock();
            let Some(lane) = lanes.get_mut(&self.key).filter(|lane| !lane.waiting.is_empty())
            else {
                // Under the lock: a later request makes a new call.
                self.leave(&mut lanes);
                return;
            };
            let rest = if lane.waiting.len() > C::BATCH {
                lane.waiting.split_off(C::BATCH)
            } else {
                Vec::new()
            };
            batch = std::mem::replace(&mut lane.waiting, rest);
        }
    }

    /// Ends this task's calls. With the last one, waiting requests are dropped.
    fn leave(&mut self, lanes: &mut HashMap<C::Key, Lane<C>>) {
        self.is_over = true;
        if let Some(lane) = lanes.get_mut(&self.key) {
            lane.calls -= 1;
            if lane.calls == 0 {
                lanes.remove(&self.key);
            }
        }
    }
}

impl<C: Calls> Drop for Running<C> {
    fn drop(&mut self) {
        if !self.is_over {
            let coalescer = Arc::clone(&self.coalescer);
            self.leave(&mut coalescer.lock());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;
    use tokio::sync::Semaphore;

    /// Doubles numbers; each call waits for a permit.
    struct Doubles {
        gate: Semaphore,
        calls: Mutex<Vec<Vec<u32>>>,
    }

    impl Calls for Doubles {
        type Key = &'static str;
        type Request = u32;
        type Answer = u32;
        const AT_ONCE: usize = 1;
        const BATCH: usize = 4;
        const DROPS_ABANDONED: bool = false;

        async fn call(&self, _: &&'static str, requests: Vec<u32>) -> Vec<u32> {
            self.calls.lock().unwrap().push(requests.clone());
            self.gate.acquire().await.unwrap().forget();
            requests.into_iter().map(|n| 2 * n).collect()
        }
    }

    fn doubles() -> Arc<Coalescer<Doubles>> {
        Coalescer::new(Doubles { gate: Semaphore::new(0), calls: Mutex::default() })
    }

    async fn until(condition: impl Fn() -> bool) {
        let wait = async {
            while !condition() {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(10), wait).await.unwrap();
    }

    fn waiting(coalescer: &Coalescer<Doubles>) -> usize {
        coalescer.lock().values().map(|lane| lane.waiting.len()).sum()
    }

    #[tokio::test]
    async fn requests_during_a_call_share_the_next_ones() {
        let coalescer = doubles();
        let mut sent: Vec<_> = Vec::new();
        for n in 0..7 {
            let coalescer = Arc::clone(&coalescer);
            sent.push(tokio::spawn(async move { coalescer.send("k", n).await }));
            tokio::task::yield_now().await;
        }
        until(|| waiting(&coalescer) == 6).await;
        coalescer.calls().gate.add_permits(9);
        for (n, answer) in sent.into_iter().enumerate() {
            assert_eq!(answer.await.unwrap(), Some(2 * n as u32));
        }
        let calls = coalescer.calls().calls.lock().unwrap().clone();
        assert_eq!(calls, [vec![0], vec![1, 2, 3, 4], vec![5, 6]]);
        assert!(coalescer.lock().is_empty(), "nothing is left of an idle key");
    }

    #[tokio::test]
    async fn a_dropped_caller_ends_no_call() {
        let coalescer = doubles();
        let first = {
            let coalescer = Arc::clone(&coalescer);
            tokio::spawn(async move { coalescer.send("k", 1).await })
        };
        until(|| !coalescer.calls().calls.lock().unwrap().is_empty()).await;
        first.abort();
        let second = {
            let coalescer = Arc::clone(&coalescer);
            tokio::spawn(async move { coalescer.send("k", 2).await })
        };
        until(|| waiting(&coalescer) == 1).await;
        coalescer.calls().gate.add_permits(2);
        assert_eq!(second.await.unwrap(), Some(4));
    }

    #[test]
    fn a_runtime_that_ends_leaves_no_call_behind() {
        let coalescer = doubles();
        let runtime =
            || tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let first = runtime();
        let handle = Arc::clone(&coalescer);
        first.spawn(async move { handle.send("k", 1).await });
        first.block_on(until(|| !coalescer.calls().calls.lock().unwrap().is_empty()));
        drop(first);
        coalescer.calls().gate.add_permits(1);
        assert_eq!(runtime().block_on(coalescer.send("k", 3)), Some(6));
    }
}
