//! A simulation of overload: three times as many requests as the service can answer, with and
//! without load shedding.
//!
//! The service is a model in tokio's paused time: a number of workers, each busy with a request for
//! a given time, and an unlimited queue in front, as an operating system or an executor has it. It
//! continues to work on requests of clients that have disconnected. Therefore the simulation is the
//! same on every machine; `scale-bench -- limit` measures a real service.
#![allow(clippy::unwrap_used)]

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::Full;
use scale_limit::LoadShed;
use scale_limit::load::{AdaptiveConcurrency, Priority};
use tokio::sync::Semaphore;
use tokio::time::{Instant, sleep, timeout};
use tower::{Layer, Service, ServiceExt, service_fn};

const WORKERS: usize = 8;
/// Requests that the service can answer a second.
const CAPACITY: f64 = 400.0;
/// Time after which clients disconnect.
const CLIENT_PATIENCE: Duration = Duration::from_millis(500);

fn service()
-> impl Service<Request<()>, Response = Response<Full<Bytes>>, Error = Infallible, Future: Send>
+ Clone
+ Send
+ 'static {
    let workers = Arc::new(Semaphore::new(WORKERS));
    let number = Arc::new(AtomicU64::new(0));
    service_fn(move |_| {
        let workers = Arc::clone(&workers);
        // 10 to 30 ms, 20 on average.
        let work = Duration::from_millis(10 + number.fetch_add(7_919, Relaxed) % 21);
        // In a task of its own: the work continues if the client disconnects.
        let done = tokio::spawn(async move {
            let _worker = workers.acquire().await.unwrap();
            sleep(work).await;
        });
        async move {
            done.await.unwrap();
            Ok(Response::new(Full::default()))
        }
    })
}

#[derive(Default, Debug)]
struct Seen {
    /// Requests answered in time, by path.
    good: Vec<(&'static str, Duration)>,
    offered: Vec<&'static str>,
    shed: usize,
}

impl Seen {
    fn share(&self, path: &str) -> f64 {
        let count = |list: &mut dyn Iterator<Item = &'static str>| {
            list.filter(|p| *p == path).count() as f64
        };
        count(&mut self.good.iter().map(|(p, _)| *p)) / count(&mut self.offered.iter().copied())
    }

    fn p95(&self) -> Duration {
        let mut times: Vec<_> = self.good.iter().map(|(_, t)| *t).collect();
        times.sort();
        times.get(times.len() * 95 / 100).copied().unwrap_or(Duration::MAX)
    }
}

/// Sends requests at a constant rate for the given time: one in ten a checkout, three in ten a
/// crawler's.
async fn offer<S, B>(service: S, rate: f64, time: Duration) -> Seen
where
    S: Service<Request<()>, Response = Response<B>, Error = Infallible> + Clone + Send + 'static,
    S::Future: Send,
    B: Send + 'static,
{
    let start = Instant::now();
    let mut tasks = Vec::new();
    let mut seen = Seen::default();
    for n in 0..(rate * time.as_secs_f64()) as usize {
        tokio::time::sleep_until(start + Duration::from_secs_f64(n as f64 / rate)).await;
        let path = match n % 10 {
            0 => "/checkout",
            1..=3 => "/crawl",
            _ => "/shop",
        };
        seen.offered.push(path);
        let service = service.clone();
        tasks.push(tokio::spawn(async move {
            let start = Instant::now();
            let request = Request::builder().uri(path).body(()).unwrap();
            let answer = timeout(CLIENT_PATIENCE, service.oneshot(request)).await;
            (path, answer.ok().map(|answer| answer.unwrap().status()), start.elapsed())
        }));
    }
    for task in tasks {
        match task.await.unwrap() {
            (path, Some(StatusCode::OK), took) => seen.good.push((path, took)),
            (_, Some(StatusCode::SERVICE_UNAVAILABLE), _) => seen.shed += 1,
            _ => {}
        }
    }
    seen
}

fn shedding() -> LoadShed {
    LoadShed::new(AdaptiveConcurrency::default()).priority(|request| match request.uri.path() {
        "/checkout" => Priority::High,
        "/crawl" => Priority::Low,
        _ => Priority::Normal,
    })
}

#[tokio::test(start_paused = true)]
async fn three_times_the_capacity() {
    let time = Duration::from_secs(20);
    let unloaded = offer(service(), CAPACITY / 10.0, time).await;
    let peak = offer(service(), CAPACITY * 0.95, time).await.good.len() as f64 / time.as_secs_f64();
    assert!(peak > CAPACITY * 0.9, "{peak}");

    let bare = offer(service(), CAPACITY * 3.0, time).await;
    let shed = offer(shedding().layer(service()), CAPACITY * 3.0, time).await;
    let goodput = |seen: &Seen| seen.good.len() as f64 / time.as_secs_f64();
    let report = format!(
        "peak {peak:.0}/s; without shedding {:.0}/s; with {:.0}/s, p95 {:?} of {:?} unloaded, \
         checkout {:.2}, shop {:.2}, crawlers {:.2}",
        goodput(&bare),
        goodput(&shed),
        shed.p95(),
        unloaded.p95(),
        shed.share("/checkout"),
        shed.share("/shop"),
        shed.share("/crawl"),
    );
    assert!(goodput(&bare) < peak * 0.2, "the model shows what it is for: {report}");
    assert!(goodput(&shed) >= peak * 0.8, "{report}");
    assert!(shed.p95() <= unloaded.p95() * 3, "{report}");
    assert!(shed.share("/checkout") > 0.97, "{report}");
    assert!(shed.share("/shop") > shed.share("/crawl"), "{report}");
    assert!(
        shed.good.len() + shed.shed >= shed.offered.len() * 99 / 100,
        "no request waits for nothing: {report}"
    );
}

#[tokio::test(start_paused = true)]
async fn without_overload_nobody_is_turned_away() {
    let layer = shedding();
    let calm = offer(layer.layer(service()), CAPACITY * 0.7, Duration::from_secs(20)).await;
    assert_eq!((calm.good.len(), calm.shed), (calm.offered.len(), 0));
    assert_eq!(layer.now().0, 0, "no place is left taken");
    // A burst within a tenth of a second waits in the queue.
    let tasks: Vec<_> =
        (0..40).map(|_| tokio::spawn(layer.layer(service()).oneshot(Request::new(())))).collect();
    for task in tasks {
        assert_eq!(task.await.unwrap().unwrap().status(), StatusCode::OK);
    }
}

#[tokio::test(start_paused = true)]
async fn dropped_requests_leave_no_place_taken_and_health_checks_always_pass() {
    let layer =
        LoadShed::new(AdaptiveConcurrency::fixed(2)).priority(|request| match request.uri.path() {
            "/health" => Priority::Critical,
            _ => Priority::Normal,
        });
    let stuck = layer.layer(service_fn(async |request: Request<()>| {
        if request.uri().path() != "/health" {
            std::future::pending::<()>().await;
        }
        Ok::<_, Infallible>(Response::new(Full::<Bytes>::default()))
    }));
    let open = |path: &str| stuck.clone().oneshot(Request::builder().uri(path).body(()).unwrap());
    for round in 0..100_u64 {
        let tasks: Vec<_> = (0..10).map(|_| tokio::spawn(open("/"))).collect();
        sleep(Duration::from_millis(round)).await;
        assert_eq!(open("/health").await.unwrap().status(), StatusCode::OK);
        for task in tasks {
            task.abort();
            let _ = task.await;
        }
        assert_eq!(layer.now(), (0, 2), "round {round}");
    }
}

/// Five scenarios of a service, each with an adaptive limit and with the best of several fixed
/// limits, chosen with knowledge of the scenario: the adaptive limit must reach the same goodput
/// within a twentieth.
mod days {
    use super::*;
    use scale_limit::{LimitLayer, Limiter, Policy};
    use tower::util::BoxCloneSyncService;

    type Any = BoxCloneSyncService<Request<()>, Response<()>, Infallible>;

    fn any<S, B>(service: S) -> Any
    where
        S: Service<Request<()>, Response = Response<B>, Error = Infallible>
            + Clone
            + Send
            + Sync
            + 'static,
        S::Future: Send,
        B: 'static,
    {
        BoxCloneSyncService::new(service.map_response(|answer: Response<B>| answer.map(|_| ())))
    }

    /// A scenario: times are seconds since its beginning.
    #[derive(Clone, Copy)]
    struct Day {
        workers: usize,
        /// Milliseconds of a worker's time; 0: answered without a worker.
        work: fn(&str, f64) -> f64,
        /// Requests a second.
        rate: fn(f64) -> f64,
        /// Path of the n-th request.
        path: fn(u64, f64) -> &'static str,
        /// Start and end of the time in which responses count.
        counts: (f64, f64),
    }

    fn service(day: Day) -> BoxCloneSyncService<Request<()>, Response<Full<Bytes>>, Infallible> {
        let (workers, start) = (Arc::new(Semaphore::new(day.workers)), Instant::now());
        BoxCloneSyncService::new(service_fn(move |request: Request<()>| {
            let workers = Arc::clone(&workers);
            let work = (day.work)(request.uri().path(), start.elapsed().as_secs_f64());
            let done = tokio::spawn(async move {
                if work > 0.0 {
                    let _worker = workers.acquire().await.unwrap();
                    sleep(Duration::from_secs_f64(work / 1e3)).await;
                }
            });
            async move {
                done.await.unwrap();
                Ok(Response::new(Full::default()))
            }
        }))
    }

    /// Returns the responses a second to legitimate requests, each within a second.
    async fn goodput(service: Any, day: Day) -> f64 {
        let (from, to) = day.counts;
        let (start, mut tasks, mut n, mut next) = (Instant::now(), Vec::new(), 0, 0.0);
        // The same requests at the same times, whatever the limit.
        let mut dice = fastrand::Rng::with_seed(7);
        while next < to {
            tokio::time::sleep_until(start + Duration::from_secs_f64(next)).await;
            let (path, at, service) = ((day.path)(n, next), next, service.clone());
            tasks.push(tokio::spawn(async move {
                let request = Request::builder().uri(path).body(()).unwrap();
                let answer = timeout(Duration::from_secs(1), service.oneshot(request)).await;
                at >= from
                    && path != "/health"
                    && answer.is_ok_and(|answer| answer.unwrap().status() == StatusCode::OK)
            }));
            n += 1;
            next += -(1.0 - dice.f64()).ln() / (day.rate)(next);
        }
        let mut good = 0.0;
        for task in tasks {
            good += f64::from(u8::from(task.await.unwrap()));
        }
        good / (to - from)
    }

    fn shed(limit: AdaptiveConcurrency) -> LoadShed {
        LoadShed::new(limit).priority(|request| match request.uri.path() {
            "/health" => Priority::Critical,
            "/checkout" => Priority::High,
            "/crawl" => Priority::Low,
            _ => Priority::Normal,
        })
    }

    async fn compare(name: &str, day: Day) {
        let mut best = (0.0, 0);
        for fixed in [4, 6, 8, 16, 24] {
            let good =
                goodput(any(shed(AdaptiveConcurrency::fixed(fixed)).layer(service(day))), day)
                    .await;
            best = if good > best.0 { (good, fixed) } else { best };
        }
        let adaptive =
            goodput(any(shed(AdaptiveConcurrency::default()).layer(service(day))), day).await;
        assert!(
            adaptive >= best.0 * 0.95,
            "{name}: {adaptive:.0} a second, a fixed limit of {} has {:.0}",
            best.1,
            best.0
        );
    }

    const THREE: fn(u64, f64) -> &'static str = |n, _| match n % 10 {
        0 => "/checkout",
        1..=3 => "/crawl",
        _ => "/shop",
    };

    /// The mix changes from cheap pages to expensive ones, at 60 % of the service's capacity.
    #[tokio::test(start_paused = true)]
    async fn the_mix_turns_slow() {
        let day = Day {
            workers: 16,
            work: |path, _| if path == "/static" { 1.0 } else { 50.0 },
            rate: |at| if at < 20.0 { 500.0 } else { 210.0 },
            path: |n, at| if (at < 20.0) == (n % 10 == 0) { "/shop" } else { "/static" },
            counts: (20.0, 50.0),
        };
        compare("mix", day).await;
    }

    /// A night with nothing but health checks, then the morning.
    #[tokio::test(start_paused = true)]
    async fn a_quiet_night() {
        let day = Day {
            workers: 16,
            work: |path, _| if path == "/health" { 0.1 } else { 50.0 },
            rate: |at| if at < 20.0 { 10.0 } else { 200.0 },
            path: |n, at| if at < 20.0 || n % 50 == 0 { "/health" } else { "/shop" },
            counts: (20.0, 40.0),
        };
        compare("night", day).await;
    }

    /// Every five seconds the service stalls for 400 ms.
    #[tokio::test(start_paused = true)]
    async fn stalls() {
        let day = Day {
            workers: 4,
            work: |_, at| 20.0 + (0.4 - at % 5.0).max(0.0) * 1e3,
            rate: |_| 140.0,
            path: THREE,
            counts: (10.0, 60.0),
        };
        compare("stalls", day).await;
    }

    /// The service's dependency is ten times slower for a while.
    #[tokio::test(start_paused = true)]
    async fn a_slow_dependency() {
        let mut day = Day {
            workers: 4,
            work: |_, at| if (20.0..50.0).contains(&at) { 200.0 } else { 20.0 },
            rate: |_| 140.0,
            path: THREE,
            counts: (20.0, 50.0),
        };
        compare("slow", day).await;
        day.counts = (52.0, 80.0);
        compare("fast again", day).await;
    }

    /// A denied client continues to send 400 requests a second for a second, every ten seconds;
    /// with the limits inside, and outside.
    #[tokio::test(start_paused = true)]
    async fn a_denied_client_asks_on() {
        let day = Day {
            workers: 16,
            work: |_, _| 50.0,
            rate: |at| if at >= 20.0 && at % 10.0 < 1.0 { 550.0 } else { 150.0 },
            path: |n, at| {
                if at >= 20.0 && at % 10.0 < 1.0 && n % 11 < 8 { "/abuse" } else { "/shop" }
            },
            counts: (20.0, 60.0),
        };
        let limits = || {
            let abuser = |request: &scale_limit::RequestHead<'_>| {
                (request.uri.path() == "/abuse").then(|| "abuser".into())
            };
            LimitLayer::new(Limiter::memory()).policy(Policy::per_hour("abuser", 10), abuser)
        };
        let honest =
            goodput(any(service(day)), Day { path: |_, _| "/shop", rate: |_| 150.0, ..day }).await;
        let adaptive = || shed(AdaptiveConcurrency::default());
        let inside = goodput(any(adaptive().layer(limits().layer(service(day)))), day).await;
        let outside = goodput(any(limits().layer(adaptive().layer(service(day)))), day).await;
        for (name, goodput) in [("limits inside", inside), ("limits outside", outside)] {
            assert!(goodput >= honest * 0.97, "{name}: {goodput:.0} of {honest:.0} a second");
        }
    }
}
