//! Contracts of the one-time store and the audit log, on every store: one-time events happen once,
//! with handles of several processes concurrently.
#![cfg(feature = "auth")]
#![allow(clippy::unwrap_used, clippy::print_stdout)]

mod common;

use std::future::Future;
use std::io::{BufRead, BufReader, Lines, Write};
use std::process::{Child, ChildStdout};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use scale_session::auth::one_time_store::{FamilyAdvance, Store};
use scale_session::auth::remember::Refreshed;
use scale_session::auth::token::Keys;
use scale_session::auth::{OneTimeStore, Remember, SessionEpochs, Tokens, Totp, recovery};

/// A test for each case on each store, so that each can be run alone:
/// `cargo test --all-features --test auth postgres::a_link_is_redeemed_once`.
macro_rules! on_every_store {
    ($($case:ident),* $(,)?) => {
        on_store! { memory: $($case),* }
        on_servers! { on_store: $($case),* }
        #[cfg(feature = "redis")]
        on_store! { redis: $($case),* }
        #[cfg(feature = "redis")]
        on_store! { redis_cluster: $($case),* }
    };
}

/// The same on databases.
macro_rules! on_servers {
    ($on:ident: $($case:ident),*) => {
        #[cfg(feature = "sqlite")]
        $on! { sqlite: $($case),* }
        #[cfg(feature = "postgres")]
        $on! { postgres: $($case),* }
        #[cfg(feature = "mysql")]
        $on! { mariadb: $($case),* }
    };
}

macro_rules! on_store {
    ($store:ident: $($case:ident),*) => {
        mod $store {
            $(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $case() -> anyhow::Result<()> {
                    let place = crate::places::$store(stringify!($case)).await?;
                    let (here, there) = place.one_time_stores().await?;
                    super::$case(&here, &there).await
                }
            )*
        }
    };
}

macro_rules! on_place {
    ($store:ident: $($case:ident),*) => {
        mod $store {
            $(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $case() -> anyhow::Result<()> {
                    super::super::$case(&crate::places::$store(stringify!($case)).await?).await
                }
            )*
        }
    };
}

on_every_store! {
    a_claim_succeeds_once,
    a_totp_code_is_good_once,
    a_recovery_code_is_good_once,
    a_link_is_redeemed_once,
    a_persistent_log_in_is_one_chain_of_cookies,
    all_sign_ins_end_in_one_step,
}

/// With processes of their own, or SQL statements of the test's own.
mod databases {
    on_servers! {
        on_place: credentials_are_good_once_over_two_processes, an_audit_log_is_one_chain
    }
    #[cfg(feature = "redis")]
    on_place! { redis: credentials_are_good_once_over_two_processes }
}

/// Addresses of stores. All cases on a server share it, each with an application of its own.
mod places {
    use anyhow::Result;
    use scale_session::auth::OneTimeStore;
    #[cfg(any(feature = "redis", feature = "postgres", feature = "mysql"))]
    use testkit::Shared;

    pub(crate) struct Place {
        pub(crate) url: String,
        pub(crate) app: String,
        _folder: Option<tempfile::TempDir>,
    }

    impl Place {
        fn new(url: String, app: &str) -> Self {
            Self { url, app: app.to_owned(), _folder: None }
        }

        pub(crate) async fn connect(&self) -> Result<OneTimeStore> {
            Ok(OneTimeStore::connect(&self.url, &self.app).await?)
        }

        /// Returns the handles of two processes; in memory, one handle twice.
        pub(crate) async fn one_time_stores(&self) -> Result<(OneTimeStore, OneTimeStore)> {
            if self.url == "memory:" {
                let one = OneTimeStore::memory();
                return Ok((one.clone(), one));
            }
            Ok((self.connect().await?, self.connect().await?))
        }
    }

    pub(crate) async fn memory(app: &str) -> Result<Place> {
        Ok(Place::new("memory:".into(), app))
    }

    #[cfg(feature = "redis")]
    pub(crate) async fn redis(app: &str) -> Result<Place> {
        static SERVER: Shared<testkit::Redis> = Shared::new();
        Ok(Place::new(SERVER.get(testkit::Redis::start).await?.url(), app))
    }

    #[cfg(feature = "redis")]
    pub(crate) async fn redis_cluster(app: &str) -> Result<Place> {
        static SERVER: Shared<testkit::RedisCluster> = Shared::new();
        Ok(Place::new(SERVER.get(testkit::RedisCluster::start).await?.url(), app))
    }

    #[cfg(feature = "sqlite")]
    pub(crate) async fn sqlite(app: &str) -> Result<Place> {
        let folder = tempfile::tempdir()?;
        let url = format!("sqlite://{}/auth.db?mode=rwc", folder.path().display());
        Ok(Place { _folder: Some(folder), ..Place::new(url, app) })
    }

    #[cfg(feature = "postgres")]
    pub(crate) async fn postgres(app: &str) -> Result<Place> {
        static SERVER: Shared<testkit::Postgres> = Shared::new();
        let place =
            Place::new(SERVER.get(|| testkit::Postgres::start(0)).await?.node(0).url(), app);
        crate::common::migrate(&place.url).await?;
        Ok(place)
    }

    #[cfg(feature = "mysql")]
    pub(crate) async fn mariadb(app: &str) -> Result<Place> {
        static SERVER: Shared<testkit::MariaDb> = Shared::new();
        let place = Place::new(SERVER.get(|| testkit::MariaDb::start(0)).await?.node(0).url(), app);
        crate::common::migrate(&place.url).await?;
        Ok(place)
    }
}

/// Returns how many of 64 tasks, alternating between two handles, get `true`.
async fn winners<F, Fut>(ledgers: [&OneTimeStore; 2], one: F) -> Result<usize>
where
    F: Fn(OneTimeStore) -> Fut,
    Fut: Future<Output = bool> + Send + 'static,
{
    let tasks: Vec<_> = (0..64).map(|n| tokio::spawn(one(ledgers[n % 2].clone()))).collect();
    let mut winners = 0;
    for task in tasks {
        winners += usize::from(task.await?);
    }
    Ok(winners)
}

const MINUTE: Duration = Duration::from_mins(1);

fn keys() -> Result<Keys> {
    Ok(Keys::new(&[7; 32])?)
}

/// A key is claimed once by any handle, and again after its expiry; scopes and keys are separate.
async fn a_claim_succeeds_once(here: &OneTimeStore, there: &OneTimeStore) -> Result<()> {
    let claim = |l: OneTimeStore| async move { l.claim("scope", "key", MINUTE).await.unwrap() };
    assert_eq!(winners([here, there], claim).await?, 1);
    assert!(
        here.claim("scope2", "key", MINUTE).await? && here.claim("scope", "key2", MINUTE).await?
    );
    assert!(here.claim("scopek", "ey", MINUTE).await?, "no two names are one");
    assert!(here.claim("short", "key", Duration::from_millis(1)).await?);
    testkit::eventually("it to be over", async || {
        there.claim("short", "key", MINUTE).await.ok()?.then_some(())
    })
    .await?;
    for odd in ["", "a\0b", "{braces}", &"x".repeat(10_000), "ключ'; drop table users; --"] {
        assert!(here.claim("odd", odd, MINUTE).await? && !there.claim("odd", odd, MINUTE).await?);
    }
    assert!(here.claim("for", "ever", Duration::MAX).await?);
    Ok(())
}

async fn a_totp_code_is_good_once(here: &OneTimeStore, there: &OneTimeStore) -> Result<()> {
    let totp = Totp::generate()?.skew(1);
    let code = one_time_code(&totp.secret());
    let verify = |one_time: OneTimeStore| {
        let (totp, code) = (totp.clone(), code.clone());
        async move { totp.verify(&one_time, "ann", &code).await.unwrap() }
    };
    assert_eq!(winners([here, there], verify).await?, 1);
    Ok(())
}

async fn a_recovery_code_is_good_once(here: &OneTimeStore, there: &OneTimeStore) -> Result<()> {
    let made = recovery::generate()?;
    let redeem = |one_time: OneTimeStore| {
        let made = made.clone();
        async move {
            let redeemed = recovery::redeem(&one_time, "ann", &made.codes[0], &made.hashes).await;
            redeemed.unwrap().is_some()
        }
    };
    assert_eq!(winners([here, there], redeem).await?, 1);
    Ok(())
}

async fn a_link_is_redeemed_once(here: &OneTimeStore, there: &OneTimeStore) -> Result<()> {
    let token = Tokens::new(keys()?, here).make("reset", "user:7", &["hash"], MINUTE)?;
    let redeem = |one_time: OneTimeStore| {
        let (tokens, token) = (Tokens::new(keys().unwrap(), &one_time), token.clone());
        async move { tokens.redeem("reset", &token, &["hash"]).await.unwrap().is_some() }
    };
    assert_eq!(winners([here, there], redeem).await?, 1);
    Ok(())
}

/// Concurrent requests of a page get the same cookie, and a stolen cookie ends the chain on all
/// servers.
async fn a_persistent_log_in_is_one_chain_of_cookies(
    here: &OneTimeStore,
    there: &OneTimeStore,
) -> Result<()> {
    let (a, b) = (Remember::new(keys()?, here, MINUTE), Remember::new(keys()?, there, MINUTE));
    let first = a.begin("user:7", "hash").await?;
    let mut seen = std::collections::HashSet::new();
    for n in 0..20 {
        match (if n % 2 == 0 { &a } else { &b }).refresh(&first, "hash").await? {
            Refreshed::Good { cookie, .. } => seen.insert(cookie),
            other => anyhow::bail!("{other:?}"),
        };
    }
    assert_eq!(seen.len(), 1);
    let mut latest = seen.into_iter().next().unwrap();
    for n in 0..3 {
        match (if n % 2 == 0 { &b } else { &a }).refresh(&latest, "hash").await? {
            Refreshed::Good { cookie, .. } => latest = cookie,
            other => anyhow::bail!("{other:?}"),
        }
    }
    assert!(
        matches!(a.refresh(&first, "hash").await?, Refreshed::Stolen { .. }),
        "four turns late"
    );
    assert_eq!(b.refresh(&latest, "hash").await?, Refreshed::No);
    let third = a.begin("user:7", "hash").await?;
    b.end(&third, "hash").await?;
    assert_eq!(a.refresh(&third, "hash").await?, Refreshed::No);
    Ok(())
}

async fn all_sign_ins_end_in_one_step(here: &OneTimeStore, there: &OneTimeStore) -> Result<()> {
    let month = Duration::from_hours(30 * 24);
    let (a, b) = (SessionEpochs::new(here, month), SessionEpochs::new(there, month));
    let first = a.epoch("ann").await?;
    let second = b.epoch("ann").await?;
    let bob = b.epoch("bob").await?;
    assert!(a.is_current("ann", second).await? && b.is_current("ann", first).await?);
    let mine = a.end_all("ann").await?;
    for stamp in [first, second] {
        assert!(!a.is_current("ann", stamp).await? && !b.is_current("ann", stamp).await?);
    }
    assert!(b.is_current("ann", mine).await? && b.is_current("ann", b.epoch("ann").await?).await?);
    assert!(a.is_current("bob", bob).await?, "only her own sign-ins");

    // Twenty sign-ins and twenty ends run concurrently: each sign-in that is valid afterwards took
    // its stamp after the last end.
    let ends = (0..20).map(|n| if n % 2 == 0 { a.end_all("ann") } else { b.end_all("ann") });
    let stamps = (0..20).map(|_| b.epoch("ann"));
    let (ends, stamps) = tokio::join!(
        futures_util::future::try_join_all(ends),
        futures_util::future::try_join_all(stamps)
    );
    let ends = ends?;
    let distinct: std::collections::HashSet<_> =
        ends.iter().map(|stamp| format!("{stamp:?}")).collect();
    assert_eq!(distinct.len(), 20, "each ended the earlier ones");
    let mut holding = Vec::new();
    for stamp in ends {
        if a.is_current("ann", stamp).await? {
            holding.push(stamp);
        }
    }
    assert_eq!(holding.len(), 1, "the last one's");
    for stamp in stamps? {
        assert_eq!(a.is_current("ann", stamp).await?, stamp == holding[0]);
    }
    assert!(!a.is_current("ann", mine).await?);

    // An end is stored for the maximum age of a sign-in; after that, all earlier sign-ins have
    // expired by themselves.
    let keep = Duration::from_millis(300);
    let brief = SessionEpochs::new(here, keep);
    let old = brief.epoch("cid").await?;
    let started = Instant::now();
    let new = brief.end_all("cid").await?;
    let mut asked = started;
    while started.elapsed() < 2 * keep {
        let now = Instant::now();
        let stamp = brief.epoch("cid").await?;
        let stalled = asked.elapsed() >= keep;
        assert!(stamp == new || stalled, "{stamp:?}");
        if stalled {
            break;
        }
        asked = now;
    }
    assert!(!brief.is_current("cid", old).await? || asked.elapsed() >= keep);
    testkit::eventually("it to be forgotten", async || {
        (brief.is_current("cid", new).await.ok() == Some(false)).then_some(())
    })
    .await?;
    let forever = SessionEpochs::new(here, Duration::MAX);
    let last = forever.end_all("eve").await?;
    assert!(forever.is_current("eve", last).await?);
    Ok(())
}

/// A server process that receives the same credential many times concurrently, and reports how many
/// attempts succeeded.
struct Door {
    child: Child,
    answers: Lines<BufReader<ChildStdout>>,
}

impl Door {
    fn open(place: &places::Place) -> Result<Self> {
        let mut helper = testkit::helper("helper_that_lets_people_in")?;
        let mut child =
            helper.env("DOOR_LEDGER", &place.url).env("DOOR_APP", &place.app).spawn()?;
        let answers = BufReader::new(child.stdout.take().context("its output")?).lines();
        let mut door = Self { child, answers };
        anyhow::ensure!(door.hear()? == 0, "it is not ready");
        Ok(door)
    }

    fn tell(&mut self, line: &str) -> Result<()> {
        Ok(writeln!(self.child.stdin.as_mut().context("its input")?, "{line}")?)
    }

    fn hear(&mut self) -> Result<usize> {
        let mut lines = self.answers.by_ref().map_while(Result::ok);
        lines.find_map(|line| line.strip_prefix("in ")?.parse().ok()).context("it says nothing")
    }
}

impl Drop for Door {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// One line a round: the credential presented, and the data that the application stores for it.
#[test]
fn helper_that_lets_people_in() -> Result<()> {
    const AT_ONCE: usize = 32;
    let Ok(url) = std::env::var("DOOR_LEDGER") else { return Ok(()) };
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?.block_on(
        async {
            let app = std::env::var("DOOR_APP")?;
            let one_time = OneTimeStore::connect(&url, &app).await?;
            println!("\nin 0");
            for line in std::io::stdin().lines() {
                let words: Vec<String> = line?.split(' ').map(str::to_owned).collect();
                let submissions = (0..AT_ONCE).map(|_| {
                    let (one_time, words) = (one_time.clone(), words.clone());
                    tokio::spawn(async move {
                        let [kind, stored, presented] = &words[..] else {
                            anyhow::bail!("three words")
                        };
                        Ok(match kind.as_str() {
                            "totp" => {
                                Totp::from_secret(stored)?
                                    .skew(1)
                                    .verify(&one_time, stored, presented)
                                    .await?
                            }
                            "recovery" => recovery::redeem(
                                &one_time,
                                "ann",
                                presented,
                                std::slice::from_ref(stored),
                            )
                            .await?
                            .is_some(),
                            _ => {
                                let tokens = Tokens::new(Keys::new(&[7; 32])?, &one_time);
                                tokens.redeem("reset", presented, &[stored]).await?.is_some()
                            }
                        })
                    })
                });
                let mut let_in = 0;
                for submission in futures_util::future::join_all(submissions).await {
                    let_in += usize::from(submission??);
                }
                println!("\nin {let_in}");
            }
            Ok(())
        },
    )
}

/// Sixty-four submissions to two processes.
async fn credentials_are_good_once_over_two_processes(place: &places::Place) -> Result<()> {
    const ROUNDS: usize = 20;
    let one_time = &place.connect().await?;
    let mut doors = [Door::open(place)?, Door::open(place)?];
    let made = recovery::generate()?;
    let tokens = Tokens::new(Keys::new(&[7; 32])?, one_time);
    for round in 0..ROUNDS {
        let secret = Totp::generate()?.secret();
        let lines = [
            format!("totp {secret} {}", one_time_code(&secret)),
            format!(
                "recovery {} {}",
                made.hashes[round % made.hashes.len()],
                made.codes[round % made.codes.len()]
            ),
            format!(
                "token hash{round} {}",
                tokens.make(
                    "reset",
                    "user:7",
                    &[&format!("hash{round}")],
                    Duration::from_mins(1)
                )?
            ),
        ];
        for line in lines {
            doors.iter_mut().try_for_each(|door| door.tell(&line))?;
            let let_in = doors[0].hear()? + doors[1].hear()?;
            let again = line.starts_with("recovery") && round >= made.codes.len();
            assert_eq!(let_in, usize::from(!again), "{line}");
        }
    }
    Ok(())
}

/// Returns the code that an app would show now, computed by a second implementation of RFC 4226
/// that operates on the bits directly.
fn one_time_code(secret: &str) -> String {
    use hmac::{Hmac, KeyInit, Mac};
    let key = data_encoding::BASE32_NOPAD.decode(secret.as_bytes()).unwrap();
    let step =
        std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs() / 30;
    let mut mac = Hmac::<sha1::Sha1>::new_from_slice(&key).unwrap();
    mac.update(&step.to_be_bytes());
    let digest = mac.finalize().into_bytes();
    let start = (digest[19] & 0xf) as usize;
    let bits =
        digest[start..start + 4].iter().fold(0_u64, |bits, byte| (bits << 8) | u64::from(*byte));
    format!("{:06}", (bits & 0x7fff_ffff) % 1_000_000)
}

#[cfg(feature = "redis")]
mod one_time_redis {
    use super::*;
    use testkit::{Proxy, Redis};

    /// The keys contain nothing that a user typed.
    #[tokio::test]
    async fn store_keys_are_hashes() -> Result<()> {
        let server = Redis::start().await?;
        let one_time = OneTimeStore::connect(&server.url(), "test").await?;
        assert!(one_time.claim("totp", "ann", MINUTE).await?);
        let made = recovery::generate()?;
        recovery::redeem(&one_time, "ann", &made.codes[0], &made.hashes).await?;
        let keys = server.command(&["KEYS", "*"]).await?;
        assert!(keys.lines().count() == 2 && !keys.contains("ann"), "{keys}");
        Ok(())
    }

    #[tokio::test]
    async fn a_ledger_that_does_not_answer_lets_nobody_in() -> Result<()> {
        let server = Redis::start().await?;
        let proxy = Proxy::start(server.port()).await?;
        let one_time =
            OneTimeStore::connect(&format!("redis://127.0.0.1:{}", proxy.port()), "test").await?;
        let remember = Remember::new(Keys::new(&[7; 32])?, &one_time, Duration::from_mins(1));
        let cookie = remember.begin("user:7", "hash").await?;
        proxy.cut();
        assert!(one_time.claim("scope", "key", Duration::from_mins(1)).await.is_err());
        assert!(remember.refresh(&cookie, "hash").await.is_err());
        proxy.heal();
        testkit::eventually("it to answer again", async || {
            remember.refresh(&cookie, "hash").await.ok()
        })
        .await?;
        Ok(())
    }

    #[tokio::test]
    async fn families_and_claims_end_by_themselves() -> Result<()> {
        let server = Redis::start().await?;
        let store = scale_session::auth::one_time_store::RedisLedger::new(
            scale_redis::Redis::connect(&server.url()).await?,
            "test",
        );
        store.open("family", Duration::from_millis(50)).await?;
        store.claim("claim", Duration::from_millis(50)).await?;
        assert_eq!(
            store.turn("family", 5, Duration::ZERO).await?,
            FamilyAdvance::Gone,
            "a turn from the future"
        );
        testkit::eventually("both to end", async || {
            (server.command(&["DBSIZE"]).await.ok()? == "0").then_some(())
        })
        .await?;
        assert_eq!(store.turn("family", 0, Duration::ZERO).await?, FamilyAdvance::Gone);
        Ok(())
    }
}

/// Concurrent appends form one chain without branches, and a manual change in the table is
/// detected.
#[cfg(feature = "sql")]
async fn an_audit_log_is_one_chain(place: &places::Place) -> Result<()> {
    use scale_session::auth::AuditLog;
    use scale_session::auth::audit::{Event, Keys, Tampered};

    let keys = Keys::new(&[7; 32])?;
    // Two processes.
    let logs = [
        AuditLog::connect(&place.url, &place.app, keys.clone()).await?,
        AuditLog::connect(&place.url, &place.app, keys).await?,
    ];
    let writers: Vec<_> = (0..8)
        .map(|n| {
            let log = logs[n % 2].clone();
            tokio::spawn(async move {
                for m in 0..50 {
                    let event = Event::new(format!("user {n}"), "log.in");
                    log.append(event.details(format!("'{m}\0\"é"))).await?;
                }
                anyhow::Ok(())
            })
        })
        .collect();
    for writer in writers {
        writer.await??;
    }
    let head = logs[0].head().await?;
    assert_eq!(head.number, 400);
    assert_eq!(logs[1].verify(Some(head)).await?, Ok(400));
    sqlx::any::install_default_drivers();
    let table = sqlx::AnyPool::connect(&place.url).await?;
    for (change, back, found) in [
        (
            "update scale_audit set actor = concat('x', actor) where number = 200",
            "update scale_audit set actor = substr(actor, 2) where number = 200",
            Tampered::Record(200),
        ),
        (
            "update scale_audit set number = -7 where number = 9",
            "update scale_audit set number = 9 where number = -7",
            Tampered::Missing(10),
        ),
        (
            "update scale_audit set number = -400 where number = 400",
            "update scale_audit set number = 400 where number = -400",
            Tampered::Truncated { ends: 399, anchor: 400 },
        ),
    ] {
        sqlx::raw_sql(change).execute(&table).await?;
        assert_eq!(logs[0].verify(Some(head)).await?, Err(found), "{change}");
        sqlx::raw_sql(back).execute(&table).await?;
        assert_eq!(logs[0].verify(Some(head)).await?, Ok(400));
    }
    table.close().await;
    Ok(())
}
