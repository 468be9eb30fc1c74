//! Limits on the number of a user's sessions.

use anyhow::Result;
use futures_util::future::join_all;
use scale_session::{Config, SessionLayer};

use crate::common::{action, send};
use crate::{GRACE, Server, is, sign_in, who};

on_every_store! {
    sessions_beyond_the_cap_end,
    log_ins_at_once_do_not_end_each_other,
    who_acts_is_listed,
}

/// After any number of log-ins the configured number of sessions remains: the newest ones.
async fn sessions_beyond_the_cap_end(server: &Server) -> Result<()> {
    let config = Config::default()
        .rotation_grace(GRACE)
        .sessions_per_user(std::num::NonZeroU32::new(2).unwrap());
    let layer = SessionLayer::connect(&server.url, "capped", config).await?;
    // Log-ins whose cookies are kept, and sent one after the other later.
    let mut cookies = Vec::new();
    for _ in 0..5 {
        cookies.push(send(&layer, None, sign_in("ann")).await.2.unwrap());
    }
    let other = send(&layer, None, sign_in("ben")).await.2.unwrap();
    for cookie in &cookies {
        send(&layer, Some(cookie), who()).await;
    }
    let mut users = Vec::new();
    for cookie in &cookies {
        users.push(send(&layer, Some(cookie), who()).await.1);
    }
    assert!(users.iter().filter(|user| *user == "ann").count() <= 2, "{users:?}");
    assert_eq!(users[4], "ann", "the last one stays: {users:?}");
    assert_eq!(
        layer.devices_of("ann").await?.len(),
        users.iter().filter(|user| *user == "ann").count()
    );
    assert_eq!(send(&layer, Some(&other), who()).await.1, "ben");
    Ok(())
}

/// Several log-ins whose cookies are sent concurrently: the configured number remains, not fewer.
async fn log_ins_at_once_do_not_end_each_other(server: &Server) -> Result<()> {
    let config = Config::default().sessions_per_user(std::num::NonZeroU32::new(1).unwrap());
    let layer = SessionLayer::connect(&server.url, "at-once", config).await?;
    for round in 0..10 {
        let cookies = join_all((0..3).map(|_| send(&layer, None, sign_in("ann")))).await;
        let cookies: Vec<_> = cookies.into_iter().map(|(_, _, cookie)| cookie.unwrap()).collect();
        join_all(cookies.iter().map(|cookie| send(&layer, Some(cookie), who()))).await;
        let users = join_all(cookies.iter().map(|cookie| is(&layer, cookie))).await;
        assert_eq!(
            users.iter().filter(|user| *user == "ann").count(),
            1,
            "round {round}: {users:?}"
        );
        assert_eq!(layer.devices_of("ann").await?.len(), 1);
    }
    Ok(())
}

/// A client that disconnects before each response does nothing that the list of devices omits.
async fn who_acts_is_listed(server: &Server) -> Result<()> {
    let layer = SessionLayer::connect(&server.url, "listed", Config::default()).await?;
    let cookie = send(&layer, None, sign_in("ann")).await.2.unwrap();
    assert_eq!(layer.devices_of("ann").await?.len(), 0, "its cookie may have been lost");
    let (acted, has_acted) = tokio::sync::oneshot::channel();
    let acted = std::sync::Mutex::new(Some(acted));
    let act = action(move |s| {
        let acted = acted.lock().unwrap().take();
        async move {
            let user = s.user().await?;
            acted.map(|acted| acted.send(user));
            std::future::pending().await
        }
    });
    let request = tokio::spawn(send(&layer, Some(&cookie), act));
    assert_eq!(has_acted.await?.as_deref(), Some("ann"));
    request.abort();
    assert_eq!(layer.devices_of("ann").await?.len(), 1);
    Ok(())
}
