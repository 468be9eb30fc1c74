//! Values looked up during one request: no lock, no expiry, dropped with the request.
//!
//! A page needs the current user in ten places; inside a memo's scope the first look-up asks the
//! cache or the database, and the others get the same `Arc`.
//!
//! | when | then |
//! | --- | --- |
//! | two look-ups of one request run at the same time | both may load; the first value stays |
//! | a load fails | the error is returned, nothing is kept |
//! | outside a scope, or in a task spawned inside one | every call loads |
//! | a value is written | call [`forget`]: a memo receives no invalidations |

use std::any::{Any, TypeId};
use std::collections::HashMap;
use std::future::Future;
use std::sync::Arc;

use parking_lot::Mutex;

type Known = Mutex<HashMap<(TypeId, String), Arc<dyn Any + Send + Sync>>>;

tokio::task_local! {
    static MEMO: Known;
}

/// Runs a request with its own memo.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() {
/// use scale_cache::memo;
///
/// let page = memo::scope(async {
///     let first = memo::get_or_load("user:7", || async { Ok::<_, ()>("Ann".to_owned()) });
///     let first = first.await.unwrap();
///     let second = memo::get_or_load("user:7", || async { Err::<String, _>("asked again") });
///     let second = second.await.unwrap();
///     format!("{first} and {second}")
/// });
/// assert_eq!(page.await, "Ann and Ann");
/// # }
/// ```
pub async fn scope<F: Future>(request: F) -> F::Output {
    MEMO.scope(Known::default(), request).await
}

/// Returns this request's value for the key, or loads it. Values of different types are separate.
pub async fn get_or_load<V, F, Fut, E>(key: &str, load: F) -> Result<Arc<V>, E>
where
    V: Send + Sync + 'static,
    F: FnOnce() -> Fut,
    Fut: Future<Output = Result<V, E>>,
{
    let place = (TypeId::of::<V>(), key.to_owned());
    let known = MEMO.try_with(|memo| memo.lock().get(&place).cloned()).ok().flatten();
    if let Some(Ok(value)) = known.map(Arc::downcast::<V>) {
        return Ok(value);
    }
    let value = Arc::new(load().await?);
    let kept = MEMO.try_with(|memo| {
        Arc::clone(memo.lock().entry(place).or_insert_with(|| Arc::clone(&value) as _))
    });
    Ok(kept.ok().and_then(|kept| kept.downcast().ok()).unwrap_or(value))
}

/// Removes a key from this request's memo, after a write.
pub fn forget<V: 'static>(key: &str) {
    let _ = MEMO.try_with(|memo| memo.lock().remove(&(TypeId::of::<V>(), key.to_owned())));
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn load(n: u32) -> u32 {
        *get_or_load("k", || async move { Ok::<_, ()>(n) }).await.unwrap()
    }

    #[tokio::test]
    async fn a_request_sees_one_value_and_the_next_another() {
        for start in [1, 10] {
            scope(async {
                assert_eq!((load(start).await, load(start + 1).await), (start, start));
                assert!(
                    get_or_load::<u32, _, _, _>("failing", || async { Err("no") }).await.is_err()
                );
                let text = get_or_load("k", || async { Ok::<_, ()>("another type".to_owned()) })
                    .await
                    .unwrap();
                assert_eq!(*text, "another type");
                forget::<u32>("k");
                assert_eq!(load(start + 2).await, start + 2);
            })
            .await;
        }
        assert_eq!((load(5).await, load(6).await), (5, 6), "without a scope nothing is kept");
    }
}
