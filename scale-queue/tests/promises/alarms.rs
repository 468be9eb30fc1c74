//! A due job always finds a worker, even if the worker that was woken for it has become busy,
//! stopped or died.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

use anyhow::Result;
use parking_lot::Mutex;
use scale_queue::{Job, Queue, Worker};
use serde::{Deserialize, Serialize};
use testkit::eventually;
use tokio::sync::Semaphore;

use crate::on_every_store;
use crate::server::{Running, Server, run};

/// Shorter than the fallback poll of an idle worker (30 s), and longer than a busy machine needs.
const SOON: Duration = Duration::from_secs(15);

#[derive(Serialize, Deserialize)]
struct Short(u32);
impl Job for Short {
    const NAME: &'static str = "short";
}

/// Runs until the test releases it.
#[derive(Serialize, Deserialize)]
struct Long;
impl Job for Long {
    const NAME: &'static str = "long";
}

on_every_store! {
    a_busy_worker_passes_its_alarm_on,
    an_alarm_of_another_queue_is_passed_on,
    no_wake_is_lost_on_a_busy_machine,
}

struct Team {
    workers: Vec<Running>,
    done: Arc<Mutex<Vec<u32>>>,
    begun: Arc<Semaphore>,
    go: Arc<Semaphore>,
}

impl Team {
    /// Two workers in one process, each with one slot.
    async fn of(queue: &Queue, queues: &[&str]) -> Result<Self> {
        let mut team = Self {
            workers: Vec::new(),
            done: Arc::default(),
            begun: Arc::new(Semaphore::new(0)),
            go: Arc::new(Semaphore::new(0)),
        };
        for _ in 0..2 {
            let (done, begun, go) =
                (Arc::clone(&team.done), Arc::clone(&team.begun), Arc::clone(&team.go));
            let worker = Worker::new(queue).queues(queues.to_vec()).concurrency(1).handle(
                move |Short(n): Short| {
                    done.lock().push(n);
                    async { Ok::<(), std::io::Error>(()) }
                },
            );
            team.workers.push(run(worker.handle(move |_: Long| {
                let (begun, go) = (Arc::clone(&begun), Arc::clone(&go));
                async move {
                    begun.add_permits(1);
                    go.acquire().await.map(tokio::sync::SemaphorePermit::forget)
                }
            })));
        }
        // Both workers have fetched: each runs one job.
        for n in 0..2 {
            queue.push(Short(n)).to(queues[0]).await?;
        }
        team.have_done(2).await?;
        eventually("two workers", async || (queue.workers().await.ok()?.len() == 2).then_some(()))
            .await?;
        Ok(team)
    }

    async fn have_done(&self, count: usize) -> Result<()> {
        eventually("the short ones to be done", async || {
            (self.done.lock().len() == count).then_some(())
        })
        .await
    }

    async fn stop(self) -> Result<()> {
        self.go.add_permits(100);
        for worker in self.workers {
            worker.stop().await?;
        }
        Ok(())
    }
}

/// The worker that holds the alarm of a delayed job gets a long job.
async fn a_busy_worker_passes_its_alarm_on(server: &Server) -> Result<()> {
    let queue = server.queue().await?;
    let team = Team::of(&queue, &["default"]).await?;
    for round in 0..3 {
        let due = Instant::now() + Duration::from_secs(1);
        queue.push(Short(10 + round)).delay(Duration::from_secs(1)).await?;
        queue.push(Long).await?;
        team.begun.acquire().await?.forget();
        team.have_done(3 + round as usize).await?;
        assert!(due.elapsed() < SOON, "round {round}: {:?} late", due.elapsed());
        team.go.add_permits(1);
    }
    team.stop().await
}

/// As above, but the long job is in another queue of the same worker.
async fn an_alarm_of_another_queue_is_passed_on(server: &Server) -> Result<()> {
    let queue = server.queue().await?;
    let team = Team::of(&queue, &["default", "other"]).await?;
    for round in 0..3 {
        let due = Instant::now() + Duration::from_secs(1);
        queue.push(Short(10 + round)).delay(Duration::from_secs(1)).await?;
        queue.push(Long).to("other").await?;
        team.begun.acquire().await?.forget();
        team.have_done(3 + round as usize).await?;
        assert!(due.elapsed() < SOON, "round {round}: {:?} late", due.elapsed());
        team.go.add_permits(1);
    }
    team.stop().await
}

/// A busy worker passes its alarm on in a separate task. If that task runs after the worker has
/// become idle again, the worker must still be found by pushes. A wake-up that arrives during a
/// fetch which fills the worker must go to another worker. Both cases are rare in general, but
/// common on a busy machine.
async fn no_wake_is_lost_on_a_busy_machine(server: &Server) -> Result<()> {
    const WORKERS: usize = 4;
    let busy = Burners::start(4);
    let queue = server.queue().await?;
    let (begun, go) = (Arc::new(Semaphore::new(0)), Arc::new(Semaphore::new(0)));
    let workers: Vec<_> = (0..WORKERS)
        .map(|_| {
            let (begun, go) = (Arc::clone(&begun), Arc::clone(&go));
            let worker = Worker::new(&queue).concurrency(1).lease(Duration::from_secs(30));
            run(worker.handle(move |_: Long| {
                let (begun, go) = (Arc::clone(&begun), Arc::clone(&go));
                async move {
                    begun.add_permits(1);
                    go.acquire().await.map(tokio::sync::SemaphorePermit::forget)
                }
            }))
        })
        .collect();
    for round in 0..30 {
        // Jobs that become due soon are an alarm of the worker that fetches.
        let delays = (0..WORKERS as u64).map(|n| Duration::from_millis(n * 3));
        for delay in delays {
            queue.push(Long).delay(delay).await?;
        }
        let all = tokio::time::timeout(SOON, begun.acquire_many(WORKERS as u32)).await;
        let Ok(all) = all else {
            anyhow::bail!(
                "round {round}: {} of {WORKERS} workers woke up",
                begun.available_permits()
            )
        };
        all?.forget();
        go.add_permits(WORKERS);
    }
    drop(busy);
    go.add_permits(100);
    for worker in workers {
        worker.stop().await?;
    }
    Ok(())
}

/// Threads that keep the machine busy until they are dropped.
struct Burners(Arc<AtomicBool>);

impl Burners {
    fn start(threads: usize) -> Self {
        let burns = Arc::new(AtomicBool::new(true));
        for _ in 0..threads {
            let burns = Arc::clone(&burns);
            std::thread::spawn(move || while burns.load(Relaxed) {});
        }
        Self(burns)
    }
}

impl Drop for Burners {
    fn drop(&mut self) {
        self.0.store(false, Relaxed);
    }
}

/// A worker that became idle before a job was fetched does not know of the lease on that job: it
/// must be informed, so that it watches the lease.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_idle_worker_watches_the_leases_of_others() -> Result<()> {
    let server = Server::start("redis").await?;
    for round in 0..3 {
        let name = format!("round-{round}");
        let done = Arc::new(Mutex::new(Vec::new()));
        let idle = |done: &Arc<Mutex<Vec<u32>>>, queue: &Queue| {
            let done = Arc::clone(done);
            run(Worker::new(queue).queues([&name]).lease(Duration::from_secs(1)).handle(
                move |Short(n): Short| {
                    done.lock().push(n);
                    async { Ok::<(), std::io::Error>(()) }
                },
            ))
        };
        let asleep = idle(&done, &server.queue().await?);
        let sleepers = format!("test:queue:{{{name}}}:sleepers");
        eventually("it to sleep", async || {
            (server.redis().command(&["ZCARD", &sleepers]).await.ok()? == "1").then_some(())
        })
        .await?;
        let queue = server.queue().await?;
        let begun = Arc::new(Semaphore::new(0));
        let begins = Arc::clone(&begun);
        // The worker that became idle last is woken first.
        let dies = run(Worker::new(&queue).queues([&name]).lease(Duration::from_secs(1)).handle(
            move |_: Short| {
                begins.add_permits(1);
                std::future::pending::<Result<(), std::io::Error>>()
            },
        ));
        eventually("both to sleep", async || {
            (server.redis().command(&["ZCARD", &sleepers]).await.ok()? == "2").then_some(())
        })
        .await?;
        queue.push(Short(round)).to(&name).await?;
        begun.acquire().await?.forget();
        dies.kill().await;
        let died = Instant::now();
        eventually("it to be done", async || (!done.lock().is_empty()).then_some(())).await?;
        assert!(died.elapsed() < SOON, "round {round}: {:?}", died.elapsed());
        asleep.stop().await?;
    }
    Ok(())
}
