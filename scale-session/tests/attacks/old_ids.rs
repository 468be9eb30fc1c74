//! Old ids: what they can still read, and what they never permit.

use std::time::Duration;

use anyhow::Result;
use http::StatusCode;
use scale_session::{Config, SessionLayer};

use crate::common::{Action, action, put, send};
use crate::{Server, is, rotate, sign_in, sign_out, who};

on_every_store! {
    a_worthless_id_is_worth_nothing_after_a_reload,
    a_handle_follows_its_own_session,
    after_a_logout_no_earlier_id_is_somebody,
    a_slow_request_takes_no_cookie_away,
    a_log_in_under_way_ends_with_a_sign_in,
}

const SHORT: Duration = Duration::from_millis(300);

async fn layer(server: &Server) -> Result<SessionLayer> {
    Ok(SessionLayer::connect(&server.url, "ids", Config::default().rotation_grace(SHORT)).await?)
}

fn reload() -> Action {
    action(|s| async move {
        let before = s.user().await?;
        s.reload().await?;
        let after = s.user().await?;
        let wrote = s.update("balance", |n: Option<i64>| Some(n.unwrap_or(0) + 1)).await.is_ok();
        Ok(format!("{before:?} {after:?} {wrote}"))
    })
}

fn prove() -> Action {
    action(|s| async move { Ok(s.confirm().await?.to_string()) })
}

/// Ids from before a rotation and before a step-up, after their grace period, and one with an
/// invented secret.
async fn a_worthless_id_is_worth_nothing_after_a_reload(server: &Server) -> Result<()> {
    let layer = layer(server).await?;
    let first = send(&layer, None, sign_in("ann")).await.2.unwrap();
    is(&layer, &first).await;
    let second = send(&layer, Some(&first), rotate()).await.2.unwrap();
    is(&layer, &second).await;
    let third = send(&layer, Some(&second), prove()).await.2.unwrap();
    is(&layer, &third).await;
    tokio::time::sleep(SHORT * 2).await;
    let (name, value) = third.split_once('=').unwrap();
    let mut bytes = value.as_bytes().to_vec();
    // The letters of the secret; the family's letters come before, the owner's after.
    bytes[30..40].reverse();
    let invented = format!("{name}={}", String::from_utf8(bytes)?);
    for id in [&first, &second, &invented] {
        assert_eq!(send(&layer, Some(id), reload()).await.1, "None None false");
        let watched = action(|s| async move {
            let watch = s.watch(Duration::from_millis(20));
            let ended = tokio::time::timeout(Duration::from_millis(200), watch).await.is_ok();
            Ok(format!("{ended} {:?}", s.user().await?))
        });
        assert_eq!(send(&layer, Some(id), watched).await.1, "false None");
    }
    assert_eq!(send(&layer, Some(&third), reload()).await.1, "Some(\"ann\") Some(\"ann\") true");
    Ok(())
}

/// A handle that had access to the session keeps it when the user confirms their identity, and
/// loses it when the session ends.
async fn a_handle_follows_its_own_session(server: &Server) -> Result<()> {
    let layer = layer(server).await?;
    let cookie = send(&layer, None, sign_in("ann")).await.2.unwrap();
    let (go, goes) = (
        std::sync::Arc::new(tokio::sync::Semaphore::new(0)),
        std::sync::Arc::new(tokio::sync::Semaphore::new(0)),
    );
    let (said, says) = (std::sync::Arc::clone(&go), std::sync::Arc::clone(&goes));
    let socket = action(move |s| {
        let (said, says) = (std::sync::Arc::clone(&said), std::sync::Arc::clone(&says));
        async move {
            let mut users = vec![s.user().await?];
            for _ in 0..2 {
                says.add_permits(1);
                said.acquire().await?.forget();
                s.reload().await?;
                users.push(s.user().await?);
            }
            Ok(format!("{users:?}"))
        }
    });
    let open = tokio::spawn(send(&layer, Some(&cookie), socket));
    goes.acquire().await?.forget();
    let next = send(&layer, Some(&cookie), prove()).await.2.unwrap();
    is(&layer, &next).await;
    tokio::time::sleep(SHORT * 2).await;
    go.add_permits(1);
    goes.acquire().await?.forget();
    send(&layer, Some(&next), sign_out()).await;
    go.add_permits(1);
    assert_eq!(open.await?.1, "[Some(\"ann\"), Some(\"ann\"), None]");
    Ok(())
}

/// From the log-out on, no earlier id is signed in; no grace period applies.
async fn after_a_logout_no_earlier_id_is_somebody(server: &Server) -> Result<()> {
    let layer = SessionLayer::connect(&server.url, "out", Config::default()).await?;
    let second_factor = || {
        action(|s| async move { Ok(s.await_second_factor("ann").await.map(|()| String::new())?) })
    };
    let ways: [Vec<Action>; 5] = [
        vec![sign_in("ann")],
        vec![second_factor()],
        vec![second_factor(), sign_in("ann")],
        vec![prove(), second_factor(), sign_in("ann")],
        vec![sign_in("ben")],
    ];
    for (n, way) in ways.into_iter().enumerate() {
        let mut ids = vec![send(&layer, None, sign_in("ann")).await.2.unwrap()];
        for step in way {
            let cookie = ids.last().cloned();
            send(&layer, cookie.as_deref(), who()).await;
            ids.push(send(&layer, cookie.as_deref(), step).await.2.unwrap());
        }
        send(&layer, ids.last().map(String::as_str), sign_out()).await;
        for (place, id) in ids.iter().enumerate() {
            assert_eq!(is(&layer, id).await, "nobody", "way {n}, id {place}");
        }
    }
    Ok(())
}

/// Requests that were sent with an earlier cookie, and load the session for the first time after a
/// log-out and another log-in.
async fn a_slow_request_takes_no_cookie_away(server: &Server) -> Result<()> {
    let layer = layer(server).await?;
    let visitor = send(&layer, None, put("cart".into(), "shoes")).await.2.unwrap();
    let first = send(&layer, Some(&visitor), sign_in("ann")).await.2.unwrap();
    is(&layer, &first).await;
    tokio::time::sleep(SHORT * 2).await;
    for out in
        [sign_out(), action(|s| async move { Ok(s.revoke_all().await.map(|()| String::new())?) })]
    {
        let cookie = send(&layer, None, sign_in("ann")).await.2.unwrap();
        is(&layer, &cookie).await;
        assert_eq!(
            send(&layer, Some(&first), sign_out()).await.2.as_deref(),
            Some(""),
            "a log-out itself clears it"
        );
        assert_eq!(send(&layer, Some(&cookie), out).await.2.as_deref(), Some(""));
        let new = send(&layer, None, sign_in("ann")).await.2.unwrap();
        for id in [&visitor, &first, &cookie] {
            assert_eq!(
                send(&layer, Some(id), who()).await,
                (StatusCode::OK, "nobody".into(), None)
            );
            let (status, answer, set) = send(&layer, Some(id), put("seen".into(), "1")).await;
            assert_eq!((status, set), (StatusCode::INTERNAL_SERVER_ERROR, None), "{answer}");
            // A request that signs in succeeds.
            assert!(
                send(&layer, Some(id), sign_in("ann"))
                    .await
                    .2
                    .is_some_and(|cookie| !cookie.is_empty())
            );
        }
        assert_eq!(is(&layer, &new).await, "ann");
    }
    Ok(())
}

/// An attacker plants an anonymous session with a provider log-in under way: the victim's own
/// sign-in ends that log-in.
async fn a_log_in_under_way_ends_with_a_sign_in(server: &Server) -> Result<()> {
    use scale_session::auth::{Passkeys, Records};
    let layer = layer(server).await?;
    let passkeys = Passkeys::new("Shop", "http://localhost", &Records::memory())?;
    let begun = std::sync::Arc::new(std::sync::Mutex::new(String::new()));
    let keep = std::sync::Arc::clone(&begun);
    let begins = passkeys.clone();
    let begin = action(move |s| {
        let (keep, passkeys) = (std::sync::Arc::clone(&keep), begins.clone());
        async move {
            *keep.lock().unwrap() = passkeys.begin_sign_in(&s, None).await?;
            Ok(String::new())
        }
    });
    let planted = send(&layer, None, begin).await.2.unwrap();
    let victims = send(&layer, Some(&planted), sign_in("ann")).await.2.unwrap();
    let options: serde_json::Value = serde_json::from_str(&begun.lock().unwrap())?;
    let data = serde_json::json!({
        "type": "webauthn.get",
        "challenge": options["publicKey"]["challenge"],
        "origin": "http://localhost",
    });
    let text = |bytes: &[u8]| data_encoding::BASE64URL_NOPAD.encode(bytes);
    let answer = serde_json::json!({
        "id": text(b"id"), "rawId": text(b"id"), "type": "public-key", "extensions": {},
        "response": {
            "authenticatorData": text(&[0; 37]),
            "clientDataJSON": text(data.to_string().as_bytes()),
            "signature": text(b"x"),
        },
    });
    let finish = action(move |s| {
        let (passkeys, answer) = (passkeys.clone(), answer.to_string());
        async move { Ok(format!("{:?}", passkeys.finish_sign_in(&s, &answer).await)) }
    });
    let (_, said, cookie) = send(&layer, None, std::sync::Arc::clone(&finish)).await;
    assert!(
        said.contains("not begun such a step") && cookie.is_none(),
        "{said}: an answer without a step creates no session"
    );
    let said = send(&layer, Some(&victims), finish).await.1;
    assert!(said.contains("not begun such a step"), "{said}");
    Ok(())
}
