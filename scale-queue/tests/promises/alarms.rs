//! What becomes due finds a worker, whoever has become busy, stopped or died since it was told of it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Result;
use parking_lot::Mutex;
use scale_queue::{Job, Queue, Worker};
use serde::{Deserialize, Serialize};
use testkit::eventually;
use tokio::sync::Semaphore;

use crate::on_every_store;
use crate::server::{Running, Server, run};

/// Less than the safety look of an idle worker, half a minute, and more than a busy machine needs.
const SOON: Duration = Duration::from_secs(15);

#[derive(Serialize, Deserialize)]
struct Short(u32);
impl Job for Short {
    const NAME: &'static str = "short";
}

/// Runs until it is let go.
#[derive(Serialize, Deserialize)]
struct Long;
impl Job for Long {
    const NAME: &'static str = "long";
}

on_every_store! { a_busy_worker_passes_its_alarm_on, an_alarm_of_another_queue_is_passed_on }

struct Team {
    workers: Vec<Running>,
    done: Arc<Mutex<Vec<u32>>>,
    begun: Arc<Semaphore>,
    go: Arc<Semaphore>,
}

impl Team {
    /// Two workers of one process, each with a place for one job.
    async fn of(queue: &Queue, queues: &[&str]) -> Result<Self> {
        let mut team = Self {
            workers: Vec::new(),
            done: Arc::default(),
            begun: Arc::new(Semaphore::new(0)),
            go: Arc::new(Semaphore::new(0)),
        };
        for _ in 0..2 {
            let (done, begun, go) = (Arc::clone(&team.done), Arc::clone(&team.begun), Arc::clone(&team.go));
            let worker = Worker::new(queue).queues(queues.to_vec()).concurrency(1).handle(move |Short(n): Short, _| {
                done.lock().push(n);
                async { Ok::<(), std::io::Error>(()) }
            });
            team.workers.push(run(worker.handle(move |_: Long, _| {
                let (begun, go) = (Arc::clone(&begun), Arc::clone(&go));
                async move {
                    begun.add_permits(1);
                    go.acquire().await.map(tokio::sync::SemaphorePermit::forget)
                }
            })));
        }
        // Both have looked: each does one.
        for n in 0..2 {
            queue.push(Short(n)).to(queues[0]).await?;
        }
        team.have_done(2).await?;
        eventually("two workers", async || (queue.workers().await.ok()?.len() == 2).then_some(())).await?;
        Ok(team)
    }

    async fn have_done(&self, count: usize) -> Result<()> {
        eventually("the short ones to be done", async || (self.done.lock().len() == count).then_some(())).await
    }

    async fn stop(self) -> Result<()> {
        self.go.add_permits(100);
        for worker in self.workers {
            worker.stop().await?;
        }
        Ok(())
    }
}

/// The worker that knows of a delayed job is given a long one.
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

/// The same where the long one is of another queue of the same worker.
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

/// A worker that fell asleep before a job was taken knows nothing of the lease that ends with its holder: it is told.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_idle_worker_watches_the_leases_of_others() -> Result<()> {
    let server = Server::start("redis").await?;
    for round in 0..3 {
        let name = format!("round-{round}");
        let done = Arc::new(Mutex::new(Vec::new()));
        let idle = |done: &Arc<Mutex<Vec<u32>>>, queue: &Queue| {
            let done = Arc::clone(done);
            run(Worker::new(queue).queues([&name]).lease(Duration::from_secs(1)).handle(move |Short(n): Short, _| {
                done.lock().push(n);
                async { Ok::<(), std::io::Error>(()) }
            }))
        };
        let asleep = idle(&done, &server.queue().await?);
        let sleepers = format!("test:queue:{{{name}}}:sleepers");
        eventually("it to sleep", async || (server.redis().command(&["ZCARD", &sleepers]).await.ok()? == "1").then_some(()))
            .await?;
        let queue = server.queue().await?;
        let begun = Arc::new(Semaphore::new(0));
        let begins = Arc::clone(&begun);
        // The last to fall asleep is woken first.
        let dies = run(Worker::new(&queue).queues([&name]).lease(Duration::from_secs(1)).handle(move |_: Short, _| {
            begins.add_permits(1);
            std::future::pending::<Result<(), std::io::Error>>()
        }));
        eventually("both to sleep", async || (server.redis().command(&["ZCARD", &sleepers]).await.ok()? == "2").then_some(()))
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
