//! Workflows, batches that grow, and batches inside each other, on every store.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::Duration;

use anyhow::Result;
use parking_lot::Mutex;
use scale_queue::batch::{NodeState, WorkflowStatus};
use scale_queue::outcome::Discard;
use scale_queue::push::{Priority, PushOptions};
use scale_queue::relay::Relay;
use scale_queue::worker::BoxError;
use scale_queue::{Context, Error, Job, Queue, Retry, Worker};
use serde::{Deserialize, Serialize};
use testkit::{Postgres, eventually};

use crate::on_every_store;
use crate::server::{Running, Server, is_empty, run, until};

/// A job that does what the test's [`Plan`] says of its name.
#[derive(Clone, Serialize, Deserialize)]
struct Task(String);

impl Job for Task {
    const NAME: &'static str = "task";
}

/// A job of another queue.
#[derive(Clone, Serialize, Deserialize)]
struct Far(String);

impl Job for Far {
    const NAME: &'static str = "far";
    const QUEUE: &'static str = "far";
}

on_every_store! {
    a_job_begins_when_those_before_it_are_done,
    a_death_holds_what_follows_until_a_revival,
    a_job_follows_others_even_if_they_are_dead,
    chains_batches_and_workflows_are_parts_of_each_other,
    a_batch_grows_while_it_runs,
    killed_workers_lose_no_job_of_a_workflow,
    a_cancelled_job_holds_what_follows,
    a_cancelled_workflow_skips_its_parts_too,
    a_workflow_pushed_twice_is_one,
    many_jobs_follow_one_and_one_follows_many,
    any_graph_runs_in_order,
    an_addition_has_one_number_of_jobs,
    a_death_withholds_what_follows_a_skipped_part,
}
crate::on_stores! {
    behind_pgbouncer: "pooled";
    chains_batches_and_workflows_are_parts_of_each_other, a_batch_grows_while_it_runs,
}
crate::on_stores! {
    of_cluster: "cluster";
    chains_batches_and_workflows_are_parts_of_each_other, a_batch_grows_while_it_runs,
    killed_workers_lose_no_job_of_a_workflow, a_cancelled_workflow_skips_its_parts_too,
}
crate::on_stores! {
    of_redis: "redis"; a_transaction_starts_a_workflow, a_done_workflow_leaves_no_content
}
crate::on_stores! {
    of_postgres: "postgres"; a_transaction_starts_a_workflow, a_done_workflow_leaves_no_content
}

fn task(name: &str) -> Task {
    Task(name.into())
}

/// Behaviour of the jobs of a test, and what they did.
#[derive(Clone, Default)]
struct Plan {
    ran: Arc<Mutex<Vec<String>>>,
    dies: Arc<Mutex<HashSet<String>>>,
}

impl Plan {
    fn dying(names: &[&str]) -> Self {
        let plan = Self::default();
        plan.dies.lock().extend(names.iter().map(ToString::to_string));
        plan
    }

    fn worker(&self, queue: &Queue) -> Worker {
        let (this, far) = (self.clone(), self.clone());
        Worker::new(queue)
            .queues(["default", "far"])
            .handle(move |Task(name): Task| {
                let this = this.clone();
                async move { this.run(name) }
            })
            .handle(move |Far(name): Far| {
                let this = far.clone();
                async move { this.run(name) }
            })
    }

    fn run(&self, name: String) -> Result<String, BoxError> {
        self.ran.lock().push(name.clone());
        if self.dies.lock().contains(&name) {
            return Err(Discard::because("it dies").into());
        }
        Ok(name)
    }

    /// Asserts that the first job ran before the second.
    fn assert_order(&self, first: &str, second: &str) {
        let ran = self.ran.lock();
        let place = |name: &str| ran.iter().position(|ran| ran == name);
        assert!(
            place(first).is_some() && place(first) < place(second),
            "{first}, {second}: {ran:?}"
        );
    }

    fn sorted(&self) -> Vec<String> {
        let mut ran = self.ran.lock().clone();
        ran.sort_unstable();
        ran
    }
}

async fn status(
    queue: &Queue,
    id: &str,
    wanted: impl Fn(&WorkflowStatus) -> bool,
) -> Result<WorkflowStatus> {
    let last = Arc::new(Mutex::new(None));
    let check = async || {
        let status = queue.workflow_status(id).await.ok()??;
        *last.lock() = Some(status.clone());
        wanted(&status).then_some(status)
    };
    let status = eventually("the workflow's state", check).await;
    status.map_err(|error| error.context(format!("{:?}", last.lock())))
}

fn states(status: &WorkflowStatus) -> BTreeMap<&str, NodeState> {
    status.nodes.iter().map(|node| (&*node.name, node.state)).collect()
}

fn is_done(status: &WorkflowStatus) -> bool {
    status.batch.done == status.batch.total
}

async fn a_job_begins_when_those_before_it_are_done(server: &Server) -> Result<()> {
    let queue = server.queue().await?;
    let plan = Plan::default();
    let id = queue
        .workflow()
        .job("a", task("a"))
        .job("b", Far("b".into()))
        .after(["a"])
        .job("c", task("c"))
        .after(["a"])
        .job("d", Join)
        .after(["b", "c"])
        .then(task("then"))
        .catch(task("catch"))
        .finally(task("finally"))
        .push()
        .await?;
    let begun = queue.workflow_status(&id).await?.unwrap();
    let held = NodeState::Held;
    assert_eq!(
        states(&begun),
        BTreeMap::from([("a", NodeState::Started), ("b", held), ("c", held), ("d", held)]),
    );
    assert_eq!(begun.nodes[3].after, ["b", "c"]);
    assert_eq!(queue.stats("default").await?.waiting, 1);
    let outputs = Arc::new(Mutex::new(Vec::new()));
    let seen = Arc::clone(&outputs);
    let worker = plan.worker(&queue).handle(move |_: Join, context: Context| {
        let seen = Arc::clone(&seen);
        async move {
            for name in ["b", "c"] {
                let output = context.output::<String>(name).await?;
                seen.lock().push(output);
            }
            let error = context.output::<String>("a").await.unwrap_err();
            assert!(matches!(error, Error::Workflow(_)) && error.to_string().contains("b, c"));
            Ok::<(), Error>(())
        }
    });
    let worker = run(worker);
    let done = status(&queue, &id, is_done).await?;
    assert!(states(&done).values().all(|state| *state == NodeState::Done));
    until(&queue, "default", "what follows", is_empty).await?;
    assert_eq!(plan.sorted(), ["a", "b", "c", "finally", "then"]);
    plan.assert_order("a", "b");
    plan.assert_order("a", "c");
    assert_eq!(*outputs.lock(), [Some("b".to_owned()), Some("c".to_owned())]);
    worker.stop().await
}

#[derive(Serialize, Deserialize)]
struct Join;

impl Job for Join {
    const NAME: &'static str = "join";
}

async fn a_death_holds_what_follows_until_a_revival(server: &Server) -> Result<()> {
    let queue = server.queue().await?;
    let plan = Plan::dying(&["bad"]);
    let id = queue
        .workflow()
        .job("bad", task("bad"))
        .job("next", task("next"))
        .after(["bad"])
        .job("last", task("last"))
        .after(["next"])
        .job("other", task("other"))
        .job("after-other", task("after-other"))
        .after(["other"])
        .then(task("then"))
        .catch(task("catch"))
        .finally(task("finally"))
        .push()
        .await?;
    let worker = run(plan.worker(&queue));
    let over =
        status(&queue, &id, |status| status.batch.done == 2 && status.batch.dead == 1).await?;
    assert_eq!(
        states(&over),
        BTreeMap::from([
            ("bad", NodeState::Dead),
            ("next", NodeState::Stuck),
            ("last", NodeState::Stuck),
            ("other", NodeState::Done),
            ("after-other", NodeState::Done),
        ]),
    );
    let all = async || (plan.ran.lock().len() == 5).then_some(());
    eventually("`catch` and `finally`", all).await?;
    until(&queue, "default", "an end", is_empty).await?;
    assert_eq!(plan.sorted(), ["after-other", "bad", "catch", "finally", "other"]);
    assert!(!queue.retry_node(&id, "next").await?, "it waits for another");
    assert!(!queue.retry_node(&id, "other").await?, "it is done");
    plan.dies.lock().clear();
    assert!(queue.retry_node(&id, "bad").await?);
    status(&queue, &id, is_done).await?;
    until(&queue, "default", "an end", is_empty).await?;
    assert_eq!(
        plan.sorted(),
        ["after-other", "bad", "bad", "catch", "finally", "last", "next", "other", "then"],
        "each follower of the workflow once",
    );
    plan.assert_order("next", "last");
    worker.stop().await
}

async fn a_job_follows_others_even_if_they_are_dead(server: &Server) -> Result<()> {
    let queue = server.queue().await?;
    let plan = Plan::dying(&["bad"]);
    let id = queue
        .workflow()
        .job("bad", task("bad"))
        .job("good", task("good"))
        .job("strict", task("strict"))
        .after(["bad", "good"])
        .job("report", task("report"))
        .after(["bad", "good"])
        .even_if_dead()
        .finally(task("finally"))
        .push()
        .await?;
    let worker = run(plan.worker(&queue));
    let over =
        status(&queue, &id, |status| status.batch.done == 2 && status.batch.dead == 1).await?;
    assert_eq!(states(&over)["strict"], NodeState::Stuck);
    let all = async || (plan.ran.lock().len() == 4).then_some(());
    eventually("`finally`", all).await?;
    assert_eq!(plan.sorted(), ["bad", "finally", "good", "report"]);
    plan.assert_order("bad", "report");
    plan.assert_order("good", "report");
    worker.stop().await
}

async fn chains_batches_and_workflows_are_parts_of_each_other(server: &Server) -> Result<()> {
    let queue = server.queue().await?;
    let plan = Plan::dying(&["link-2", "part-1"]);
    let inner = queue
        .workflow()
        .job("x", task("x"))
        .job("y", task("y"))
        .after(["x"])
        .finally(task("inner-finally"));
    let parts = queue
        .batch()
        .jobs((0..3).map(|n| task(&format!("part-{n}"))))
        .allow_failures()
        .batch(queue.batch().job(task("deep")).then(task("deep-then")))
        .workflow(inner);
    let chain = queue.chain().then(task("link-1")).then(Far("link-2".into())).then(task("link-3"));
    let id = queue
        .workflow()
        .chain("chain", chain)
        .batch("parts", parts)
        .job("end", Join)
        .after(["chain", "parts"])
        .then(task("then"))
        .push()
        .await?;
    let outputs = Arc::new(Mutex::new(Vec::new()));
    let seen = Arc::clone(&outputs);
    let worker = plan.worker(&queue).handle(move |_: Join, context: Context| {
        let seen = Arc::clone(&seen);
        async move {
            let chain = context.output::<String>("chain").await?;
            let parts = context.output::<String>("parts").await?;
            seen.lock().extend([chain, parts]);
            Ok::<(), Error>(())
        }
    });
    let worker = run(worker);
    let over = status(&queue, &id, |status| status.batch.dead == 2).await?;
    assert_eq!(states(&over)["end"], NodeState::Stuck);
    until(&queue, "default", "an end", is_empty).await?;
    let expected = [
        "deep", "deep-then", "inner-finally", "link-1", "link-2", "part-0", "part-1", "part-2",
        "x", "y",
    ];
    assert_eq!(plan.sorted(), expected);
    plan.dies.lock().clear();
    assert!(queue.retry_node(&id, "chain").await?, "the dead link");
    assert!(queue.retry_node(&id, "parts").await?, "the dead job of the batch");
    status(&queue, &id, is_done).await?;
    until(&queue, "default", "an end", is_empty).await?;
    let mut expected = expected.map(ToOwned::to_owned).to_vec();
    expected.extend(["link-2", "link-3", "part-1", "then"].map(ToOwned::to_owned));
    expected.sort_unstable();
    assert_eq!(plan.sorted(), expected);
    assert_eq!(*outputs.lock(), [Some("link-3".to_owned()), None], "of its last job; of a batch");
    worker.stop().await
}

/// A job that reads a page, and adds the pages to which it links.
#[derive(Serialize, Deserialize)]
struct Page(u32);

impl Job for Page {
    const NAME: &'static str = "page";
}

/// Each page adds two more, as a tree. The worker is killed when some pages have added theirs and
/// not ended: they run again, and each page is counted once.
async fn a_batch_grows_while_it_runs(server: &Server) -> Result<()> {
    const PAGES: u32 = 31;
    let queue = server.queue().await?;
    let (plan, added) = (Plan::default(), Arc::new(AtomicUsize::new(0)));
    let ends: Arc<Mutex<HashMap<u32, u32>>> = Arc::default();
    let pages = queue.batch().job(Page(1)).then(task("batch-then"));
    let id = queue
        .workflow()
        .batch("pages", pages)
        .job("merge", task("merge"))
        .after(["pages"])
        .push()
        .await?;
    let worker = |hangs: bool| {
        let (pages, ends, added) = (queue.clone(), Arc::clone(&ends), Arc::clone(&added));
        let worker = plan.worker(&queue).concurrency(4).lease(Duration::from_millis(400));
        worker.handle(move |Page(page): Page, context: Context| {
            let (queue, ends, added) = (pages.clone(), Arc::clone(&ends), Arc::clone(&added));
            async move {
                let more = [2 * page, 2 * page + 1].into_iter().filter(|page| *page <= PAGES);
                let more: Vec<_> = more.map(Page).collect();
                if !more.is_empty() {
                    assert!(queue.grow(&context, "links").jobs(more).push().await?);
                }
                if hangs && added.fetch_add(1, SeqCst) >= 3 {
                    std::future::pending::<()>().await;
                }
                *ends.lock().entry(page).or_default() += 1;
                Ok::<(), Error>(())
            }
        })
    };
    let doomed = run(worker(true));
    eventually("some pages", async || (added.load(SeqCst) >= 5).then_some(())).await?;
    doomed.kill().await;
    let worker = run(worker(false));
    status(&queue, &id, is_done).await?;
    until(&queue, "default", "an end", is_empty).await?;
    assert_eq!(plan.sorted(), ["batch-then", "merge"]);
    assert_eq!(ends.lock().len(), PAGES as usize);
    let pages = queue.batch_status(&format!("{id}:0")).await?.unwrap();
    assert_eq!((pages.total, pages.done, pages.dead), (PAGES, PAGES, 0));
    worker.stop().await
}

/// A ladder of jobs, whose workers are killed again and again.
async fn killed_workers_lose_no_job_of_a_workflow(server: &Server) -> Result<()> {
    const STEPS: usize = 12;
    let queue = server.queue().await?;
    let plan = Plan::default();
    let mut workflow = queue.workflow();
    for step in 0..STEPS {
        for side in ["l", "r"] {
            workflow = workflow.job(&format!("{side}{step}"), task(&format!("{side}{step:02}")));
            if step > 0 {
                let before = [format!("l{}", step - 1), format!("r{}", step - 1)];
                workflow = workflow.after(before.iter().map(String::as_str));
            }
        }
    }
    let id = workflow.then(task("then")).push().await?;
    let start = || run(plan.worker(&queue).concurrency(2).lease(Duration::from_millis(300)));
    for kill in 1..=6 {
        let worker = start();
        let some = async || (plan.ran.lock().len() >= kill * 3).then_some(());
        eventually("some jobs", some).await?;
        worker.kill().await;
    }
    let worker: Running = start();
    status(&queue, &id, is_done).await?;
    until(&queue, "default", "an end", is_empty).await?;
    worker.stop().await?;
    let ran = plan.ran.lock().clone();
    let distinct: HashSet<_> = ran.iter().cloned().collect();
    assert_eq!(distinct.len(), 2 * STEPS + 1, "{ran:?}");
    let pushed = queue.stats("default").await?.pushed_total;
    assert_eq!(pushed, 2 * STEPS as u64 + 1, "each once, though some ran twice: {ran:?}");
    for step in 1..STEPS {
        for (before, after) in [("l", "l"), ("l", "r"), ("r", "l"), ("r", "r")] {
            let before = format!("{before}{:02}", step - 1);
            plan.assert_order(&before, &format!("{after}{step:02}"));
        }
    }
    Ok(())
}

async fn a_cancelled_job_holds_what_follows(server: &Server) -> Result<()> {
    let queue = server.queue().await?;
    let plan = Plan::default();
    let id = queue
        .workflow()
        .job("a", task("a"))
        .job("b", task("b"))
        .after(["a"])
        .job("c", task("c"))
        .after(["b"])
        .job("d", task("d"))
        .push()
        .await?;
    assert!(!queue.cancel_node(&id, "nothing").await? && !queue.cancel_node("no", "b").await?);
    assert!(queue.cancel_node(&id, "b").await?, "it waits for `a`");
    assert!(!queue.cancel_node(&id, "b").await?, "it is dead");
    assert!(queue.cancel_node(&id, "d").await?, "it waits for a worker");
    let worker = run(plan.worker(&queue));
    let over =
        status(&queue, &id, |status| status.batch.done == 1 && status.batch.dead == 2).await?;
    assert_eq!(states(&over)["c"], NodeState::Stuck);
    until(&queue, "default", "an end", is_empty).await?;
    assert_eq!(plan.sorted(), ["a"]);
    assert!(queue.retry_node(&id, "b").await? && queue.retry_node(&id, "d").await?);
    status(&queue, &id, is_done).await?;
    until(&queue, "default", "an end", is_empty).await?;
    assert_eq!(plan.sorted(), ["a", "b", "c", "d"]);
    worker.stop().await
}

async fn a_cancelled_workflow_skips_its_parts_too(server: &Server) -> Result<()> {
    let queue = server.queue().await?;
    let plan = Plan::default();
    let parts = queue.batch().jobs(["p", "q"].map(task)).batch(queue.batch().job(task("deep")));
    let id = queue
        .workflow()
        .batch("parts", parts)
        .job("b", task("b"))
        .after(["parts"])
        .batch("later", queue.batch().job(task("late")))
        .after(["b"])
        .then(task("then"))
        .push()
        .await?;
    assert!(queue.cancel_batch(&id).await?);
    let worker = run(plan.worker(&queue));
    status(&queue, &id, is_done).await?;
    until(&queue, "default", "an end", is_empty).await?;
    assert_eq!(plan.sorted(), ["then"], "as after a cancelled batch");
    worker.stop().await
}

async fn a_workflow_pushed_twice_is_one(server: &Server) -> Result<()> {
    let queue = server.queue().await?;
    let plan = Plan::default();
    let push = async || {
        let workflow = queue.workflow().named("import.7").job("a", task("a"));
        let workflow = workflow.batch("b", queue.batch().jobs(["b", "c"].map(task))).after(["a"]);
        workflow.job("d", task("d")).after(["b"]).then(task("then")).push().await
    };
    assert_eq!(push().await?, "import.7");
    push().await?;
    let worker = run(plan.worker(&queue));
    status(&queue, "import.7", is_done).await?;
    push().await?;
    until(&queue, "default", "an end", is_empty).await?;
    assert_eq!(plan.sorted(), ["a", "b", "c", "d", "then"]);
    for invalid in [
        queue.workflow().job("a", task("a")).after(["b"]),
        queue.workflow().job("a", task("a")).job("a", task("a")),
        queue.workflow().job("no space", task("a")),
        queue.workflow().after(["a"]),
        queue.workflow().batch("a", queue.batch()),
        queue.workflow(),
    ] {
        assert!(invalid.push().await.is_err());
    }
    worker.stop().await
}

async fn many_jobs_follow_one_and_one_follows_many(server: &Server) -> Result<()> {
    const MANY: usize = 300;
    let queue = server.queue().await?;
    let plan = Plan::default();
    let mut workflow = queue.workflow().job("first", task("first"));
    let names: Vec<_> = (0..MANY).map(|n| format!("n{n}")).collect();
    for name in &names {
        workflow = workflow.job(name, task(name)).after(["first"]);
    }
    let workflow = workflow.job("last", task("last")).after(names.iter().map(String::as_str));
    let id = workflow.push().await?;
    let workers = [(); 2].map(|()| run(plan.worker(&queue).concurrency(16)));
    status(&queue, &id, is_done).await?;
    let ran = plan.ran.lock().clone();
    assert_eq!((ran.len(), &*ran[0], &*ran[MANY + 1]), (MANY + 2, "first", "last"));
    for worker in workers {
        worker.stop().await?;
    }
    Ok(())
}

/// Graphs drawn at random: no job begins before those that it follows are done, and each runs.
async fn any_graph_runs_in_order(server: &Server) -> Result<()> {
    const NODES: usize = 24;
    let queue = server.queue().await?;
    let plan = Plan::default();
    let workers = [(); 2].map(|()| run(plan.worker(&queue).concurrency(8)));
    for seed in 1..=5 {
        let mut dice = fastrand::Rng::with_seed(seed);
        let mut edges = Vec::new();
        let mut workflow = queue.workflow();
        for n in 0..NODES {
            workflow = workflow.job(&format!("n{n}"), task(&format!("{seed}.{n}")));
            let before: HashSet<_> = (0..dice.usize(0..4)).map(|_| dice.usize(0..NODES)).collect();
            let before: Vec<_> = before.into_iter().filter(|before| *before < n).collect();
            edges.extend(before.iter().map(|before| (*before, n)));
            let names: Vec<_> = before.iter().map(|before| format!("n{before}")).collect();
            workflow = workflow.after(names.iter().map(String::as_str));
        }
        let id = workflow.push().await?;
        status(&queue, &id, is_done).await?;
        for (before, after) in edges {
            plan.assert_order(&format!("{seed}.{before}"), &format!("{seed}.{after}"));
        }
    }
    assert_eq!(plan.ran.lock().len(), 5 * NODES);
    for worker in workers {
        worker.stop().await?;
    }
    Ok(())
}

/// A job that adds parts under names, each attempt as its row says.
#[derive(Serialize, Deserialize)]
struct Adds;

impl Job for Adds {
    const NAME: &'static str = "adds";
    const RETRY: Retry = Retry::custom(3, |_| Duration::from_millis(1));
}

/// An addition that has another number of jobs in the next attempt is refused, and takes no place
/// of another one.
async fn an_addition_has_one_number_of_jobs(server: &Server) -> Result<()> {
    let queue = server.queue().await?;
    let plan = Plan::default();
    let id = queue.batch().job(Adds).push().await?;
    let refusals = Arc::new(Mutex::new(Vec::new()));
    let (told, adding) = (Arc::clone(&refusals), queue.clone());
    let worker = plan.worker(&queue).handle(move |_: Adds, context: Context| {
        let (queue, told) = (adding.clone(), Arc::clone(&told));
        async move {
            let tasks =
                |name: &'static str, count| (0..count).map(move |n| task(&format!("{name}{n}")));
            if context.attempt == 1 {
                queue.grow(&context, "x").jobs(tasks("x", 2)).push().await?;
                return Err("not yet".into());
            }
            let again = queue.grow(&context, "x").jobs(tasks("x", 4)).push().await;
            told.lock().push(again.unwrap_err().to_string());
            assert!(queue.grow(&context, &"long".repeat(17)).job(task("l")).push().await.is_err());
            queue.grow(&context, "x").jobs(tasks("x", 2)).push().await?;
            queue.grow(&context, "y").jobs(tasks("y", 2)).push().await?;
            Ok::<(), BoxError>(())
        }
    });
    let worker = run(worker);
    let done = async || queue.batch_status(&id).await.ok()?.filter(|batch| batch.done == 5);
    eventually("all jobs", done).await?;
    until(&queue, "default", "an end", is_empty).await?;
    assert_eq!(plan.sorted(), ["x0", "x1", "y0", "y1"]);
    assert!(refusals.lock()[0].contains("2 jobs already"), "{:?}", refusals.lock());
    worker.stop().await
}

/// A death in the outer batch skips the jobs of its parts: what would follow them is not pushed.
async fn a_death_withholds_what_follows_a_skipped_part(server: &Server) -> Result<()> {
    let queue = server.queue().await?;
    let plan = Plan::dying(&["bad"]);
    let inner = queue.workflow().job("x", task("x")).then(task("workflow-then"));
    let id = queue
        .batch()
        .job(task("bad").with(PushOptions::new().priority(Priority::High)))
        .batch(queue.batch().job(task("part")).then(task("batch-then")))
        .workflow(inner)
        .then(task("then"))
        .push()
        .await?;
    let worker = run(plan.worker(&queue).concurrency(1));
    let over = async || {
        queue.batch_status(&id).await.ok()?.filter(scale_queue::batch::BatchStatus::is_over)
    };
    assert_eq!(eventually("an end", over).await?.dead, 1);
    until(&queue, "default", "an end", is_empty).await?;
    assert_eq!(plan.sorted(), ["bad"], "nothing else began");
    worker.stop().await
}

/// Nothing of a workflow that is done stays behind but its record, for a day.
async fn a_done_workflow_leaves_no_content(server: &Server) -> Result<()> {
    let queue = server.queue().await?;
    let plan = Plan::default();
    let id = queue.workflow().job("a", task("a")).job("b", task("b")).after(["a"]).push().await?;
    let worker = run(plan.worker(&queue));
    status(&queue, &id, is_done).await?;
    let notes = async || -> Result<usize> {
        if server.kind == "redis" {
            let keys = server.redis().command(&["KEYS", "*note:*"]).await?;
            return Ok(keys.lines().filter(|key| key.contains(&id)).count());
        }
        let count = server.sql("select count(*) from scale_queue_notes").await?;
        Ok(count.trim().parse()?)
    };
    let gone = async || (notes().await.ok()? == 0).then_some(());
    eventually("no notes", gone).await?;
    assert!(queue.workflow_status(&id).await?.is_some_and(|status| is_done(&status)));
    worker.stop().await
}

/// On Redis, through the outbox of a database.
async fn a_transaction_starts_a_workflow(server: &Server) -> Result<()> {
    let queue = server.queue().await?;
    let outbox = Postgres::start(0).await?;
    let url = if queue.needs_relay() { outbox.node(0).url() } else { server.url.clone() };
    let pool = sqlx::PgPool::connect(&url).await?;
    Relay::migrate(&pool).await?;
    let plan = Plan::default();
    let worker = run(plan.worker(&queue));
    for commits in [false, true] {
        let mut tx = pool.begin().await?;
        let workflow = queue.workflow().job("a", task("a"));
        let workflow = workflow.batch("b", queue.batch().jobs(["b", "c"].map(task))).after(["a"]);
        let id = workflow.push_in(&mut *tx).await?;
        queue.batch().job(task("d")).then(task("e")).push_in(&mut *tx).await?;
        queue.chain().then(task("f")).then(task("g")).push_in(&mut *tx).await?;
        assert_eq!(queue.workflow_status(&id).await?, None, "not before the commit");
        if !commits {
            tx.rollback().await?;
            continue;
        }
        tx.commit().await?;
        if queue.needs_relay() {
            let mut tx = pool.begin().await?;
            assert_eq!(Relay::new(&queue).step(&mut *tx).await?, 3);
            tx.commit().await?;
        }
        status(&queue, &id, is_done).await?;
    }
    let all = async || (plan.ran.lock().len() == 7).then_some(());
    eventually("all jobs", all).await?;
    assert_eq!(plan.sorted(), ["a", "b", "c", "d", "e", "f", "g"]);
    worker.stop().await
}
