//! Which handler a job goes to, and how one attempt is run.

use std::any::Any;
use std::collections::HashMap;
use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use tower::util::BoxCloneSyncService;
use tower::{Layer, Service, ServiceExt, service_fn};

use crate::batch;
use crate::context::Context;
use crate::job::Job;
use crate::limit::{self, Admission, Places};
use crate::outcome::{BoxError, Discard, Ending, Later};
use crate::retry::Retry;
use crate::seal::Sealer;

/// What layers see of a job: its name, its raw content, and the circumstances of the attempt.
#[derive(Debug)]
pub struct Delivery {
    pub(crate) name: String,
    pub(crate) payload: Vec<u8>,
    pub(crate) context: Context,
}

impl Delivery {
    /// [`Job::NAME`].
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The job as JSON.
    pub fn payload(&self) -> &[u8] {
        &self.payload
    }

    /// The circumstances of the attempt.
    pub fn context(&self) -> &Context {
        &self.context
    }
}

/// A handler behind its layers.
pub type Handler = BoxCloneSyncService<Delivery, (), BoxError>;

/// A handler, and the rules of its job's type.
#[derive(Clone, Debug)]
pub(crate) struct Route {
    pub(crate) handler: Handler,
    pub(crate) retry: Retry,
    pub(crate) timeout: Duration,
}

#[derive(Debug, Default)]
pub(crate) struct Routes(HashMap<&'static str, Route>);

impl Routes {
    pub(crate) fn add<J: Job>(&mut self, handler: Handler) {
        self.0.insert(J::NAME, Route { handler, retry: J::RETRY, timeout: J::TIMEOUT });
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
            let job = read::<J>(&delivery)?;
            let _places = admitted(&job, &delivery.context).await?;
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
            let job = read::<J>(&delivery)?;
            let _places = admitted(&job, &delivery.context).await?;
            service.oneshot((job, delivery.context)).await.map_err(Into::into)
        }
    }))
}

/// What cannot be read now will not be readable later.
fn read<J: Job>(delivery: &Delivery) -> Result<J, Discard> {
    serde_json::from_slice(&delivery.payload).map_err(|e| Discard::because(format!("its content does not fit the type: {e}")))
}

/// What the job's limits ask for, held until it is dropped; or a [`Later`].
async fn admitted<J: Job>(job: &J, context: &Context) -> Result<Option<Places>, BoxError> {
    let limits = job.limits();
    if limits.is_empty() {
        return Ok(None);
    }
    match limit::admit(&context.store, &context.id.to_string(), &limits, context.turn).await? {
        Admission::Now(places) => Ok(Some(places)),
        Admission::Later { delay, turn } => Err(Later::turn(delay, turn).into()),
    }
}

/// One attempt, whatever the handler does.
pub(crate) async fn attempt(route: Option<Route>, sealer: Option<Sealer>, mut delivery: Delivery) -> Ending {
    let Some(Route { handler, timeout, .. }) = route else {
        return Ending::Failed(format!("no handler for `{}` on this worker", delivery.name).into());
    };
    if let Some(place) = &delivery.context.place
        && batch::is_cancelled(&*delivery.context.store, place).await
    {
        return Ending::Skipped;
    }
    let cancelled = delivery.context.cancelled.clone();
    let work = async move {
        if let Some(Sealer(seal)) = sealer {
            delivery.payload = seal.open(&delivery.name, &delivery.payload)?;
        }
        handler.oneshot(delivery).await
    };
    let run = AssertUnwindSafe(tokio::time::timeout(timeout, work)).catch_unwind();
    tokio::select! {
        biased;
        () = cancelled.cancelled() => Ending::Cancelled,
        end = run => match end {
            Ok(Ok(Ok(()))) => Ending::Done,
            Ok(Ok(Err(error))) => Ending::Failed(error),
            Ok(Err(_)) => Ending::TimedOut(timeout),
            Err(panic) => Ending::Panicked(words_of(&*panic)),
        }
    }
}

fn words_of(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(ToString::to_string).or_else(|| panic.downcast_ref::<String>().cloned());
    text.unwrap_or_else(|| "without words".into())
}
