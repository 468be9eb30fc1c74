//! The fake queue that applications use in their tests.
#![cfg(feature = "testing")]
#![allow(clippy::unwrap_used)]

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::Duration;

use anyhow::Result;
use scale_queue::encryption::PayloadCipher;
use scale_queue::outcome::Interrupted;
use scale_queue::push::{Priority, PushOptions};
use scale_queue::retry::RetryRules;
use scale_queue::status::Waited;
use scale_queue::testing::{FakeQueue, TestContext};
use scale_queue::worker::{BoxError, CancelReason, CheckpointError, Outcome};
use scale_queue::{Context, Error, Job, Queue, Retry, Worker};
use serde::{Deserialize, Serialize};

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Receipt {
    order: u32,
}

impl Job for Receipt {
    const NAME: &'static str = "receipt";

    fn unique_key(&self) -> Option<String> {
        Some(self.order.to_string())
    }
}

#[derive(Serialize, Deserialize)]
struct Again(u32);

impl Job for Again {
    const NAME: &'static str = "again";
}

#[tokio::test]
async fn pushes_are_recorded_with_their_options() -> Result<()> {
    let queue = FakeQueue::new()
        .configured(|queue| queue.propagating(|| vec![("tenant".into(), "a".into())]));
    queue.assert_nothing_pushed();
    let options = PushOptions::new().to("low").priority(Priority::Low).attempts(2);
    queue.push(Receipt { order: 1 }.with(options)).delay(Duration::from_secs(9)).await?;
    queue.push(Receipt { order: 1 }).await?;
    queue.push(Receipt { order: 1 }).to("low").await?;
    queue.chain().then(Again(1)).then(Receipt { order: 2 }).push().await?;
    let batch = queue.batch().job(Receipt { order: 3 }).push().await?;
    queue.assert_pushed_times::<Receipt>(4);
    queue.assert_pushed::<Receipt>(|pushed| pushed.job.order == 3);
    let pushed = queue.pushed::<Receipt>();
    assert_eq!((pushed[0].queue.as_str(), pushed[0].priority), ("low", Priority::Low));
    assert_eq!((pushed[0].delay, pushed[0].attempts), (Duration::from_secs(9), Some(2)));
    assert_eq!(pushed[0].unique_key.as_deref(), Some("1"));
    assert_eq!(pushed[0].metadata, [("tenant".to_owned(), "a".to_owned())]);
    assert!(pushed[1].is_new && !pushed[2].is_new, "the key is one of each queue");
    assert_eq!(pushed[3].batch.as_ref(), Some(&batch));
    assert_eq!(queue.pushed::<Again>()[0].chain, ["receipt"]);
    queue.forget_pushed();
    queue.assert_not_pushed::<Receipt>();
    Ok(())
}

/// Each assertion says what was pushed instead.
#[tokio::test]
async fn a_failed_assertion_lists_the_pushes() -> Result<()> {
    let queue = FakeQueue::new();
    queue.push(Receipt { order: 7 }).await?;
    let says = |assertion: &(dyn Fn() + std::panic::RefUnwindSafe)| {
        let panic = std::panic::catch_unwind(assertion).unwrap_err();
        let said = panic.downcast_ref::<String>().unwrap().clone();
        assert!(said.contains(r#"receipt {"order":7} to default"#), "{said}");
    };
    let queue = std::panic::AssertUnwindSafe(&queue);
    says(&|| queue.assert_pushed::<Receipt>(|pushed| pushed.job.order == 8));
    says(&|| queue.assert_pushed_times::<Receipt>(2));
    says(&|| queue.assert_not_pushed::<Receipt>());
    says(&|| queue.assert_nothing_pushed());
    Ok(())
}

/// Jobs that push jobs, chains and batches run to their end; a delay of days takes no time.
#[tokio::test]
async fn what_jobs_push_runs_too() -> Result<()> {
    let queue = FakeQueue::new();
    let inner: Queue = (*queue).clone();
    let worker = || {
        let inner = inner.clone();
        Worker::new(&queue).handle(|_: Receipt| async {}).handle(move |Again(left): Again| {
            let inner = inner.clone();
            async move {
                if left > 0 {
                    inner.push(Again(left - 1)).delay(Duration::from_hours(24)).await?;
                }
                Ok::<(), Error>(())
            }
        })
    };
    queue.push(Again(3)).await?;
    queue.chain().then(Receipt { order: 1 }).then(Receipt { order: 2 }).push().await?;
    let batch = queue.batch().jobs((0..10).map(|order| Receipt { order }));
    batch.then(Again(0)).push().await?;
    let before_ms = queue.now_ms();
    let report = queue.run_pending(worker()).await?;
    assert_eq!(report.outcomes::<Again>().len(), 5);
    assert_eq!(report.outcomes::<Receipt>().len(), 12);
    let day_ms = 24 * 60 * 60 * 1_000;
    let passed_ms = queue.now_ms() - before_ms;
    assert!((3 * day_ms..4 * day_ms).contains(&passed_ms), "{passed_ms}");
    // Without jumps, only what is due runs.
    queue.push(Again(1)).await?;
    let report = queue.run_due(worker()).await?;
    assert_eq!(report.outcomes::<Again>().len(), 1);
    queue.advance(Duration::from_hours(24));
    assert_eq!(queue.run_due(worker()).await?.ended.len(), 1);
    assert!(queue.run_pending(worker()).await?.ended.is_empty());
    Ok(())
}

#[tokio::test]
async fn a_job_that_repeats_itself_for_ever_is_noticed() -> Result<()> {
    let queue = FakeQueue::new();
    let inner: Queue = (*queue).clone();
    queue.push(Again(0)).await?;
    let worker = Worker::new(&queue).handle(move |_: Again| {
        let inner = inner.clone();
        async move { inner.push(Again(0)).await.map(drop) }
    });
    let error = queue.run_pending(worker).await.unwrap_err();
    assert!(error.to_string().contains("10,000"), "{error}");
    Ok(())
}

/// A push returns after its job, and after the jobs that it pushes.
#[tokio::test]
async fn inline_jobs_run_when_they_are_pushed() -> Result<()> {
    let queue = FakeQueue::new();
    let runs = Arc::new(AtomicUsize::new(0));
    let (count, inner) = (Arc::clone(&runs), (*queue).clone());
    let worker = Worker::new(&queue).handle(move |Again(left): Again| {
        let (count, inner) = (Arc::clone(&count), inner.clone());
        async move {
            if left > 0 {
                inner.push(Again(left - 1)).await?;
                assert_eq!(count.load(SeqCst), left as usize, "the inner jobs are done");
            }
            count.fetch_add(1, SeqCst);
            Ok::<(), Error>(())
        }
    });
    let inline = queue.inline(worker);
    queue.push(Again(20)).await?;
    assert_eq!(runs.load(SeqCst), 21);
    queue.push_many((0..3).map(|_| Again(0))).await?;
    assert_eq!(runs.load(SeqCst), 24);
    queue.push(Again(0)).delay(Duration::from_hours(1)).await?;
    assert_eq!(runs.load(SeqCst), 24, "a delayed job is not run");
    inline.stop().await?;
    queue.push(Again(0)).await?;
    assert_eq!(runs.load(SeqCst), 24, "the mode has ended");
    Ok(())
}

struct Turned;

impl PayloadCipher for Turned {
    fn encrypt(&self, _: &str, payload: &[u8]) -> Result<Vec<u8>, BoxError> {
        Ok(payload.iter().rev().copied().collect())
    }

    fn decrypt(&self, _: &str, message: &[u8]) -> Result<Vec<u8>, BoxError> {
        Ok(message.iter().rev().copied().collect())
    }
}

#[tokio::test]
async fn queues_of_two_tests_share_nothing() -> Result<()> {
    let one = FakeQueue::new().configured(|queue| queue.encrypted(Turned));
    let two = FakeQueue::new();
    assert!(one.push(Receipt { order: 1 }).await?.is_new);
    assert!(two.push(Receipt { order: 1 }).await?.is_new);
    one.assert_pushed::<Receipt>(|pushed| pushed.job.order == 1);
    let (first, second) = tokio::join!(
        one.run_pending(Worker::new(&one).handle(|_: Receipt| async {})),
        two.run_pending(Worker::new(&two).handle(|_: Receipt| async {}))
    );
    assert_eq!(first?.outcomes::<Receipt>(), [&Outcome::Done]);
    assert_eq!(second?.outcomes::<Receipt>(), [&Outcome::Done]);
    Ok(())
}

#[tokio::test]
async fn a_handler_is_called_without_a_worker() {
    async fn handler(_: Receipt, context: Context) -> Result<u16, String> {
        if context.is_cancelled() { Err("stopped".into()) } else { Ok(context.attempt) }
    }
    let receipt = || Receipt { order: 1 };
    let context = TestContext::new().attempt(3).last_error("no").queue("low").metadata("a", "b");
    let context = context.context();
    assert_eq!((&*context.queue, context.last_error.as_deref()), ("low", Some("no")));
    assert_eq!(handler(receipt(), context).await, Ok(3));
    let stopped = TestContext::new().cancelled(CancelReason::Shutdown).context();
    assert_eq!(stopped.cancel_reason(), Some(CancelReason::Shutdown));
    assert!(handler(receipt(), stopped).await.is_err());
}

#[derive(Debug, thiserror::Error)]
#[error("busy")]
struct Busy;

#[derive(Serialize, Deserialize)]
struct Ruled(String);

impl Job for Ruled {
    const NAME: &'static str = "ruled";
    const RETRY: Retry = Retry::exponential(2);

    fn retry_rules() -> RetryRules {
        RetryRules::new()
            .retry_on::<Busy>("busy", Retry::custom(50, |_| Duration::from_hours(1)))
            .discard_if(|error| error.to_string() == "gone")
    }
}

/// Failures are counted by rule over all attempts of a job, and do not use up the others.
#[tokio::test]
async fn rules_count_their_own_failures() -> Result<()> {
    let queue = FakeQueue::new();
    let worker = || {
        Worker::new(&queue).handle(|Ruled(what): Ruled, context: Context| async move {
            Err::<(), BoxError>(match (what.as_str(), context.attempt) {
                ("gone", _) => "gone".into(),
                ("mixed", 10 | 12) => "plain".into(),
                _ => anyhow::Error::from(Busy).context("partner").into(),
            })
        })
    };
    let attempts = async |what: &str| -> Result<(usize, Duration, String)> {
        queue.push(Ruled(what.into())).await?;
        let report = queue.run_pending(worker()).await?;
        let last = report.outcomes::<Ruled>().pop().cloned();
        let Some(Outcome::Dead { reason }) = last else { panic!("{report:?}") };
        Ok((report.ended.len(), report.skipped, reason))
    };
    let (runs, skipped, reason) = attempts("busy").await?;
    assert_eq!((runs, reason.as_str()), (50, "partner: busy"));
    assert!(skipped > Duration::from_hours(48) && skipped < Duration::from_hours(50));
    assert_eq!(attempts("gone").await?.0, 1);
    // Ten failures by the rule do not count for the plain ones.
    assert_eq!(attempts("mixed").await?.0, 12);
    Ok(())
}

#[tokio::test]
async fn no_retry_is_later_than_its_time() -> Result<()> {
    let queue = FakeQueue::new();
    let push = queue.push(Ruled("busy".into()));
    push.retry_for(Duration::from_mins(150)).await?;
    let worker = Worker::new(&queue).handle(|_: Ruled| async { Err::<(), _>(Busy) });
    let report = queue.run_pending(worker).await?;
    assert_eq!(report.ended.len(), 3, "at once, after an hour and after two");
    Ok(())
}

#[tokio::test]
async fn a_resumable_handler_is_tested_without_a_worker() -> Result<()> {
    async fn handler(_: Receipt, context: Context) -> Result<(), BoxError> {
        context.step("once", async |_| Ok::<(), BoxError>(())).await?;
        context.checkpoint(&7).await?;
        Ok(())
    }
    let receipt = || Receipt { order: 1 };
    let context = TestContext::new().context();
    handler(receipt(), context.clone()).await.unwrap();
    assert_eq!(context.cursor::<u32>()?, Some(7));
    let stopping = TestContext::new().stopping().context();
    let error = handler(receipt(), stopping).await.unwrap_err();
    assert!(error.downcast_ref::<Interrupted>().is_some(), "{error:?}");

    let context = TestContext::new().context();
    let large = context.checkpoint(&"x".repeat(20_000)).await.unwrap_err();
    assert!(matches!(large, CheckpointError::TooLarge(20_002)), "{large}");
    context.step("a", async |_| Ok::<(), BoxError>(())).await.unwrap();
    for name in ["a", "", "x".repeat(65).as_str()] {
        let error = context.step(name, async |_| Ok::<(), BoxError>(())).await.unwrap_err();
        assert!(error.downcast_ref::<CheckpointError>().is_some(), "{name}: {error}");
    }
    Ok(())
}

/// An encrypted queue stores no readable cursor and no readable result.
#[tokio::test]
async fn cursors_and_results_are_encrypted() -> Result<()> {
    let queue = FakeQueue::new().configured(|queue| queue.encrypted(Turned));
    let id = queue.push(Receipt { order: 1 }).keep_result(Duration::from_hours(1)).await?.id;
    let contexts = Arc::new(AtomicUsize::new(0));
    let seen = Arc::clone(&contexts);
    let worker = Worker::new(&queue).handle(move |_: Receipt, context: Context| {
        let seen = Arc::clone(&seen);
        async move {
            if seen.fetch_add(1, SeqCst) == 0 {
                context.checkpoint(&"abc").await?;
                return Err(BoxError::from("once more"));
            }
            assert!(!format!("{context:?}").contains("abc"), "a logged context shows no payload");
            Ok(context.cursor::<String>()?.unwrap())
        }
    });
    queue.run_pending(worker).await?;
    let result = queue.result::<String>(Receipt::NAME, id).await?;
    assert_eq!(result, Some(Waited::Done("abc".into())));
    // Read without the cipher: the JSON backwards.
    let plain = queue.clone().configured(|queue| queue.encrypted(Plain));
    let error = plain.result::<String>(Receipt::NAME, id).await.unwrap_err();
    assert!(!error.to_string().contains("abc"));
    Ok(())
}

struct Plain;

impl PayloadCipher for Plain {
    fn encrypt(&self, _: &str, payload: &[u8]) -> Result<Vec<u8>, BoxError> {
        Ok(payload.to_vec())
    }

    fn decrypt(&self, _: &str, message: &[u8]) -> Result<Vec<u8>, BoxError> {
        assert_eq!(message, b"\"cba\"");
        Err("not encrypted with this key".into())
    }
}

/// A revived job has all attempts again, also those of its rules.
#[tokio::test]
async fn a_revived_job_has_all_attempts_again() -> Result<()> {
    let queue = FakeQueue::new();
    queue.push(Ruled("busy".into())).await?;
    let worker = || Worker::new(&queue).handle(|_: Ruled| async { Err::<(), _>(Busy) });
    assert_eq!(queue.run_pending(worker()).await?.ended.len(), 50);
    assert_eq!(queue.revive_all("default").await?, 1);
    assert_eq!(queue.run_pending(worker()).await?.ended.len(), 50);
    let plain = || Worker::new(&queue).handle(|_: Ruled| async { Err::<(), _>("plain") });
    assert_eq!(queue.revive_all("default").await?, 1);
    assert_eq!(queue.run_pending(plain()).await?.ended.len(), 2);
    Ok(())
}

/// A tower service has no result: its jobs are done with `null`.
#[tokio::test]
async fn the_end_of_a_service_is_waited_for() -> Result<()> {
    let queue = FakeQueue::new();
    let id = queue.push(Again(0)).keep_result(Duration::from_hours(1)).await?.id;
    let service = tower::service_fn(|_: (Again, Context)| async { Ok::<(), BoxError>(()) });
    queue.run_pending(Worker::new(&queue).service::<Again, _>(service)).await?;
    assert_eq!(queue.result::<()>(Again::NAME, id).await?, Some(Waited::Done(())));
    Ok(())
}

#[tokio::test]
async fn a_worker_that_is_refused_holds_up_no_push() -> Result<()> {
    let queue = FakeQueue::new();
    let worker = Worker::new(&queue).handle(|_: Again| async {}).handle(|_: Again| async {});
    let inline = queue.inline(worker);
    queue.push(Again(0)).await?;
    assert!(matches!(inline.stop().await, Err(Error::Handlers(_))));
    let late = queue.push(Receipt { order: 1 }).expires_after(Duration::from_secs(1));
    let late = late.debounce(Duration::from_secs(2), Duration::from_secs(9)).await;
    assert!(matches!(late, Err(Error::Setting(_))), "it would expire before it is due");
    Ok(())
}

#[tokio::test]
async fn a_handler_of_a_workflow_is_called_alone() {
    let queue = FakeQueue::new();
    let context = TestContext::new().output("orders", &7).context();
    assert_eq!(context.output::<i64>("orders").await.unwrap(), Some(7));
    let context = TestContext::new().context();
    let error = queue.grow(&context, "more").job(Receipt { order: 1 }).push().await.unwrap_err();
    assert_eq!(error.to_string(), "the job belongs to no batch");
    let error = context.output::<i64>("stock").await.unwrap_err();
    assert!(error.to_string().starts_with("no output of `stock`"), "{error}");
}

#[derive(Serialize, Deserialize)]
struct Step(String);

impl Job for Step {
    const NAME: &'static str = "step";
}

fn step(name: &str) -> Step {
    Step(name.into())
}

const DAY: Duration = Duration::from_hours(24);

/// A worker that records what it has run, with the metadata; a step named `bad` dies.
fn recording(queue: &Queue, ran: &Arc<std::sync::Mutex<Vec<String>>>) -> Worker {
    let (ran, grows) = (Arc::clone(ran), queue.clone());
    Worker::new(queue).queues(["default", "low"]).handle(move |job: Step, context: Context| {
        let (ran, queue) = (Arc::clone(&ran), grows.clone());
        async move {
            let tenant = context.metadata.first().map(|(_, value)| value.clone());
            ran.lock().unwrap().push(job.0.clone() + &tenant.unwrap_or_default());
            match &*job.0 {
                "grows" => {
                    let far = step("far").with(PushOptions::new().to("low"));
                    queue.grow(&context, "far").job(far).push().await?;
                }
                "bad" => return Err(scale_queue::outcome::Discard::because("bad").into()),
                _ => {}
            }
            Ok::<_, BoxError>(job.0.len())
        }
    })
}

/// A workflow outlives the parts that take longer than a batch is remembered.
#[tokio::test]
async fn a_workflow_waits_for_slow_parts() -> Result<()> {
    let queue = FakeQueue::new();
    let ran = Arc::default();
    let late = || PushOptions::new().delay(3 * DAY);
    let mut inner = queue.workflow().job("n0", step("n0").with(late()));
    for (n, before) in [("n1", "n0"), ("n2", "n1"), ("n3", "n2")] {
        inner = inner.job(n, step(n).with(late())).after([before]);
    }
    let chain = queue.chain().then(step("c0")).then_after(5 * DAY, step("c1"));
    queue
        .workflow()
        .workflow("inner", inner)
        .chain("chain", chain.then_after(5 * DAY, step("c2")))
        .job("slow", step("slow").with(PushOptions::new().delay(8 * DAY)))
        .job("end", step("end"))
        .after(["inner", "chain", "slow"])
        .then(step("then"))
        .push()
        .await?;
    let batch = queue.batch().job(step("batch").with(PushOptions::new().delay(30 * DAY)));
    batch.then(step("batch-then")).push().await?;
    queue.run_pending(recording(&queue, &ran)).await?;
    let mut ran = ran.lock().unwrap().clone();
    ran.sort_unstable();
    assert_eq!(
        ran,
        ["batch", "batch-then", "c0", "c1", "c2", "end", "n0", "n1", "n2", "n3", "slow", "then"]
    );
    Ok(())
}

/// A name that is used each week finds nothing of the week before.
#[tokio::test]
async fn a_name_is_used_again() -> Result<()> {
    let queue = FakeQueue::new();
    let ran = Arc::default();
    for run in 1..=3 {
        queue.batch().named("batch").job(step("grows")).push().await?;
        queue
            .workflow()
            .named("flow")
            .job("a", step("a"))
            .job("b", step("b"))
            .after(["a"])
            .push()
            .await?;
        queue.run_pending(recording(&queue, &ran)).await?;
        assert_eq!(ran.lock().unwrap().len(), run * 4, "{ran:?}");
        queue.advance(2 * DAY);
    }
    Ok(())
}

/// The output of a job that died in this run is none, whatever it was in an earlier one.
#[tokio::test]
async fn an_output_is_one_of_this_run() -> Result<()> {
    #[derive(Serialize, Deserialize)]
    struct First(bool);
    impl Job for First {
        const NAME: &'static str = "first";
    }
    #[derive(Serialize, Deserialize)]
    struct Second;
    impl Job for Second {
        const NAME: &'static str = "second";
    }
    let queue = FakeQueue::new();
    let seen = Arc::new(std::sync::Mutex::new(Vec::new()));
    for dies in [false, true] {
        let workflow = queue.workflow().named("weekly").job("first", First(dies));
        workflow.job("second", Second).after(["first"]).even_if_dead().push().await?;
        let told = Arc::clone(&seen);
        let worker = Worker::new(&queue)
            .handle(|job: First| async move {
                if job.0 { Err(scale_queue::outcome::Discard::because("dies")) } else { Ok(41) }
            })
            .handle(move |_: Second, context: Context| {
                let told = Arc::clone(&told);
                async move {
                    let output = context.output::<i64>("first").await?;
                    told.lock().unwrap().push(output);
                    Ok::<(), Error>(())
                }
            });
        queue.run_pending(worker).await?;
        // The second run has a dead job, so it is not concluded: it is forgotten after 90 days.
        queue.advance(8 * DAY);
    }
    assert_eq!(*seen.lock().unwrap(), [Some(41), None]);
    // A tower service has no output.
    let service = tower::service_fn(|_: (First, Context)| async { Ok::<(), Error>(()) });
    queue
        .workflow()
        .job("first", First(false))
        .job("second", Second)
        .after(["first"])
        .push()
        .await?;
    let told = Arc::clone(&seen);
    let worker = Worker::new(&queue).service::<First, _>(service);
    let worker = worker.handle(move |_: Second, context: Context| {
        let told = Arc::clone(&told);
        async move {
            let output = context.output::<i64>("first").await?;
            told.lock().unwrap().push(output);
            Ok::<(), Error>(())
        }
    });
    queue.run_pending(worker).await?;
    assert_eq!(*seen.lock().unwrap(), [Some(41), None, None]);
    Ok(())
}

/// All jobs have the metadata of the push, also those of parts, and what follows them.
#[tokio::test]
async fn parts_have_the_metadata_of_the_push() -> Result<()> {
    let queue = FakeQueue::new()
        .configured(|queue| queue.propagating(|| vec![("tenant".into(), "@7".into())]));
    let ran = Arc::default();
    let inner = queue.workflow().job("x", step("x")).job("y", step("y")).after(["x"]);
    let parts = queue.batch().job(step("grows")).workflow(inner).then(step("then"));
    queue.workflow().batch("parts", parts).job("end", step("end")).after(["parts"]).push().await?;
    queue.run_pending(recording(&queue, &ran)).await?;
    let mut ran = ran.lock().unwrap().clone();
    ran.sort_unstable();
    assert_eq!(ran, ["end@7", "far@7", "grows@7", "then@7", "x@7", "y@7"]);
    Ok(())
}

/// A dead job that a batch has added in another queue is found by the name of its part.
#[tokio::test]
async fn a_retried_part_finds_its_dead_jobs_in_any_queue() -> Result<()> {
    #[derive(Serialize, Deserialize)]
    struct Grower;
    impl Job for Grower {
        const NAME: &'static str = "grower";
    }
    let queue = FakeQueue::new();
    let ran = Arc::default();
    let worker = || {
        let grows = Queue::clone(&queue);
        recording(&queue, &ran).handle(move |_: Grower, context: Context| {
            let queue = grows.clone();
            async move {
                let bad = step("bad").with(PushOptions::new().to("low"));
                queue.grow(&context, "bad").job(bad).push().await.map(drop)
            }
        })
    };
    let part = queue.batch().job(Grower);
    let id = queue.workflow().batch("part", part).push().await?;
    queue.run_pending(worker()).await?;
    assert_eq!(queue.stats("low").await?.dead, 1);
    assert!(queue.retry_node(&id, "part").await?);
    assert_eq!(queue.stats("low").await?.waiting, 1);
    Ok(())
}

/// A workflow of the same name with other jobs is refused.
#[tokio::test]
async fn a_name_belongs_to_one_workflow() -> Result<()> {
    let queue = FakeQueue::new();
    queue.workflow().named("w").job("a", step("a")).job("b", step("b")).after(["a"]).push().await?;
    let other = queue.workflow().named("w").job("a", step("a")).job("b", step("b")).push().await;
    assert!(matches!(other, Err(Error::Workflow(_))), "{other:?}");
    let larger = queue.batch().named("w").jobs((0..3).map(|_| step("a"))).push().await;
    assert!(matches!(larger, Err(Error::Workflow(_))), "{larger:?}");
    let large = queue.batch().jobs((0..3).map(|_| step(&"x".repeat(500_000))));
    let large = queue.workflow().batch("large", large).push().await;
    assert!(matches!(large, Err(Error::TooLarge { .. })), "{large:?}");
    Ok(())
}

/// The debug output of a death has no payload: deaths are logged.
#[tokio::test]
async fn a_death_does_not_show_its_payload() -> Result<()> {
    let queue = FakeQueue::new();
    let shown = Arc::new(std::sync::Mutex::new(String::new()));
    let told = Arc::clone(&shown);
    let worker = Worker::new(&queue)
        .handle(async |_: Step| Err::<(), _>(scale_queue::outcome::Discard::because("bad")))
        .on_death(move |died| {
            *told.lock().unwrap() = format!("{died:?}");
            None::<Again>
        });
    queue.push(step("secret 4711")).await?;
    queue.run_pending(worker).await?;
    let shown = shown.lock().unwrap().clone();
    assert!(shown.contains("step") && shown.contains("bad") && !shown.contains("4711"), "{shown}");
    Ok(())
}

/// Errors are stored and written to logs: they show no value that is encrypted.
#[tokio::test]
async fn a_reason_shows_no_encrypted_value() -> Result<()> {
    #[derive(Serialize, Deserialize)]
    struct Number(u64);
    impl Job for Number {
        const NAME: &'static str = "ruled";
    }
    let queue = FakeQueue::new().configured(|queue| queue.encrypted(Turned));
    queue.push(Ruled("4111-SECRET".into())).await?;
    queue.run_pending(Worker::new(&queue).handle(|_: Number| async {})).await?;
    let reasons = queue.dead("default", 0, 1).await?.remove(0).reason;
    assert!(reasons.contains("does not fit the type") && !reasons.contains("SECRET"), "{reasons}");
    queue.push(Again(0)).await?;
    let worker = Worker::new(&queue).handle(|_: Again, context: Context| async move {
        if context.attempt == 1 {
            context.checkpoint(&"SECRET").await?;
            return Err(BoxError::from("not yet"));
        }
        context.cursor::<u64>()?;
        Ok(())
    });
    let reasons = format!("{:?}", queue.run_pending(worker).await?.ended);
    assert!(reasons.contains("cursor cannot be") && !reasons.contains("SECRET"), "{reasons}");
    Ok(())
}

#[derive(Serialize, Deserialize)]
struct Partner;

impl Job for Partner {
    const NAME: &'static str = "partner";
    const RETRY: Retry = Retry::custom(4, |_| Duration::from_millis(1));
    const CIRCUIT: Option<scale_queue::circuit::Circuit> = Some(
        scale_queue::circuit::Circuit::after(1, Duration::from_mins(1))
            .pause(Duration::from_secs(30)),
    );
}

/// The pause of a circuit is over when the clock has jumped over it.
#[tokio::test]
async fn an_open_circuit_follows_the_clock() -> Result<()> {
    let queue = FakeQueue::new();
    queue.push(Partner).await?;
    let worker = Worker::new(&queue).handle(|_: Partner| async { Err::<(), _>("down") });
    let report = queue.run_pending(worker).await?;
    assert!(report.ended.len() <= 10, "{} attempts", report.ended.len());
    assert!(report.skipped < Duration::from_mins(3), "{:?}", report.skipped);
    assert!(matches!(report.outcomes::<Partner>().pop(), Some(Outcome::Dead { .. })));
    Ok(())
}

/// A push waits only for a job that a worker takes.
#[tokio::test]
async fn no_push_waits_for_a_worker_that_does_not_come() -> Result<()> {
    let queue = FakeQueue::new();
    let inline = queue.inline(Worker::new(&queue).handle(|_: Again| async {}));
    queue.push(Again(0)).to("elsewhere").await?;
    queue.pause("default").await?;
    queue.push(Again(0)).await?;
    queue.resume("default").await?;
    inline.stop().await?;
    let worker = Worker::new(&queue).handle(|_: Again| async {});
    worker.quiet().set(true);
    assert!(matches!(queue.run_pending(worker).await, Err(Error::Setting(_))));
    Ok(())
}

#[tokio::test]
async fn limits_of_options_are_kept() -> Result<()> {
    let queue = FakeQueue::new();
    let push = queue.push(Receipt { order: 1 });
    push.debounce(Duration::from_mins(1), Duration::from_secs(10)).await?;
    let worker = Worker::new(&queue).handle(|_: Receipt| async {});
    let report = queue.run_pending(worker).await?;
    assert!(report.skipped <= Duration::from_secs(11), "at most ten seconds: {:?}", report.skipped);
    let late = queue.push(Again(0)).delay(Duration::from_secs(10));
    let late = late.expires_after(Duration::from_secs(10)).await;
    assert!(matches!(late, Err(Error::Setting(_))), "it would always expire");
    Ok(())
}

/// The code under test pushes in a transaction; its test needs no tables of the queue.
#[cfg(feature = "sqlite")]
#[tokio::test]
async fn a_push_in_a_transaction_is_recorded_and_runs() -> Result<()> {
    let (queue, pool) = (FakeQueue::new(), sqlx::SqlitePool::connect("sqlite::memory:").await?);
    let mut tx = pool.begin().await?;
    queue.push_in(&mut *tx, Receipt { order: 7 }).await?;
    tx.commit().await?;
    queue.assert_pushed::<Receipt>(|pushed| pushed.job.order == 7 && pushed.is_new);
    let worker = Worker::new(&queue).handle(|_: Receipt| async {});
    let report = queue.run_pending(worker).await?;
    assert_eq!(report.outcomes::<Receipt>(), [&Outcome::Done]);
    assert!(!queue.needs_relay());
    Ok(())
}

/// A relay of a queue that needs none waits for its end, without a transaction.
#[cfg(feature = "sqlite")]
#[tokio::test]
async fn a_relay_without_an_outbox_only_waits() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let url = format!("sqlite://{}?mode=rwc", folder.path().join("jobs.db").display());
    let queue = Queue::connect(&url, "shop").await?;
    let begun = AtomicUsize::new(0);
    let begin = || {
        begun.fetch_add(1, SeqCst);
        std::future::ready(Err::<sqlx::Transaction<'_, sqlx::Sqlite>, _>(sqlx::Error::PoolClosed))
    };
    let stop = async {
        for _ in 0..100 {
            tokio::task::yield_now().await;
        }
    };
    scale_queue::relay::Relay::new(&queue).run(begin, stop).await;
    assert_eq!(begun.load(SeqCst), 0);
    Ok(())
}
