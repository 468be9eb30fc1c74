//! Schedules of processes that stop for a while.

use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::Result;
use scale_queue::{Job, Queue, Scheduler};
use serde::{Deserialize, Serialize};
use testkit::{Redis, eventually, helper};

#[derive(Serialize, Deserialize)]
struct Tick;

impl Job for Tick {
    const NAME: &'static str = "tick";
}

fn signal(process: u32, name: &str) -> Result<()> {
    let sent = Command::new("kill").arg(format!("-{name}")).arg(process.to_string()).status()?;
    anyhow::ensure!(sent.success(), "kill -{name}");
    Ok(())
}

/// After a stop, `every` makes up for one missed run, not for each.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_process_that_was_stopped_makes_up_for_one_moment() -> Result<()> {
    let server = Redis::start().await?;
    let queue = Queue::connect(&server.url(), "test").await?;
    let mut process = helper("schedules::helper_that_keeps_a_schedule")?
        .env("SCHEDULE_URL", server.url())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()?;
    let pushed = async || anyhow::Ok(queue.stats("default").await?.pushed_total);
    eventually("its first ticks", async || (pushed().await.ok()? >= 3).then_some(())).await?;
    signal(process.id(), "STOP")?;
    let before = pushed().await?;
    // Fifteen missed runs at 200 ms.
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert!(pushed().await? <= before + 1);
    signal(process.id(), "CONT")?;
    let before = pushed().await?;
    let start = std::time::Instant::now();
    eventually("it to go on", async || (pushed().await.ok()? >= before + 3).then_some(())).await?;
    // Three more runs take at least two periods, unless all fifteen were made up for at once.
    assert!(
        start.elapsed() >= Duration::from_millis(300),
        "{:?} for three moments of 200 ms",
        start.elapsed()
    );
    process.kill()?;
    process.wait()?;
    Ok(())
}

#[test]
fn helper_that_keeps_a_schedule() -> Result<()> {
    let Ok(url) = std::env::var("SCHEDULE_URL") else { return Ok(()) };
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
        let queue = Queue::connect(&url, "test").await?;
        Scheduler::new(&queue)
            .every("tick", Duration::from_millis(200), || Tick)?
            .run(std::future::pending::<()>())
            .await;
        Ok(())
    })
}
