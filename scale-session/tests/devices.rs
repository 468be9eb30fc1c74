//! Sign-in: who is signed in, on which devices, and how sign-ins end. On every store.
#![allow(clippy::unwrap_used)]

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::time::Duration;

use anyhow::Result;
use common::{Action, action, send};
use http::StatusCode;
use scale_session::{Config, Device, Error, SessionLayer};

fn sign_in(user: &'static str, device: &'static str) -> Action {
    action(move |s| async move { Ok(s.sign_in(user, device).await.map(|()| String::new())?) })
}

fn who() -> Action {
    action(|s| async move {
        let (user, pending) = (s.user().await?, s.pending_user().await?);
        Ok(user.or(pending.map(|p| format!("{p}?"))).unwrap_or_else(|| "nobody".into()))
    })
}

async fn signed_in(layer: &SessionLayer, user: &'static str, device: &'static str) -> String {
    send(layer, None, sign_in(user, device)).await.2.unwrap()
}

/// Returns the cookie of a sign-in, after the browser has sent it once.
async fn seen(layer: &SessionLayer, user: &'static str, device: &'static str) -> String {
    let cookie = signed_in(layer, user, device).await;
    assert_eq!(is(layer, &cookie).await, user);
    cookie
}

async fn is(layer: &SessionLayer, cookie: &str) -> String {
    send(layer, Some(cookie), who()).await.1
}

async fn names(layer: &SessionLayer, cookie: &str) -> Vec<String> {
    let list = action(|s| async move {
        let devices = s.devices().await?;
        Ok(devices
            .iter()
            .map(|d| format!("{}{}", d.name, if d.is_this { "*" } else { "" }))
            .collect::<Vec<_>>()
            .join(","))
    });
    let mut names: Vec<_> =
        send(layer, Some(cookie), list).await.1.split(',').map(str::to_owned).collect();
    names.sort_unstable();
    names
}

async fn contract(layer: SessionLayer) -> Result<()> {
    states_follow_one_another(&layer).await?;
    devices_are_listed_and_ended(&layer).await?;
    slow_requests_bring_nothing_back(&layer).await?;
    who_ends_the_others_stays_in(&layer).await;
    logins_race_with_an_end_of_all(&layer).await
}

/// Reads concurrent with the end of all others: the remaining session is never treated as one of
/// the others.
async fn who_ends_the_others_stays_in(layer: &SessionLayer) {
    let mine = signed_in(layer, "gil", "mine").await;
    for _ in 0..30 {
        let other = signed_in(layer, "gil", "other").await;
        let reads = async {
            for _ in 0..20 {
                assert_eq!(is(layer, &mine).await, "gil");
            }
        };
        let others =
            action(|s| async move { Ok(s.revoke_others().await.map(|()| String::new())?) });
        futures_util::future::join(reads, send(layer, Some(&mine), others)).await;
        assert_eq!(is(layer, &other).await, "nobody");
    }
}

async fn states_follow_one_another(layer: &SessionLayer) -> Result<()> {
    // An anonymous visitor's data is kept, under another id each time.
    let (_, _, first) = send(layer, None, common::put("cart".into(), "shoes")).await;
    let first = first.unwrap();
    let half =
        action(|s| async move { Ok(s.await_second_factor("ann").await.map(|()| String::new())?) });
    let (_, _, second) = send(layer, Some(&first), half).await;
    let second = second.unwrap();
    assert_eq!(is(layer, &second).await, "ann?");
    let (_, _, third) = send(layer, Some(&second), sign_in("ann", "Firefox")).await;
    let third = third.unwrap();
    assert!(first != second && second != third);
    assert_eq!(is(layer, &third).await, "ann");
    assert_eq!(send(layer, Some(&third), common::get("cart")).await.1, "shoes");

    // Freshness: confirming the identity gives a new id, and only to a signed-in user.
    let fresh = action(|s| async move {
        Ok(format!(
            "{} {}",
            s.is_confirmed_within(Duration::from_mins(1)).await?,
            s.is_confirmed_within(Duration::ZERO).await?
        ))
    });
    assert!(send(layer, Some(&third), fresh).await.1.starts_with("true"));
    let prove = || action(|s| async move { Ok(s.confirm().await?.to_string()) });
    let (_, answer, fourth) = send(layer, Some(&third), prove()).await;
    assert_eq!((answer.as_str(), fourth.is_some()), ("true", true));
    assert_eq!(send(layer, Some(&first), prove()).await.1, "false");
    let fourth = fourth.unwrap();
    assert_eq!(names(layer, &fourth).await, ["Firefox*"], "the old ids are no devices");

    // The application cannot write the internal fields.
    for name in [".signed", ".x", "\0turn"] {
        let forge = action(move |s| async move {
            s.remove(name).await?;
            let inserted = matches!(s.insert(name, "x").await, Err(Error::TooLarge(_)));
            let updated =
                matches!(s.update::<String, _>(name, |_| None).await, Err(Error::TooLarge(_)));
            Ok(format!("{inserted} {updated}"))
        });
        assert_eq!(send(layer, Some(&fourth), forge).await.1, "true true");
    }
    assert_eq!(is(layer, &fourth).await, "ann");

    // An id with another user's mark, or with none, is not signed in.
    let ben = signed_in(layer, "ben", "Opera").await;
    let (name, value) = fourth.split_once('=').unwrap();
    let bens = ben.split_once('=').unwrap().1;
    for forged in
        [format!("{}{}", &value[..43], &bens[43..]), value[..43].to_owned(), format!("{value}A")]
    {
        assert_eq!(is(layer, &format!("{name}={forged}")).await, "nobody", "{forged}");
    }
    let out = action(|s| async move { Ok(s.destroy().await.map(|()| String::new())?) });
    send(layer, Some(&fourth), out).await;
    assert_eq!(
        (is(layer, &fourth).await.as_str(), is(layer, &ben).await.as_str()),
        ("nobody", "ben")
    );
    assert!(layer.devices_of("ann").await?.is_empty());
    Ok(())
}

async fn devices_are_listed_and_ended(layer: &SessionLayer) -> Result<()> {
    let (phone, tablet, desk) = (
        seen(layer, "cleo", "Phone").await,
        seen(layer, "cleo", "Tablet").await,
        seen(layer, "cleo", "Desk").await,
    );
    let other = signed_in(layer, "dan", "Phone").await;
    assert_eq!(names(layer, &phone).await, ["Desk", "Phone*", "Tablet"]);
    let listed: Vec<Device> = layer.devices_of("cleo").await?;
    let id = |name: &str| listed.iter().find(|d| d.name == name).unwrap().id.clone();
    assert!(listed.iter().all(|d| d.since > 1_700_000_000 && d.last_used >= d.since && !d.is_this));

    let revoke = |id: String| {
        action(move |s| {
            let id = id.clone();
            async move { Ok(s.revoke(&id).await?.to_string()) }
        })
    };
    assert_eq!(
        send(layer, Some(&other), revoke(id("Tablet"))).await.1,
        "false",
        "it is another user's"
    );
    assert_eq!(send(layer, Some(&phone), revoke(id("Tablet"))).await.1, "true");
    assert_eq!(send(layer, Some(&phone), revoke(id("Tablet"))).await.1, "false", "once");
    assert_eq!(is(layer, &tablet).await, "nobody");
    assert_eq!(names(layer, &desk).await, ["Desk*", "Phone"]);
    // A device's id does not open a session.
    for id in [id("Phone"), id("Desk")] {
        assert_eq!(is(layer, &format!("__Host-session={id}")).await, "nobody");
    }

    let tablet = signed_in(layer, "cleo", "Tablet").await;
    let others = action(|s| async move { Ok(s.revoke_others().await.map(|()| String::new())?) });
    send(layer, Some(&desk), Arc::clone(&others)).await;
    assert_eq!(
        [is(layer, &phone).await, is(layer, &tablet).await, is(layer, &desk).await],
        ["nobody", "nobody", "cleo"]
    );
    assert_eq!(names(layer, &desk).await, ["Desk*"]);
    assert_eq!(is(layer, &other).await, "dan");
    // Again, together with a sign-in in the same request.
    send(layer, Some(&desk), Arc::clone(&others)).await;
    assert_eq!(is(layer, &desk).await, "cleo");
    let anew = action(|s| async move {
        s.sign_in("cleo", "New").await?;
        Ok(s.revoke_others().await.map(|()| String::new())?)
    });
    let new = send(layer, None, anew).await.2.unwrap();
    assert_eq!([is(layer, &desk).await, is(layer, &new).await], ["nobody", "cleo"]);

    let all = action(|s| async move { Ok(s.revoke_all().await.map(|()| String::new())?) });
    let phone = signed_in(layer, "cleo", "Phone").await;
    let (_, _, cookie) = send(layer, Some(&phone), all).await;
    assert_eq!(cookie.as_deref(), Some(""), "its cookie is cleared");
    assert_eq!([is(layer, &phone).await, is(layer, &new).await], ["nobody", "nobody"]);
    let later = signed_in(layer, "cleo", "Later").await;
    assert_eq!(is(layer, &later).await, "cleo");
    layer.revoke_all_of("cleo").await?;
    layer.revoke_all_of("nobody ever").await?;
    assert_eq!([is(layer, &later).await, is(layer, &other).await], ["nobody", "dan"]);
    Ok(())
}

/// A request that loaded the session before it was revoked: its writes, renewals and rotations are
/// lost.
async fn slow_requests_bring_nothing_back(layer: &SessionLayer) -> Result<()> {
    for kind in ["write", "increment", "rotate", "renew"] {
        let cookie = signed_in(layer, "eve", "Phone").await;
        let (loaded, go) =
            (Arc::new(tokio::sync::Notify::new()), Arc::new(tokio::sync::Notify::new()));
        let slow = {
            let (loaded, go, layer, cookie) =
                (Arc::clone(&loaded), Arc::clone(&go), layer.clone(), cookie.clone());
            let act = action(move |s| {
                let (loaded, go) = (Arc::clone(&loaded), Arc::clone(&go));
                async move {
                    s.user().await?;
                    loaded.notify_one();
                    go.notified().await;
                    match kind {
                        "write" => s.insert("a", "b").await?,
                        "increment" => {
                            assert!(matches!(s.increment("n", 1).await, Err(Error::Gone)));
                        }
                        "rotate" => s.rotate().await?,
                        _ => s.renew().await?,
                    }
                    Ok(String::new())
                }
            });
            tokio::spawn(async move { send(&layer, Some(&cookie), act).await })
        };
        loaded.notified().await;
        layer.revoke_all_of("eve").await?;
        go.notify_one();
        let (status, _, next) = slow.await?;
        assert_eq!(status, StatusCode::OK, "{kind}");
        for cookie in next.into_iter().filter(|c| !c.is_empty()).chain([cookie]) {
            assert_eq!(is(layer, &cookie).await, "nobody", "{kind}");
        }
        assert!(layer.devices_of("eve").await?.is_empty(), "{kind}");
    }
    Ok(())
}

async fn logins_race_with_an_end_of_all(layer: &SessionLayer) -> Result<()> {
    let (stop, count) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let logins: Vec<_> = (0..4)
        .map(|_| {
            let (layer, stop, count) = (layer.clone(), Arc::clone(&stop), Arc::clone(&count));
            tokio::spawn(async move {
                let mut cookies = Vec::new();
                while !stop.load(SeqCst) {
                    cookies.push(signed_in(&layer, "fay", "Phone").await);
                    count.fetch_add(1, SeqCst);
                }
                cookies
            })
        })
        .collect();
    for round in 1..=10 {
        testkit::eventually("log-ins", async || (count.load(SeqCst) >= round * 10).then_some(()))
            .await?;
        layer.revoke_all_of("fay").await?;
    }
    stop.store(true, SeqCst);
    let mut cookies = Vec::new();
    for login in logins {
        cookies.extend(login.await?);
    }
    // The list and the requests agree, in either order.
    let mut living = 0;
    for cookie in &cookies {
        living += usize::from(is(layer, cookie).await == "fay");
    }
    assert_eq!(layer.devices_of("fay").await?.len(), living.min(1_000));
    layer.revoke_all_of("fay").await?;
    for cookie in &cookies {
        assert_eq!(is(layer, cookie).await, "nobody");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn memory() -> Result<()> {
    contract(SessionLayer::memory(Config::default())).await
}

#[cfg(feature = "sqlite")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sqlite() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let url = format!("sqlite://{}/a.db?mode=rwc", folder.path().display());
    contract(SessionLayer::connect(&url, "test", Config::default()).await?).await
}

#[cfg(feature = "postgres")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn postgres() -> Result<()> {
    let server = testkit::Postgres::start(0).await?;
    common::migrate(&server.node(0).url()).await?;
    contract(SessionLayer::connect(&server.node(0).url(), "test", Config::default()).await?).await
}

#[cfg(feature = "mysql")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mariadb() -> Result<()> {
    let server = testkit::MariaDb::start(0).await?;
    common::migrate(&server.node(0).url()).await?;
    contract(SessionLayer::connect(&server.node(0).url(), "test", Config::default()).await?).await
}

#[cfg(feature = "redis")]
mod redis {
    use super::*;

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn standalone() -> Result<()> {
        let server = testkit::Redis::start().await?;
        contract(SessionLayer::connect(&server.url(), "test", Config::default()).await?).await
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn cluster() -> Result<()> {
        let cluster = testkit::RedisCluster::start().await?;
        contract(SessionLayer::connect(&cluster.url(), "test", Config::default()).await?).await
    }

    async fn calls(server: &testkit::Redis) -> Result<u64> {
        let stats = server.command(&["INFO", "commandstats"]).await?;
        let count =
            |line: &str| line.split("calls=").nth(1)?.split(',').next()?.parse::<u64>().ok();
        Ok(stats.lines().filter(|line| !line.contains("_info:")).filter_map(count).sum())
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn ending_all_costs_the_same_for_one_and_for_ten_thousand() -> Result<()> {
        let server = testkit::Redis::start().await?;
        let layer = SessionLayer::connect(&server.url(), "test", Config::default()).await?;
        layer.revoke_all_of("warm").await?; // the script is known from here on
        let mut costs = Vec::new();
        for (user, sessions) in [("one", 1_usize), ("many", 10_000)] {
            for chunk in (0..sessions).collect::<Vec<_>>().chunks(100) {
                futures_util::future::join_all(chunk.iter().map(|_| seen(&layer, user, "x"))).await;
            }
            assert_eq!(layer.devices_of(user).await?.len(), sessions.min(1_000));
            let before = calls(&server).await?;
            layer.revoke_all_of(user).await?;
            costs.push(calls(&server).await? - before);
            assert!(layer.devices_of(user).await?.is_empty());
        }
        assert_eq!(costs[0], costs[1], "commands");
        Ok(())
    }

    #[tokio::test]
    async fn a_signed_session_is_one_round_trip_and_leaves_nothing_behind() -> Result<()> {
        let server = testkit::Redis::start().await?;
        let config = Config::default()
            .idle_timeout(Duration::from_secs(3))
            .absolute_timeout(Duration::from_secs(4));
        let layer = SessionLayer::connect(&server.url(), "test", config).await?;
        let cookie = signed_in(&layer, "ann", "x").await;
        is(&layer, &cookie).await;
        // Number of commands that the server has received, including this one.
        let reads = async || -> Result<u64> {
            let stats = server.command(&["INFO", "stats"]).await?;
            let line = stats
                .lines()
                .find_map(|line| line.strip_prefix("total_reads_processed:"))
                .unwrap_or_default()
                .to_owned();
            Ok(line.trim().parse()?)
        };
        let (before, again) = (reads().await?, reads().await?);
        assert_eq!(is(&layer, &cookie).await, "ann");
        assert_eq!(reads().await? - again, again - before + 1);
        // The index and the owner's counters expire by themselves.
        testkit::eventually("all keys to expire", async || {
            (server.command(&["DBSIZE"]).await.ok()? == "0").then_some(())
        })
        .await?;
        // A session whose owner's counters are lost is not accepted.
        let cookie = signed_in(&layer, "ben", "x").await;
        let keys = server.command(&["KEYS", "*owner"]).await?;
        server.command(&["DEL", keys.trim()]).await?;
        assert_eq!(is(&layer, &cookie).await, "nobody");
        Ok(())
    }
}
