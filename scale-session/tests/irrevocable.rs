//! Sessions stored in their cookies.
#![cfg(feature = "cookie")]
#![allow(clippy::unwrap_used)]

mod common;

use std::time::Duration;

use anyhow::Result;
use common::{action, get, put, send};
use http::StatusCode;
use scale_session::store::CookieKeys;
use scale_session::{Config, CookiePolicy, Error, SessionLayer};

fn layer() -> SessionLayer {
    SessionLayer::irrevocable(CookieKeys::new(&[1; 32]), Config::default())
}

#[tokio::test]
async fn all_lies_in_the_cookie() -> Result<()> {
    let (here, there) = (layer(), layer());
    let (_, _, none) = send(&here, None, action(|_| async { Ok(String::new()) })).await;
    assert_eq!(none, None, "nothing for nothing");
    let (_, _, cookie) = send(&here, None, put("user".into(), "ann")).await;
    let cookie = cookie.unwrap();
    assert!(!cookie.contains("ann") && !cookie.contains("user"));
    let (_, found, set) = send(&there, Some(&cookie), get("user")).await;
    assert_eq!((found.as_str(), set), ("ann", None), "a read changes nothing, on any server");

    let count = action(|s| async move {
        s.increment("visits", 1).await?;
        s.flash("word", "once").await?;
        Ok(s.increment("visits", 1).await?.to_string())
    });
    let (_, visits, set) = send(&there, Some(&cookie), count).await;
    let cookie = set.unwrap();
    assert_eq!(visits, "2");
    let read = action(|s| async move {
        let words: (Option<String>, Option<String>) =
            (s.flashed("word").await?, s.flashed("word").await?);
        Ok(format!(
            "{:?} {:?} {:?}",
            s.get::<i64>("visits").await?,
            s.get::<String>("user").await?,
            words
        ))
    });
    let (_, found, _) = send(&here, Some(&cookie), read).await;
    assert_eq!(found, r#"Some(2) Some("ann") (Some("once"), None)"#);

    let rotated = send(
        &here,
        Some(&cookie),
        action(|s| async move { Ok(s.rotate().await.map(|()| String::new())?) }),
    )
    .await
    .2
    .unwrap();
    assert_eq!(send(&here, Some(&rotated), get("user")).await.1, "ann");
    let (_, _, cleared) = send(
        &here,
        Some(&rotated),
        action(|s| async move { Ok(s.destroy().await.map(|()| String::new())?) }),
    )
    .await;
    assert_eq!(cleared.as_deref(), Some(""));
    // Cookie sessions cannot be revoked.
    assert_eq!(send(&here, Some(&rotated), get("user")).await.1, "ann");
    Ok(())
}

#[tokio::test]
async fn what_was_made_elsewhere_or_changed_is_nobodys() -> Result<()> {
    let cookie = send(&layer(), None, put("user".into(), "ann")).await.2.unwrap();
    let (name, value) = cookie.split_once('=').unwrap();
    let (other, newer) = (CookieKeys::new(&[2; 32]), CookieKeys::new(&[2; 32]).older(&[1; 32]));
    for (keys, found) in [(other, "none"), (newer, "ann")] {
        let layer = SessionLayer::irrevocable(keys, Config::default());
        assert_eq!(send(&layer, Some(&cookie), get("user")).await.1, found);
    }
    for junk in [
        "",
        "x",
        &value[1..],
        &format!("{value}A"),
        &value.replace('-', "_").to_lowercase(),
        &"A".repeat(100_000),
    ] {
        let (status, found, set) =
            send(&layer(), Some(&format!("{name}={junk}")), get("user")).await;
        assert_eq!(
            (status, found.as_str(), set.as_deref()),
            (StatusCode::OK, "none", Some("")),
            "{junk:.40}"
        );
    }
    // An id of a session in a store is not a session in a cookie, and vice versa.
    let stored = SessionLayer::memory(Config::default());
    let id = send(&stored, None, put("user".into(), "ben")).await.2.unwrap();
    assert_eq!(send(&layer(), Some(&id), get("user")).await.1, "none");
    assert_eq!(send(&stored, Some(&cookie), get("user")).await.1, "none");
    Ok(())
}

#[tokio::test]
async fn time_outs_are_within() -> Result<()> {
    for config in [
        Config::default().idle_timeout(Duration::from_millis(300)),
        Config::default().absolute_timeout(Duration::from_millis(300)),
    ] {
        let layer = SessionLayer::irrevocable(CookieKeys::new(&[1; 32]), config);
        let cookie = send(&layer, None, put("user".into(), "ann")).await.2.unwrap();
        testkit::eventually("its end", async || {
            (send(&layer, Some(&cookie), get("user")).await.1 == "none").then_some(())
        })
        .await?;
    }
    Ok(())
}

#[tokio::test]
async fn users_sign_in_and_cannot_be_ended_from_elsewhere() -> Result<()> {
    let layer = layer();
    let sign_in = action(|s| async move {
        s.sign_in("7", "Firefox").await?;
        Ok(s.user().await?.unwrap_or_default())
    });
    let (_, user, cookie) = send(&layer, None, sign_in).await;
    let cookie = cookie.unwrap();
    assert_eq!(user, "7");
    let ask = action(|s| async move {
        let devices = s.devices().await?;
        assert!(matches!(s.revoke_others().await, Err(Error::Irrevocable)));
        assert!(matches!(s.revoke_all().await, Err(Error::Irrevocable)));
        Ok(format!(
            "{} {} {}",
            s.user().await?.unwrap_or_default(),
            devices.len(),
            s.is_confirmed_within(Duration::from_mins(1)).await?
        ))
    });
    assert_eq!(send(&layer, Some(&cookie), ask).await.1, "7 1 true");
    assert!(matches!(layer.revoke_all_of("7").await, Err(Error::Irrevocable)));
    assert!(matches!(layer.devices_of("7").await, Err(Error::Irrevocable)));
    Ok(())
}

#[tokio::test]
async fn what_a_cookie_has_no_room_for_is_refused_when_it_is_put_there() -> Result<()> {
    let policy = CookiePolicy::default().name(&"n".repeat(40))?.partitioned();
    let layer =
        SessionLayer::irrevocable(CookieKeys::new(&[1; 32]), Config::default().cookie(policy));
    let fill = action(|s| async move {
        let mut count = 0;
        while s.insert(&format!("field-{count}"), &"x".repeat(50)).await.is_ok() {
            count += 1;
        }
        assert!(matches!(s.insert("more", &"x".repeat(50)).await, Err(Error::TooLarge(_))));
        assert!(matches!(
            s.update("more", |_: Option<String>| Some("x".repeat(3_000))).await,
            Err(Error::TooLarge(_))
        ));
        Ok(count.to_string())
    });
    let (status, count, cookie) = send(&layer, None, fill).await;
    let cookie = cookie.unwrap();
    assert_eq!(status, StatusCode::OK);
    let count: usize = count.parse()?;
    assert!(count >= 40 && cookie.len() < 3_900, "{count} fields in {} bytes", cookie.len());
    let last = format!("field-{}", count - 1);
    let read = action(move |s| {
        let last = last.clone();
        async move { Ok(s.get::<String>(&last).await?.unwrap_or_default()) }
    });
    assert_eq!(send(&layer, Some(&cookie), read).await.1, "x".repeat(50));
    Ok(())
}
