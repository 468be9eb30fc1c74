//! One-time events happen once, on every store, with handles of several processes concurrently.
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

/// Tests two handles, `here` and `there`, of one one-time store.
async fn contract(here: OneTimeStore, there: OneTimeStore) -> Result<()> {
    let both = [&here, &there];
    let minute = Duration::from_mins(1);
    // Claimed once by any handle; again after its expiry; scopes and keys are separate.
    assert_eq!(
        winners(
            both,
            |l| async move { l.claim("scope", "key", Duration::from_mins(1)).await.unwrap() }
        )
        .await?,
        1
    );
    assert!(
        here.claim("scope2", "key", minute).await? && here.claim("scope", "key2", minute).await?
    );
    assert!(here.claim("scopek", "ey", minute).await?, "no two names are one");
    assert!(here.claim("short", "key", Duration::from_millis(1)).await?);
    testkit::eventually("it to be over", async || {
        there.claim("short", "key", minute).await.ok()?.then_some(())
    })
    .await?;
    for odd in ["", "a\0b", "{braces}", &"x".repeat(10_000), "ключ'; drop table users; --"] {
        assert!(here.claim("odd", odd, minute).await? && !there.claim("odd", odd, minute).await?);
    }

    // A TOTP code, a recovery code, a link: one of 64 attempts succeeds.
    let totp = Totp::generate()?.skew(1);
    let secret = totp.secret();
    let code = one_time_code(&secret);
    let verify = |one_time: OneTimeStore| {
        let (totp, code) = (totp.clone(), code.clone());
        async move { totp.verify(&one_time, "ann", &code).await.unwrap() }
    };
    assert_eq!(winners(both, verify).await?, 1);
    let made = recovery::generate()?;
    let redeem = |one_time: OneTimeStore| {
        let made = made.clone();
        async move {
            recovery::redeem(&one_time, "ann", &made.codes[0], &made.hashes)
                .await
                .unwrap()
                .is_some()
        }
    };
    assert_eq!(winners(both, redeem).await?, 1);
    let keys = Keys::new(&[7; 32])?;
    let token = Tokens::new(keys.clone(), &here).make("reset", "user:7", &["hash"], minute)?;
    let redeem = |one_time: OneTimeStore| {
        let (tokens, token) = (Tokens::new(keys.clone(), &one_time), token.clone());
        async move { tokens.redeem("reset", &token, &["hash"]).await.unwrap().is_some() }
    };
    assert_eq!(winners(both, redeem).await?, 1);

    // Persistent log-ins: concurrent requests of a page get the same cookie, and a stolen cookie
    // ends the family on all servers.
    let (a, b) = (Remember::new(keys.clone(), &here, minute), Remember::new(keys, &there, minute));
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
    all_sign_ins_end_in_one_step(&here, &there).await
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
    assert!(
        forever.is_current("eve", last).await? && here.claim("for", "ever", Duration::MAX).await?
    );
    Ok(())
}

/// A server process that receives the same credential many times concurrently, and reports how many
/// attempts succeeded.
struct Door {
    child: Child,
    answers: Lines<BufReader<ChildStdout>>,
}

impl Door {
    fn open(one_time: &str) -> Result<Self> {
        let mut child =
            testkit::helper("helper_that_lets_people_in")?.env("DOOR_LEDGER", one_time).spawn()?;
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
            let one_time = OneTimeStore::connect(&url, "test").await?;
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
fn once_over_two_processes(url: &str, one_time: &OneTimeStore) -> Result<()> {
    const ROUNDS: usize = 20;
    let mut doors = [Door::open(url)?, Door::open(url)?];
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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_code_is_good_once_whoever_sends_it() -> Result<()> {
    let one_time = OneTimeStore::memory();
    contract(one_time.clone(), one_time).await
}

#[cfg(feature = "sqlite")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sqlite() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let url = format!("sqlite://{}?mode=rwc", folder.path().join("ledger.db").display());
    contract(OneTimeStore::connect(&url, "test").await?, OneTimeStore::connect(&url, "test").await?)
        .await
}

#[cfg(feature = "postgres")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn postgres() -> Result<()> {
    let server = testkit::Postgres::start(0).await?;
    let url = server.node(0).url();
    common::migrate(&url).await?;
    contract(
        OneTimeStore::connect(&url, "test").await?,
        OneTimeStore::connect(&url, "test").await?,
    )
    .await?;
    once_over_two_processes(&url, &OneTimeStore::connect(&url, "test").await?)
}

#[cfg(feature = "mysql")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mariadb() -> Result<()> {
    let server = testkit::MariaDb::start(0).await?;
    let url = server.node(0).url();
    common::migrate(&url).await?;
    contract(
        OneTimeStore::connect(&url, "test").await?,
        OneTimeStore::connect(&url, "test").await?,
    )
    .await?;
    once_over_two_processes(&url, &OneTimeStore::connect(&url, "test").await?)
}

#[cfg(feature = "redis")]
mod redis {
    use super::*;
    use testkit::{Proxy, Redis, RedisCluster};

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn standalone() -> Result<()> {
        let server = Redis::start().await?;
        contract(
            OneTimeStore::connect(&server.url(), "test").await?,
            OneTimeStore::connect(&server.url(), "test").await?,
        )
        .await?;
        once_over_two_processes(
            &server.url(),
            &OneTimeStore::connect(&server.url(), "test").await?,
        )?;
        // The keys contain nothing that a user typed.
        let keys = server.command(&["KEYS", "*"]).await?;
        assert!(
            !keys.is_empty() && !keys.contains("ann") && !keys.contains("drop table"),
            "{keys}"
        );
        Ok(())
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn cluster() -> Result<()> {
        let cluster = RedisCluster::start().await?;
        contract(
            OneTimeStore::connect(&cluster.url(), "test").await?,
            OneTimeStore::connect(&cluster.url(), "test").await?,
        )
        .await
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
#[cfg(all(feature = "postgres", feature = "mysql", feature = "sqlite"))]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_audit_log_in_a_database_is_one_chain() -> Result<()> {
    use scale_session::auth::AuditLog;
    use scale_session::auth::audit::{Event, Keys, Tampered};

    let folder = tempfile::tempdir()?;
    let server = testkit::Postgres::start(0).await?;
    let sqlite = format!("sqlite://{}/audit.db?mode=rwc", folder.path().display());
    let maria = testkit::MariaDb::start(0).await?;
    for url in [server.node(0).url(), maria.node(0).url()] {
        common::migrate(&url).await?;
    }
    for url in [server.node(0).url(), maria.node(0).url(), sqlite] {
        let keys = Keys::new(&[7; 32])?;
        // Two processes.
        let logs = [
            AuditLog::connect(&url, "test", keys.clone()).await?,
            AuditLog::connect(&url, "test", keys.clone()).await?,
        ];
        let writers: Vec<_> = (0..8)
            .map(|n| {
                let log = logs[n % 2].clone();
                tokio::spawn(async move {
                    for m in 0..50 {
                        log.append(
                            Event::new(format!("user {n}"), "log.in").details(format!("'{m}\0\"é")),
                        )
                        .await?;
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
            sqlx::any::install_default_drivers();
            let table = sqlx::AnyPool::connect(&url).await?;
            sqlx::raw_sql(change).execute(&table).await?;
            assert_eq!(logs[0].verify(Some(head)).await?, Err(found), "{change}");
            sqlx::raw_sql(back).execute(&table).await?;
            assert_eq!(logs[0].verify(Some(head)).await?, Ok(400));
            table.close().await;
        }
    }
    Ok(())
}
