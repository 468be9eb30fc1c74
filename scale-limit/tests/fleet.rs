//! Many processes on one Redis: the requests that they admit together, by an exact log of events.
#![cfg(feature = "redis")]
#![allow(clippy::unwrap_used, clippy::print_stdout)]

use std::process::Child;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};
use scale_limit::policy::Algorithm;
use scale_limit::{BanList, Limiter, OnError, Policy};
use testkit::{Redis, eventually, helper};

const PROCESSES: usize = 4;
const PERIOD: Duration = Duration::from_millis(200);
const QUOTA: u32 = 40;
const BURST: u32 = 10;
const LEASE: Duration = Duration::from_millis(50);

fn policy(kind: &str) -> Policy {
    let policy = Policy::new(kind, QUOTA, PERIOD).on_error(OnError::Deny);
    match kind {
        "gcra" => policy.burst(BURST),
        "leased" => policy.burst(BURST).leased(LEASE),
        "sliding" => policy.algorithm(Algorithm::SlidingWindow),
        _ => policy.algorithm(Algorithm::FixedWindow),
    }
}

/// Returns the maximum number of requests in any window of that length.
fn bound(kind: &str, window: Duration) -> f64 {
    let periods = window.as_secs_f64() / PERIOD.as_secs_f64();
    let lease = LEASE.as_secs_f64() / PERIOD.as_secs_f64();
    match kind {
        "gcra" => f64::from(BURST) + f64::from(QUOTA) * periods,
        "leased" => f64::from(BURST) + f64::from(QUOTA) * (periods + lease),
        // Whole periods, each with its quota.
        "sliding" => f64::from(QUOTA) * periods.ceil().max(1.0),
        _ => f64::from(QUOTA) * (periods.ceil() + 1.0),
    }
}

fn process(url: &str, kind: &str) -> Result<Child> {
    let mut process = helper("helper_that_asks_for_a_second")?;
    process.env("LIMIT_URL", url).env("LIMIT_KIND", kind).spawn().context("starting a process")
}

/// Returns the start and end of each admitted request, of all processes (ns).
async fn run(url: &str, kind: &str) -> Result<Vec<(u64, u64)>> {
    let children: Vec<Child> = (0..PROCESSES).map(|_| process(url, kind)).collect::<Result<_>>()?;
    let mut log = Vec::new();
    for child in children {
        let output = tokio::task::spawn_blocking(move || child.wait_with_output()).await??;
        ensure!(output.status.success(), "a process failed");
        let text = String::from_utf8(output.stdout)?;
        log.extend(text.lines().filter_map(|line| {
            let (asked, answered) = line.strip_prefix("admitted ")?.split_once(' ')?;
            Some((asked.parse::<u64>().ok()?, answered.parse::<u64>().ok()?))
        }));
    }
    log.sort_unstable();
    Ok(log)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn together_they_admit_no_more_than_one_would() -> Result<()> {
    let server = Redis::start().await?;
    for kind in ["gcra", "sliding", "fixed", "leased"] {
        let log = run(&server.url(), kind).await?;
        ensure!(!log.is_empty(), "{kind}: nothing was admitted");
        // Started and finished within a window, so decided within it.
        for (start, _) in &log {
            for length in [PERIOD / 4, PERIOD, PERIOD * 3] {
                let end = start + length.as_nanos() as u64;
                let within = log
                    .iter()
                    .filter(|(asked, answered)| asked >= start && *answered <= end)
                    .count();
                let bound = bound(kind, length);
                ensure!(
                    within as f64 <= bound + 1e-6,
                    "{kind}: {within} in {length:?}, {bound} allowed"
                );
            }
        }
        // Not too strict: the processes together used most of the quota over the whole run.
        let (first, last) =
            (log.first().map_or(0, |e| e.0), log.iter().map(|e| e.1).max().unwrap_or(0));
        let periods = (last - first) as f64 / PERIOD.as_nanos() as f64;
        let share = log.len() as f64 / (f64::from(QUOTA) * periods);
        ensure!(share > 0.5, "{kind}: only {share:.2} of the quota was used");
    }
    Ok(())
}

#[test]
fn helper_that_asks_for_a_second() -> Result<()> {
    let (Ok(url), Ok(kind)) = (std::env::var("LIMIT_URL"), std::env::var("LIMIT_KIND")) else {
        return Ok(());
    };
    let now = || SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |t| t.as_nanos() as u64);
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
        let limiter = Limiter::connect(&url, "fleet").await?.store_timeout(Duration::from_secs(5));
        let policy = policy(&kind);
        let end = now() + 1_000_000_000;
        let mut log = Vec::new();
        while now() < end {
            let asked = now();
            if limiter.check(&policy, "everybody").await.admitted {
                log.push((asked, now()));
            }
            tokio::task::yield_now().await;
        }
        for (asked, answered) in log {
            println!("admitted {asked} {answered}");
        }
        Ok(())
    })
}

#[tokio::test]
async fn a_denied_key_costs_the_store_a_call_a_second_and_a_leased_one_a_few() -> Result<()> {
    let server = Redis::start().await?;
    let limiter =
        Limiter::connect(&server.url(), "test").await?.store_timeout(Duration::from_secs(5));
    let policy = Policy::per_hour("p", 1);
    limiter.check(&policy, "k").await;
    let denied = limiter.check(&policy, "k").await;
    assert!(!denied.admitted);
    server.command(&["CONFIG", "RESETSTAT"]).await?;
    for _ in 0..10_000 {
        let again = limiter.check(&policy, "k").await;
        assert!(
            !again.admitted
                && again.retry_after() <= denied.retry_after()
                && again.retry_after().is_some()
        );
    }
    let calls = server.calls(&["evalsha"]).await?;
    assert!(calls <= 3, "{calls} calls");
    // Other keys and costs are not affected, and a refund is visible.
    assert!(limiter.check(&policy, "other").await.admitted);
    let first = limiter.check(&policy, "again").await;
    assert!(first.admitted && !limiter.check(&policy, "again").await.admitted);
    assert!(limiter.refund(&first, &[(&policy, "again", 1)]).await);
    eventually("it to be seen", async || {
        limiter.check(&policy, "again").await.admitted.then_some(())
    })
    .await?;

    let hot = Policy::per_second("hot", 1_000_000).leased(Duration::from_millis(500));
    for n in 0..20_000 {
        if n == 10_000 {
            server.command(&["CONFIG", "RESETSTAT"]).await?;
        }
        assert!(limiter.check(&hot, "k").await.admitted);
    }
    let calls = server.calls(&["evalsha"]).await?;
    assert!(calls <= 100, "{calls} calls for 10,000 requests");
    Ok(())
}

#[tokio::test]
async fn places_of_a_dropped_request_and_of_a_dead_process_are_free_again() -> Result<()> {
    let server = Redis::start().await?;
    let limiter =
        Limiter::connect(&server.url(), "test").await?.store_timeout(Duration::from_secs(5));
    let policy = Policy::concurrency("places", 50);
    // Dropped at any point of their execution.
    for turn in 0..200 {
        let check = limiter.check(&policy, "k");
        let _ = tokio::time::timeout(Duration::from_micros(turn * 3), check).await;
    }
    let all = [(&policy, "k", 50)];
    let held = eventually("all places to be free", async || {
        Some(limiter.check_all(&all).await).filter(|d| d.admitted)
    })
    .await?;
    // Permits that are not renewed are released after half a minute; until then they are held.
    let life: i64 = server.command(&["PTTL", "test:limit:{k}:places:held"]).await?.parse()?;
    assert!(held.admitted && life > 25_000 && life <= 30_001, "{life}");
    Ok(())
}

#[tokio::test]
async fn bans_reach_the_other_processes_and_outlive_a_lost_log() -> Result<()> {
    let server = Redis::start_with(&["--save", ""]).await?;
    let here = BanList::connect(&server.url(), "test").await?;
    let there = BanList::connect(&server.url(), "test").await?;
    here.ban("203.0.113.7", Duration::from_mins(1), "guessing").await?;
    assert!(here.find("203.0.113.7").is_some(), "at once where it was made");
    let ban = eventually("the ban to arrive", async || there.find("203.0.113.7")).await?;
    assert_eq!(&*ban.reason, "guessing");
    assert!(ban.left() > Duration::from_secs(50) && ban.left() <= Duration::from_mins(1));
    // A process that starts later has the ban too.
    assert!(BanList::connect(&server.url(), "test").await?.find("203.0.113.7").is_some());
    there.unban("203.0.113.7").await?;
    eventually("the ban to be lifted", async || here.find("203.0.113.7").is_none().then_some(()))
        .await?;
    // A server that lost its data: known bans remain, new bans arrive.
    here.ban("198.51.100.1", Duration::from_mins(1), "scraping").await?;
    eventually("the second ban to arrive", async || there.find("198.51.100.1")).await?;
    server.restart().await?;
    eventually("the store to be back", async || {
        here.ban("192.0.2.1", Duration::from_mins(1), "x").await.ok()
    })
    .await?;
    eventually("the third ban to arrive", async || there.find("192.0.2.1")).await?;
    assert!(there.find("198.51.100.1").is_some());
    Ok(())
}

/// A client that causes automatic bans continuously, an operator's ban from before, and a process
/// that starts afterwards.
#[tokio::test]
async fn an_operators_ban_outlives_any_number_of_strikes() -> Result<()> {
    let server = Redis::start_with(&["--save", ""]).await?;
    let here = BanList::connect(&server.url(), "test").await?;
    let there = BanList::connect(&server.url(), "test").await?;
    here.ban("198.51.100.1", Duration::from_hours(720), "operator").await?;
    here.ban("2001:db8::/48", Duration::from_hours(720), "operator").await?;
    here.ban("192.0.2.1", Duration::from_hours(720), "operator").await?;
    eventually("the bans to arrive", async || there.find("192.0.2.1")).await?;
    for n in 0..1_050 {
        let bans = (0..100).map(|m| {
            let here = here.clone();
            async move {
                here.ban_automatically(
                    &format!("{}", n * 100 + m),
                    Duration::from_mins(10),
                    "strike",
                )
                .await
            }
        });
        futures_util::future::try_join_all(bans).await?;
        here.ban_automatically("198.51.100.1", Duration::from_mins(1), "strike").await?;
        if n == 600 {
            here.unban("192.0.2.1").await?;
        }
    }
    let length: usize = server.command(&["XLEN", "test:limit:{bans}:log"]).await?.parse()?;
    assert!(length < 120_000, "{length} entries");
    for list in [&here, &BanList::connect(&server.url(), "test").await?] {
        let ban = list.find("198.51.100.1").context("the operator's ban")?;
        assert!(ban.left() > Duration::from_hours(719) && &*ban.reason == "operator", "{ban:?}");
        assert!(list.find_address("2001:db8:0:7::1".parse()?).is_some());
        assert!(list.find("192.0.2.1").is_none());
    }
    eventually("the lift to arrive", async || there.find("192.0.2.1").is_none().then_some(()))
        .await?;
    // A server that lost its data, and receives another ban at once: a process that starts then has
    // the operators' bans, too.
    server.command(&["FLUSHALL"]).await?;
    here.ban_automatically("192.0.2.99", Duration::from_mins(1), "strike").await?;
    eventually("operators' bans to be back", async || {
        let new = BanList::connect(&server.url(), "test").await.ok()?;
        new.find("198.51.100.1")
            .and(new.find_address("2001:db8::1".parse().ok()?))
            .and(there.find("198.51.100.1"))
    })
    .await?;
    // A server that restarts.
    server.restart().await?;
    eventually("operators' bans to be back", async || {
        let new = BanList::connect(&server.url(), "test").await.ok()?;
        new.find("198.51.100.1").filter(|_| new.find("192.0.2.1").is_none())
    })
    .await?;
    Ok(())
}
