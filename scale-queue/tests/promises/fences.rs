//! Workers that were cut off or are idle: the changes that they may still make.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::time::{Duration, Instant};

use anyhow::Result;
use parking_lot::Mutex;
use scale_queue::store::{RedisStore, Request, Store, Trial, WorkerId};
use scale_queue::{Context, Job, Limit, Queue, Retry, Worker};
use serde::{Deserialize, Serialize};
use testkit::{Proxy, eventually};

use crate::server::{Server, is_empty, run, until};
use crate::{on_every_store, on_stores};

/// A connection that can be cut.
async fn cuttable(server: &Server) -> Result<(Proxy, Queue)> {
    let (proxy, url) = proxied(server).await?;
    server.queue().await?;
    Ok((proxy, Queue::connect(&url, "test").await?))
}

/// Starts a proxy in front of the server, and returns it with the URL that leads through it.
async fn proxied(server: &Server) -> Result<(Proxy, String)> {
    let (_, rest) = server.url.rsplit_once(':').unwrap_or_default();
    let port = rest.split(['/', '?']).next().unwrap_or_default();
    let proxy = Proxy::start(port.parse()?).await?;
    let url = server.url.replacen(&format!(":{port}"), &format!(":{}", proxy.port()), 1);
    Ok((proxy, url))
}

#[derive(Serialize, Deserialize)]
struct Once;
impl Job for Once {
    const NAME: &'static str = "once";
    const RETRY: Retry = Retry::never();
}

#[derive(Serialize, Deserialize)]
struct Plain(usize);
impl Job for Plain {
    const NAME: &'static str = "plain";
}

#[derive(Serialize, Deserialize)]
struct After(String);
impl Job for After {
    const NAME: &'static str = "after";
}

/// A worker is cut off, and its job of a batch fails; another worker reclaims the job and succeeds.
/// The late report of the first worker must not end the batch.
async fn a_fenced_worker_ends_no_batch(server: &Server) -> Result<()> {
    let near = server.queue().await?;
    let (proxy, far) = cuttable(server).await?;
    let plain = || (0..5).map(Plain);
    let after = |name: &str| After(name.into());
    let batch = near
        .batch()
        .jobs([Once])
        .jobs(plain())
        .then(after("then"))
        .catch(after("catch"))
        .finally(after("finally"));
    let (begun, fail) =
        (Arc::new(tokio::sync::Semaphore::new(0)), Arc::new(tokio::sync::Semaphore::new(0)));
    let (begins, fails) = (Arc::clone(&begun), Arc::clone(&fail));
    let lease = Duration::from_secs(1);
    // Fetches only the first job.
    let cut_off =
        Worker::new(&far).concurrency(1).lease(lease).handle(move |_: Once, context: Context| {
            let (begins, fails) = (Arc::clone(&begins), Arc::clone(&fails));
            async move {
                begins.add_permits(1);
                tokio::select! {
                    permit = fails.acquire() => drop(permit),
                    () = context.cancelled() => {}
                }
                Err::<(), _>("it fails while nobody hears of it")
            }
        });
    let cut_off = run(cut_off);
    let id = batch.push().await?;
    begun.acquire().await?.forget();
    proxy.cut();
    fail.add_permits(1);
    let (ran, ends) = (Arc::new(Mutex::new(Vec::new())), Arc::new(tokio::sync::Semaphore::new(0)));
    let (plains, onces, afters, end) =
        (Arc::clone(&ran), Arc::clone(&ran), Arc::clone(&ran), Arc::clone(&ends));
    let other = Worker::new(&near)
        .concurrency(1)
        .lease(lease)
        .handle(move |_: Once| {
            let (onces, end) = (Arc::clone(&onces), Arc::clone(&end));
            async move {
                onces.lock().push("once begins".to_owned());
                end.acquire().await.map(tokio::sync::SemaphorePermit::forget)?;
                onces.lock().push("once ends".to_owned());
                Ok::<(), tokio::sync::AcquireError>(())
            }
        })
        .handle(move |_: Plain| {
            plains.lock().push("plain".to_owned());
            async { Ok::<(), std::io::Error>(()) }
        })
        .handle(move |job: After| {
            afters.lock().push(job.0);
            async { Ok::<(), std::io::Error>(()) }
        });
    let other = run(other);
    eventually("the other to begin it", async || {
        ran.lock().contains(&"once begins".to_owned()).then_some(())
    })
    .await?;
    proxy.heal();
    // By the time the first worker continues with its next job, its report has been sent.
    let told = Arc::new(AtomicBool::new(false));
    cut_off.stop().await?;
    told.store(true, SeqCst);
    let status = near.batch_status(&id).await?.unwrap();
    assert!(
        status.dead == 0
            && !ran.lock().iter().any(|name| ["catch", "finally"].contains(&name.as_str())),
        "{status:?} {ran:?}"
    );
    ends.add_permits(1);
    eventually("the batch to end", async || {
        ran.lock().contains(&"finally".to_owned()).then_some(())
    })
    .await?;
    until(&near, "default", "all to be done", is_empty).await?;
    let ran = ran.lock().clone();
    assert_eq!(ran.iter().filter(|name| *name == "plain").count(), 5, "{ran:?}");
    assert!(!ran.contains(&"catch".to_owned()) && ran.contains(&"then".to_owned()), "{ran:?}");
    other.stop().await
}

on_stores! { cut_from_redis: "redis"; a_fenced_worker_ends_no_batch, an_outage_kills_no_long_job }
on_stores! {
    cut_from_postgres: "postgres"; a_fenced_worker_ends_no_batch, an_outage_kills_no_long_job,
}
on_stores! {
    cut_from_mariadb: "mariadb"; a_fenced_worker_ends_no_batch, an_outage_kills_no_long_job,
}

/// Leases expire while the store is unreachable. The first worker that reconnects must not reclaim
/// jobs that living workers hold.
async fn an_outage_kills_no_long_job(server: &Server) -> Result<()> {
    let mut links = Vec::new();
    for _ in 0..2 {
        links.push(cuttable(server).await?);
    }
    let (begun, end) = (Arc::new(AtomicUsize::new(0)), Arc::new(tokio::sync::Semaphore::new(0)));
    let workers: Vec<_> = links
        .iter()
        .map(|(_, queue)| {
            let (begins, ends) = (Arc::clone(&begun), Arc::clone(&end));
            run(Worker::new(queue).concurrency(2).lease(Duration::from_millis(500)).handle(
                move |_: Once| {
                    begins.fetch_add(1, SeqCst);
                    let ends = Arc::clone(&ends);
                    async move { ends.acquire().await.map(tokio::sync::SemaphorePermit::forget) }
                },
            ))
        })
        .collect();
    let queue = server.queue().await?;
    queue.push(Once).await?;
    eventually("it to begin", async || (begun.load(SeqCst) == 1).then_some(())).await?;
    for _ in 0..4 {
        for (proxy, _) in &links {
            proxy.cut();
        }
        tokio::time::sleep(Duration::from_millis(1_500)).await;
        for (proxy, _) in &links {
            proxy.heal();
        }
        tokio::time::sleep(Duration::from_millis(1_500)).await;
    }
    assert_eq!(begun.load(SeqCst), 1, "both workers lived all the time");
    end.add_permits(10);
    until(&queue, "default", "it to be done", |stats| stats.done_total == 1 && is_empty(stats))
        .await?;
    for worker in workers {
        worker.stop().await?;
    }
    Ok(())
}

on_stores! { slow_redis: "redis"; a_slow_link_hides_no_dead_worker }
on_stores! { slow_postgres: "postgres"; a_slow_link_hides_no_dead_worker }
on_stores! { slow_mariadb: "mariadb"; a_slow_link_hides_no_dead_worker }

/// Each answer takes longer than a lease, as after an outage. The jobs of a crashed worker are
/// reclaimed after a short delay, not only at the next fallback poll 30 seconds later.
async fn a_slow_link_hides_no_dead_worker(server: &Server) -> Result<()> {
    let near = server.queue().await?;
    near.push(Plain(1)).await?;
    let begun = Arc::new(tokio::sync::Semaphore::new(0));
    let begins = Arc::clone(&begun);
    let dies = run(Worker::new(&near).lease(Duration::from_millis(500)).handle(move |_: Plain| {
        begins.add_permits(1);
        std::future::pending::<Result<(), std::io::Error>>()
    }));
    begun.acquire().await?.forget();
    dies.kill().await;
    let died = Instant::now();
    let (proxy, url) = proxied(server).await?;
    // PostgreSQL gets several requests in one exchange, MariaDB three times as many.
    let delay = match server.kind {
        "redis" => 300,
        "postgres" => 100,
        _ => 35,
    };
    proxy.delay(Duration::from_millis(delay));
    let far = Queue::builder(&url, "test")
        .response_timeout(Duration::from_secs(5))
        .connect_timeout(Duration::from_secs(5));
    let far = far.connect().await?;
    let lives = Worker::new(&far)
        .lease(Duration::from_millis(500))
        .handle(|_: Plain| async { Ok::<(), std::io::Error>(()) });
    let lives = run(lives);
    until(&near, "default", "it to be done", |stats| stats.done_total == 1 && is_empty(stats))
        .await?;
    assert!(died.elapsed() < Duration::from_secs(25), "{:?}", died.elapsed());
    proxy.delay(Duration::ZERO);
    lives.stop().await
}

/// Redis is unreachable for a while; a worker whose jobs ended meanwhile is stopped, and Redis
/// returns within the grace period. The worker reports how the jobs ended, and no job loses an
/// attempt.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stop_during_an_outage_blames_no_job() -> Result<()> {
    let server = Server::start("redis").await?;
    let queue = server.queue().await?;
    for round in 0..3 {
        let (begun, go) =
            (Arc::new(tokio::sync::Semaphore::new(0)), Arc::new(tokio::sync::Semaphore::new(0)));
        let (begins, goes) = (Arc::clone(&begun), Arc::clone(&go));
        let worker =
            Worker::new(&server.queue().await?).concurrency(4).grace(Duration::from_secs(1));
        let worker = run(worker.lease(Duration::from_secs(30)).handle(move |_: Plain| {
            begins.add_permits(1);
            let goes = Arc::clone(&goes);
            async move { goes.acquire().await.map(tokio::sync::SemaphorePermit::forget) }
        }));
        queue.push_many((0..4).map(Plain)).await?;
        begun.acquire_many(4).await?.forget();
        server.redis().pause()?;
        go.add_permits(4);
        // The outage itself: the worker has retried a few times, and now retries rarely.
        tokio::time::sleep(Duration::from_secs(4)).await;
        let redis = server.redis();
        let (stopped, ()) = tokio::join!(worker.stop(), async {
            tokio::time::sleep(Duration::from_millis(2_400)).await;
            let _ = redis.resume();
        });
        stopped?;
        let stats = queue.stats("default").await?;
        assert_eq!(
            (stats.done_total, stats.leased, stats.failed_total),
            ((round + 1) * 4, 0, 0),
            "round {round}: {stats:?}"
        );
    }
    Ok(())
}

on_stores! { lost_by_redis: "redis"; a_stop_gives_back_what_it_has_never_got }
on_stores! { lost_by_postgres: "postgres"; a_stop_gives_back_what_it_has_never_got }
on_stores! { lost_by_mariadb: "mariadb"; a_stop_gives_back_what_it_has_never_got }

/// The store has leased jobs, and the connection breaks before the answer arrives; at that moment
/// the worker is stopped. It asks for the jobs that it holds and returns them: no job waits for the
/// lease, and no job loses an attempt.
async fn a_stop_gives_back_what_it_has_never_got(server: &Server) -> Result<()> {
    let near = server.queue().await?;
    for round in 0..3 {
        let (proxy, far) = cuttable(server).await?;
        proxy.delay(Duration::from_millis(150));
        let worker = Worker::new(&far)
            .concurrency(10)
            .lease(Duration::from_secs(30))
            .grace(Duration::from_secs(3));
        let worker =
            run(worker.handle(|_: Plain| std::future::pending::<Result<(), std::io::Error>>()));
        near.push_many((0..10).map(Plain)).await?;
        until(&near, "default", "the store to lease them", |stats| stats.leased > 0).await?;
        proxy.reset();
        proxy.delay(Duration::ZERO);
        proxy.heal();
        worker.stop().await?;
        let stats = near.stats("default").await?;
        assert_eq!((stats.leased, stats.failed_total), (0, 0), "round {round}: {stats:?}");
        near.drain("default").await?;
    }
    Ok(())
}

/// A delayed fetch arrives after its worker has left: no job is leased to it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_late_fetch_leases_nothing_to_a_worker_that_has_left() -> Result<()> {
    let server = Server::start("redis").await?;
    let queue = server.queue().await?;
    queue.push_many((0..4).map(Plain)).await?;
    let store = RedisStore::new(scale_redis::Redis::connect(&server.url).await?, "test");
    let request = || Request {
        done: &[],
        max: 2,
        max_bytes: usize::MAX / 2,
        begins: 2,
        lease: Duration::from_secs(1),
        trial: Trial::Next,
        lines: &[],
        unhandled_for: Duration::from_hours(1),
    };
    let (leaves, stays): (WorkerId, WorkerId) = ("leaves".into(), "stays".into());
    assert_eq!(store.fetch("default", &stays, request()).await?.jobs.len(), 2);
    store.leave("default", &leaves).await?;
    assert!(store.fetch("default", &leaves, request()).await?.jobs.is_empty());
    assert_eq!(store.fetch("default", &stays, request()).await?.jobs.len(), 2);
    Ok(())
}

/// A job that counts how many jobs run at the same time.
#[derive(Serialize, Deserialize)]
struct Narrow;
impl Job for Narrow {
    const NAME: &'static str = "narrow";
    fn limits(&self) -> Vec<Limit> {
        vec![Limit::concurrent("ten", 10)]
    }
}

/// A worker with more slots than permits that records how many jobs ran at the same time.
fn counting_most(queue: &Queue, most: &Arc<AtomicUsize>) -> Worker {
    let (running, most) = (Arc::new(AtomicUsize::new(0)), Arc::clone(most));
    Worker::new(queue).concurrency(12).handle(move |_: Narrow| {
        let running = Arc::clone(&running);
        most.fetch_max(running.fetch_add(1, SeqCst) + 1, SeqCst);
        async move {
            tokio::time::sleep(Duration::from_millis(50)).await;
            running.fetch_sub(1, SeqCst);
            Ok::<(), std::io::Error>(())
        }
    })
}

/// Ten permits expire at the same time: the line runs with full concurrency again, and does not
/// wait for the next fallback poll.
async fn a_line_becomes_as_wide_as_its_permits(server: &Server) -> Result<()> {
    let queue = server.queue().await?;
    queue.push_many((0..10).map(|_| Narrow)).await?;
    let begun = Arc::new(AtomicUsize::new(0));
    let begins = Arc::clone(&begun);
    let holder = run(Worker::new(&queue).concurrency(10).lease(Duration::from_secs(1)).handle(
        move |_: Narrow| {
            begins.fetch_add(1, SeqCst);
            std::future::pending::<Result<(), std::io::Error>>()
        },
    ));
    eventually("ten to begin", async || (begun.load(SeqCst) == 10).then_some(())).await?;
    let most = Arc::new(AtomicUsize::new(0));
    let worker = run(counting_most(&queue, &most));
    queue.push_many((0..2_000).map(|_| Narrow)).await?;
    until(&queue, "default", "a line", |stats| stats.blocked > 10).await?;
    holder.kill().await;
    let killed = Instant::now();
    eventually("ten at once", async || (most.load(SeqCst) >= 10).then_some(())).await?;
    // Permits live for two seconds.
    assert!(killed.elapsed() < Duration::from_secs(15), "{:?}", killed.elapsed());
    assert_eq!(most.load(SeqCst), 10);
    worker.kill().await;
    Ok(())
}

/// Permits become free during a pause, and no worker is woken for them: after the pause the line
/// runs with full concurrency.
async fn a_pause_makes_no_line_narrow(server: &Server) -> Result<()> {
    let queue = server.queue().await?;
    queue.push_many((0..3_000).map(|_| Narrow)).await?;
    let most = Arc::new(AtomicUsize::new(0));
    let worker = run(counting_most(&queue, &most));
    until(&queue, "default", "a line", |stats| stats.blocked > 10 && stats.done_total > 10).await?;
    queue.pause("default").await?;
    until(&queue, "default", "nothing to run", |stats| stats.leased == 0).await?;
    most.store(0, SeqCst);
    queue.resume("default").await?;
    let resumed = Instant::now();
    eventually("ten at once", async || (most.load(SeqCst) >= 10).then_some(())).await?;
    assert!(resumed.elapsed() < Duration::from_secs(10), "{:?}", resumed.elapsed());
    worker.kill().await;
    Ok(())
}

/// While a worker tries a job alone it fetches no other job: its wake-ups go to another worker.
async fn a_trial_holds_up_no_other_queue(server: &Server) -> Result<()> {
    let queue = server.queue().await?;
    queue.push(Plain(0)).to("bad").await?;
    let begun = Arc::new(AtomicUsize::new(0));
    let tries = |queues: &'static [&'static str]| {
        let begins = Arc::clone(&begun);
        run(Worker::new(&queue)
            .queues(queues.iter().copied())
            .concurrency(2)
            .lease(Duration::from_millis(300))
            .handle(move |_: Plain| {
                begins.fetch_add(1, SeqCst);
                std::future::pending::<Result<(), std::io::Error>>()
            }))
    };
    for crash in 1..=3 {
        let worker = tries(&["bad"]);
        eventually("it to begin", async || (begun.load(SeqCst) == crash).then_some(())).await?;
        worker.kill().await;
    }
    let seen = Arc::new(Mutex::new(None));
    let sees = Arc::clone(&seen);
    let idle = run(Worker::new(&queue).queues(["good"]).handle(move |_: After| {
        sees.lock().get_or_insert_with(Instant::now);
        async { Ok::<(), std::io::Error>(()) }
    }));
    // This worker becomes idle on the other queue last, and then tries the suspect for 16 seconds.
    queue.push(After("first".into())).to("good").await?;
    eventually("the idle one to be there", async || seen.lock().take()).await?;
    let trying = tries(&["good", "bad"]);
    eventually("it to be tried", async || (begun.load(SeqCst) == 4).then_some(())).await?;
    for n in 0..5 {
        let pushed = Instant::now();
        queue.push(After(n.to_string())).to("good").await?;
        let at = eventually("it to begin", async || seen.lock().take()).await?;
        assert!(at - pushed < Duration::from_secs(2), "{:?}", at - pushed);
    }
    trying.kill().await;
    idle.stop().await
}

/// Failed attempts are counted once each; giving up a job does not count one more failure.
async fn failures_are_counted_once(server: &Server) -> Result<()> {
    #[derive(Serialize, Deserialize)]
    struct Fails;
    impl Job for Fails {
        const NAME: &'static str = "fails";
        const RETRY: Retry =
            Retry::exponential(5).first(Duration::from_millis(1)).longest(Duration::from_millis(1));
    }
    let queue = server.queue().await?;
    queue.push(Fails).await?;
    let begun = Arc::new(AtomicUsize::new(0));
    let worker = || {
        let begins = Arc::clone(&begun);
        run(Worker::new(&queue).lease(Duration::from_millis(300)).handle(move |_: Fails| {
            let n = begins.fetch_add(1, SeqCst);
            async move { if n < 4 { Err::<(), _>("fails") } else { std::future::pending().await } }
        }))
    };
    let first = worker();
    eventually("the fifth attempt", async || (begun.load(SeqCst) == 5).then_some(())).await?;
    first.kill().await;
    let second = worker();
    let stats = until(&queue, "default", "it to be dead", |stats| stats.dead == 1).await?;
    assert_eq!((stats.failed_total, begun.load(SeqCst)), (5, 5));
    second.stop().await
}

/// Any duration is accepted, and clamped to the longest that a store can hold.
async fn endless_times_are_taken(server: &Server) -> Result<()> {
    let queue = server.queue().await?;
    #[derive(Serialize, Deserialize)]
    struct Unique;
    impl Job for Unique {
        const NAME: &'static str = "unique";
        fn unique_key(&self) -> Option<String> {
            Some("k".into())
        }
    }
    let (one, two) = (queue.clone(), queue.clone());
    let endless =
        async move { one.push(Unique).delay(Duration::MAX).unique_for(Duration::MAX).await };
    let plain = async move { two.push(Plain(2)).await };
    let (endless, plain) = tokio::join!(endless, plain);
    endless?;
    plain?;
    until(&queue, "default", "both", |stats| stats.waiting == 1 && stats.scheduled == 1).await?;
    Ok(())
}

/// One machine without installation: a missing file is created.
#[tokio::test]
async fn a_new_sqlite_file_is_made() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let url = format!("sqlite://{}/jobs.db", folder.path().display());
    Queue::connect(&url, "test").await?.push(Plain(1)).await?;
    assert_eq!(Queue::connect(&url, "test").await?.stats("default").await?.waiting, 1);
    assert!(Queue::connect(&format!("{url}.other?mode=rw"), "test").await.is_err(), "as it says");
    Ok(())
}

on_every_store! {
    a_line_becomes_as_wide_as_its_permits,
    a_pause_makes_no_line_narrow,
    a_trial_holds_up_no_other_queue,
    failures_are_counted_once,
    endless_times_are_taken,
}
