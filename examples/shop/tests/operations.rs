//! Files for operators: they are valid, and name metrics that the shop really exports.
#![allow(clippy::unwrap_used)]

mod common;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use common::{Shop, Visitor, fleet, journey, receipt, start};
use serde_json::Value;
use testkit::{Postgres, Redis, eventually};

fn ops(file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("ops").join(file)
}

fn runs(program: &str, words: &[&str], folder: &Path) -> Result<String> {
    let output = Command::new(program)
        .args(words)
        .current_dir(folder)
        .output()
        .with_context(|| format!("{program} is missing: ./test installs it"))?;
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said).into_owned();
    ensure!(output.status.success(), "{program} {words:?}: {said}");
    Ok(said)
}

#[test]
fn the_alerts_fire_when_they_should() -> Result<()> {
    let folder = ops("prometheus");
    runs("promtool", &["check", "config", "prometheus.yml"], &folder)?;
    runs("promtool", &["test", "rules", "rules.test.yml"], &folder)?;
    // Each alert has a test.
    let [rules, tests] =
        ["rules.yml", "rules.test.yml"].map(|file| std::fs::read_to_string(folder.join(file)));
    let (rules, tests) = (rules?, tests?);
    for alert in rules.lines().filter_map(|line| line.trim().strip_prefix("- alert: ")) {
        assert!(tests.contains(&format!("alertname: {alert}\n")), "{alert} has no test");
    }
    Ok(())
}

#[test]
fn the_balancers_accept_their_files() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let path = |name: &str| folder.path().join(name).display().to_string();
    let (key, certificate) = (path("shop.key"), path("shop.crt"));
    let words = ["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"];
    let more = ["-days", "1", "-subj", "/CN=shop", "-keyout", &key, "-out", &certificate];
    runs("openssl", &[&words[..], &more].concat(), folder.path())?;
    let both =
        format!("{}{}", std::fs::read_to_string(&certificate)?, std::fs::read_to_string(&key)?);
    std::fs::write(path("shop.pem"), both)?;

    let haproxy = std::fs::read_to_string(ops("haproxy/haproxy.cfg"))?;
    std::fs::write(path("haproxy.cfg"), haproxy.replace("/etc/haproxy/", &path("")))?;
    runs("/usr/sbin/haproxy", &["-c", "-f", &path("haproxy.cfg")], folder.path())?;
    let nginx = std::fs::read_to_string(ops("nginx/nginx.conf"))?;
    let nginx =
        nginx.replace("/etc/nginx/shop.pem", &certificate).replace("/etc/nginx/", &path(""));
    let nginx = format!("pid {};\n{nginx}", path("nginx.pid"));
    std::fs::write(path("nginx.conf"), nginx)?;
    let words = ["-t", "-c", &path("nginx.conf"), "-e", &path("error.log"), "-p", &path("")];
    runs("/usr/sbin/nginx", &words, folder.path()).map(drop)
}

/// Returns the metrics that an expression of Prometheus names, as they are exported.
fn named(expression: &str) -> BTreeSet<String> {
    let is_part = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == ':';
    let words = expression.split(|c: char| !is_part(c));
    let ours = ["http_server_", "process_", "scale_", "shop_"];
    words
        .filter(|word| ours.iter().any(|start| word.starts_with(start)))
        .map(str::to_owned)
        .collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dashboard_and_rules_name_what_is_exported() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let (postgres, redis) = tokio::try_join!(Postgres::start(1), Redis::start())?;
    let config = fleet(folder.path(), &postgres, &redis, "1ms")?;
    let (seed, _) = start(folder.path(), &["--config", &config, "seed"])?;
    eventually("the seed", async || (!seed.is_running()).then_some(())).await?;
    common::account(&config, "ann@example.com", "customer", "correct horse battery staple")?;
    postgres.caught_up().await?;
    let web = Shop::open(folder.path(), &["--config", &config, "serve"]).await?;
    let (worker, log) = start(folder.path(), &["--config", &config, "work"])?;
    let operations = eventually("the worker's address for operators", async || {
        let text = std::fs::read_to_string(&log).ok()?;
        let url = text.lines().find_map(|line| line.strip_prefix("For operators: "))?;
        Some(url.trim_end_matches("/metrics").to_owned())
    })
    .await?;
    let mut ann = Visitor::new();
    let order = journey(&mut ann, &[&web.base], 1).await?;
    receipt(&mut ann, &web.base, &order).await?;
    let form = [("email", "ann@example.com"), ("password", "correct horse battery staple")];
    assert_eq!(ann.post(&web.base, "/login", &form).await?.status, 200);
    ann.get(&web.base, "/products/x").await?;

    let wanted = {
        let rules = std::fs::read_to_string(ops("prometheus/rules.yml"))?;
        let dashboard: Value =
            serde_json::from_str(&std::fs::read_to_string(ops("grafana/shop.json"))?)?;
        let panels = dashboard["panels"].as_array().context("panels")?;
        let targets = panels.iter().filter_map(|panel| panel["targets"].as_array()).flatten();
        let shown = targets.filter_map(|target| target["expr"].as_str()).flat_map(named);
        shown.chain(named(&rules)).collect::<BTreeSet<String>>()
    };
    assert!(wanted.len() > 20, "{wanted:?}");
    let web_operations = web.operations.clone().context("an address for operators")?;
    let exported = async || {
        let mut exported = String::new();
        for address in [&web_operations, &operations] {
            exported += &Visitor::new().get(address, "/metrics").await.ok()?.body;
        }
        let names = exported.lines().filter(|line| !line.starts_with('#'));
        let names: BTreeSet<String> =
            names.filter_map(|line| Some(line.split(['{', ' ']).next()?.to_owned())).collect();
        Some((names, exported))
    };
    let missing = async || {
        let (names, _) = exported().await?;
        Some(wanted.difference(&names).cloned().collect::<Vec<_>>())
    };
    if eventually("all metrics", async || missing().await?.is_empty().then_some(())).await.is_err()
    {
        anyhow::bail!("no process exports {:?}", missing().await.context("an answer")?);
    }
    let (_, text) = exported().await.context("an answer")?;
    let count = "http_server_request_duration_seconds_count{method=\"GET\",\
        route=\"/products/{id}\",status=\"400\"} 1\n";
    assert!(text.contains(count), "{text}");

    // The worker is ready while its queue answers, and lives in any case.
    let mut probe = Visitor::new();
    assert_eq!(probe.get(&operations, "/health/ready").await?.status, 200);
    redis.pause()?;
    eventually("the worker not to be ready", async || {
        let answer = Visitor::new().get(&operations, "/health/ready").await.ok()?;
        (answer.status == 503).then_some(())
    })
    .await?;
    assert_eq!(probe.get(&operations, "/health/live").await?.status, 200);
    redis.resume()?;
    eventually("the worker to be ready", async || {
        let answer = Visitor::new().get(&operations, "/health/ready").await.ok()?;
        (answer.status == 200).then_some(())
    })
    .await?;
    worker.terminate()?;
    eventually("the worker to stop", async || (!worker.is_running()).then_some(())).await?;
    web.close().await
}
