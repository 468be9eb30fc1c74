//! Attacks that once succeeded, and accidents with the same effect, on every store.
#![cfg(all(feature = "redis", feature = "postgres", feature = "mysql", feature = "sqlite"))]
#![allow(clippy::unwrap_used)]

#[path = "../common/mod.rs"]
mod common;

use std::any::Any;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use http::StatusCode;
use scale_session::{ClearSiteData, Config, Error, OnStoreError, SessionLayer};
use testkit::{MariaDb, Postgres, Proxy, Redis};
use tokio::sync::Semaphore;

use common::{Action, action, get, put, send};

const GRACE: Duration = Duration::from_millis(1_500);

/// A store of one kind, with the server that runs it.
struct Server {
    url: String,
    keep: Box<dyn Any + Send + Sync>,
}

impl Server {
    async fn start(kind: &str) -> Result<Self> {
        let (url, keep): (_, Box<dyn Any + Send + Sync>) = match kind {
            "redis" => {
                let server = Redis::start().await?;
                (server.url(), Box::new(server))
            }
            "postgres" => {
                let server = Postgres::start(0).await?;
                common::migrate(&server.node(0).url()).await?;
                (server.node(0).url(), Box::new(server))
            }
            "mariadb" => {
                let server = MariaDb::start(0).await?;
                common::migrate(&server.node(0).url()).await?;
                (server.node(0).url(), Box::new(server))
            }
            "sqlite" => {
                let folder = tempfile::tempdir()?;
                (format!("sqlite://{}/s.db", folder.path().display()), Box::new(folder))
            }
            _ => ("memory:".to_owned(), Box::new(())),
        };
        Ok(Self { url, keep })
    }

    async fn layer(&self) -> Result<SessionLayer> {
        Ok(SessionLayer::connect(&self.url, "test", Config::default().rotation_grace(GRACE))
            .await?)
    }
}

macro_rules! on_every_store {
    ($($case:ident),* $(,)?) => {
        on_stores! { memory: "memory"; $($case),* }
        on_stores! { redis: "redis"; $($case),* }
        on_stores! { postgres: "postgres"; $($case),* }
        on_stores! { mariadb: "mariadb"; $($case),* }
        on_stores! { sqlite: "sqlite"; $($case),* }
    };
}

macro_rules! on_stores {
    ($store:ident: $kind:literal; $($case:ident),* $(,)?) => {
        mod $store {
            $(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $case() -> anyhow::Result<()> {
                    super::$case(&crate::Server::start($kind).await?).await
                }
            )*
        }
    };
}

mod acting;
mod caps;
mod old_ids;

/// "Sign out everywhere" also ends persistent log-ins: their cookies sign nobody in afterwards.
async fn signing_out_everywhere_ends_who_stays_signed_in(server: &Server) -> Result<()> {
    use scale_session::auth::remember::Refreshed;
    use scale_session::auth::token::Keys;
    use scale_session::auth::{OneTimeStore, Records, Remember};
    let (one_time, records) = (
        OneTimeStore::connect(&server.url, "out").await?,
        Records::connect(&server.url, "out").await?,
    );
    let remember = Remember::new(Keys::new(&[7; 32])?, &one_time, Duration::from_hours(24))
        .listed_in(&records);
    let layer =
        SessionLayer::connect(&server.url, "out", Config::default()).await?.remember(&remember);
    let everywhere: [(&str, Action); 2] = [
        ("all", action(|s| async move { Ok(s.revoke_all().await.map(|()| String::new())?) })),
        ("others", action(|s| async move { Ok(s.revoke_others().await.map(|()| String::new())?) })),
    ];
    for (name, act) in everywhere {
        let cookie = send(&layer, None, sign_in("ann")).await.2.unwrap();
        let (anns, bens) = (
            remember.begin_on("ann", "hash", "phone").await?,
            remember.begin("ben", "hash").await?,
        );
        assert_eq!(remember.families("ann").await?.len(), 1);
        assert_eq!(send(&layer, Some(&cookie), act).await.0, StatusCode::OK);
        assert_eq!(remember.refresh(&anns, "hash").await?, Refreshed::No, "{name}");
        assert!(matches!(remember.refresh(&bens, "hash").await?, Refreshed::Good { .. }), "{name}");
        assert!(remember.families("ann").await?.is_empty(), "{name}");
    }
    let anns = remember.begin("ann", "hash").await?;
    layer.revoke_all_of("ann").await?;
    assert_eq!(remember.refresh(&anns, "hash").await?, Refreshed::No);
    Ok(())
}

/// On a shared computer, a user who signs in after another user who did not sign out finds no data
/// of that user.
async fn another_user_finds_nothing_of_the_first(server: &Server) -> Result<()> {
    let layer = server.layer().await?;
    let cookie = send(&layer, None, put("seen".into(), "by nobody")).await.2.unwrap();
    let cookie = send(&layer, Some(&cookie), sign_in("ann")).await.2.unwrap();
    assert_eq!(
        send(&layer, Some(&cookie), get("seen")).await.1,
        "by nobody",
        "what one had before signing in is kept"
    );
    send(&layer, Some(&cookie), put("cart".into(), "a surprise for ben")).await;
    let again = send(&layer, Some(&cookie), sign_in("ann")).await.2.unwrap();
    assert_eq!(
        send(&layer, Some(&again), get("cart")).await.1,
        "a surprise for ben",
        "the same user"
    );
    let bens = action(|s| async move {
        s.insert("own", "of ben").await?;
        s.sign_in("ben", "browser").await?;
        s.insert("later", "of ben").await?;
        Ok(s.get::<String>("cart").await?.unwrap_or_else(|| "none".into()))
    });
    let (_, cart, cookie) = send(&layer, Some(&again), bens).await;
    assert_eq!(cart, "none");
    for (field, holds) in
        [("cart", "none"), ("seen", "none"), ("own", "of ben"), ("later", "of ben")]
    {
        assert_eq!(send(&layer, cookie.as_deref(), get(field)).await.1, holds, "{field}");
    }
    assert_eq!(send(&layer, cookie.as_deref(), who()).await.1, "ben");
    Ok(())
}

/// Only a logout sends the header that tells the browser what to delete.
async fn a_logout_clears_what_is_configured(server: &Server) -> Result<()> {
    let config = Config::default().clear_site_data(ClearSiteData::CacheAndStorage);
    let layer = SessionLayer::connect(&server.url, "clears", config).await?;
    let header = async |cookie: Option<&str>, act: Action| {
        let handler = tower::service_fn(move |request: http::Request<()>| {
            let answer = act(request.extensions().get::<scale_session::Session>().unwrap().clone());
            async move { answer.await.map(http::Response::new).map_err(|error| error.to_string()) }
        });
        let mut request = http::Request::new(());
        if let Some(cookie) = cookie {
            request.headers_mut().insert(http::header::COOKIE, cookie.parse().unwrap());
        }
        let response = tower::ServiceExt::oneshot(tower::Layer::layer(&layer, handler), request)
            .await
            .unwrap();
        response.headers().get("clear-site-data").map(|value| value.to_str().unwrap().to_owned())
    };
    let cookie = send(&layer, None, sign_in("ann")).await.2.unwrap();
    assert_eq!(header(Some(&cookie), who()).await, None);
    assert_eq!(header(None, sign_in("ben")).await, None);
    let out = action(|s| async move { Ok(s.destroy().await.map(|()| String::new())?) });
    assert_eq!(header(Some(&cookie), out).await.as_deref(), Some("\"cache\", \"storage\""));
    Ok(())
}

fn who() -> Action {
    action(|s| async move { Ok(s.user().await?.unwrap_or_else(|| "nobody".into())) })
}

fn sign_in(user: &'static str) -> Action {
    action(move |s| async move {
        s.sign_in(user, "browser").await?;
        Ok(s.user().await?.unwrap_or_default())
    })
}

fn sign_out() -> Action {
    action(|s| async move { Ok(s.destroy().await.map(|()| String::new())?) })
}

fn rotate() -> Action {
    action(|s| async move { Ok(s.rotate().await.map(|()| String::new())?) })
}

async fn is(layer: &SessionLayer, cookie: &str) -> String {
    send(layer, Some(cookie), who()).await.1
}

async fn anonymous(layer: &SessionLayer) -> String {
    send(layer, None, put("cart".into(), "shoes")).await.2.unwrap()
}

/// A request under way: it has begun, and runs the given action when it is released.
fn slow(then: Action) -> (Action, Arc<Semaphore>, Arc<Semaphore>) {
    let (begun, go) = (Arc::new(Semaphore::new(0)), Arc::new(Semaphore::new(0)));
    let (begins, goes) = (Arc::clone(&begun), Arc::clone(&go));
    let act = action(move |s| {
        let (begins, goes, then) = (Arc::clone(&begins), Arc::clone(&goes), Arc::clone(&then));
        async move {
            s.get::<String>("cart").await?;
            begins.add_permits(1);
            goes.acquire().await?.forget();
            then(s).await
        }
    });
    (act, begun, go)
}

/// 1, ASVS 7.2.4: an attacker plants the id of an anonymous session, and waits for the victim to
/// sign in with it.
async fn a_planted_id_leads_nowhere(server: &Server) -> Result<()> {
    let layer = server.layer().await?;
    let steps: [Vec<Action>; 3] = [
        vec![sign_in("victim")],
        vec![
            action(|s| async move {
                Ok(s.await_second_factor("victim").await.map(|()| String::new())?)
            }),
            sign_in("victim"),
        ],
        vec![sign_in("somebody"), sign_in("victim")],
    ];
    for (steps, kept) in steps.into_iter().zip(["shoes", "shoes", "none"]) {
        let planted = anonymous(&layer).await;
        let mut theirs = planted.clone();
        for step in steps {
            let before = theirs.clone();
            theirs = send(&layer, Some(&before), step).await.2.unwrap();
            // The attacker tries everything with an id that the victim had before.
            for id in [&planted, &before] {
                assert_ne!(is(&layer, id).await, "victim");
                let (_, _, cookie) = send(&layer, Some(id), rotate()).await;
                assert!(cookie.is_none_or(|cookie| cookie.is_empty()), "an id of their own");
                let devices = action(|s| async move { Ok(s.devices().await?.len().to_string()) });
                assert_eq!(send(&layer, Some(id), devices).await.1, "0");
                send(&layer, Some(id), sign_out()).await;
            }
        }
        assert_eq!(is(&layer, &theirs).await, "victim");
        assert_eq!(
            send(&layer, Some(&theirs), get("cart")).await.1,
            kept,
            "an anonymous cart is kept, another user's is not"
        );
        tokio::time::sleep(GRACE).await;
        assert_eq!([is(&layer, &planted).await, is(&layer, &theirs).await], ["nobody", "victim"]);
    }
    Ok(())
}

/// 1: requests under way with the old id see the old state, and change nothing.
async fn requests_under_way_see_the_old_state(server: &Server) -> Result<()> {
    let layer = server.layer().await?;
    let old = anonymous(&layer).await;
    let new = send(&layer, Some(&old), sign_in("ann")).await.2.unwrap();
    assert_eq!(send(&layer, Some(&old), get("cart")).await, (StatusCode::OK, "shoes".into(), None));
    let write =
        action(|s| async move { Ok(format!("{:?}", s.insert("cart", "hat").await.unwrap_err())) });
    assert_eq!(send(&layer, Some(&old), write).await, (StatusCode::OK, "Replaced".into(), None));
    let update =
        action(|s| async move { Ok(format!("{:?}", s.increment("n", 1).await.unwrap_err())) });
    assert_eq!(send(&layer, Some(&old), update).await.1, "Replaced");
    assert_eq!(send(&layer, Some(&new), get("cart")).await.1, "shoes");
    tokio::time::sleep(GRACE).await;
    assert_eq!(
        send(&layer, Some(&old), get("cart")).await,
        (StatusCode::OK, "none".into(), None),
        "and then nothing"
    );
    // A client that never received the new cookie signs in again.
    let again = send(&layer, Some(&old), sign_in("ann")).await.2.unwrap();
    assert_eq!([is(&layer, &again).await, is(&layer, &new).await], ["ann", "ann"]);
    Ok(())
}

/// 1: a user who confirms their identity gets a new session; the previous one can be read briefly,
/// and ends with the logout of the new one.
async fn a_step_up_leaves_nothing_behind_a_logout(server: &Server) -> Result<()> {
    let layer = server.layer().await?;
    let prove = || action(|s| async move { Ok(s.confirm().await?.to_string()) });
    let first = send(&layer, None, sign_in("ann")).await.2.unwrap();
    let second = send(&layer, Some(&first), prove()).await.2.unwrap();
    let third = send(&layer, Some(&second), prove()).await.2.unwrap();
    assert_eq!([is(&layer, &first).await, is(&layer, &second).await], ["ann", "ann"], "under way");
    assert_eq!(
        send(&layer, Some(&first), prove()).await.2,
        None,
        "a second click makes no second session"
    );
    send(&layer, Some(&third), sign_out()).await;
    for id in [&first, &second, &third] {
        assert_eq!(is(&layer, id).await, "nobody");
    }
    Ok(())
}

/// 2: two applications on one database: no record of one application is valid in the other.
async fn applications_share_nothing(server: &Server) -> Result<()> {
    use scale_session::auth::{
        AuditLog, OneTimeStore, Remember, SessionEpochs, Tokens, audit, remember::Refreshed,
        token::Keys,
    };

    let day = Duration::from_hours(24);
    let of = async |app: &str| SessionLayer::connect(&server.url, app, Config::default()).await;
    let (forum, admin) = (of("forum").await?, of("admin").await?);
    let cookie = send(&forum, None, sign_in("1")).await.2.unwrap();
    assert_eq!([is(&forum, &cookie).await, is(&admin, &cookie).await], ["1", "nobody"]);
    send(&admin, None, sign_in("1")).await;
    admin.revoke_all_of("1").await?;
    assert_eq!((is(&forum, &cookie).await.as_str(), forum.devices_of("1").await?.len()), ("1", 1));
    if server.url == "memory:" {
        return Ok(());
    }
    let (ours, theirs) = (
        OneTimeStore::connect(&server.url, "forum").await?,
        OneTimeStore::connect(&server.url, "admin").await?,
    );
    let (here, there) = (SessionEpochs::new(&ours, day), SessionEpochs::new(&theirs, day));
    let stamp = here.epoch("1").await?;
    there.end_all("1").await?;
    assert!(here.is_current("1", stamp).await?);
    assert!(ours.claim("x", "y", day).await? && theirs.claim("x", "y", day).await?);
    let keys = Keys::new(&[7; 32])?;
    let token = Tokens::new(keys.clone(), &ours).make("reset", "1", &["hash"], day)?;
    assert!(
        Tokens::new(keys.clone(), &theirs).redeem("reset", &token, &["hash"]).await?.is_none(),
        "keys alone make no token"
    );
    assert!(Tokens::new(keys.clone(), &ours).redeem("reset", &token, &["hash"]).await?.is_some());
    let stays = Remember::new(keys.clone(), &ours, day).begin("1", "hash").await?;
    assert_eq!(Remember::new(keys, &theirs, day).refresh(&stays, "hash").await?, Refreshed::No);
    if !server.keep.is::<Redis>() {
        let log = async |app: &str| {
            AuditLog::connect(&server.url, app, audit::Keys::new(&[7; 32]).unwrap()).await
        };
        let (ours, theirs) = (log("forum").await?, log("admin").await?);
        ours.append(audit::Event::new("ann", "a")).await?;
        let head = ours.append(audit::Event::new("ann", "b")).await?;
        assert_eq!(theirs.append(audit::Event::new("ben", "c")).await?.number, 1);
        assert_eq!((ours.verify(Some(head)).await?, theirs.verify(None).await?), (Ok(2), Ok(1)));
    }
    Ok(())
}

/// 4: a double click on "Log in", and two users from one anonymous session: each log-in gets a
/// session of its own.
async fn log_ins_at_once_are_each_who_they_say(server: &Server) -> Result<()> {
    let layer = server.layer().await?;
    for (one, other) in [("ann", "ann"), ("ann", "ben")] {
        let old = anonymous(&layer).await;
        let ((first, begun, go), (second, begun_too, go_too)) =
            (slow(sign_in(one)), slow(sign_in(other)));
        let request = |act: Action| {
            let (layer, old) = (layer.clone(), old.clone());
            tokio::spawn(async move { send(&layer, Some(&old), act).await })
        };
        let (first, second) = (request(first), request(second));
        begun.acquire().await?.forget();
        begun_too.acquire().await?.forget();
        go.add_permits(1);
        let first = first.await?;
        go_too.add_permits(1);
        let second = second.await?;
        for ((status, said, cookie), user) in [(first, one), (second, other)] {
            assert_eq!((status, said.as_str()), (StatusCode::OK, user));
            let cookie = cookie.unwrap();
            assert_eq!(
                [is(&layer, &cookie).await, send(&layer, Some(&cookie), get("cart")).await.1],
                [user, "shoes"]
            );
        }
    }
    Ok(())
}

/// 4: requests that began before a log-in and end long after it do not touch the new cookie.
async fn slow_requests_leave_the_new_cookie_alone(server: &Server) -> Result<()> {
    let layer = server.layer().await?;
    for then in [put("uploaded".into(), "1"), who(), rotate()] {
        let old = anonymous(&layer).await;
        // One request that has loaded the session, and one that has not yet.
        let (asked, begun, go) = slow(Arc::clone(&then));
        let upload = {
            let (layer, old) = (layer.clone(), old.clone());
            tokio::spawn(async move { send(&layer, Some(&old), asked).await })
        };
        begun.acquire().await?.forget();
        let new = send(&layer, Some(&old), sign_in("ann")).await.2.unwrap();
        assert_eq!(is(&layer, &new).await, "ann");
        tokio::time::sleep(GRACE).await;
        go.add_permits(1);
        assert_eq!(upload.await?.2, None, "no cookie is set or cleared");
        assert_eq!(send(&layer, Some(&old), Arc::clone(&then)).await.2, None);
        assert_eq!(is(&layer, &new).await, "ann");
    }
    Ok(())
}

/// 4: a log-in succeeds although its anonymous session has ended meanwhile.
async fn a_log_in_does_not_need_the_old_session(server: &Server) -> Result<()> {
    let layer = server.layer().await?;
    let old = anonymous(&layer).await;
    let (act, begun, go) = slow(sign_in("ann"));
    let log_in = {
        let (layer, old) = (layer.clone(), old.clone());
        tokio::spawn(async move { send(&layer, Some(&old), act).await })
    };
    begun.acquire().await?.forget();
    send(&layer, Some(&old), sign_out()).await;
    go.add_permits(1);
    let (status, said, cookie) = log_in.await?;
    assert_eq!((status, said.as_str()), (StatusCode::OK, "ann"));
    assert_eq!(is(&layer, &cookie.unwrap()).await, "ann");
    Ok(())
}

/// 5: logouts and revocations concurrent with rotations, by ids of any age.
async fn a_logout_ends_what_is_rotated_meanwhile(server: &Server) -> Result<()> {
    let layer = server.layer().await?;
    for round in 0..12 {
        let mut ids = vec![send(&layer, None, sign_in("ann")).await.2.unwrap()];
        assert_eq!(is(&layer, &ids[0]).await, "ann");
        for _ in 0..fastrand::usize(1..4) {
            ids.push(send(&layer, ids.last().map(String::as_str), rotate()).await.2.unwrap());
        }
        let device = layer.devices_of("ann").await?;
        assert_eq!(device.len(), 1, "a session is one device, however often it was rotated");
        let other = send(&layer, None, sign_in("ann")).await.2.unwrap();
        assert_eq!(is(&layer, &other).await, "ann");
        // Slow requests rotate and write while one of the ids signs out, or another device revokes
        // the session.
        let slow_ones: Vec<_> = (0..8)
            .map(|n| {
                let (layer, id) = (layer.clone(), ids[fastrand::usize(..ids.len())].clone());
                let act = if n % 2 == 0 { rotate() } else { put("late".into(), "x") };
                tokio::spawn(async move {
                    tokio::time::sleep(Duration::from_micros(fastrand::u64(..3_000))).await;
                    send(&layer, Some(&id), act).await.2
                })
            })
            .collect();
        tokio::time::sleep(Duration::from_micros(fastrand::u64(..2_000))).await;
        if round % 2 == 0 {
            let id = ids[fastrand::usize(..ids.len())].clone();
            send(&layer, Some(&id), sign_out()).await;
        } else {
            let id = device[0].id.clone();
            let revoke = action(move |s| {
                let id = id.clone();
                async move { Ok(s.revoke(&id).await?.to_string()) }
            });
            assert_eq!(send(&layer, Some(&other), revoke).await.1, "true");
        }
        for one in slow_ones {
            ids.extend(one.await?.filter(|cookie| !cookie.is_empty()));
        }
        for id in &ids {
            assert_ne!(
                is(&layer, id).await,
                "ann",
                "round {round}: an id of a session that has ended"
            );
        }
        layer.revoke_all_of("ann").await?;
    }
    Ok(())
}

/// An action that has loaded the session and waits: a request under way while others run.
fn under_way(
    layer: &SessionLayer,
    id: &str,
    act: Action,
) -> (tokio::task::JoinHandle<(StatusCode, String, Option<String>)>, Arc<Semaphore>, Arc<Semaphore>)
{
    let (act, begun, go) = slow(act);
    let (layer, id) = (layer.clone(), id.to_owned());
    (tokio::spawn(async move { send(&layer, Some(&id), act).await }), begun, go)
}

/// A request that had loaded the session before its user logged out or confirmed their identity
/// changes nothing.
async fn a_step_up_and_an_end_meet(server: &Server) -> Result<()> {
    let layer = server.layer().await?;
    let prove = || action(|s| async move { Ok(s.confirm().await?.to_string()) });
    // The end came first: a step-up that had begun before it signs nobody in.
    for by_admin in [true, false] {
        let id = send(&layer, None, sign_in("ann")).await.2.unwrap();
        let (task, begun, go) = under_way(&layer, &id, prove());
        begun.acquire().await?.forget();
        if by_admin {
            layer.revoke_all_of("ann").await?;
        } else {
            send(&layer, Some(&id), sign_out()).await;
        }
        go.add_permits(1);
        assert_eq!(task.await?.2, None);
        assert_eq!(is(&layer, &id).await, "nobody");
        assert!(layer.devices_of("ann").await?.is_empty());
    }
    // The step-up came first: a logout that had begun before it ends the resulting session.
    let id = send(&layer, None, sign_in("ben")).await.2.unwrap();
    let (task, begun, go) = under_way(&layer, &id, sign_out());
    begun.acquire().await?.forget();
    let next = send(&layer, Some(&id), prove()).await.2.unwrap();
    go.add_permits(1);
    assert_eq!(task.await?.2, Some(String::new()));
    assert_eq!([is(&layer, &id).await, is(&layer, &next).await], ["nobody", "nobody"]);
    // And `revoke_others` returns an error, because it cannot tell which sessions are the others.
    let id = send(&layer, None, sign_in("cem")).await.2.unwrap();
    let others = action(|s| async move { Ok(format!("{:?}", s.revoke_others().await.err())) });
    let (task, begun, go) = under_way(&layer, &id, others);
    begun.acquire().await?.forget();
    let next = send(&layer, Some(&id), prove()).await.2.unwrap();
    go.add_permits(1);
    assert_eq!(task.await?.1, "Some(Replaced)");
    assert_eq!(is(&layer, &next).await, "cem");
    Ok(())
}

/// Writes right after a sign-in go into the user's session, not into a session that an attacker may
/// have planted.
async fn nothing_of_a_user_goes_into_the_old_session(server: &Server) -> Result<()> {
    let layer = server.layer().await?;
    let planted = anonymous(&layer).await;
    let log_in = action(|s| async move {
        s.sign_in("ann", "browser").await?;
        s.insert("card", "4711").await?;
        s.update("address", |_: Option<String>| Some("Ann's street 7".to_owned())).await?;
        s.update("card", |card: Option<String>| card).await?;
        Ok(s.increment("orders", 2).await?.to_string())
    });
    let theirs = send(&layer, Some(&planted), log_in).await.2.unwrap();
    for field in ["address", "card"] {
        assert_eq!(send(&layer, Some(&planted), get(field)).await.1, "none");
    }
    assert_eq!(send(&layer, Some(&theirs), get("address")).await.1, "Ann's street 7");
    assert_eq!(send(&layer, Some(&theirs), get("card")).await.1, "4711");
    Ok(())
}

/// A logout that had loaded an anonymous session before a user signed in leaves the user signed in,
/// and does not touch the user's cookie.
async fn a_late_logout_of_nobody_ends_nobody(server: &Server) -> Result<()> {
    let layer = server.layer().await?;
    let old = anonymous(&layer).await;
    let (late, begun, go) = under_way(&layer, &old, sign_out());
    begun.acquire().await?.forget();
    let new = send(&layer, Some(&old), sign_in("ann")).await.2.unwrap();
    go.add_permits(1);
    assert_eq!(late.await?.2, None);
    assert_eq!(is(&layer, &new).await, "ann");
    assert_eq!(
        send(&layer, Some(&old), put("a".into(), "b")).await.2,
        None,
        "it is still known as replaced"
    );
    assert_eq!(send(&layer, Some(&old), get("cart")).await.1, "none", "and is not read any more");
    Ok(())
}

/// A lost response with the new cookie locks nobody out: after a log-in, and after a rotation.
async fn a_lost_answer_locks_nobody_out(server: &Server) -> Result<()> {
    let layer = server.layer().await?;
    let old = anonymous(&layer).await;
    send(&layer, Some(&old), sign_in("ann")).await;
    tokio::time::sleep(GRACE).await;
    let (status, _, fresh) = send(&layer, Some(&old), put("cart".into(), "hat")).await;
    assert_eq!(status, StatusCode::OK);
    assert_eq!(send(&layer, fresh.as_deref(), get("cart")).await.1, "hat");

    let old = send(&layer, None, sign_in("ben")).await.2.unwrap();
    assert_eq!(is(&layer, &old).await, "ben");
    let new = send(&layer, Some(&old), rotate()).await.2.unwrap();
    tokio::time::sleep(GRACE).await;
    assert_eq!(is(&layer, &old).await, "ben", "its client has no other");
    assert_eq!(is(&layer, &new).await, "ben");
    assert_eq!(is(&layer, &old).await, "ben", "under way");
    tokio::time::sleep(GRACE).await;
    for act in [who(), put("late".into(), "x"), rotate()] {
        assert_eq!(
            send(&layer, Some(&old), act).await.2,
            None,
            "a late request leaves the new cookie alone"
        );
    }
    assert_eq!([is(&layer, &old).await, is(&layer, &new).await], ["nobody", "ben"]);
    // A logout with the old cookie ends the session nevertheless.
    send(&layer, Some(&old), sign_out()).await;
    assert_eq!(is(&layer, &new).await, "nobody");
    Ok(())
}

/// Details: writes after a sign-in in the same request, numbered fields, fields set meanwhile, a
/// grace period of zero.
async fn what_is_said_to_be_written_is_written(server: &Server) -> Result<()> {
    let layer = server.layer().await?;
    let old = anonymous(&layer).await;
    send(&layer, Some(&old), sign_in("ann")).await;
    let again = action(|s| async move {
        s.sign_in("ann", "again").await?;
        s.insert("a", "b").await?;
        Ok(s.increment("n", 3).await?.to_string())
    });
    let (status, said, cookie) = send(&layer, Some(&old), again).await;
    assert_eq!((status, said.as_str()), (StatusCode::OK, "3"));
    let cookie = cookie.unwrap();
    assert_eq!(
        [is(&layer, &cookie).await, send(&layer, Some(&cookie), get("a")).await.1],
        ["ann", "b"]
    );

    let many = action(|s| async move {
        for n in 0..128 {
            s.insert(&format!("f{n}"), &n).await?;
        }
        let refused = |result: Result<i64, Error>| matches!(result, Err(Error::TooLarge(_)));
        let update = s.update("more", |_: Option<i64>| Some(1)).await.map(|_| 0);
        Ok(format!("{} {}", refused(s.increment("more", 1).await), refused(update)))
    });
    assert_eq!(send(&layer, None, many).await.1, "true true");

    // One request sets a field that another request has found missing, and removes.
    let id = anonymous(&layer).await;
    let remove = action(|s| async move { Ok(s.remove("theme").await.map(|()| String::new())?) });
    let (late, begun, go) = under_way(&layer, &id, remove);
    begun.acquire().await?.forget();
    send(&layer, Some(&id), put("theme".into(), "dark")).await;
    go.add_permits(1);
    late.await?;
    assert_eq!(send(&layer, Some(&id), get("theme")).await.1, "none");

    // A field that another request writes during a log-in is present after it.
    let id = anonymous(&layer).await;
    let (late, begun, go) = under_way(&layer, &id, sign_in("ben"));
    begun.acquire().await?.forget();
    send(&layer, Some(&id), put("coupon".into(), "X")).await;
    go.add_permits(1);
    let new = late.await?.2.unwrap();
    assert_eq!(send(&layer, Some(&new), get("coupon")).await.1, "X");

    let strict = SessionLayer::connect(
        &server.url,
        "strict",
        Config::default().rotation_grace(Duration::ZERO),
    )
    .await?;
    let id = anonymous(&strict).await;
    let new = send(&strict, Some(&id), sign_in("ann")).await.2.unwrap();
    assert_eq!(
        [send(&strict, Some(&new), get("cart")).await.1, is(&strict, &id).await],
        ["shoes", "nobody"]
    );
    Ok(())
}

/// A step-up does not extend the lifetime of a session.
async fn a_step_up_does_not_begin_anew(server: &Server) -> Result<()> {
    let life = Duration::from_millis(2_500);
    let layer =
        SessionLayer::connect(&server.url, "short", Config::default().absolute_timeout(life))
            .await?;
    let mut id = send(&layer, None, sign_in("ann")).await.2.unwrap();
    let begun = std::time::Instant::now();
    while begun.elapsed() < life {
        let prove = action(|s| async move { Ok(s.confirm().await?.to_string()) });
        if let Some(next) = send(&layer, Some(&id), prove).await.2.filter(|next| !next.is_empty()) {
            id = next;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    testkit::eventually("its end", async || (is(&layer, &id).await == "nobody").then_some(())).await
}

/// 6: while the store is unreachable, operations that must not fail silently return an error,
/// although requests continue without a session.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_pretended_while_the_store_is_away() -> Result<()> {
    let server = Redis::start().await?;
    let proxy = Proxy::start(server.port()).await?;
    let config = Config::default().on_store_error(OnStoreError::Anonymous);
    let layer =
        SessionLayer::connect(&format!("redis://127.0.0.1:{}", proxy.port()), "test", config)
            .await?;
    let cookie = send(&layer, None, sign_in("ann")).await.2.unwrap();
    proxy.refuse();
    assert_eq!(is(&layer, &cookie).await, "nobody", "the request goes on");
    assert_eq!(
        send(&layer, Some(&cookie), put("a".into(), "b")).await,
        (StatusCode::OK, String::new(), None)
    );
    let all = action(|s| async move { Ok(s.revoke_all().await.map(|()| String::new())?) });
    let others = action(|s| async move { Ok(s.revoke_others().await.map(|()| String::new())?) });
    let half =
        action(|s| async move { Ok(s.await_second_factor("ann").await.map(|()| String::new())?) });
    for act in [sign_out(), sign_in("ann"), half, all, others] {
        let (status, _, cookie) = send(&layer, Some(&cookie), act).await;
        assert_eq!(
            (status, cookie),
            (StatusCode::INTERNAL_SERVER_ERROR, None),
            "the handler gets the error"
        );
    }
    // Without a cookie nothing is read first: the request fails at its end, with an error.
    let (status, _, new) = send(&layer, None, sign_in("ann")).await;
    assert_eq!((status, new), (StatusCode::SERVICE_UNAVAILABLE, None));
    proxy.heal();
    testkit::eventually("the session", async || (is(&layer, &cookie).await == "ann").then_some(()))
        .await?;
    // A log-in that fails half way leaves the old session unchanged.
    let old = anonymous(&layer).await;
    let (log_in, begun, go) = under_way(&layer, &old, sign_in("ben"));
    begun.acquire().await?.forget();
    proxy.refuse();
    go.add_permits(1);
    assert_eq!(log_in.await?.0, StatusCode::SERVICE_UNAVAILABLE);
    proxy.heal();
    testkit::eventually("the store", async || (is(&layer, &cookie).await == "ann").then_some(()))
        .await?;
    assert_eq!(send(&layer, Some(&old), put("cart".into(), "hat")).await.0, StatusCode::OK);
    assert_eq!(send(&layer, Some(&old), get("cart")).await.1, "hat");
    Ok(())
}

/// 8: cookies of other applications may contain any bytes.
#[tokio::test]
async fn any_cookie_beside_ours_is_survived() -> Result<()> {
    use tower::{Layer, ServiceExt, service_fn};

    let layer = SessionLayer::memory(Config::default());
    let cookie = send(&layer, None, sign_in("ann")).await.2.unwrap();
    let cases: [Vec<Vec<u8>>; 5] = [
        vec![format!("name=Zoë; {cookie}").into()],
        vec![[b"a=\xe9; ".as_slice(), cookie.as_bytes()].concat()],
        vec!["name=Zoë".into(), cookie.clone().into()],
        vec![format!("a=b;{cookie};c=d").into()],
        vec![[cookie.as_bytes(), b"; \xff\xfe"].concat()],
    ];
    for lines in cases {
        let mut request = http::Request::new(());
        for line in &lines {
            request.headers_mut().append("cookie", http::HeaderValue::from_bytes(line)?);
        }
        let handler = service_fn(|request: http::Request<()>| async move {
            let session = request.extensions().get::<scale_session::Session>().unwrap().clone();
            Ok::<_, std::convert::Infallible>(http::Response::new(
                session.user().await.unwrap().unwrap_or_default(),
            ))
        });
        assert_eq!(layer.layer(handler).oneshot(request).await?.into_body(), "ann", "{lines:?}");
    }
    Ok(())
}

/// 9: a write that can no longer be stored returns an error; a write that is stored at once
/// succeeds.
async fn after_the_response_nothing_is_lost_silently(server: &Server) -> Result<()> {
    let layer = server.layer().await?;
    let cookie = send(&layer, None, sign_in("ann")).await.2.unwrap();
    let (kept, got) = tokio::sync::mpsc::unbounded_channel();
    let keep = action(move |s| {
        let kept = kept.clone();
        async move {
            s.user().await?;
            kept.send(s)?;
            Ok(String::new())
        }
    });
    let mut got = got;
    send(&layer, Some(&cookie), Arc::clone(&keep)).await;
    let late = got.recv().await.unwrap();
    assert!(matches!(late.insert("a", "b").await, Err(Error::Closed)));
    assert!(matches!(late.remove("a").await, Err(Error::Closed)));
    assert!(matches!(late.rotate().await, Err(Error::Closed)));
    assert!(matches!(late.sign_in("ben", "x").await, Err(Error::Closed)));
    assert_eq!(late.increment("n", 2).await?, 2);
    let n = action(|s| async move { Ok(format!("{:?}", s.get::<i64>("n").await?)) });
    assert_eq!(send(&layer, Some(&cookie), n).await.1, "Some(2)");
    // The id of a session that was never created could not be sent to a client.
    send(&layer, None, keep).await;
    assert!(matches!(got.recv().await.unwrap().increment("n", 1).await, Err(Error::Closed)));
    Ok(())
}

/// 9: a long-lived handle sees a rotation and a revocation of its session, and no other change.
async fn a_long_lived_handle_is_told(server: &Server) -> Result<()> {
    let layer = server.layer().await?;
    let cookie = send(&layer, None, sign_in("ann")).await.2.unwrap();
    let (kept, mut got) = tokio::sync::mpsc::unbounded_channel();
    let keep = action(move |s| {
        let kept = kept.clone();
        async move {
            s.user().await?;
            kept.send(s)?;
            Ok(String::new())
        }
    });
    send(&layer, Some(&cookie), keep).await;
    let handle = got.recv().await.unwrap();
    let watch = tokio::spawn({
        let handle = handle.clone();
        async move { handle.watch(Duration::from_millis(20)).await }
    });
    send(&layer, Some(&cookie), rotate()).await;
    tokio::time::sleep(GRACE + Duration::from_millis(200)).await;
    assert!(
        !watch.is_finished() && handle.user().await?.as_deref() == Some("ann"),
        "a rotation is nothing to it"
    );
    layer.revoke_all_of("ann").await?;
    tokio::time::timeout(Duration::from_secs(10), watch).await??;
    handle.reload().await?;
    assert_eq!(
        (handle.user().await?, handle.is_confirmed_within(Duration::from_hours(1)).await?),
        (None, false)
    );
    assert!(handle.increment("n", 1).await.is_err());
    Ok(())
}

/// 9: a log-in whose response never arrived is not listed as a device.
async fn an_aborted_log_in_is_no_device(server: &Server) -> Result<()> {
    let layer = server.layer().await?;
    for _ in 0..5 {
        send(&layer, None, sign_in("ann")).await;
    }
    let cookie = send(&layer, None, sign_in("ann")).await.2.unwrap();
    assert!(layer.devices_of("ann").await?.is_empty());
    assert_eq!(is(&layer, &cookie).await, "ann");
    assert_eq!(layer.devices_of("ann").await?.len(), 1);
    layer.revoke_all_of("ann").await?;
    assert_eq!(is(&layer, &cookie).await, "nobody");
    Ok(())
}

/// 9: concurrent additions are each atomic, whatever the database's default isolation.
async fn many_add_at_once(server: &Server) -> Result<()> {
    const AT_ONCE: i64 = 64;
    if let Some(postgres) = server.keep.downcast_ref::<Postgres>() {
        postgres
            .node(0)
            .sql("alter role postgres set default_transaction_isolation = 'repeatable read'")
            .await?;
    }
    let layer = server.layer().await?;
    let cookie = send(&layer, None, put("cart".into(), "shoes")).await.2.unwrap();
    let add = || action(|s| async move { Ok(s.increment("n", 1).await?.to_string()) });
    assert_eq!(send(&layer, Some(&cookie), add()).await.1, "1");
    if let Some(redis) = server.keep.downcast_ref::<Redis>() {
        redis.command(&["CONFIG", "RESETSTAT"]).await?;
    }
    let answers =
        futures_util::future::join_all((0..AT_ONCE).map(|_| send(&layer, Some(&cookie), add())))
            .await;
    let mut sums: Vec<i64> = answers
        .iter()
        .map(|(_, body, _)| body.parse().unwrap_or_else(|_| panic!("{body}")))
        .collect();
    sums.sort_unstable();
    assert_eq!(sums, (2..=AT_ONCE + 1).collect::<Vec<_>>());
    if let Some(redis) = server.keep.downcast_ref::<Redis>() {
        let scripts = redis.calls(&["evalsha", "eval"]).await?;
        assert_eq!(scripts, AT_ONCE as u64, "one each");
    }
    // Addition is exact even beyond the integers that a script represents exactly.
    let far = action(|s| async move {
        s.increment("far", i64::MAX - 5).await?;
        Ok(format!(
            "{} {}",
            s.increment("far", 2).await? == i64::MAX - 3,
            s.increment("far", 9).await? == i64::MAX
        ))
    });
    assert_eq!(send(&layer, Some(&cookie), far).await.1, "true true");
    let text =
        action(|s| async move { Ok(format!("{:?}", s.increment("cart", 1).await.is_err())) });
    assert_eq!(send(&layer, Some(&cookie), text).await.1, "true");
    Ok(())
}

/// 9: meaningless settings are refused at once, or limited.
async fn any_settings_are_taken_or_refused(server: &Server) -> Result<()> {
    use scale_session::CookiePolicy;

    for name in ["", "my; session", "a\nb", "a=b", "ä"] {
        assert!(matches!(CookiePolicy::default().name(name), Err(Error::Setting(_))), "{name:?}");
    }
    let config = Config::default()
        .idle_timeout(Duration::MAX)
        .absolute_timeout(Duration::MAX)
        .rotation_grace(Duration::MAX);
    let layer = SessionLayer::connect(&server.url, "test", config).await?;
    let cookie = send(&layer, None, sign_in("a\0b")).await.2.unwrap();
    assert_eq!(is(&layer, &cookie).await, "a\0b");
    let new = send(&layer, Some(&cookie), rotate()).await.2.unwrap();
    assert_eq!([is(&layer, &cookie).await, is(&layer, &new).await], ["a\0b", "a\0b"]);
    let field = action(|s| async move {
        Ok(format!("{:?}", matches!(s.insert("a\0b", "x").await, Err(Error::TooLarge(_)))))
    });
    assert_eq!(send(&layer, Some(&new), field).await.1, "true");
    Ok(())
}

/// 3: an HTTP cache around the sessions: a response that depends on a session, or sets its cookie,
/// is not shared.
#[tokio::test]
async fn a_shared_cache_keeps_nothing_of_a_session() -> Result<()> {
    use http::{Request, Response, header};
    use http_body_util::Full;
    use scale_cache::{Cache, http::HttpCacheLayer};
    use tower::{Layer, ServiceExt, service_fn};

    type Body = Full<bytes::Bytes>;
    let site = service_fn(|request: Request<Body>| async move {
        let session = request.extensions().get::<scale_session::Session>().unwrap().clone();
        let body = match request.uri().path() {
            "/product" => session.insert("last_seen", "mug").await.map(|()| "a mug".to_owned()),
            "/login" => session.sign_in("victim", "x").await.map(|()| "in".to_owned()),
            "/me" => session.user().await.map(Option::unwrap_or_default),
            _ => Ok("the same for all".to_owned()),
        };
        let answer =
            Response::builder().header(header::CACHE_CONTROL, "public, max-age=60, s-maxage=60");
        Ok::<_, std::convert::Infallible>(answer.body(Body::from(body.unwrap())).unwrap())
    });
    let cache = Cache::connect("memory:", "test").await?;
    let app =
        HttpCacheLayer::new(&cache).layer(SessionLayer::memory(Config::default()).layer(site));
    let ask = async |path: &str, cookie: Option<&str>| {
        let mut request = Request::builder().uri(path).header(header::HOST, "shop.example");
        if let Some(cookie) = cookie {
            request = request.header(header::COOKIE, cookie);
        }
        let response = app.clone().oneshot(request.body(Body::default()).unwrap()).await.unwrap();
        let text =
            |name| response.headers().get(name).map(|value| value.to_str().unwrap().to_owned());
        let cookie =
            text(header::SET_COOKIE).map(|cookie| cookie.split(';').next().unwrap().to_owned());
        (
            cookie,
            text(header::CACHE_CONTROL),
            text(header::VARY),
            text(header::HeaderName::from_static("cache-status")),
        )
    };
    let (first, second) = (ask("/product", None).await, ask("/product", None).await);
    assert!(
        first.0.is_some() && first.0 != second.0,
        "each visitor has a session of their own: {first:?} {second:?}"
    );
    assert_eq!((first.1.as_deref(), first.2.as_deref()), (Some("no-store"), Some("cookie")));
    let victim = ask("/login", first.0.as_deref()).await.0;
    let (asked, again) = (ask("/me", victim.as_deref()).await, ask("/me", victim.as_deref()).await);
    assert_eq!(
        (asked.1.as_deref(), asked.2.as_deref()),
        (Some("private, max-age=60"), Some("cookie"))
    );
    assert!(again.3.is_none_or(|status| !status.contains("hit")), "a page of somebody");
    // A page that has not read the session is still shared.
    let all = ask("/about", None).await;
    assert_eq!(
        (all.0, all.1.as_deref(), all.2),
        (None, Some("public, max-age=60, s-maxage=60"), None)
    );
    assert!(ask("/about", None).await.3.is_some_and(|status| status.contains("hit")));
    Ok(())
}

on_every_store! {
    another_user_finds_nothing_of_the_first,
    signing_out_everywhere_ends_who_stays_signed_in,
    a_logout_clears_what_is_configured,
    a_planted_id_leads_nowhere,
    requests_under_way_see_the_old_state,
    a_step_up_leaves_nothing_behind_a_logout,
    a_step_up_and_an_end_meet,
    a_step_up_does_not_begin_anew,
    nothing_of_a_user_goes_into_the_old_session,
    a_late_logout_of_nobody_ends_nobody,
    a_lost_answer_locks_nobody_out,
    what_is_said_to_be_written_is_written,
    applications_share_nothing,
    log_ins_at_once_are_each_who_they_say,
    slow_requests_leave_the_new_cookie_alone,
    a_log_in_does_not_need_the_old_session,
    a_logout_ends_what_is_rotated_meanwhile,
    after_the_response_nothing_is_lost_silently,
    a_long_lived_handle_is_told,
    an_aborted_log_in_is_no_device,
    many_add_at_once,
    any_settings_are_taken_or_refused,
}
