//! API tokens on every store, and in an application.
#![cfg(all(
    feature = "auth",
    feature = "axum",
    feature = "redis",
    feature = "postgres",
    feature = "mysql",
    feature = "sqlite"
))]
#![allow(clippy::unwrap_used)]

mod common;

use std::time::Duration;

use anyhow::Result;
use axum::Router;
use axum::body::Body;
use axum::routing::get;
use http::header::{AUTHORIZATION, WWW_AUTHENTICATE};
use http::{Request, StatusCode};
use scale_session::auth::api_token::{ApiToken, NewApiToken};
use scale_session::auth::{ApiTokens, Records};
use testkit::{MariaDb, Postgres, Redis};
use tower::ServiceExt;

/// Runs a case on every store, with two connections to the store.
macro_rules! on_every_store {
    ($($case:ident),* $(,)?) => { $(
        mod $case {
            use super::*;

            #[tokio::test]
            async fn memory() -> Result<()> {
                let records = Records::memory();
                super::$case(records.clone(), records).await
            }

            #[tokio::test]
            async fn redis() -> Result<()> {
                let server = Redis::start().await?;
                super::$case(
                    Records::connect(&server.url(), "a").await?,
                    Records::connect(&server.url(), "a").await?,
                ).await
            }

            #[tokio::test]
            async fn postgres() -> Result<()> {
                let server = Postgres::start(0).await?;
                let url = server.node(0).url();
                common::migrate(&url).await?;
                super::$case(
                    Records::connect(&url, "a").await?, Records::connect(&url, "a").await?,
                ).await
            }

            #[tokio::test]
            async fn mariadb() -> Result<()> {
                let server = MariaDb::start(0).await?;
                let url = server.node(0).url();
                common::migrate(&url).await?;
                super::$case(
                    Records::connect(&url, "a").await?, Records::connect(&url, "a").await?,
                ).await
            }

            #[tokio::test]
            async fn sqlite() -> Result<()> {
                let folder = tempfile::tempdir()?;
                let url = format!("sqlite://{}/t.db?mode=rwc", folder.path().display());
                super::$case(
                    Records::connect(&url, "a").await?, Records::connect(&url, "a").await?,
                ).await
            }
        }
    )* };
}

on_every_store! { tokens_live_and_end, a_revocation_and_a_use_at_once, many_at_once_keep_the_cap }

async fn tokens_live_and_end(here: Records, there: Records) -> Result<()> {
    let (here, there) =
        (ApiTokens::new(&here).prefix("shop")?, ApiTokens::new(&there).prefix("shop")?);
    let new = NewApiToken::named("build").abilities(["orders.*"]);
    let made = here.create("ann", new.clone()).await?;
    let short =
        here.create("ann", NewApiToken::named("short").expires_in(Duration::from_secs(1))).await?;
    let bens = here.create("ben", new).await?;

    let token = there.verify(&made.secret).await?.unwrap();
    assert_eq!(
        (token.user.as_str(), token.name.as_str(), token.can("orders.read"), token.can("admin")),
        ("ann", "build", true, false)
    );
    let listed = there.list("ann").await?;
    assert_eq!(listed.len(), 2);
    assert!(listed.iter().any(|one| one.id == token.id && one.last_used.is_some()), "{listed:?}");

    // Another user's id, and another user's secret with the id.
    assert!(!there.revoke("ben", &token.id).await?);
    let (a, b) = (&made.secret, &bens.secret);
    let mixed = format!("{}{}", &a[..60], &b[60..]);
    assert!(there.verify(&mixed).await?.is_none());

    testkit::eventually("the short one to end", async || {
        there.verify(&short.secret).await.ok()?.is_none().then_some(())
    })
    .await?;
    assert_eq!(here.list("ann").await?.len(), 1);

    assert!(here.revoke("ann", &token.id).await? && !here.revoke("ann", &token.id).await?);
    assert!(
        there.verify(&made.secret).await?.is_none() && there.verify(&bens.secret).await?.is_some()
    );
    for _ in 0..3 {
        here.create("ben", NewApiToken::named("more")).await?;
    }
    assert_eq!((there.revoke_all("ben").await?, there.list("ben").await?.len()), (4, 0));
    assert!(here.verify(&bens.secret).await?.is_none());
    Ok(())
}

/// A use updates the token. It does not restore a token that was revoked meanwhile.
async fn a_revocation_and_a_use_at_once(here: Records, there: Records) -> Result<()> {
    let (here, there) = (ApiTokens::new(&here), ApiTokens::new(&there));
    for _ in 0..50 {
        let made = here.create("ann", NewApiToken::named("race")).await?;
        let (used, revoked) =
            tokio::join!(there.verify(&made.secret), here.revoke("ann", &made.token.id));
        used?;
        assert!(revoked?);
        assert!(there.verify(&made.secret).await?.is_none());
    }
    assert!(here.list("ann").await?.is_empty());
    Ok(())
}

/// A user has at most a hundred tokens, even if more are requested concurrently; an expired token
/// makes room.
async fn many_at_once_keep_the_cap(here: Records, there: Records) -> Result<()> {
    let (here, there) = (ApiTokens::new(&here), ApiTokens::new(&there));
    for _ in 0..90 {
        here.create("ann", NewApiToken::named("one")).await?;
    }
    let tokens = (0..40).map(|n| if n % 2 == 0 { here.clone() } else { there.clone() });
    let made = futures_util::future::join_all(
        tokens.map(|tokens| async move { tokens.create("ann", NewApiToken::named("x")).await }),
    );
    let refused = made
        .await
        .into_iter()
        .filter_map(Result::err)
        .map(|error| error.status())
        .collect::<Vec<_>>();
    assert_eq!((refused.len(), refused[0]), (30, StatusCode::CONFLICT));
    let first = here.list("ann").await?.pop().map(|token| token.id).unwrap_or_default();
    assert!(here.revoke("ann", &first).await?);
    here.create("ann", NewApiToken::named("short").expires_in(Duration::from_millis(300))).await?;
    testkit::eventually("the short one to end", async || {
        there.create("ann", NewApiToken::named("room")).await.ok()
    })
    .await?;
    assert!(here.create("ann", NewApiToken::named("one more")).await.is_err());
    assert_eq!(here.list("ann").await?.len(), 100);
    Ok(())
}

#[tokio::test]
async fn applications_share_no_tokens() -> Result<()> {
    let server = Postgres::start(0).await?;
    let url = server.node(0).url();
    common::migrate(&url).await?;
    let forum = ApiTokens::new(&Records::connect(&url, "forum").await?);
    let admin = ApiTokens::new(&Records::connect(&url, "admin").await?);
    let made = forum.create("1", NewApiToken::named("x").abilities(["*"])).await?;
    assert!(admin.verify(&made.secret).await?.is_none());
    assert_eq!(admin.revoke_all("1").await?, 0);
    assert!(forum.verify(&made.secret).await?.is_some());
    Ok(())
}

/// A dump of the store contains no usable token.
#[tokio::test]
async fn stores_hold_hashes() -> Result<()> {
    let server = Redis::start().await?;
    let tokens = ApiTokens::new(&Records::connect(&server.url(), "a").await?);
    let made = tokens.create("ann", NewApiToken::named("x")).await?;
    let keys = server.command(&["KEYS", "*"]).await?;
    let dump = format!("{keys:?} {:?}", server.command(&["HGETALL", keys.trim()]).await?);
    // The store holds no eight consecutive letters from the middle of the secret.
    let letters = &made.secret["token_".len()..];
    for n in 40..letters.len() - 8 {
        assert!(!dump.contains(&letters[n..n + 8]), "{dump}");
    }
    Ok(())
}

#[tokio::test]
async fn a_router_asks_for_tokens_and_abilities() -> Result<()> {
    let tokens = ApiTokens::new(&Records::memory());
    let reads =
        tokens.create("ann", NewApiToken::named("x").abilities(["orders.read"])).await?.secret;
    let app = Router::new()
        .route("/me", get(|token: ApiToken| async move { token.user }).layer(tokens.layer()))
        .route("/orders", get(|| async { "orders" }).layer(tokens.require("orders.read")))
        .route("/refund", get(|| async { "refunded" }).layer(tokens.require("orders.refund")))
        .route("/open", get(|token: ApiToken| async move { token.user }));
    let ask = async |path: &str, lines: &[String]| {
        let mut request = Request::get(path).body(Body::empty()).unwrap();
        for line in lines {
            request.headers_mut().append(AUTHORIZATION, line.parse().unwrap());
        }
        let response = app.clone().oneshot(request).await.unwrap();
        let challenge = response
            .headers()
            .get(WWW_AUTHENTICATE)
            .map(|value| value.to_str().unwrap().to_owned());
        (response.status().as_u16(), challenge.unwrap_or_default())
    };
    let good = format!("Bearer {reads}");
    assert_eq!(ask("/me", std::slice::from_ref(&good)).await, (200, String::new()));
    assert_eq!(ask("/orders", &[format!("bearer  {reads}")]).await.0, 200);
    assert_eq!(ask("/me", &[]).await, (401, "Bearer".into()));
    assert_eq!(ask("/me", &["Basic abc".into()]).await, (401, "Bearer".into()));
    for bad in [
        vec!["Bearer x".to_owned()],
        vec!["Bearer".into()],
        vec![good.clone(), good.clone()],
        vec![format!("Bearer {}", "x".repeat(9_000))],
    ] {
        assert_eq!(ask("/me", &bad).await, (401, "Bearer error=\"invalid_token\"".into()));
    }
    let scope = "Bearer error=\"insufficient_scope\", scope=\"orders.refund\"";
    assert_eq!(ask("/refund", std::slice::from_ref(&good)).await, (403, scope.into()));
    assert_eq!(
        ask("/open", &[good]).await.0,
        StatusCode::INTERNAL_SERVER_ERROR.as_u16(),
        "no layer: not entered"
    );
    Ok(())
}
