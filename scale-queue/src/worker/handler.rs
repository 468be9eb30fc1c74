//! Routing of jobs to handlers, and the run of one attempt.

use std::any::Any;
use std::collections::HashMap;
use std::fmt;
use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use parking_lot::Mutex;
use tower::util::BoxCloneSyncService;
use tower::{Layer, Service, ServiceExt, service_fn};

use super::admission::{self, Held, PermitTerms};
use super::extract::JobHandler;
use crate::batch;
use crate::circuit::Circuit;
use crate::context::Context;
use crate::encryption::{PayloadEncryption, parse};
use crate::error::Error;
use crate::job::Job;
use crate::limit::Limit;
use crate::outcome::{BoxError, Ending, words_of};
use crate::retry::{Retry, RetryRules};
use crate::store::Store;

/// Interval at which the store is asked whether a circuit is open, ms.
const LOOK_AT_CIRCUIT_MS: u64 = 1_000;

/// Job as layers see it: its name, its encoded payload, and the context of the attempt.
#[derive(Debug)]
pub struct Delivery {
    pub(crate) name: String,
    pub(crate) payload: Vec<u8>,
    /// Parsed job.
    pub(crate) job: Option<Box<dyn Any + Send + Sync>>,
    pub(crate) context: Context,
    /// `None` for a job without options.
    pub(crate) start: Option<Box<StartOptions>>,
}

/// Options of a job that apply before its handler begins.
#[derive(Debug)]
pub(crate) struct StartOptions {
    /// Time after which the job does not begin any more: ms since 1970.
    pub(crate) expires_ms: Option<u64>,
    /// Time before which it does not begin: ms since 1970.
    pub(crate) begins_ms: Option<u64>,
    /// Unique key that is released when the job begins.
    pub(crate) releases: Option<String>,
    /// True if the handler's result is to be kept.
    pub(crate) is_kept: bool,
}

impl Delivery {
    /// Returns [`Job::NAME`].
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Returns the job as JSON.
    pub fn payload(&self) -> &[u8] {
        &self.payload
    }

    /// Returns the context of the attempt.
    pub fn context(&self) -> &Context {
        &self.context
    }

    pub(super) fn is_kept(&self) -> bool {
        self.start.as_ref().is_some_and(|start| start.is_kept)
    }
}

/// Handler wrapped in its layers.
pub type Handler = BoxCloneSyncService<Delivery, (), BoxError>;

/// Handler, with the policies of its job's type.
#[derive(Debug)]
pub(crate) struct Route {
    pub(crate) runner: Runner,
    pub(crate) retry: Retry,
    pub(crate) rules: RetryRules,
}

/// Parts of a route that an attempt needs.
#[derive(Clone, Debug)]
pub(crate) struct Runner {
    handler: Handler,
    pub(crate) timeout: Duration,
    circuit: Option<Arc<Breaker>>,
    /// Parses a payload; the second argument says whether it is secret.
    read: fn(&[u8], bool) -> Result<(Box<dyn Any + Send + Sync>, Vec<Limit>), serde_json::Error>,
}

impl Route {
    /// Returns the route of the job that pushes a batch after the commit of a transaction.
    fn start_of_batches() -> Self {
        let runner = Runner {
            handler: Handler::new(service_fn(|delivery: Delivery| async move {
                batch::run_start(&delivery).await
            })),
            timeout: Duration::from_mins(5),
            circuit: None,
            read: |_, _| Ok((Box::new(()), Vec::new())),
        };
        Self { runner, retry: Retry::exponential(25), rules: RetryRules::new() }
    }
}

/// Handlers by the name of their job, and the layers around them.
#[derive(Default)]
pub(crate) struct Routes {
    routes: HashMap<&'static str, Route>,
    /// Name of a job for which a second handler was added.
    twice: Option<&'static str>,
    /// Layers around all handlers, the outermost first.
    layers: Vec<Wrap>,
    /// Layers around the handlers of one job.
    layers_of: Vec<(&'static str, Wrap)>,
}

type Wrap = Box<dyn Fn(Handler) -> Handler + Send + Sync>;

impl fmt::Debug for Routes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.routes.keys()).finish()
    }
}

impl Routes {
    pub(crate) fn add<J: Job>(&mut self, handler: Handler) {
        let runner = Runner {
            handler,
            timeout: J::TIMEOUT,
            circuit: J::CIRCUIT.map(|circuit| Arc::new(Breaker::new(circuit))),
            read: read::<J>,
        };
        let route = Route { runner, retry: J::RETRY, rules: J::retry_rules() };
        if self.routes.insert(J::NAME, route).is_some() {
            self.twice.get_or_insert(J::NAME);
        }
    }

    /// Adds a layer around all handlers, or around those of one job, inside the layers added
    /// before.
    pub(crate) fn wrap<L>(&mut self, job: Option<&'static str>, layer: L)
    where
        L: Layer<Handler> + Send + Sync + 'static,
        L::Service: Service<Delivery, Response = ()> + Clone + Send + Sync + 'static,
        <L::Service as Service<Delivery>>::Future: Send + 'static,
        <L::Service as Service<Delivery>>::Error: Into<BoxError>,
    {
        let wrap: Wrap =
            Box::new(move |handler| Handler::new(layer.layer(handler).map_err(Into::into)));
        match job {
            None => self.layers.push(wrap),
            Some(job) => self.layers_of.push((job, wrap)),
        }
    }

    /// Applies the layers.
    ///
    /// # Errors
    /// [`Error::Handlers`] if a job has two handlers, or a layer but no handler.
    pub(crate) fn finish(&mut self) -> Result<(), Error> {
        if let Some(name) = self.twice {
            return Err(Error::Handlers(format!("job `{name}` has two handlers: expected one")));
        }
        // From the inside to the outside.
        for (name, wrap) in std::mem::take(&mut self.layers_of).into_iter().rev() {
            let Some(route) = self.routes.get_mut(name) else {
                return Err(Error::Handlers(format!("job `{name}` has a layer, but no handler")));
            };
            route.runner.handler = wrap(route.runner.handler.clone());
        }
        for wrap in std::mem::take(&mut self.layers).into_iter().rev() {
            for route in self.routes.values_mut() {
                route.runner.handler = wrap(route.runner.handler.clone());
            }
        }
        self.routes.insert(batch::START, Route::start_of_batches());
        Ok(())
    }

    pub(crate) fn handles(&self, name: &str) -> bool {
        self.routes.contains_key(name)
    }

    /// Returns the name of a job, as its handler has it, and its route.
    pub(crate) fn find_named(&self, name: &str) -> Option<(&'static str, &Route)> {
        self.routes.get_key_value(name).map(|(name, route)| (*name, route))
    }

    pub(crate) fn find(&self, name: &str) -> Option<&Route> {
        self.routes.get(name)
    }
}

pub(crate) fn function<A, S, H>(function: H, state: S) -> Handler
where
    H: JobHandler<A, S>,
    S: Clone + Send + Sync + 'static,
{
    let function = Arc::new(function);
    Handler::new(service_fn(move |delivery: Delivery| {
        let (function, state) = (Arc::clone(&function), state.clone());
        async move {
            let run = delivery.is_kept().then(|| Arc::clone(&delivery.context.run));
            let result = function.call(delivery, state).await?;
            if let Some(run) = run {
                run.set_result(result);
            }
            Ok(())
        }
    }))
}

pub(crate) fn service<J, S>(service: S) -> Handler
where
    J: Job,
    S: Service<(J, Context), Response = ()> + Clone + Send + Sync + 'static,
    S::Future: Send + 'static,
    S::Error: Into<BoxError>,
{
    Handler::new(service_fn(move |delivery: Delivery| {
        let service = service.clone();
        async move {
            let context = delivery.context.clone();
            let job = taken::<J>(delivery)?;
            service.oneshot((job, context)).await.map_err(Into::into)
        }
    }))
}

/// Circuit of a type of job, as this process knows it.
#[derive(Debug)]
struct Breaker {
    circuit: Circuit,
    /// Time of the last look, and the time until which the circuit is open: ms since 1970 by the
    /// store's clock.
    known: Mutex<(Option<u64>, Option<u64>)>,
}

impl Breaker {
    fn new(circuit: Circuit) -> Self {
        Self { circuit, known: Mutex::default() }
    }

    /// Returns the time for which the circuit stays open, if it is open. The store is asked once a
    /// second.
    async fn open_for(&self, store: &dyn Store, name: &str) -> Option<Duration> {
        let now = store.now_ms();
        let is_due = {
            let mut known = self.known.lock();
            let is_due = known.0.is_none_or(|looked| now.abs_diff(looked) >= LOOK_AT_CIRCUIT_MS);
            if is_due {
                known.0 = Some(now);
            }
            is_due
        };
        if is_due {
            let open_for = Circuit::open_for(store, name).await;
            self.known.lock().1 = open_for.map(|time| now.saturating_add(time.as_millis() as u64));
        }
        let left = self.known.lock().1?.saturating_sub(now);
        (left > 0).then(|| Duration::from_millis(left))
    }

    async fn count(&self, store: &dyn Store, queue: &str, name: &str) {
        // An attempt that began before the circuit opened does not prolong the pause.
        if self.known.lock().1.is_some_and(|until| store.now_ms() < until) {
            return;
        }
        self.circuit.count(store, queue, name).await;
        self.known.lock().0 = None;
    }
}

fn read<J: Job>(
    payload: &[u8],
    is_secret: bool,
) -> Result<(Box<dyn Any + Send + Sync>, Vec<Limit>), serde_json::Error> {
    let job: J = parse(payload, is_secret)?;
    let limits = job.limits();
    Ok((Box::new(job), limits))
}

/// Takes the job that was parsed before it was admitted.
pub(super) fn taken<J: Job>(mut delivery: Delivery) -> Result<J, BoxError> {
    let job = delivery.job.take().and_then(|job| job.downcast().ok());
    match job {
        Some(job) => Ok(*job),
        None => Ok(serde_json::from_slice(&delivery.payload)?),
    }
}

/// Runs one attempt. Panics of the application's code are caught, also those of values that are
/// dropped when the attempt is cancelled. When this returns, the attempt stores no checkpoint any
/// more.
pub(crate) async fn attempt(
    runner: Runner,
    encryption: Option<PayloadEncryption>,
    terms: Arc<PermitTerms>,
    held: Option<Held>,
    delivery: Delivery,
) -> Ending {
    let run = Arc::clone(&delivery.context.run);
    let attempt = AssertUnwindSafe(attempt_once(runner, encryption, terms, held, delivery));
    let ending = attempt.catch_unwind().await;
    run.close().await;
    ending.unwrap_or_else(|panic| Ending::Panicked(words_of(&*panic)))
}

/// Limits are checked before the handler runs: a job that waits for a limit takes no slot, and none
/// of its timeout.
fn attempt_once(
    runner: Runner,
    encryption: Option<PayloadEncryption>,
    terms: Arc<PermitTerms>,
    held: Option<Held>,
    mut delivery: Delivery,
) -> impl Future<Output = Ending> {
    let Runner { handler, timeout, read, circuit } = runner;
    // Not an `async fn`, whose future would hold its arguments twice.
    async move {
        let expires_ms = delivery.start.as_ref().and_then(|start| start.expires_ms);
        if expires_ms.is_some_and(|at| at <= delivery.context.store.now_ms()) {
            return Ending::Expired;
        }
        let begins_ms = delivery.start.as_ref().and_then(|start| start.begins_ms);
        let early = begins_ms.map_or(0, |at| at.saturating_sub(delivery.context.store.now_ms()));
        if early > 0 {
            return Ending::Early(Duration::from_millis(early));
        }
        let circuit = match circuit {
            Some(circuit) => {
                let Context { store, queue, .. } = &delivery.context;
                if let Some(pause) = circuit.open_for(&**store, &delivery.name).await {
                    return Ending::Paused(pause);
                }
                let (store, queue) = (Arc::clone(store), Arc::clone(queue));
                Some(Box::new((circuit, store, queue, delivery.name.clone())))
            }
            None => None,
        };
        if let Some(place) = &delivery.context.place
            && batch::is_cancelled(&*delivery.context.store, place).await
        {
            return Ending::Skipped;
        }
        let is_secret = encryption.is_some();
        if let Some(encryption) = encryption {
            match encryption.decrypt(&delivery.name, &delivery.payload) {
                Ok(payload) => delivery.payload = payload,
                Err(error) => return Ending::Failed(error),
            }
        }
        // `limits` is the application's code: it may panic.
        let limits =
            match std::panic::catch_unwind(AssertUnwindSafe(|| read(&delivery.payload, is_secret)))
            {
                Ok(Ok((job, limits))) => {
                    delivery.job = Some(job);
                    limits
                }
                Ok(Err(error)) => {
                    return Ending::Unfit(format!("its content does not fit the type: {error}"));
                }
                Err(panic) => return Ending::Panicked(words_of(&*panic)),
            };
        let cancelled = delivery.context.cancelled.clone();
        let permits = match admission::admit(&terms, &delivery.context, &limits, held).await {
            Ok(Ok(permits)) => permits,
            Ok(Err(blocked)) => return Ending::Blocked(blocked),
            Err(error) => {
                tracing::warn!(
                    %error, job = delivery.name,
                    "a job's limits could not be checked; the job is handed back",
                );
                return Ending::Unadmitted;
            }
        };
        if let Some(key) = delivery.start.as_ref().and_then(|start| start.releases.as_ref()) {
            let Context { store, queue, id, .. } = &delivery.context;
            if let Err(error) = store.release_unique(queue, key, id.bytes()).await {
                tracing::warn!(
                    %error, job = delivery.name,
                    "could not release a job's unique key at its start; it is held until its end",
                );
            }
        }
        let log = delivery.context.log.clone();
        let work = async {
            match &log {
                None => handler.oneshot(delivery).await,
                // Rare, and large.
                Some(log) => Box::pin(Arc::clone(log).keep(handler.oneshot(delivery))).await,
            }
        };
        let run = AssertUnwindSafe(tokio::time::timeout(timeout, work)).catch_unwind();
        let ending = tokio::select! {
            biased;
            () = cancelled.cancelled() => Ending::Cancelled,
            end = run => match end {
                Ok(Ok(Ok(()))) => Ending::Done,
                Ok(Ok(Err(error))) => Ending::Failed(error),
                Ok(Err(_)) => Ending::TimedOut(timeout),
                Err(panic) => Ending::Panicked(words_of(&*panic)),
            }
        };
        // The handler's future has been dropped at this point.
        drop(permits);
        if ending.is_failure() {
            tracing::Span::current().record("otel.status_code", "ERROR");
        }
        if let Some(log) = log {
            Box::pin(log.store_lines()).await;
        }
        if let Some(circuit) = circuit
            && ending.is_failure()
        {
            let (circuit, store, queue, name) = &*circuit;
            circuit.count(&**store, queue, name).await;
        }
        ending
    }
}
