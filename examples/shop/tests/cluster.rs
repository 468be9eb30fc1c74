//! The fleet on this machine: its page, its load, its script of faults.
#![allow(clippy::unwrap_used)]

mod common;

use std::process::Command;

use anyhow::{Context, Result};
use common::{Visitor, journey, receipt, start};
use serde_json::Value;
use testkit::eventually;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_cluster_opens_shows_itself_and_is_broken_by_buttons() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let words = ["cluster", "--listen", "127.0.0.1:0", "--live", "127.0.0.1:0", "--webs", "2"];
    let (process, log) = start(folder.path(), &words)?;
    let line = |text: &str, name: &str| {
        text.lines().find_map(|l| Some(l.strip_prefix(name)?.trim().to_owned()))
    };
    let text = eventually("the fleet to open", async || {
        let text = std::fs::read_to_string(&log).ok()?;
        text.contains("Ctrl-C").then_some(text)
    })
    .await
    .with_context(|| std::fs::read_to_string(&log).unwrap_or_default())?;
    let base = line(&text, "shop ").context("the shop")?;
    let live = line(&text, "live page ").context("the live page")?;
    let mut visitor = Visitor::new();
    let order = journey(&mut visitor, &[&base], 3).await?;
    receipt(&mut visitor, &base, &order).await?;

    let page = Visitor::new().get(&live, "/").await?.body;
    assert!(page.contains("data-action=\"roll\""), "{page}");
    let state = async || -> Option<Value> {
        serde_json::from_str(&Visitor::new().get(&live, "/state").await.ok()?.body).ok()
    };
    let part = |state: &Value, name: &str| -> Option<bool> {
        let parts = state["parts"].as_array()?;
        parts.iter().find(|part| part["name"] == name)?["is_well"].as_bool()
    };
    eventually("customers, and everything well", async || {
        let state = state().await?;
        let parts = state["parts"].as_array()?;
        let is_well = parts.len() == 9 && parts.iter().all(|part| part["is_well"] == true);
        (is_well && state["account"]["orders"].as_u64()? > 5).then_some(())
    })
    .await?;
    let act = async |action: &str| -> Result<u16> {
        let answer = Visitor::new().post(&live, "/act", &[("action", action)]).await?;
        Ok(answer.status.as_u16())
    };
    assert_eq!(act("kill web-1").await?, 202);
    let is = async |name: &str, well: bool| {
        eventually(&format!("{name} to be seen as {well}"), async || {
            (part(&state().await?, name)? == well).then_some(())
        })
        .await
    };
    is("web-1", false).await?;
    assert_eq!(visitor.get(&base, &order).await?.status, 200, "the other one serves");
    assert_eq!(act("resume web-1").await?, 202);
    is("web-1", true).await?;
    assert_eq!(act("kill everything").await?, 202);
    eventually("a word on it", async || {
        state().await?["last"].as_str()?.contains("there is no everything").then_some(())
    })
    .await?;
    assert_eq!(act("dance").await?, 422);
    let mut elsewhere = Visitor::new();
    elsewhere.headers.push(("sec-fetch-site", "cross-site".into()));
    let answer = elsewhere.post(&live, "/act", &[("action", "roll")]).await?;
    assert_eq!(answer.status, 403, "another site presses no button");
    let mut rebound = Visitor::new();
    rebound.headers.push(("host", "evil.example".into()));
    assert_eq!(rebound.get(&live, "/state").await?.status, 403, "nor does its name, led here");
    process.terminate()?;
    eventually("the fleet to close", async || (!process.is_running()).then_some(())).await
}

/// Runs the shop's program to its end, and returns what it printed.
async fn output(words: &[&str]) -> Result<String> {
    let mut command = Command::new(env!("CARGO_BIN_EXE_shop"));
    command.args(words);
    let output = tokio::task::spawn_blocking(move || command.output()).await??;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    anyhow::ensure!(output.status.success(), "{said}\n{errors}");
    Ok(said)
}

/// The script: rolling replacement, kills and pauses of web processes, workers, a replica, Redis
/// and the primary. Nothing that was acknowledged is lost.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_lost_in_the_script_of_faults() -> Result<()> {
    let words = ["cluster", "--chaos", "--listen", "127.0.0.1:0", "--customers", "4"];
    let said = output(&[&words[..], &["--live", "127.0.0.1:0"]].concat()).await?;
    let end = said.lines().find(|line| line.contains("orders acknowledged")).context("the end")?;
    assert!(end.contains(" 0 lost; 0 receipts missing; 0 sessions lost;"), "{said}");
    // A replacement of all web processes costs nobody a request.
    for line in said.lines().filter(|line| line.starts_with("| roll") || line.starts_with("| noth"))
    {
        assert!(line.ends_with("| 0 | 0.00 |"), "{said}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_load_is_measured_and_drawn() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let svg = folder.path().join("load.svg").display().to_string();
    let words = ["load", "--tier", "embedded", "--rate", "40,80", "--seconds", "2"];
    let more = ["--visitors", "20", "--connections", "16", "--svg", &svg];
    let said = output(&[&words[..], &more].concat()).await?;
    let rows: Vec<Vec<f64>> = said
        .lines()
        .map(|line| line.split('|').filter_map(|cell| cell.trim().parse().ok()).collect())
        .filter(|row: &Vec<f64>| row.len() == 7)
        .collect();
    assert_eq!(rows.len(), 2, "{said}");
    for row in rows {
        assert!(row[2] == 0.0, "some failed: {said}");
        assert!(row[3] <= row[4] && row[4] <= row[5] && row[5] <= row[6], "{said}");
    }
    assert!(std::fs::read_to_string(&svg)?.contains("embedded p95"));
    Ok(())
}
