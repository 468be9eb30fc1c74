//! The script of faults, played unattended, with a table of what it cost.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use testkit::eventually;

use super::action::Action;
use super::{Cluster, say};

/// Actions, and the seconds that customers go on after each.
const SCRIPT: [(&str, u64); 13] = [
    ("roll", 2),
    ("kill worker-1", 4),
    ("resume worker-1", 2),
    ("kill web-1", 4),
    ("resume web-1", 2),
    ("pause web-2", 4),
    ("resume web-2", 2),
    ("kill replica", 4),
    ("resume replica", 4),
    ("kill redis", 8),
    ("resume redis", 4),
    ("promote", 8),
    ("roll", 2),
];

/// Plays the script.
///
/// # Errors
/// If an acknowledged order was lost, or its receipt was never sent.
pub(super) async fn play(cluster: &Cluster) -> Result<()> {
    say("| action | seconds | requests | failed | failed % |");
    say("| --- | ---: | ---: | ---: | ---: |");
    tokio::time::sleep(Duration::from_secs(2)).await;
    row(cluster, "nothing", 3, async || Ok(())).await?;
    for (words, seconds) in SCRIPT {
        let action: Action = words.parse()?;
        row(cluster, words, seconds, async || cluster.act(&action).await).await?;
    }
    cluster.customers.stop().await;
    let primary = cluster.primary().await;
    let account = async || cluster.customers.account(&cluster.fleet.postgres, primary).await;
    let receipts = eventually("the receipts of all orders", async || {
        account().await.ok().filter(|account| account.receipts_missing == 0)
    });
    let account = match receipts.await {
        Ok(account) => account,
        Err(_) => account().await?,
    };
    say(&format!(
        "\n{} orders acknowledged, {} lost; {} receipts missing; {} sessions lost; {} of {} \
         requests failed",
        account.orders,
        account.orders_lost,
        account.receipts_missing,
        account.sessions_lost,
        account.failures,
        account.requests
    ));
    ensure!(account.orders > 0, "nothing was bought");
    ensure!(account.orders_lost == 0, "acknowledged orders were lost");
    ensure!(account.receipts_missing == 0, "receipts were never sent: jobs were lost");
    Ok(())
}

/// Does something, lets the customers go on, and prints what they have noticed.
async fn row(
    cluster: &Cluster,
    words: &str,
    seconds: u64,
    act: impl AsyncFnOnce() -> Result<()>,
) -> Result<()> {
    let (requests, failures) = (cluster.customers.requests(), cluster.customers.failures());
    let began = Instant::now();
    act().await?;
    tokio::time::sleep(Duration::from_secs(seconds)).await;
    let requests = cluster.customers.requests() - requests;
    let failures = cluster.customers.failures() - failures;
    say(&format!(
        "| {words} | {:.1} | {requests} | {failures} | {:.2} |",
        began.elapsed().as_secs_f64(),
        100.0 * failures as f64 / requests.max(1) as f64
    ));
    Ok(())
}
