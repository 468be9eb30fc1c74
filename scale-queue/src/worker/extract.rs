//! Arguments of handlers: the job, and whatever else a handler asks for, in any order.

use std::convert::Infallible;
use std::future::Future;
use std::sync::Arc;

use serde::Serialize;

use super::handler::{Delivery, taken};
use crate::context::Context;
use crate::job::{Job, JobId};
use crate::outcome::BoxError;

/// State of the application, as an argument of a handler: what was given to
/// [`Worker::with_state`](crate::Worker::with_state), or a part of it that [`FromRef`] returns.
///
/// ```
/// # use scale_queue::{Context, Job, Queue, Worker, worker::State};
/// # use serde::{Deserialize, Serialize};
/// # #[derive(Serialize, Deserialize)] struct SendReceipt { order: i64 }
/// # impl Job for SendReceipt { const NAME: &'static str = "send-receipt"; }
/// #[derive(Clone)]
/// struct App { sender: String }
///
/// async fn send(State(app): State<App>, job: SendReceipt, context: Context) {
///     println!("{} sends {}, attempt {}", app.sender, job.order, context.attempt);
/// }
///
/// # let queue = Queue::memory();
/// let app = App { sender: "shop@example.org".into() };
/// let worker = Worker::new(&queue).with_state(app).handle(send);
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct State<T>(pub T);

/// Part of a worker's state: the state itself, or a field of it.
pub trait FromRef<S> {
    /// Returns the part, usually a clone.
    fn from_ref(state: &S) -> Self;
}

impl<S: Clone> FromRef<S> for S {
    fn from_ref(state: &S) -> S {
        state.clone()
    }
}

/// Argument of a handler other than the job: [`Context`], [`State`], [`JobId`], or a type of the
/// application. If it cannot be made, the attempt has failed.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is no argument of a handler on a worker with state `{S}`",
    label = "expected a `Context`, a `State` or a type that implements `FromDelivery`",
    note = "`State<T>` needs `Worker::with_state` before `handle`, with a `T` or a type from which \
            `FromRef` returns a `T`"
)]
pub trait FromDelivery<S>: Sized + Send {
    /// Error that fails the attempt.
    type Rejection: Into<BoxError>;

    /// Makes the argument for one attempt.
    fn from_delivery(
        delivery: &Delivery,
        state: &S,
    ) -> impl Future<Output = Result<Self, Self::Rejection>> + Send;
}

impl<S: Sync> FromDelivery<S> for Context {
    type Rejection = Infallible;

    async fn from_delivery(delivery: &Delivery, _: &S) -> Result<Self, Infallible> {
        Ok(delivery.context.clone())
    }
}

impl<S: Sync> FromDelivery<S> for JobId {
    type Rejection = Infallible;

    async fn from_delivery(delivery: &Delivery, _: &S) -> Result<Self, Infallible> {
        Ok(delivery.context.id)
    }
}

impl<S: Sync, T: FromRef<S> + Send> FromDelivery<S> for State<T> {
    type Rejection = Infallible;

    async fn from_delivery(_: &Delivery, state: &S) -> Result<Self, Infallible> {
        Ok(Self(T::from_ref(state)))
    }
}

/// Result of a handler: nothing, or a `Result` with a value that can be kept and an error.
#[diagnostic::on_unimplemented(
    message = "a handler cannot return `{Self}`",
    label = "expected `()` or `Result<T, E>`, `T` with serde's `Serialize`, `E` an error",
    note = "`Box<dyn Error + Send + Sync>` and `anyhow::Error` are errors too"
)]
pub trait HandlerResult {
    /// Returns the error, or the value as JSON if it is to be kept.
    fn into_result(self, is_kept: bool) -> Result<Option<Vec<u8>>, BoxError>;
}

impl HandlerResult for () {
    fn into_result(self, is_kept: bool) -> Result<Option<Vec<u8>>, BoxError> {
        Ok(is_kept.then(|| b"null".to_vec()))
    }
}

impl<T: Serialize, E: Into<BoxError>> HandlerResult for Result<T, E> {
    fn into_result(self, is_kept: bool) -> Result<Option<Vec<u8>>, BoxError> {
        let value = self.map_err(Into::into)?;
        Ok(if is_kept { Some(serde_json::to_vec(&value)?) } else { None })
    }
}

/// Function that handles one type of job: it takes the job and up to five other arguments in any
/// order, each a [`FromDelivery`]. `A` is inferred from the types of the arguments, so annotate
/// those of a closure.
///
/// A state that the worker does not have, or a second job, is an error of the compiler:
///
/// ```compile_fail,E0277
/// # use scale_queue::{Job, Queue, Worker, worker::State};
/// # use serde::{Deserialize, Serialize};
/// # #[derive(Serialize, Deserialize)] struct Resize;
/// # impl Job for Resize { const NAME: &'static str = "resize"; }
/// # #[derive(Clone)] struct App;
/// # let queue = Queue::memory();
/// // `with_state` is missing
/// let worker = Worker::new(&queue).handle(|_: State<App>, _: Resize| async {});
/// ```
///
/// ```compile_fail,E0277
/// # use scale_queue::{Job, Queue, Worker};
/// # use serde::{Deserialize, Serialize};
/// # #[derive(Serialize, Deserialize)] struct Resize;
/// # impl Job for Resize { const NAME: &'static str = "resize"; }
/// # let queue = Queue::memory();
/// let worker = Worker::new(&queue).handle(|_: Resize, _: Resize| async {});
/// ```
#[diagnostic::on_unimplemented(
    message = "this function is no handler on a worker with state `{S}`",
    label = "expected an async function of one job and up to five other arguments",
    note = "exactly one argument is a `Job`; the others are `Context`, `State` or implement \
            `FromDelivery`; a closure's arguments need their types; the result is `()` or `Result`"
)]
pub trait JobHandler<A, S>: Send + Sync + 'static {
    /// Type of the job.
    type Job: Job;

    /// Runs the handler for one attempt. Returns its value as JSON, if it is to be kept.
    fn call(
        self: Arc<Self>,
        delivery: Delivery,
        state: S,
    ) -> impl Future<Output = Result<Option<Vec<u8>>, BoxError>> + Send;
}

macro_rules! job_handler {
    ($($before:ident)* | $($after:ident)*) => {
        impl<F, Fut, R, S, J, $($before,)* $($after,)*>
            JobHandler<(($($before,)*), J, ($($after,)*)), S> for F
        where
            F: Fn($($before,)* J, $($after,)*) -> Fut + Send + Sync + 'static,
            Fut: Future<Output = R> + Send + 'static,
            R: HandlerResult,
            S: Clone + Send + Sync + 'static,
            J: Job,
            $($before: FromDelivery<S> + 'static,)*
            $($after: FromDelivery<S> + 'static,)*
        {
            type Job = J;

            #[allow(non_snake_case, unused_variables, reason = "named after their types")]
            async fn call(
                self: Arc<Self>,
                delivery: Delivery,
                state: S,
            ) -> Result<Option<Vec<u8>>, BoxError> {
                $(let $before =
                    $before::from_delivery(&delivery, &state).await.map_err(Into::into)?;)*
                $(let $after =
                    $after::from_delivery(&delivery, &state).await.map_err(Into::into)?;)*
                let is_kept = delivery.is_kept();
                let job: J = taken(delivery)?;
                self($($before,)* job, $($after,)*).await.into_result(is_kept)
            }
        }
    };
}

job_handler!(|);
job_handler!(|A1);
job_handler!(A1|);
job_handler!(|A1 A2);
job_handler!(A1 | A2);
job_handler!(A1 A2|);
job_handler!(|A1 A2 A3);
job_handler!(A1 | A2 A3);
job_handler!(A1 A2 | A3);
job_handler!(A1 A2 A3|);
job_handler!(|A1 A2 A3 A4);
job_handler!(A1 | A2 A3 A4);
job_handler!(A1 A2 | A3 A4);
job_handler!(A1 A2 A3 | A4);
job_handler!(A1 A2 A3 A4|);
job_handler!(|A1 A2 A3 A4 A5);
job_handler!(A1 | A2 A3 A4 A5);
job_handler!(A1 A2 | A3 A4 A5);
job_handler!(A1 A2 A3 | A4 A5);
job_handler!(A1 A2 A3 A4 | A5);
job_handler!(A1 A2 A3 A4 A5|);
