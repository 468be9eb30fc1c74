//! Impersonation: acting as another user, and the end of it.

use std::time::Duration;

use anyhow::Result;
use scale_session::auth::permissions::{Granted, May, Permissions};
use scale_session::auth::{AuditLog, audit::Keys};
use scale_session::{Config, SessionLayer};

use crate::common::{Action, action, get, put, send};
use crate::{GRACE, Server, is, sign_in, sign_out, slow, who};

on_every_store! {
    somebody_acts_as_a_user,
    acting_ends_with_who_acts,
    an_id_from_before_acts_as_nobody,
    acting_makes_no_session_live_longer,
}

/// Returns handlers that begin and stop acting as ann.
fn actions() -> Result<(Action, Action)> {
    let audit = AuditLog::memory(Keys::new(&[7; 32])?);
    let log = audit.clone();
    let begin = action(move |s| {
        let log = log.clone();
        async move { Ok(s.impersonate("ann", "ticket 7", &log).await?.to_string()) }
    });
    let stop = action(move |s| {
        let audit = audit.clone();
        async move { Ok(s.stop_impersonating(&audit).await?.to_string()) }
    });
    Ok((begin, stop))
}

/// A session that acts as a user has that user's name, proves no identity, and takes no data of
/// that user back to its own session. The session remains the actor's.
async fn somebody_acts_as_a_user(server: &Server) -> Result<()> {
    use scale_session::auth::{AuditLog, audit::Keys};
    let layer =
        SessionLayer::connect(&server.url, "acts", Config::default().rotation_grace(GRACE)).await?;
    let audit = AuditLog::memory(Keys::new(&[7; 32])?);
    let log = audit.clone();
    let begin = action(move |s| {
        let log = log.clone();
        async move { Ok(s.impersonate("ann", "ticket 7", &log).await?.to_string()) }
    });
    let log = audit.clone();
    let stop = action(move |s| {
        let log = log.clone();
        async move { Ok(s.stop_impersonating(&log).await?.to_string()) }
    });
    let state = || {
        action(|s| async move {
            let hour = Duration::from_hours(1);
            Ok(format!(
                "{:?} {:?} {} {}",
                s.user().await?,
                s.impersonator().await?,
                s.is_confirmed_within(hour).await?,
                s.confirm().await?
            ))
        })
    };
    assert_eq!(send(&layer, None, begin.clone()).await.1, "false", "nobody is signed in");
    let root = send(&layer, None, sign_in("root")).await.2.unwrap();
    let (_, began, acting) = send(&layer, Some(&root), begin.clone()).await;
    let acting = acting.unwrap();
    assert_eq!(began, "true");
    assert_eq!(
        send(&layer, Some(&acting), state()).await.1,
        "Some(\"ann\") Some(\"root\") false false"
    );
    assert_eq!(send(&layer, Some(&acting), begin.clone()).await.1, "false", "not as two");
    assert_eq!(
        (layer.devices_of("ann").await?.len(), layer.devices_of("root").await?.len()),
        (0, 1),
        "it is root's"
    );
    send(&layer, Some(&acting), put("cart".into(), "of ann")).await;
    let (_, ended, home) = send(&layer, Some(&acting), stop).await;
    assert_eq!(ended, "true");
    let seen = send(
        &layer,
        home.as_deref(),
        action(|s| async move {
            Ok(format!(
                "{:?} {:?} {}",
                s.user().await?,
                s.impersonator().await?,
                s.is_confirmed_within(Duration::from_hours(1)).await?
            ))
        }),
    );
    assert_eq!(seen.await.1, "Some(\"root\") None false");
    assert_eq!(send(&layer, home.as_deref(), get("cart")).await.1, "none");
    // Begins again; then all sessions of root are revoked.
    let acting = send(&layer, home.as_deref(), begin).await.2.unwrap();
    send(&layer, Some(&acting), who()).await;
    layer.revoke_all_of("ann").await?;
    assert_eq!(send(&layer, Some(&acting), who()).await.1, "ann", "it is none of ann's");
    layer.revoke_all_of("root").await?;
    assert_eq!(send(&layer, Some(&acting), who()).await.1, "nobody");
    let actions: Vec<_> =
        audit.records(0, 10).await?.into_iter().map(|record| record.event).collect();
    assert_eq!(
        actions.iter().map(|event| event.action.as_str()).collect::<Vec<_>>(),
        ["impersonate.begin", "impersonate.end", "impersonate.begin"]
    );
    assert!(actions.iter().all(|event| event.actor == "root" && event.object == "ann"));
    Ok(())
}

/// Revoking an actor's sessions ends the acting session, and nothing restores it.
async fn acting_ends_with_who_acts(server: &Server) -> Result<()> {
    let layer =
        SessionLayer::connect(&server.url, "ends", Config::default().rotation_grace(GRACE)).await?;
    let (begin, stop) = actions()?;
    let acts = async || {
        let root = send(&layer, None, sign_in("root")).await.2.unwrap();
        assert_eq!(is(&layer, &root).await, "root");
        let acting = send(&layer, Some(&root), begin.clone()).await.2.unwrap();
        assert_eq!(is(&layer, &acting).await, "ann");
        (root, acting)
    };
    let everywhere = [
        action(|s| async move { Ok(s.revoke_others().await.map(|()| String::new())?) }),
        action(|s| async move { Ok(s.revoke_all().await.map(|()| String::new())?) }),
    ];
    for end in everywhere {
        let (root, acting) = acts().await;
        let other = send(&layer, None, sign_in("root")).await.2.unwrap();
        send(&layer, Some(&other), end).await;
        assert_eq!(is(&layer, &acting).await, "nobody");
        let (_, stopped, cookie) = send(&layer, Some(&acting), stop.clone()).await;
        assert_eq!((stopped.as_str(), cookie.filter(|cookie| !cookie.is_empty())), ("false", None));
        assert_eq!(is(&layer, &root).await, "nobody");
    }
    // A log-out or a revocation overtakes a slow request that stops or begins acting.
    for (act, from_acting) in [(&stop, true), (&begin, false)] {
        let (root, acting) = acts().await;
        let cookie = if from_acting {
            acting
        } else {
            send(&layer, Some(&acting), stop.clone()).await.2.unwrap()
        };
        let (slowly, begun, go) = slow(std::sync::Arc::clone(act));
        let request = tokio::spawn(send(&layer, Some(&cookie), slowly));
        begun.acquire().await?.forget();
        send(&layer, Some(&cookie), sign_out()).await;
        go.add_permits(1);
        let (_, answer, set) = request.await?;
        assert!(set.is_none(), "{answer}: no cookie");
        assert_eq!([is(&layer, &cookie).await, is(&layer, &root).await], ["nobody", "nobody"]);
    }
    // The actor logs out: neither the earlier id nor any other id is signed in.
    let (root, acting) = acts().await;
    send(&layer, Some(&acting), sign_out()).await;
    assert_eq!([is(&layer, &acting).await, is(&layer, &root).await], ["nobody", "nobody"]);
    // And "everywhere", as ann.
    let (root, acting) = acts().await;
    let anns = send(&layer, None, sign_in("ann")).await.2.unwrap();
    send(
        &layer,
        Some(&acting),
        action(|s| async move { Ok(s.revoke_others().await.map(|()| String::new())?) }),
    )
    .await;
    assert_eq!([is(&layer, &anns).await, is(&layer, &acting).await], ["nobody", "ann"]);
    send(
        &layer,
        Some(&acting),
        action(|s| async move { Ok(s.revoke_all().await.map(|()| String::new())?) }),
    )
    .await;
    assert_eq!([is(&layer, &acting).await, is(&layer, &root).await], ["nobody", "nobody"]);
    Ok(())
}

/// An old id, which can only read the former state, does not permit acting as another user.
async fn an_id_from_before_acts_as_nobody(server: &Server) -> Result<()> {
    let layer =
        SessionLayer::connect(&server.url, "before", Config::default().rotation_grace(GRACE))
            .await?;
    let (begin, stop) = actions()?;
    let old = send(&layer, None, sign_in("root")).await.2.unwrap();
    let prove = action(|s| async move { Ok(s.confirm().await?.to_string()) });
    let new = send(&layer, Some(&old), prove).await.2.unwrap();
    let (_, answer, cookie) = send(&layer, Some(&old), begin).await;
    assert!(answer.contains("was replaced"), "{answer}");
    assert_eq!(cookie, None);
    assert_eq!(send(&layer, Some(&old), stop).await.1, "false");
    assert_eq!(is(&layer, &new).await, "root");
    Ok(())
}

/// The acting session ends when the actor's own session ends, even if acting begins repeatedly.
async fn acting_makes_no_session_live_longer(server: &Server) -> Result<()> {
    let config = Config::default().rotation_grace(GRACE).absolute_timeout(Duration::from_secs(2));
    let layer = SessionLayer::connect(&server.url, "longer", config).await?;
    let (begin, stop) = actions()?;
    let mut cookie = send(&layer, None, sign_in("root")).await.2.unwrap();
    let began = std::time::Instant::now();
    while began.elapsed() < Duration::from_millis(2_500) {
        for act in [&begin, &stop] {
            if let Some(next) = send(&layer, Some(&cookie), std::sync::Arc::clone(act))
                .await
                .2
                .filter(|next| !next.is_empty())
            {
                cookie = next;
            }
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert_eq!(is(&layer, &cookie).await, "nobody");
    Ok(())
}

/// An actor who has lost access cannot act as another user.
#[tokio::test]
async fn who_is_gone_acts_as_nobody() -> Result<()> {
    let layer = SessionLayer::memory(Config::default());
    let (begin, _) = actions()?;
    let root = send(&layer, None, sign_in("root")).await.2.unwrap();
    let acting = send(&layer, Some(&root), begin).await.2.unwrap();
    let permissions = Permissions::new(|user: String| async move {
        let all: Granted = ["*"].into_iter().collect();
        Ok::<_, std::io::Error>((user == "ann").then(|| std::sync::Arc::new(all)))
    });
    let may = action(move |s| {
        let permissions = permissions.clone();
        async move { Ok(format!("{}", permissions.may(&s, "orders").await? == May::Nobody)) }
    });
    assert_eq!(send(&layer, Some(&acting), may).await.1, "true");
    assert_eq!(is(&layer, &acting).await, "nobody");
    Ok(())
}
