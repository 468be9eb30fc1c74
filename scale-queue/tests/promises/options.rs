//! Options of a push: each applies to every kind of push, on every store.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use parking_lot::Mutex;
use scale_queue::outcome::Snooze;
use scale_queue::push::{Priority, PushOptions};
use scale_queue::status::{State, Stats};
use scale_queue::worker::BoxError;
use scale_queue::{Context, Error, Job, Limit, Queue, Worker};
use serde::{Deserialize, Serialize};
use testkit::eventually;

use crate::on_every_store;
use crate::server::{Running, Server, is_empty, run, until};

#[derive(Clone, Serialize, Deserialize)]
struct Step(String);

impl Job for Step {
    const NAME: &'static str = "step";
}

#[derive(Serialize, Deserialize)]
struct Index {
    page: i64,
    content: u32,
}

impl Job for Index {
    const NAME: &'static str = "index";
    const QUEUE: &'static str = "index";

    fn unique_key(&self) -> Option<String> {
        Some(self.page.to_string())
    }
}

on_every_store! {
    options_apply_to_every_push,
    jobs_of_a_higher_priority_begin_first,
    a_priority_is_kept_through_every_state,
    an_expired_job_does_not_begin,
    a_key_is_released_at_the_start,
    a_revived_job_is_not_bound_by_its_old_times,
    a_line_knows_no_priorities,
    a_debounced_job_runs_once_with_the_last_content,
    a_debounced_job_that_ran_or_was_cancelled_is_not_replaced,
    concurrent_pushes_of_a_debounced_job_leave_one,
    a_debounced_job_that_is_due_is_not_replaced,
    a_fixed_expiry_is_kept_in_a_chain,
}

type Ran = Arc<Mutex<Vec<(String, Context)>>>;

fn step(name: &str) -> Step {
    Step(name.into())
}

/// Starts a worker with concurrency 1 that records the jobs it has run.
fn working(queue: &Queue, queues: &[&str], ran: &Ran) -> Running {
    let ran = Arc::clone(ran);
    let worker = Worker::new(queue).queues(queues.iter().copied()).concurrency(1);
    run(worker.handle(move |Step(name): Step, context: Context| {
        ran.lock().push((name.clone(), context));
        async move { if name == "fails" { Err(std::io::Error::other("no")) } else { Ok(()) } }
    }))
}

fn names(ran: &Ran) -> Vec<String> {
    ran.lock().iter().map(|(name, _)| name.clone()).collect()
}

/// Returns the payloads of all waiting jobs, in order.
async fn waiting(queue: &Queue) -> Result<Vec<String>> {
    let mut all = Vec::new();
    loop {
        let page = queue.jobs("default", State::Waiting, all.len(), 100).await?;
        if page.is_empty() {
            return Ok(all);
        }
        all.extend(page.into_iter().map(|job| job.payload));
    }
}

async fn options_apply_to_every_push(server: &Server) -> Result<()> {
    let queue = server.queue().await?.propagating(|| vec![("tenant".into(), "a".into())]);
    let options = || PushOptions::new().to("other").metadata("tenant", "b").attempts(1);
    let with = |name: &str| step(name).with(options());
    queue.push(with("alone")).await?;
    queue.push_many([with("many"), step("many").with(options().to("default"))]).await?;
    queue.chain().then(with("chain")).then(with("link")).push().await?;
    queue.batch().job(with("batch")).then(with("then")).finally(step("plain")).push().await?;
    let mut after_commit = queue.after_commit();
    after_commit.push(with("committed"))?;
    after_commit.push(step("committed"))?;
    assert_eq!(after_commit.send().await?.len(), 2);
    // Dropped: as after a rollback.
    queue.after_commit().push(with("rolled back"))?;
    assert_eq!(queue.stats("default").await?.waiting, 2);
    let ran = Ran::default();
    let worker = working(&queue, &["other", "default"], &ran);
    until(&queue, "default", "all jobs", |stats| stats.done_total == 3).await?;
    until(&queue, "other", "all jobs", is_empty).await?;
    worker.stop().await?;
    let mut seen: HashMap<String, Vec<(String, String)>> = HashMap::new();
    for (name, context) in ran.lock().iter() {
        let [(key, tenant)] = &context.metadata[..] else { panic!("{name}: {context:?}") };
        assert_eq!(key, "tenant");
        seen.entry(name.clone()).or_default().push((context.queue.to_string(), tenant.clone()));
    }
    let other = ("other".to_owned(), "b".to_owned());
    for name in ["alone", "chain", "link", "batch", "then"] {
        assert_eq!(seen[name], std::slice::from_ref(&other), "{name}");
    }
    assert_eq!(seen["many"], [other.clone(), ("default".into(), "b".into())]);
    assert_eq!(seen["committed"], [other, ("default".into(), "a".into())]);
    assert_eq!(seen["plain"], [("default".into(), "a".into())], "metadata of the batch's push");
    assert!(!seen.contains_key("rolled back"));
    Ok(())
}

async fn jobs_of_a_higher_priority_begin_first(server: &Server) -> Result<()> {
    let queue = server.queue().await?;
    let job = |name: &str, priority| step(name).with(PushOptions::new().priority(priority));
    for n in 0..3 {
        queue.push(job(&format!("low {n}"), Priority::Low)).await?;
        queue.push(step(&format!("normal {n}"))).await?;
        queue.push(job(&format!("high {n}"), Priority::High)).await?;
    }
    // In one bulk push, and after a delay.
    let soon = PushOptions::new().priority(Priority::High).delay(Duration::from_millis(1));
    queue
        .push_many([
            step("high 3").with(soon),
            step("low 3").with(PushOptions::new().priority(Priority::Low)),
            step("normal 3").with(PushOptions::new()),
        ])
        .await?;
    let start = std::time::Instant::now();
    eventually("the delay", async || (start.elapsed() > Duration::from_millis(20)).then_some(()))
        .await?;
    let ran = Ran::default();
    let worker = working(&queue, &["default"], &ran);
    until(&queue, "default", "all jobs", is_empty).await?;
    worker.stop().await?;
    let expected: Vec<_> = ["high", "normal", "low"]
        .iter()
        .flat_map(|p| (0..4).map(move |n| format!("{p} {n}")))
        .collect();
    assert_eq!(names(&ran), expected);
    Ok(())
}

/// A retry, a hand-back, a crash, a revival and a drain know the priority.
async fn a_priority_is_kept_through_every_state(server: &Server) -> Result<()> {
    let queue = server.queue().await?;
    let low = || PushOptions::new().priority(Priority::Low);
    let high = || PushOptions::new().priority(Priority::High).attempts(1);
    for n in 0..5 {
        queue.push(step(&format!("low {n}")).with(low())).await?;
        queue.push(step(&format!("high {n}")).with(high())).await?;
    }
    queue.push(step("normal")).await?;
    queue.push(step("scheduled").with(low().delay(Duration::from_mins(1)))).await?;
    let stats = queue.stats("default").await?;
    assert_eq!((stats.waiting, stats.scheduled, stats.pushed_total), (11, 1, 12));
    assert!(stats.lag_ms < 60_000);
    let listed = waiting(&queue).await?;
    assert!(listed[..5].iter().all(|name| name.contains("high")), "{listed:?}");
    assert!(listed[5].contains("normal") && listed[6].contains("low 0"), "{listed:?}");
    let page = queue.jobs("default", State::Waiting, 4, 3).await?;
    assert_eq!(page[0].payload, listed[4]);
    let scheduled = queue.jobs("default", State::Scheduled, 0, 10).await?;
    assert!(scheduled[0].payload.contains("scheduled") && scheduled[0].due_ms.is_some());

    // A worker takes all and dies; nothing is lost or doubled.
    let hang = |_: Step, _: Context| std::future::pending::<Result<(), std::io::Error>>();
    let lease = Duration::from_millis(300);
    let dying = Worker::new(&queue).concurrency(20).lease(lease).handle(hang);
    let dying = run(dying);
    until(&queue, "default", "a crash", |stats| stats.leased == 11).await?;
    dying.kill().await;
    // A worker that is stopped hands back what it holds.
    let stopping =
        Worker::new(&queue).concurrency(20).lease(lease).grace(Duration::ZERO).handle(hang);
    let stopping = run(stopping);
    until(&queue, "default", "the jobs of the dead", |stats| stats.failed_total == 11).await?;
    stopping.stop().await?;
    let stats = until(&queue, "default", "the jobs", |stats| stats.leased == 0).await?;
    assert_eq!((stats.waiting, stats.scheduled), (11, 1), "{stats:?}");
    assert_eq!(waiting(&queue).await?.len(), 11);
    assert_eq!(queue.drain("default").await?, 12);
    assert!(is_empty(&queue.stats("default").await?));

    // A job that failed for good begins first again after its revival.
    queue.push(step("fails").with(high())).await?;
    let ran = Ran::default();
    let worker = working(&queue, &["default"], &ran);
    let dead =
        eventually("a death", async || queue.dead("default", 0, 1).await.ok()?.pop()).await?;
    worker.stop().await?;
    queue.push(step("normal")).await?;
    assert!(queue.revive("default", &dead).await?);
    let list = queue.jobs("default", State::Waiting, 0, 10).await?;
    assert!(list[0].payload.contains("fails"), "{list:?}");
    Ok(())
}

async fn an_expired_job_does_not_begin(server: &Server) -> Result<()> {
    let queue = server.queue().await?;
    let soon = || PushOptions::new().expires_after(Duration::from_millis(1));
    let later = PushOptions::new().expires_after(Duration::from_mins(10));
    queue.push(step("expired").with(soon())).await?;
    queue.push(step("in time").with(later)).await?;
    let at = std::time::SystemTime::now() - Duration::from_mins(1);
    queue.push(step("expired").with(PushOptions::new().expires_at(at))).await?;
    queue.chain().then(step("expired").with(soon())).then(step("link")).push().await?;
    let batch = queue.batch().job(step("expired").with(soon())).catch(step("catch"));
    let id = batch.finally(step("finally")).push().await?;
    // A link's time begins when it is pushed.
    let link = PushOptions::new().expires_after(Duration::from_mins(1));
    queue.chain().then(step("first")).then(step("second").with(link)).push().await?;
    let ran = Ran::default();
    let worker = working(&queue, &["default"], &ran);
    until(&queue, "default", "all jobs", is_empty).await?;
    worker.stop().await?;
    let mut ran = names(&ran);
    ran.sort();
    assert_eq!(ran, ["catch", "finally", "first", "in time", "second"]);
    let stats = queue.stats("default").await?;
    assert_eq!((stats.dead, stats.failed_total, stats.done_total), (0, 0, 5));
    assert_eq!(queue.batch_status(&id).await?.map(|status| status.dead), Some(1));
    let never = soon().delay(Duration::from_secs(5));
    assert!(matches!(queue.push(step("never").with(never)).await, Err(Error::Setting(_))));
    Ok(())
}

async fn a_key_is_released_at_the_start(server: &Server) -> Result<()> {
    let queue = server.queue().await?;
    let until_start = || PushOptions::new().unique_until_start();
    let push = async |content, options: PushOptions| {
        queue.push(Index { page: 7, content }.with(options)).await
    };
    let first = push(1, until_start()).await?;
    assert!(!push(2, until_start()).await?.is_new, "the first waits");
    let (begun, ran) = (Arc::new(tokio::sync::Notify::new()), Arc::new(Mutex::new(Vec::new())));
    let worker = || {
        let (begun, ran) = (Arc::clone(&begun), Arc::clone(&ran));
        Worker::new(&queue).queues(["index"]).concurrency(1).handle(
            move |job: Index, _: Context| {
                ran.lock().push(job.content);
                begun.notify_one();
                async move {
                    if job.content == 1 {
                        std::future::pending::<()>().await;
                    }
                    Ok::<(), std::io::Error>(())
                }
            },
        )
    };
    let lease = Duration::from_millis(300);
    let running = run(worker().lease(lease));
    begun.notified().await;
    let second = push(3, until_start()).await?;
    assert!(second.is_new && second.id != first.id, "the first has begun");
    assert!(!push(4, PushOptions::new()).await?.is_new, "the second holds the key");
    // The end of the first, whatever it is, does not release the key of the second.
    assert!(queue.cancel("index", first.id).await?);
    eventually("its end", async || (ran.lock().len() == 2).then_some(())).await?;
    until(&queue, "index", "the end of the second", is_empty).await?;
    running.stop().await?;
    assert_eq!(*ran.lock(), [1, 3]);
    // Without the option, the key is held until the end.
    let third = push(1, PushOptions::new()).await?;
    assert!(third.is_new);
    let running = run(worker().lease(lease));
    begun.notified().await;
    eventually("its begin", async || (ran.lock().len() == 3).then_some(())).await?;
    assert_eq!(push(5, PushOptions::new()).await?.id, third.id);
    running.kill().await;
    Ok(())
}

/// A job that expired while it was dead once vanished when it was revived.
async fn a_revived_job_is_not_bound_by_its_old_times(server: &Server) -> Result<()> {
    let queue = server.queue().await?;
    let soon = Duration::from_millis(400);
    let options = PushOptions::new().expires_after(soon).retry_for(soon).attempts(1);
    queue.push(step("fails").with(options)).await?;
    let ran = Ran::default();
    let worker = working(&queue, &["default"], &ran);
    eventually("a death", async || queue.dead("default", 0, 1).await.ok()?.pop()).await?;
    let start = std::time::Instant::now();
    eventually("its expiry", async || (start.elapsed() > soon).then_some(())).await?;
    assert_eq!(queue.revive_all("default").await?, 1);
    until(&queue, "default", "its second death", |stats| stats.failed_total == 2).await?;
    worker.stop().await?;
    assert_eq!(names(&ran), ["fails", "fails"]);
    assert_eq!(queue.stats("default").await?.dead, 1);
    Ok(())
}

#[derive(Serialize, Deserialize)]
struct Limited(u32);

impl Job for Limited {
    const NAME: &'static str = "limited";
    const QUEUE: &'static str = "limited";

    fn limits(&self) -> Vec<Limit> {
        vec![Limit::concurrent("one", 1)]
    }
}

/// Jobs of a full limit begin in the order of their pushes, whatever their priority. Only a job
/// that is being tried while the limit gets room is overtaken.
async fn a_line_knows_no_priorities(server: &Server) -> Result<()> {
    let queue = server.queue().await?;
    let order: Arc<Mutex<Vec<u32>>> = Arc::default();
    let gate = Arc::new(tokio::sync::Semaphore::new(0));
    let (log, permits) = (Arc::clone(&order), Arc::clone(&gate));
    let worker = Worker::new(&queue).queues(["limited"]).handle(move |Limited(n): Limited| {
        log.lock().push(n);
        let permits = Arc::clone(&permits);
        async move { permits.acquire().await.unwrap().forget() }
    });
    let worker = run(worker);
    queue.push(Limited(0)).await?;
    eventually("the first", async || (order.lock().len() == 1).then_some(())).await?;
    let priorities = [Priority::Low, Priority::Normal, Priority::High];
    for (n, priority) in (1..=12).zip(priorities.into_iter().cycle()) {
        queue.push(Limited(n).with(PushOptions::new().priority(priority))).await?;
        // Also after the head of the line was tried again.
        let in_line = |stats: &Stats| stats.blocked == u64::from(n) && stats.leased == 1;
        until(&queue, "limited", "the line", in_line).await?;
    }
    gate.add_permits(20);
    until(&queue, "limited", "all jobs", is_empty).await?;
    worker.stop().await?;
    let order = order.lock().clone();
    assert_eq!(order.len(), 13);
    // Length of the longest part that is in order.
    let mut lengths: Vec<usize> = Vec::new();
    for (place, n) in order.iter().enumerate() {
        let before = (0..place).filter(|earlier| order[*earlier] < *n);
        lengths.push(1 + before.map(|earlier| lengths[earlier]).max().unwrap_or(0));
    }
    assert!(lengths.iter().max() >= Some(&11), "{order:?}");
    Ok(())
}

async fn a_debounced_job_that_ran_or_was_cancelled_is_not_replaced(server: &Server) -> Result<()> {
    let queue = server.queue().await?;
    let (soon, long) = (Duration::from_millis(1), Duration::from_mins(10));
    let ran = Arc::new(Mutex::new(Vec::new()));
    let seen = Arc::clone(&ran);
    let worker =
        Worker::new(&queue).queues(["index"]).handle(move |job: Index| {
            seen.lock().push(job.content);
            async move {
                if job.content == 1 { Err(BoxError::from(Snooze::after(long))) } else { Ok(()) }
            }
        });
    let worker = run(worker);
    let push =
        async |content, wait| queue.push(Index { page: 7, content }).debounce(wait, long).await;
    let first = push(1, soon).await?;
    until(&queue, "index", "its run", |stats| stats.scheduled == 1 && stats.leased == 0).await?;
    eventually("its run", async || (ran.lock().len() == 1).then_some(())).await?;
    until(&queue, "index", "its snooze", |stats| stats.scheduled == 1).await?;
    // It has run, and waits for its second run: the push is a new job.
    let second = push(2, long).await?;
    assert!(second.is_new && second.id != first.id);
    assert_eq!(queue.stats("index").await?.scheduled, 2);
    // A cancelled job does not take the next push with it.
    assert!(queue.cancel("index", second.id).await?);
    push(3, soon).await?;
    eventually("the last content", async || ran.lock().contains(&3).then_some(())).await?;
    assert!(!ran.lock().contains(&2));
    worker.stop().await
}

async fn a_debounced_job_runs_once_with_the_last_content(server: &Server) -> Result<()> {
    let queue = server.queue().await?;
    let long = Duration::from_mins(10);
    let push = async |content, wait, at_most| {
        queue.push(Index { page: 7, content }).debounce(wait, at_most).await
    };
    let first = push(1, long, long).await?;
    let other = queue.push(Index { page: 8, content: 100 }).debounce(long, long).await?;
    assert!(first.is_new && other.is_new);
    let second = push(2, long, long * 2).await?;
    assert_eq!((second.id, second.is_new), (first.id, false));
    let due = queue.jobs("index", State::Scheduled, 0, 10).await?;
    assert_eq!(due.len(), 2, "{due:?}");
    let this = due.iter().find(|job| job.id == Some(first.id)).unwrap();
    assert!(this.payload.contains("\"content\":2"), "{this:?}");
    // The first push bounds the wait.
    push(3, long, Duration::from_millis(1)).await?;
    let ran = Arc::new(Mutex::new(Vec::new()));
    let seen = Arc::clone(&ran);
    let worker =
        Worker::new(&queue).queues(["index"]).handle(move |job: Index, context: Context| {
            seen.lock().push((job.content, context.id));
            async { Ok::<(), std::io::Error>(()) }
        });
    let worker = run(worker);
    until(&queue, "index", "the job", |stats| stats.done_total == 1).await?;
    assert_eq!(*ran.lock(), [(3, first.id)]);
    // It has run: the next one is new.
    let next = push(4, Duration::from_millis(1), long).await?;
    assert!(next.is_new && next.id != first.id);
    until(&queue, "index", "the next job", |stats| stats.done_total == 2).await?;
    assert_eq!(queue.stats("index").await?.scheduled, 1, "the other page's");
    worker.stop().await?;
    let plain = queue.push(step("no key")).debounce(long, long).await;
    assert!(matches!(plain, Err(Error::Setting(_))));
    Ok(())
}

async fn concurrent_pushes_of_a_debounced_job_leave_one(server: &Server) -> Result<()> {
    let (one, two) = (server.queue().await?, server.queue().await?);
    let long = Duration::from_mins(10);
    let pushes = (0..40).map(|n| {
        let queue = if n % 2 == 0 { &one } else { &two };
        let push = queue.push(Index { page: 7, content: n }).debounce(long, long);
        async move { push.await }
    });
    let pushed = futures_util::future::try_join_all(pushes).await?;
    let stats = one.stats("index").await?;
    assert_eq!((stats.scheduled, stats.waiting), (1, 0));
    assert_eq!(pushed.iter().filter(|pushed| pushed.is_new).count(), 1);
    assert!(pushed.iter().all(|other| other.id == pushed[0].id));
    Ok(())
}

/// A job that is due keeps its content, although no worker has taken it yet: the push is a new job.
async fn a_debounced_job_that_is_due_is_not_replaced(server: &Server) -> Result<()> {
    let queue = server.queue().await?;
    let wait = Duration::from_millis(30);
    let push = async |content| {
        let push = queue.push(Index { page: 7, content });
        push.debounce(wait, Duration::from_mins(1)).await
    };
    assert!(push(1).await?.is_new);
    // Its time is over by the store's clock, which no later push can precede.
    let pushed = std::time::Instant::now();
    let over = async || (pushed.elapsed() > 3 * wait).then_some(());
    eventually("its time", over).await?;
    assert!(push(2).await?.is_new, "a new job");
    let contents: Arc<Mutex<Vec<u32>>> = Arc::default();
    let seen = Arc::clone(&contents);
    let worker = Worker::new(&queue).queues(["index"]).concurrency(1);
    let worker = run(worker.handle(move |job: Index| {
        seen.lock().push(job.content);
        async {}
    }));
    until(&queue, "index", "both jobs", is_empty).await?;
    assert_eq!(*contents.lock(), [1, 2]);
    worker.stop().await
}

/// A time at which a job expires is the same wherever the job stands in a chain; a duration counts
/// from its own push.
async fn a_fixed_expiry_is_kept_in_a_chain(server: &Server) -> Result<()> {
    let queue = server.queue().await?;
    let past = std::time::SystemTime::now() - Duration::from_secs(1);
    let soon = Duration::from_millis(200);
    queue
        .chain()
        .then(step("a").with(PushOptions::new().delay(2 * soon)))
        .then(step("b").with(PushOptions::new().expires_after(Duration::from_secs(30))))
        .then(step("c").with(PushOptions::new().expires_at(past + Duration::from_secs(1) + soon)))
        .then(step("d"))
        .push()
        .await?;
    let ran = Ran::default();
    let worker = working(&queue, &["default"], &ran);
    until(&queue, "default", "an end", |stats| is_empty(stats) && stats.pushed_total == 3).await?;
    assert_eq!(names(&ran), ["a", "b"], "`c` has expired, and its chain has ended");
    assert_eq!(queue.stats("default").await?.dead, 0);
    worker.stop().await
}
