//! Tests whether answers that must not differ can be distinguished by their time: Welch's t of the
//! two kinds, requested in random order, without the slowest tenth ("Dude, is my code constant
//! time?", Reparaz, Balasch, Verbauwhede, 2017). Above 4.5 they can be distinguished.

use std::future::ready;
use std::sync::atomic::{Ordering::SeqCst, fence};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use scale_session::auth::token::Keys;
use scale_session::auth::{OneTimeStore, Passwords, Tokens};

use crate::Effort;
use crate::measure::{Better, Case};
use crate::report::Report;

const TOLD_APART: f64 = 4.5;

/// Returns the mean, and the variance of the mean.
fn mean(times: &[f64]) -> (f64, f64) {
    let count = times.len() as f64;
    let mean = times.iter().sum::<f64>() / count;
    (mean, times.iter().map(|time| (time - mean).powi(2)).sum::<f64>() / (count - 1.0) / count)
}

/// Compares two kinds of requests; `one` returns the time of a request.
async fn t_of(count: usize, one: impl AsyncFn(bool) -> Result<Duration>) -> Result<f64> {
    let mut times = Vec::with_capacity(count);
    for _ in 0..count {
        let kind = fastrand::bool();
        times.push((one(kind).await?.as_nanos() as f64, kind));
    }
    times.sort_unstable_by(|a, b| a.0.total_cmp(&b.0));
    times.truncate(count * 9 / 10);
    let of =
        |kind| times.iter().filter(|time| time.1 == kind).map(|time| time.0).collect::<Vec<_>>();
    let ((a, a_var), (b, b_var)) = (mean(&of(false)), mean(&of(true)));
    Ok((a - b).abs() / (a_var + b_var).sqrt())
}

async fn told_apart(
    name: &str,
    count: usize,
    one: impl AsyncFn(bool) -> Result<Duration>,
    effort: Effort,
    report: &mut Report,
) {
    let one = &one;
    Case::new(name, "|t|", Better::Lower)
        .subject("scale-session", move || t_of(count, one))
        .subject("told apart", || ready(Ok(TOLD_APART)))
        .target(1.0)
        .bounded()
        .turns(3)
        .measure(effort, report)
        .await;
}

pub(super) async fn run(effort: Effort, report: &mut Report) -> Result<()> {
    // An account that does not exist or has no password, and a wrong password for one that has.
    let passwords = &Passwords::new();
    let stored = &passwords.hash("correct horse battery staple").await?;
    let guesses = 60 * effort.scale;
    let log_in = async |known: bool| {
        let start = Instant::now();
        let verified = passwords.verify("a guess", known.then_some(stored.as_str())).await?;
        let took = start.elapsed();
        ensure!(!verified.is_yes(), "a guess got in");
        Ok(took)
    };
    told_apart("log_in_timing", guesses, log_in, effort, report).await;

    // Two links with a wrong signature: one differs in the last character, one in the first.
    let tokens = &Tokens::new(Keys::new(&[7; 32])?, &OneTimeStore::memory());
    let good = tokens.make("reset", "user:7", &["hash"], Duration::from_hours(1))?;
    // The link ends with a MAC of 32 bytes, in base64url.
    let wrong_at = |late: bool| if late { good.len() - 2 } else { good.len() - 42 };
    // In the same memory, because the address of a text also affects the time. And written
    // completely before the clock starts: memory that was just written is read more slowly, which
    // would reveal the position of the forgery.
    let text = &std::cell::RefCell::new(good.clone());
    let forgeries = 50_000 * effort.scale;
    let redeem = async |late: bool| {
        let mut bytes = text.take().into_bytes();
        bytes.copy_from_slice(good.as_bytes());
        let place = wrong_at(late);
        bytes[place] = if bytes[place] == b'A' { b'B' } else { b'A' };
        let forged = String::from_utf8(bytes)?;
        fence(SeqCst);
        let start = Instant::now();
        let redeemed = tokens.redeem("reset", &forged, &["hash"]).await?;
        let took = start.elapsed();
        ensure!(redeemed.is_none(), "a forgery got in");
        text.replace(forged);
        Ok(took)
    };
    told_apart("reset_timing", forgeries, redeem, effort, report).await;
    Ok(())
}
