//! Contract of a session store, for the tests of stores written outside of this crate. Feature
//! `testing`.
//!
//! [`store_contract!`](crate::store_contract) makes a `#[tokio::test]` of each case, for a layer
//! that an async function returns. The crate that uses it needs `tokio` with the features `macros`
//! and `rt-multi-thread`.
//!
//! ```
//! # #[cfg(test)] mod tests {
//! use scale_session::{Config, SessionLayer};
//! use scale_session::store::MemoryStore;
//!
//! /// Returns a layer on a store with no other case's data, and a guard: what must live as
//! /// long as the layer, for example a temporary folder.
//! async fn connect(case: &str, config: Config) -> std::io::Result<(SessionLayer, ())> {
//!     Ok((SessionLayer::new(MemoryStore::default(), config), ()))
//! }
//!
//! scale_session::store_contract!(my_store, crate::connect);
//! # }
//! ```
//!
//! A case that does not hold panics.
#![allow(
    clippy::unwrap_used,
    clippy::missing_panics_doc,
    clippy::missing_errors_doc,
    reason = "a case that fails panics or returns its store's error"
)]

use std::error::Error as StdError;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::time::{Duration, Instant};

use http::header::SET_COOKIE;
use http::{HeaderMap, StatusCode};

use crate::devices::Device;
use crate::error::Error;
use crate::id::Id;
use crate::layer::SessionLayer;
use crate::session::Session;
use crate::store::{
    Destroyed, Handle, Lifetime, Owner, PendingChanges, Renewal, Standing, Succession,
};

/// Result of a case.
pub type Result = std::result::Result<(), Box<dyn StdError + Send + Sync>>;

/// Idle time-out and maximum age of the two cases that wait for them.
pub const SHORT: Duration = Duration::from_secs(2);

/// Makes a module of tests, one for each case, for a store of your own. The second argument is the
/// path of an async function from the name of the case and the configuration to a layer and a guard
/// of what the layer needs.
#[macro_export]
macro_rules! store_contract {
    ($module:ident, $connect:path) => {
        $crate::store_contract! { @cases $module, $connect;
            nothing_touched_sets_no_cookie($crate::Config::default()),
            a_flashed_message_is_read_once($crate::Config::default()),
            a_write_makes_a_session($crate::Config::default()),
            a_forged_id_is_never_adopted($crate::Config::default()),
            concurrent_writes_are_all_kept($crate::Config::default()),
            many_fields_are_written_at_once($crate::Config::default()),
            increments_are_exact($crate::Config::default()),
            an_increment_may_come_first($crate::Config::default()),
            a_field_is_pulled_or_removed($crate::Config::default()),
            a_field_of_another_type_is_its_own_error($crate::Config::default()),
            a_rotation_gives_a_new_id_and_old_ones_stay_valid_for_a_while($crate::Config::default()),
            a_logout_is_final($crate::Config::default()),
            revoking_the_others_keeps_this_session($crate::Config::default()),
            states_follow_one_another($crate::Config::default()),
            devices_are_listed_and_ended($crate::Config::default()),
            a_request_under_way_restores_nothing($crate::Config::default()),
            sign_ins_race_with_a_revocation_of_all($crate::Config::default()),
            nothing_is_written_to_a_session_that_is_gone($crate::Config::default()),
            nothing_is_written_to_a_session_that_was_replaced($crate::Config::default()),
            an_idle_session_ends(
                $crate::Config::default().idle_timeout($crate::testing::SHORT)
            ),
            a_session_ends_at_its_maximum_age(
                $crate::Config::default().absolute_timeout($crate::testing::SHORT)
            ),
        }
    };
    (@cases $module:ident, $connect:path; $($case:ident($config:expr)),* $(,)?) => {
        mod $module {
            $(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $case() {
                    let (layer, _guard) =
                        $connect(stringify!($case), $config).await.expect("a store");
                    $crate::testing::$case(&layer).await.expect("the case failed");
                }
            )*
        }
    };
}

/// An untouched session is not read and sets no cookie.
pub async fn nothing_touched_sets_no_cookie(layer: &SessionLayer) -> Result {
    assert_eq!(send(layer, None, action(|_| async { Ok(String::new()) })).await.2, None);
    assert_eq!(send(layer, None, get("user")).await, (StatusCode::OK, "none".into(), None));
    Ok(())
}

/// A flash message is read once.
pub async fn a_flashed_message_is_read_once(layer: &SessionLayer) -> Result {
    let flash = send(
        layer,
        None,
        action(|s| async move { Ok(s.flash("note", "saved").await.map(|()| String::new())?) }),
    )
    .await
    .2
    .unwrap();
    let read = action(|s| async move {
        Ok(s.flashed::<String>("note").await?.unwrap_or_else(|| "none".into()))
    });
    assert_eq!(send(layer, Some(&flash), Arc::clone(&read)).await.1, "saved");
    assert_eq!(send(layer, Some(&flash), read).await.1, "none");
    Ok(())
}

/// A write creates a session; later requests see the session and do not receive the cookie again.
pub async fn a_write_makes_a_session(layer: &SessionLayer) -> Result {
    let cookie = login(layer).await;
    assert!(cookie.starts_with("__Host-session="));
    assert_eq!(send(layer, Some(&cookie), get("user")).await, (StatusCode::OK, "ann".into(), None));
    assert_eq!(send(layer, Some(&cookie), put("theme".into(), "dark")).await.2, None);
    assert_eq!(send(layer, Some(&cookie), get("theme")).await.1, "dark");
    Ok(())
}

/// An id that the server did not issue is never adopted: its cookie is cleared, or replaced by a
/// write.
pub async fn a_forged_id_is_never_adopted(layer: &SessionLayer) -> Result {
    let forged = format!("__Host-session={}", "A".repeat(43));
    assert_eq!(
        send(layer, Some(&forged), get("user")).await,
        (StatusCode::OK, "none".into(), Some(String::new()))
    );
    let (_, _, drawn) = send(layer, Some(&forged), put("a".into(), "b")).await;
    assert!(drawn.is_some_and(|d| d != forged && !d.is_empty()));
    Ok(())
}

/// A hundred concurrent requests that each add a field: a hundred fields.
pub async fn concurrent_writes_are_all_kept(layer: &SessionLayer) -> Result {
    let cookie = login(layer).await;
    let tasks: Vec<_> = (0..100)
        .map(|n| {
            let (layer, cookie) = (layer.clone(), cookie.clone());
            tokio::spawn(
                async move { send(&layer, Some(&cookie), put(format!("f{n}"), "x")).await.0 },
            )
        })
        .collect();
    for task in tasks {
        assert_eq!(task.await?, StatusCode::OK);
    }
    let count = action(|s| async move {
        let mut found = 0;
        for n in 0..100 {
            found += usize::from(s.get::<String>(&format!("f{n}")).await?.is_some());
        }
        Ok(found.to_string())
    });
    assert_eq!(send(layer, Some(&cookie), count).await.1, "100");
    Ok(())
}

/// More than a hundred fields at once, in a new session and in an existing session.
pub async fn many_fields_are_written_at_once(layer: &SessionLayer) -> Result {
    let fill = action(|s| async move {
        for n in 0..120 {
            s.insert(&format!("many{n}"), &n).await?;
        }
        Ok("filled".into())
    });
    let held = action(|s| async move {
        let mut found = 0;
        for n in 0..120 {
            found += usize::from(s.get::<i32>(&format!("many{n}")).await? == Some(n));
        }
        Ok(found.to_string())
    });
    let new = send(layer, None, Arc::clone(&fill)).await.2.unwrap();
    let old = login(layer).await;
    assert_eq!(send(layer, Some(&old), fill).await.0, StatusCode::OK);
    for cookie in [new, old] {
        assert_eq!(send(layer, Some(&cookie), Arc::clone(&held)).await.1, "120");
    }
    Ok(())
}

/// Increments are exact.
pub async fn increments_are_exact(layer: &SessionLayer) -> Result {
    let cookie = login(layer).await;
    let tasks: Vec<_> = (0..200)
        .map(|_| {
            let (layer, cookie) = (layer.clone(), cookie.clone());
            let add = action(|s| async move { Ok(s.increment("n", 1).await?.to_string()) });
            tokio::spawn(async move { send(&layer, Some(&cookie), add).await.0 })
        })
        .collect();
    for task in tasks {
        assert_eq!(task.await?, StatusCode::OK);
    }
    let read = action(|s| async move { Ok(format!("{:?}", s.get::<i64>("n").await?)) });
    assert_eq!(send(layer, Some(&cookie), read).await.1, "Some(200)");
    Ok(())
}

/// An increment may be a visitor's first write, and adds to the value that the request has set.
pub async fn an_increment_may_come_first(layer: &SessionLayer) -> Result {
    let first = action(|s| async move {
        s.insert("n", &40).await?;
        Ok((s.increment("n", 1).await? + s.increment("n", 1).await?).to_string())
    });
    let (_, body, set) = send(layer, None, first).await;
    assert_eq!((body.as_str(), set.is_some()), ("83", true));
    Ok(())
}

/// `pull` and `remove`.
pub async fn a_field_is_pulled_or_removed(layer: &SessionLayer) -> Result {
    let cookie = login(layer).await;
    send(layer, Some(&cookie), put("theme".into(), "dark")).await;
    let pull = action(|s| async move { Ok(format!("{:?}", s.pull::<String>("theme").await?)) });
    assert_eq!(send(layer, Some(&cookie), pull).await.1, "Some(\"dark\")");
    assert_eq!(send(layer, Some(&cookie), get("theme")).await.1, "none");
    Ok(())
}

/// A field of another type is an error for that field alone.
pub async fn a_field_of_another_type_is_its_own_error(layer: &SessionLayer) -> Result {
    let cookie = login(layer).await;
    let wrong = action(|s| async move { Ok(format!("{:?}", s.get::<i64>("user").await.is_err())) });
    assert_eq!(send(layer, Some(&cookie), wrong).await.1, "true");
    Ok(())
}

/// A rotation gives a new id; requests with an earlier one still see and write the session.
pub async fn a_rotation_gives_a_new_id_and_old_ones_stay_valid_for_a_while(
    layer: &SessionLayer,
) -> Result {
    let old = login(layer).await;
    let rotate = action(|s| async move {
        s.rotate().await?;
        s.insert("level", "admin").await?;
        Ok(String::new())
    });
    let new = send(layer, Some(&old), rotate.clone()).await.2.unwrap();
    assert_ne!(old, new);
    assert_eq!(send(layer, Some(&new), get("level")).await.1, "admin");
    assert_eq!(send(layer, Some(&new), get("user")).await.1, "ann");
    // Requests under way with the old id see the session, their writes are stored, and their
    // responses do not touch the cookie.
    assert_eq!(send(layer, Some(&old), get("level")).await, (StatusCode::OK, "admin".into(), None));
    assert_eq!(send(layer, Some(&old), put("late".into(), "kept")).await.2, None);
    assert_eq!(send(layer, Some(&new), get("late")).await.1, "kept");
    // A client that sends the old id does not know the new one, and its request rotates nothing.
    assert_eq!(send(layer, Some(&old), rotate.clone()).await.2, None);
    let newer = send(layer, Some(&new), rotate.clone()).await.2.unwrap();
    let newest = send(layer, Some(&newer), rotate.clone()).await.2.unwrap();
    assert_eq!(
        send(layer, Some(&old), get("user")).await.1,
        "ann",
        "three rotations back, within the grace"
    );
    // A logout with an old id ends the session, even after several rotations.
    let destroy = action(|s| async move {
        s.destroy().await?;
        Ok(String::new())
    });
    assert_eq!(send(layer, Some(&old), destroy).await.2, Some(String::new()));
    for id in [&old, &new, &newer, &newest] {
        assert_eq!(send(layer, Some(id), get("user")).await.1, "none");
    }
    Ok(())
}

/// A logout is final, also for requests that loaded the session before it.
pub async fn a_logout_is_final(layer: &SessionLayer) -> Result {
    let destroy = || {
        action(|s| async move {
            s.destroy().await?;
            Ok(String::new())
        })
    };
    let cookie = login(layer).await;
    assert_eq!(
        send(layer, Some(&cookie), destroy()).await,
        (StatusCode::OK, String::new(), Some(String::new()))
    );
    assert_eq!(send(layer, Some(&cookie), get("user")).await.1, "none");

    // A slow request that loaded the session before the logout and writes after it restores
    // nothing.
    for _ in 0..50 {
        let cookie = login(layer).await;
        let (loaded, wait) =
            (Arc::new(tokio::sync::Notify::new()), Arc::new(tokio::sync::Notify::new()));
        let slow = {
            let (loaded, wait) = (Arc::clone(&loaded), Arc::clone(&wait));
            action(move |s| {
                let (loaded, wait) = (Arc::clone(&loaded), Arc::clone(&wait));
                async move {
                    s.get::<String>("user").await?;
                    loaded.notify_one();
                    wait.notified().await;
                    s.insert("user", "ann again").await?;
                    Ok(String::new())
                }
            })
        };
        let task = tokio::spawn({
            let (layer, cookie) = (layer.clone(), cookie.clone());
            async move { send(&layer, Some(&cookie), slow).await }
        });
        loaded.notified().await;
        send(layer, Some(&cookie), destroy()).await;
        wait.notify_one();
        assert_eq!(
            task.await?,
            (StatusCode::OK, String::new(), None),
            "no 500, and the cookie is that of the logout"
        );
        assert_eq!(send(layer, Some(&cookie), get("user")).await.1, "none");
    }

    // `destroy` and a write in one request: a new id.
    let cookie = login(layer).await;
    let anew = action(|s| async move {
        s.destroy().await?;
        s.insert("user", "bob").await?;
        Ok(String::new())
    });
    let new = send(layer, Some(&cookie), anew).await.2.unwrap();
    assert_ne!(new, cookie);
    assert_eq!(send(layer, Some(&new), get("user")).await.1, "bob");
    assert_eq!(send(layer, Some(&cookie), get("user")).await.1, "none");
    Ok(())
}

/// Reads concurrent with the end of all others: the remaining session is never treated as one of
/// the others.
pub async fn revoking_the_others_keeps_this_session(layer: &SessionLayer) -> Result {
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
        tokio::join!(reads, send(layer, Some(&mine), others));
        assert_eq!(is(layer, &other).await, "nobody");
    }
    Ok(())
}

/// A session is anonymous, waits for a second factor, is signed in, and is signed out.
pub async fn states_follow_one_another(layer: &SessionLayer) -> Result {
    // An anonymous visitor's data is kept, under another id each time.
    let (_, _, first) = send(layer, None, put("cart".into(), "shoes")).await;
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
    assert_eq!(send(layer, Some(&third), get("cart")).await.1, "shoes");

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

/// A user's devices are listed, and revoked one by one, all others, or all.
pub async fn devices_are_listed_and_ended(layer: &SessionLayer) -> Result {
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
pub async fn a_request_under_way_restores_nothing(layer: &SessionLayer) -> Result {
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

/// Sign-ins run while all sessions of their user are revoked: the list of devices and the requests
/// agree.
pub async fn sign_ins_race_with_a_revocation_of_all(layer: &SessionLayer) -> Result {
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
        eventually("log-ins", async || count.load(SeqCst) >= round * 10).await?;
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

/// A session created through the store itself, without a request.
struct Raw {
    id: Id,
    handle: Handle,
}

impl Raw {
    async fn create(layer: &SessionLayer, owner: Option<&str>) -> Outcome<Self> {
        let id = Id::random(owner.map(Owner::of))?;
        let lifetime = Lifetime { idle: MINUTE, absolute: 2 * MINUTE };
        let handle = id.handle();
        layer.store().create(&handle, &id.proof(), &change("a", b"1"), lifetime).await?;
        Ok(Self { id, handle })
    }
}

const MINUTE: Duration = Duration::from_mins(1);

fn change(field: &str, value: &[u8]) -> PendingChanges {
    let mut changes = PendingChanges::default();
    changes.set(field, Some(value.to_vec()));
    changes
}

/// Performs every kind of write, and returns what each answered.
async fn all_writes(layer: &SessionLayer, raw: &Raw) -> Outcome<Vec<String>> {
    let (store, Raw { id, handle }) = (layer.store(), raw);
    let next = id.rotated()?;
    let successor = Id::random(handle.owner().copied())?;
    let (next_handle, proof) = (successor.handle(), successor.proof());
    let succession =
        Succession { handle: &next_handle, proof: &proof, idle: MINUTE, grace: MINUTE };
    let renewal = Some(Renewal { idle: MINUTE, grace: MINUTE });
    let saved = store.save(handle, &change("a", b"2"), None).await?;
    let renewed = store.save(handle, &change("b", b"2"), renewal).await?;
    let swapped = store.swap(handle, "a", Some(b"1"), Some(b"3")).await?;
    let rotated = store.rotate(handle, &id.proof(), &next.proof()).await?;
    let mut answers = vec![
        format!("{saved:?}"),
        format!("{renewed:?}"),
        format!("{swapped:?}"),
        format!("{rotated:?}"),
    ];
    if handle.owner().is_some() {
        let succeeded = store.succeed(handle, &succession, &change("a", b"4")).await?;
        assert_eq!(store.load(&next_handle, None).await?, None, "no successor is made");
        answers.push(format!("{succeeded:?}"));
    }
    if let Some(added) = store.add(handle, "n", 1).await? {
        answers.push(added.map_or_else(|swapped| format!("{swapped:?}"), |n| n.to_string()));
    }
    Ok(answers)
}

/// Every write to a session that was revoked or destroyed, or that never existed, finds it gone,
/// and creates nothing.
pub async fn nothing_is_written_to_a_session_that_is_gone(layer: &SessionLayer) -> Result {
    let store = layer.store();
    let revoked = Raw::create(layer, Some("ann")).await?;
    let kept = Raw::create(layer, Some("ann")).await?;
    assert!(store.revoke(&Owner::of("ann"), Some(&kept.handle)).await?);
    let destroyed = Raw::create(layer, None).await?;
    assert_eq!(store.destroy(&destroyed.handle, Duration::ZERO).await?, Destroyed::Done);
    let id = Id::random(Some(Owner::of("bob")))?;
    let unknown = Raw { handle: id.handle(), id };
    for (raw, what) in [(revoked, "revoked"), (destroyed, "destroyed"), (unknown, "unknown")] {
        for answer in all_writes(layer, &raw).await? {
            assert_eq!(answer, "Gone", "{what}");
        }
        assert_eq!(store.freeze(&raw.handle, &kept.handle, MINUTE).await?, None, "{what}");
        let left = store.load(&raw.handle, None).await?;
        let is_gone = left.is_none_or(|record| record.standing == Standing::Replaced);
        assert!(is_gone, "{what}: a write has brought it back");
    }
    let record = store.load(&kept.handle, None).await?.ok_or("the kept session is gone")?;
    assert_eq!(record.standing, Standing::Live);
    Ok(())
}

/// A session that was replaced can be read for a while, and not written; a logout by its id leads
/// to its successor.
pub async fn nothing_is_written_to_a_session_that_was_replaced(layer: &SessionLayer) -> Result {
    let store = layer.store();
    let (old, next) =
        (Raw::create(layer, Some("ann")).await?, Raw::create(layer, Some("ann")).await?);
    let fields = store.freeze(&old.handle, &next.handle, MINUTE).await?.ok_or("it is gone")?;
    assert_eq!(fields.get("a").map(Vec::as_slice), Some(&b"1"[..]), "its final content");
    for answer in all_writes(layer, &old).await? {
        assert_eq!(answer, "Frozen");
    }
    // Another sign-in of the same session at the same time continues it as well.
    let other = Raw::create(layer, Some("ann")).await?;
    assert_eq!(store.freeze(&old.handle, &other.handle, MINUTE).await?, Some(fields));
    let record = store.load(&old.handle, Some(&old.id.proof())).await?.ok_or("it is gone")?;
    assert_eq!(record.standing, Standing::Frozen);
    assert_eq!(record.fields.get("a").map(Vec::as_slice), Some(&b"1"[..]));
    assert_eq!(record.next, Some(next.handle));
    let ended = store.destroy(&old.handle, MINUTE).await?;
    assert_eq!(ended, Destroyed::Replaced(Some(next.handle)));
    let record = store.load(&old.handle, None).await?.ok_or("it is forgotten")?;
    assert_eq!(record.standing, Standing::Replaced);
    Ok(())
}

/// A session ends when it was not used for its idle time-out.
pub async fn an_idle_session_ends(layer: &SessionLayer) -> Result {
    let cookie = login(layer).await;
    // Writes restart the time-out.
    let begun = Instant::now();
    while begun.elapsed() < 2 * SHORT {
        assert_eq!(send(layer, Some(&cookie), put("a".into(), "b")).await.0, StatusCode::OK);
        let renew = action(|s| async move { Ok(s.renew().await.map(|()| String::new())?) });
        send(layer, Some(&cookie), renew).await;
        assert_eq!(send(layer, Some(&cookie), get("user")).await.1, "ann");
        tokio::time::sleep(SHORT / 20).await;
    }
    tokio::time::sleep(SHORT).await;
    // A read does not restart it.
    eventually("the end", async || send(layer, Some(&cookie), get("user")).await.1 == "none").await
}

/// A session ends at its maximum age, even if it is in use.
pub async fn a_session_ends_at_its_maximum_age(layer: &SessionLayer) -> Result {
    let cookie = login(layer).await;
    assert_eq!(send(layer, Some(&cookie), get("user")).await.1, "ann");
    eventually("the end", async || {
        send(layer, Some(&cookie), put("a".into(), "b")).await;
        send(layer, Some(&cookie), get("user")).await.1 == "none"
    })
    .await
}

type Boxed<T> = Pin<Box<dyn Future<Output = T> + Send>>;
type Outcome<T> = std::result::Result<T, Box<dyn StdError + Send + Sync>>;
type Action = Arc<dyn Fn(Session) -> Boxed<Outcome<String>> + Send + Sync>;

fn action<F, Fut>(f: F) -> Action
where
    F: Fn(Session) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Outcome<String>> + Send + 'static,
{
    Arc::new(move |session| Box::pin(f(session)))
}

/// Serves a request; returns the status, the body and the cookie to send next (`None`: keep,
/// `Some("")`: cleared).
async fn send(
    layer: &SessionLayer,
    cookie: Option<&str>,
    act: Action,
) -> (StatusCode, String, Option<String>) {
    let session = layer.open(cookie.map(str::as_bytes));
    let (mut status, mut body) = match act(session.clone()).await {
        Ok(body) => (StatusCode::OK, body),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()),
    };
    let mut headers = HeaderMap::new();
    if let Err(error) = session.close(&mut headers).await {
        (status, body) = (StatusCode::SERVICE_UNAVAILABLE, error.to_string());
    }
    let set = headers.get(SET_COOKIE).map(|cookie| {
        let text = cookie.to_str().unwrap();
        if text.contains("Max-Age=0") {
            String::new()
        } else {
            text.split(';').next().unwrap().to_owned()
        }
    });
    (status, body, set)
}

fn get(field: &'static str) -> Action {
    action(
        move |s| async move { Ok(s.get::<String>(field).await?.unwrap_or_else(|| "none".into())) },
    )
}

fn put(field: String, value: &'static str) -> Action {
    action(move |s| {
        let field = field.clone();
        async move {
            s.insert(&field, value).await?;
            Ok(String::new())
        }
    })
}

async fn login(layer: &SessionLayer) -> String {
    send(layer, None, put("user".into(), "ann")).await.2.unwrap()
}

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

/// Waits for a condition, at most 10 s.
async fn eventually(what: &str, condition: impl AsyncFn() -> bool) -> Result {
    let wait = async {
        while !condition().await {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let late = |_| format!("{what}: not within 10 s").into();
    tokio::time::timeout(Duration::from_secs(10), wait).await.map_err(late)
}
