//! Routing of jobs to handlers, and the run of one attempt.

use std::any::Any;
use std::collections::HashMap;
use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use tower::util::BoxCloneSyncService;
use tower::{Layer, Service, ServiceExt, service_fn};

use super::admission::{self, Held, PermitTerms};
use crate::batch;
use crate::context::Context;
use crate::encryption::PayloadEncryption;
use crate::job::Job;
use crate::limit::Limit;
use crate::outcome::{BoxError, Ending};
use crate::retry::Retry;

/// Job as layers see it: its name, its encoded payload, and the context of the attempt.
#[derive(Debug)]
pub struct Delivery {
    pub(crate) name: String,
    pub(crate) payload: Vec<u8>,
    /// Parsed job.
    pub(crate) job: Option<Box<dyn Any + Send>>,
    pub(crate) context: Context,
    pub(crate) start: StartOptions,
}

/// Options of a job that apply before its handler begins.
#[derive(Debug)]
pub(crate) struct StartOptions {
    /// Time after which the job does not begin any more: ms since 1970.
    pub(crate) expires_ms: Option<u64>,
    /// Unique key that is released when the job begins.
    pub(crate) releases: Option<String>,
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
}

/// Handler wrapped in its layers.
pub type Handler = BoxCloneSyncService<Delivery, (), BoxError>;

/// Handler, with the policies of its job's type.
#[derive(Clone, Debug)]
pub(crate) struct Route {
    pub(crate) handler: Handler,
    pub(crate) retry: Retry,
    pub(crate) timeout: Duration,
    read: fn(&[u8]) -> Result<(Box<dyn Any + Send>, Vec<Limit>), serde_json::Error>,
}

#[derive(Debug, Default)]
pub(crate) struct Routes(HashMap<&'static str, Route>);

impl Routes {
    pub(crate) fn add<J: Job>(&mut self, handler: Handler) {
        self.0.insert(
            J::NAME,
            Route { handler, retry: J::RETRY, timeout: J::TIMEOUT, read: read::<J> },
        );
    }

    pub(crate) fn wrap<L>(&mut self, layer: &L)
    where
        L: Layer<Handler>,
        L::Service: Service<Delivery, Response = ()> + Clone + Send + Sync + 'static,
        <L::Service as Service<Delivery>>::Future: Send + 'static,
        <L::Service as Service<Delivery>>::Error: Into<BoxError>,
    {
        for route in self.0.values_mut() {
            route.handler = Handler::new(layer.layer(route.handler.clone()).map_err(Into::into));
        }
    }

    pub(crate) fn handles(&self, name: &str) -> bool {
        self.0.contains_key(name)
    }

    pub(crate) fn find(&self, name: &str) -> Option<&Route> {
        self.0.get(name)
    }
}

pub(crate) fn function<J, F, Fut, E>(function: F) -> Handler
where
    J: Job,
    F: Fn(J, Context) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Result<(), E>> + Send + 'static,
    E: Into<BoxError>,
{
    let function = Arc::new(function);
    Handler::new(service_fn(move |delivery: Delivery| {
        let function = Arc::clone(&function);
        async move {
            let (job, delivery) = taken::<J>(delivery)?;
            function(job, delivery.context).await.map_err(Into::into)
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
            let (job, delivery) = taken::<J>(delivery)?;
            service.oneshot((job, delivery.context)).await.map_err(Into::into)
        }
    }))
}

fn read<J: Job>(payload: &[u8]) -> Result<(Box<dyn Any + Send>, Vec<Limit>), serde_json::Error> {
    let job: J = serde_json::from_slice(payload)?;
    let limits = job.limits();
    Ok((Box::new(job), limits))
}

/// Takes the job that was parsed before it was admitted.
fn taken<J: Job>(mut delivery: Delivery) -> Result<(J, Delivery), BoxError> {
    let job = delivery.job.take().and_then(|job| job.downcast().ok());
    let job = match job {
        Some(job) => *job,
        None => serde_json::from_slice(&delivery.payload)?,
    };
    Ok((job, delivery))
}

/// Runs one attempt; a panic of the handler is caught. Limits are checked first: a job that waits
/// for a limit takes no slot, and none of its timeout.
pub(crate) async fn attempt(
    route: Route,
    encryption: Option<PayloadEncryption>,
    terms: Arc<PermitTerms>,
    held: Option<Held>,
    mut delivery: Delivery,
) -> Ending {
    let Route { handler, timeout, read, .. } = route;
    if delivery.start.expires_ms.is_some_and(|at| at <= delivery.context.store.now_ms()) {
        return Ending::Expired;
    }
    if let Some(place) = &delivery.context.place
        && batch::is_cancelled(&*delivery.context.store, place).await
    {
        return Ending::Skipped;
    }
    if let Some(PayloadEncryption(cipher)) = encryption {
        match cipher.decrypt(&delivery.name, &delivery.payload) {
            Ok(payload) => delivery.payload = payload,
            Err(error) => return Ending::Failed(error),
        }
    }
    // `limits` is the application's code: it may panic.
    let limits = match std::panic::catch_unwind(AssertUnwindSafe(|| read(&delivery.payload))) {
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
    if let Some(key) = &delivery.start.releases {
        let Context { store, queue, id, .. } = &delivery.context;
        if let Err(error) = store.release_unique(queue, key, id.bytes()).await {
            tracing::warn!(
                %error, job = delivery.name,
                "could not release a job's unique key at its start; it is held until its end",
            );
        }
    }
    let work = async move { handler.oneshot(delivery).await };
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
    ending
}

fn words_of(panic: &(dyn Any + Send)) -> String {
    let text = panic
        .downcast_ref::<&str>()
        .map(ToString::to_string)
        .or_else(|| panic.downcast_ref::<String>().cloned());
    text.unwrap_or_else(|| "without a message".into())
}
