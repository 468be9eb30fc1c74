//! Arguments of handlers, layers around them, and events of a worker. On the fake queue, because
//! nothing here depends on a store.
#![cfg(feature = "testing")]
#![allow(clippy::unwrap_used)]

use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use parking_lot::Mutex;
use scale_queue::outcome::{Discard, Snooze};
use scale_queue::testing::FakeQueue;
use scale_queue::worker::{
    BoxError, Delivery, Event, FromDelivery, FromRef, Handler, Outcome, State,
};
use scale_queue::{Context, Error, Job, JobId, Limit, Retry, Worker};
use serde::{Deserialize, Serialize};
use tower::{Layer, ServiceExt};

#[derive(Clone, Serialize, Deserialize)]
struct Mail {
    to: String,
}

impl Job for Mail {
    const NAME: &'static str = "mail";
    const RETRY: Retry = Retry::exponential(3);
}

#[derive(Serialize, Deserialize)]
struct Other;

impl Job for Other {
    const NAME: &'static str = "other";
}

fn mail(to: &str) -> Mail {
    Mail { to: to.into() }
}

/// Log of what ran.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<String>>>);

impl Log {
    fn add(&self, line: impl Into<String>) {
        self.0.lock().push(line.into());
    }

    fn all(&self) -> Vec<String> {
        self.0.lock().clone()
    }
}

#[derive(Clone)]
struct App {
    log: Log,
    sender: &'static str,
}

impl FromRef<App> for Log {
    fn from_ref(app: &App) -> Self {
        app.log.clone()
    }
}

/// A type of the application that can be an argument: the tenant of a job.
struct Tenant(String);

impl<S: Sync> FromDelivery<S> for Tenant {
    type Rejection = BoxError;

    async fn from_delivery(delivery: &Delivery, _: &S) -> Result<Self, BoxError> {
        let metadata = &delivery.context().metadata;
        let tenant = metadata.iter().find(|(name, _)| name == "tenant");
        tenant.map(|(_, tenant)| Self(tenant.clone())).ok_or_else(|| "no tenant".into())
    }
}

#[tokio::test]
async fn arguments_come_in_any_order() -> Result<()> {
    async fn job_alone(job: Mail) {
        assert_eq!(job.to, "a");
    }
    async fn job_first(job: Mail, State(log): State<Log>, context: Context) {
        log.add(format!("{} {}", job.to, context.attempt));
    }
    async fn job_last(
        State(app): State<App>,
        id: JobId,
        Tenant(tenant): Tenant,
        context: Context,
        State(log): State<Log>,
        job: Mail,
    ) -> std::io::Result<&'static str> {
        assert_eq!(id, context.id);
        log.add(format!("{} {} {tenant}", app.sender, job.to));
        Ok("a result of any type")
    }
    async fn job_between(State(log): State<Log>, job: Mail, _: Context) -> anyhow::Result<()> {
        log.add(job.to);
        Ok(())
    }
    let log = Log::default();
    let app = App { log: log.clone(), sender: "shop" };
    let queue = FakeQueue::new();
    let worker = || Worker::new(&queue).with_state(app.clone());
    let closure_log = log.clone();
    let closure = worker().handle(move |job: Mail| {
        closure_log.add(format!("closure {}", job.to));
        async {}
    });
    let workers = [
        worker().handle(job_alone),
        worker().handle(job_first),
        worker().handle(job_last),
        worker().handle(job_between),
        closure,
    ];
    for worker in workers {
        queue.push(mail("a")).metadata("tenant", "t").await?;
        let report = queue.run_pending(worker).await?;
        assert_eq!(report.outcomes::<Mail>(), [&Outcome::Done]);
    }
    assert_eq!(log.all(), ["a 1", "shop a t", "a", "closure a"]);
    Ok(())
}

/// An argument that cannot be made fails the attempt, as an error of the handler does.
#[tokio::test]
async fn an_argument_that_fails_is_a_failed_attempt() -> Result<()> {
    let queue = FakeQueue::new();
    queue.push(mail("a")).attempts(1).await?;
    let worker = Worker::new(&queue).handle(|_: Tenant, _: Mail| async {});
    let report = queue.run_pending(worker).await?;
    assert_eq!(report.outcomes::<Mail>(), [&Outcome::Dead { reason: "no tenant".into() }]);
    Ok(())
}

/// A layer that records its name.
struct Named(Log, &'static str);

impl Layer<Handler> for Named {
    type Service = Handler;

    fn layer(&self, inner: Handler) -> Handler {
        let (log, name) = (self.0.clone(), self.1);
        Handler::new(inner.map_request(move |delivery: Delivery| {
            log.add(format!("{name} {}", delivery.name()));
            delivery
        }))
    }
}

fn named(log: &Log, name: &'static str) -> Named {
    Named(log.clone(), name)
}

#[tokio::test]
async fn layers_apply_in_order_whenever_they_are_added() -> Result<()> {
    let queue = FakeQueue::new();
    let log = Log::default();
    let (handled, other) = (log.clone(), log.clone());
    let worker = Worker::new(&queue)
        .layer(named(&log, "first"))
        .layer_for::<Mail, _>(named(&log, "mail only"))
        .handle(move |_: Mail| {
            handled.add("handler");
            async {}
        })
        .layer(named(&log, "second"))
        .handle(move |_: Other| {
            other.add("other handler");
            async {}
        });
    queue.push(mail("a")).await?;
    let report = queue.run_pending(worker).await?;
    assert_eq!(report.ended.len(), 1);
    assert_eq!(log.all(), ["first mail", "second mail", "mail only mail", "handler"]);
    Ok(())
}

#[tokio::test]
async fn handlers_that_contradict_each_other_are_refused() {
    let queue = FakeQueue::new();
    let twice = Worker::new(&queue).handle(|_: Mail| async {}).handle(|_: Mail| async {});
    let error = twice.run(async {}).await.unwrap_err();
    assert!(matches!(&error, Error::Handlers(_)) && error.to_string().contains("`mail`"));
    let log = Log::default();
    let unused = Worker::new(&queue).layer_for::<Mail, _>(named(&log, "unused"));
    assert!(matches!(unused.run(async {}).await, Err(Error::Handlers(_))));
}

/// The end of each attempt is told, with its consequence; a listener that panics ends nothing.
#[tokio::test]
async fn events_tell_what_became_of_each_attempt() -> Result<()> {
    let queue = FakeQueue::new();
    let events: Arc<Mutex<Vec<(String, u16, Outcome)>>> = Arc::default();
    let told = Arc::clone(&events);
    let worker = Worker::new(&queue)
        .concurrency(1)
        .on_event(|_| panic!("a listener"))
        .on_event(move |event| {
            if let Event::Ended(ended) = event {
                told.lock().push((ended.name.clone(), ended.attempt, ended.outcome.clone()));
            }
        })
        .handle(|job: Mail, context: Context| async move {
            match (job.to.as_str(), context.attempt) {
                ("discard", _) => Err(BoxError::from(Discard::because("never"))),
                ("snooze", _) if context.waited < Duration::from_mins(1) => {
                    Err(Snooze::after(Duration::from_mins(5)).into())
                }
                ("fails", ..3) => Err("no".into()),
                ("panics", _) => panic!("oh"),
                _ => Ok(()),
            }
        });
    for to in ["discard", "snooze", "fails", "panics"] {
        let push = queue.push(mail(to));
        if to == "panics" {
            push.attempts(1).await?
        } else {
            push.await?
        };
    }
    queue.push(Other).await?;
    let report = queue.run_pending(worker).await?;
    assert_eq!(report.unhandled, ["kind:other"]);
    assert!(report.skipped >= Duration::from_secs(299), "{:?}", report.skipped);
    let events = events.lock().clone();
    let dead = |reason: &str| Outcome::Dead { reason: reason.into() };
    assert_eq!(events[0], ("mail".into(), 1, dead("never")));
    assert_eq!(events[1].2, Outcome::Deferred { delay: Duration::from_mins(5) });
    assert!(matches!(&events[2].2, Outcome::Retried { reason, .. } if reason == "no"));
    assert_eq!(events[3].2, dead("panicked: oh"));
    assert!(matches!((&events[4].2, events[4].1), (Outcome::Retried { .. }, 2)));
    assert_eq!((&events[5].2, events[5].1), (&Outcome::Done, 3));
    assert_eq!((&events[6].2, events.len()), (&Outcome::Done, 7));
    Ok(())
}

#[derive(Serialize, Deserialize)]
struct Limited(u32);

impl Job for Limited {
    const NAME: &'static str = "limited";

    fn limits(&self) -> Vec<Limit> {
        vec![Limit::rate("api", 1, Duration::from_hours(1)), Limit::concurrent("api", 1)]
    }
}

/// Limits and rates apply, and take no real time. Jobs of a rate and a concurrency limit of the
/// same key once woke each other until the rate had room.
#[tokio::test]
async fn a_rate_of_an_hour_takes_no_hour() -> Result<()> {
    let queue = FakeQueue::new();
    queue.push_many((0..5).map(Limited)).await?;
    let worker = Worker::new(&queue).handle(|_: Limited| async {});
    let report = queue.run_pending(worker).await?;
    let done = report.outcomes::<Limited>().into_iter().filter(|end| **end == Outcome::Done);
    assert_eq!(done.count(), 5);
    assert!(report.skipped >= Duration::from_mins(239), "{:?}", report.skipped);
    assert!(report.skipped < Duration::from_hours(5), "{:?}", report.skipped);
    Ok(())
}
