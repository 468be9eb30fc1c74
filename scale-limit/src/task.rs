//! Work that nobody waits for.

use std::future::Future;
use std::task::{Context, Waker};

/// Goes on with it: to its end here if it takes no waiting, else in a task of its own.
pub(crate) fn go_on(work: impl Future<Output = ()> + Send + 'static) {
    let mut work = Box::pin(work);
    if work.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending()
        && let Ok(runtime) = tokio::runtime::Handle::try_current()
    {
        runtime.spawn(work);
    }
}
