//! Background work.

use std::future::Future;
use std::task::{Context, Waker};

/// Polls the work once; if it is pending, spawns the rest as a task.
pub(crate) fn poll_then_spawn(work: impl Future<Output = ()> + Send + 'static) {
    let mut work = Box::pin(work);
    if work.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending()
        && let Ok(runtime) = tokio::runtime::Handle::try_current()
    {
        runtime.spawn(work);
    }
}
