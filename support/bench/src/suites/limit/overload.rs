//! Overload: three times as many requests as the service can answer.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use http::{Request, Response};
use scale_limit::LoadShed;
use scale_limit::load::AdaptiveConcurrency;
use tokio::runtime::Builder;
use tower::{Layer, Service, ServiceExt};

use crate::Effort;
use crate::measure::{Better, Case};
use crate::report::Report;

const WORK: Duration = Duration::from_millis(2);
const PATIENCE: Duration = Duration::from_millis(250);
/// Time before requests count, because the layer of a new service has no measurements yet.
const WARM_UP: Duration = Duration::from_secs(2);

/// Work like hashing a password: on a separate thread, here the only one; the other core is left
/// for everything else. Work of clients that have left is done too. Work left over from a rehearsal
/// is dropped, because it would take processor time from the next one.
async fn burn(
    request: Request<()>,
) -> Result<Response<http_body_util::Full<bytes::Bytes>>, Infallible> {
    let over = request.extensions().get::<Over>().cloned().unwrap_or_default();
    let work = tokio::task::spawn_blocking(move || {
        let start = Instant::now();
        while start.elapsed() < WORK && !over.0.load(Relaxed) {
            std::hint::spin_loop();
        }
    });
    let _ = work.await;
    Ok(Response::new(http_body_util::Full::default()))
}

/// Flag: the rehearsal has ended.
#[derive(Clone, Default)]
struct Over(Arc<AtomicBool>);

/// Rate and p95 of requests that were answered in time.
struct Seen {
    per_second: f64,
    p95: Duration,
}

/// Sends requests at a fixed rate, from a separate thread, to a service on a separate runtime.
async fn offer<S, B>(service: S, rate: f64, time: Duration) -> Result<Seen>
where
    S: Service<Request<()>, Response = Response<B>, Error = Infallible> + Clone + Send + 'static,
    S::Future: Send,
    B: Send + 'static,
{
    tokio::task::spawn_blocking(move || {
        let server = Builder::new_multi_thread()
            .worker_threads(1)
            .max_blocking_threads(1)
            .enable_all()
            .build()?;
        let (sender, answers) = std::sync::mpsc::channel();
        let start = Instant::now();
        let (offered, over) = (AtomicUsize::new(0), Over::default());
        while start.elapsed() < WARM_UP + time {
            let due = (start.elapsed().as_secs_f64() * rate) as usize;
            for _ in offered.load(Relaxed)..due {
                let (service, sender, asked) = (service.clone(), sender.clone(), Instant::now());
                let mut request = Request::new(());
                request.extensions_mut().insert(over.clone());
                server.spawn(async move {
                    let Ok(answer) = service.oneshot(request).await;
                    if answer.status() == 200 && asked - start > WARM_UP {
                        let _ = sender.send(asked.elapsed());
                    }
                });
            }
            offered.store(due, Relaxed);
            std::thread::sleep(Duration::from_micros(500));
        }
        drop(sender);
        // Later answers are too late for every request.
        std::thread::sleep(PATIENCE);
        let mut good: Vec<Duration> = answers.try_iter().filter(|took| *took <= PATIENCE).collect();
        over.0.store(true, Relaxed);
        server.shutdown_background();
        good.sort_unstable();
        let p95 = good.get(good.len() * 95 / 100).copied().unwrap_or(PATIENCE);
        Ok(Seen { per_second: good.len() as f64 / time.as_secs_f64(), p95 })
    })
    .await
    .context("the rehearsal")?
}

/// Measures the capacity of the service, with two concurrent requests at any time.
async fn peak(time: Duration) -> Result<f64> {
    tokio::task::spawn_blocking(move || {
        let server = Builder::new_multi_thread()
            .worker_threads(1)
            .max_blocking_threads(1)
            .enable_all()
            .build()?;
        let start = Instant::now();
        let one = move || async move {
            let mut answered = 0;
            while start.elapsed() < time {
                let _ = burn(Request::new(())).await;
                answered += 1;
            }
            answered
        };
        let tasks = [server.spawn(one()), server.spawn(one())];
        let mut answered = 0;
        for task in tasks {
            answered += server.block_on(task)?;
        }
        Ok(f64::from(answered) / start.elapsed().as_secs_f64())
    })
    .await
    .context("the rehearsal")?
}

pub(super) async fn run(effort: Effort, report: &mut Report) {
    let time = Duration::from_secs(2 + effort.scale as u64);
    let capacity = peak(time).await.unwrap_or(f64::NAN);
    let bare = || tower::service_fn(burn);
    // The service has one thread, fewer than the number of processors, and the layer is set so.
    let shed = || LoadShed::new(AdaptiveConcurrency::default().at_least(1)).layer(bare());
    Case::new("overload", "answers/s", Better::Higher)
        .subject("scale-limit", || async {
            Ok(offer(shed(), capacity * 3.0, time).await?.per_second)
        })
        .subject("peak", || peak(time))
        .target(0.8)
        .subject("no-layer", || async { Ok(offer(bare(), capacity * 3.0, time).await?.per_second) })
        .turns(3)
        .measure(effort, report)
        .await;
    Case::new("overload_p95", "ms", Better::Lower)
        .subject("scale-limit", || async {
            Ok(offer(shed(), capacity * 3.0, time).await?.p95.as_secs_f64() * 1e3)
        })
        .subject("unloaded", || async {
            Ok(offer(bare(), capacity * 0.1, time).await?.p95.as_secs_f64() * 1e3)
        })
        .target(0.33)
        .turns(3)
        .measure(effort, report)
        .await;
}
