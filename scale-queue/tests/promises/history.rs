//! Jobs that have ended, kept when asked, and their tags, on every store.

use std::collections::HashSet;
use std::time::Duration;

use anyhow::Result;
use scale_queue::outcome::Discard;
use scale_queue::push::PushOptions;
use scale_queue::{Context, Error, Job, Queue, Worker};
use serde::{Deserialize, Serialize};
use testkit::eventually;
use tokio::sync::mpsc;

use crate::on_every_store;
use crate::server::{Server, is_empty, run, until};

#[derive(Serialize, Deserialize)]
struct Invoice {
    customer: u32,
    bad: bool,
}

impl Job for Invoice {
    const NAME: &'static str = "invoice";

    fn tags(&self) -> Vec<String> {
        vec![format!("customer:{}", self.customer)]
    }
}

on_every_store! {
    ended_jobs_are_found_by_their_tags,
    kept_jobs_are_bounded,
    a_killed_worker_keeps_each_job_once,
}

crate::on_stores! { of_cluster: "cluster"; ended_jobs_are_found_by_their_tags }
crate::on_stores! { behind_pgbouncer: "pooled"; ended_jobs_are_found_by_their_tags }

const LONG: Duration = Duration::from_hours(1);

fn invoice(customer: u32) -> Invoice {
    Invoice { customer, bad: false }
}

fn worker(queue: &Queue, most: usize) -> Worker {
    Worker::new(queue).keep_ended(most, LONG).handle(|job: Invoice| async move {
        if job.bad { Err(Discard::because("no such customer")) } else { Ok(()) }
    })
}

async fn ended_jobs_are_found_by_their_tags(server: &Server) -> Result<()> {
    let queue = server.queue().await?;
    let worker = run(worker(&queue, 100));
    for customer in 1..=3 {
        queue.push(invoice(customer)).tag("all").tag("a: b/ü").await?;
    }
    let dead = queue.push(Invoice { customer: 2, bad: true }).await?;
    queue.chain().then(invoice(7).with(PushOptions::new().tag("chained"))).push().await?;
    until(&queue, "default", "all jobs", is_empty).await?;
    let customers = async |tag: &str| -> Result<Vec<u32>> {
        let found = queue.ended_with_tag("default", tag, 0, 10).await?;
        let customer = |payload: &str| -> Result<u32> {
            Ok(serde_json::from_str::<Invoice>(payload)?.customer)
        };
        let mut all: Vec<_> =
            found.iter().map(|job| customer(&job.payload)).collect::<Result<_>>()?;
        all.sort_unstable();
        Ok(all)
    };
    assert_eq!(customers("customer:2").await?, [2, 2]);
    assert_eq!(customers("all").await?, [1, 2, 3]);
    assert_eq!(customers("a: b/ü").await?, [1, 2, 3]);
    assert_eq!(customers("chained").await?, [7]);
    assert_eq!(customers("customer:9").await?, [] as [u32; 0]);
    let ended = queue.ended("default", 0, 10).await?;
    assert_eq!(ended.len(), 5);
    assert!(ended.is_sorted_by_key(|job| std::cmp::Reverse(job.ended_ms)), "the newest first");
    let found = ended.iter().find(|job| job.id == Some(dead.id)).unwrap();
    assert_eq!((found.reason.as_deref(), found.failed), (Some("no such customer"), 1));
    assert_eq!((&*found.name, &found.tags), ("invoice", &vec!["customer:2".to_owned()]));
    assert!(ended.iter().filter(|job| job.reason.is_none()).count() == 4);
    let (first, rest) = (queue.ended("default", 0, 2).await?, queue.ended("default", 2, 10).await?);
    assert_eq!((first.len(), rest.len()), (2, 3));
    // A revived job that ends again has one record.
    assert_eq!(queue.revive_all("default").await?, 1);
    until(&queue, "default", "its end", |stats| is_empty(stats) && stats.dead == 1).await?;
    assert_eq!(queue.ended("default", 0, 10).await?.len(), 5);
    for tags in [vec![String::new()], vec!["x".repeat(65)], (0..9).map(|n| n.to_string()).collect()]
    {
        let mut push = queue.push(invoice(1));
        for tag in &tags {
            push = push.tag(tag);
        }
        assert!(matches!(push.await, Err(Error::Setting(_))), "{tags:?}");
    }
    worker.stop().await
}

async fn kept_jobs_are_bounded(server: &Server) -> Result<()> {
    let queue = server.queue().await?;
    let worker = run(worker(&queue, 20).concurrency(4));
    queue.push_many((0..600).map(invoice)).await?;
    until(&queue, "default", "all jobs", is_empty).await?;
    // A database removes some of them at once, not with each end.
    let kept = queue.ended("default", 0, 1_000).await?;
    assert!((20..400).contains(&kept.len()), "{}", kept.len());
    let kept: HashSet<_> = kept.into_iter().flat_map(|job| job.tags).collect();
    for customer in 0..600 {
        let tag = format!("customer:{customer}");
        let found = queue.ended_with_tag("default", &tag, 0, 10).await?.len();
        assert_eq!(found, usize::from(kept.contains(&tag)), "a tag dies with its job");
    }
    worker.stop().await
}

/// Workers are killed while jobs end: each job has one record.
async fn a_killed_worker_keeps_each_job_once(server: &Server) -> Result<()> {
    let queue = server.queue().await?;
    let (begun, mut begins) = mpsc::unbounded_channel();
    let start = || {
        let begun = begun.clone();
        let worker = Worker::new(&queue).keep_ended(1_000, LONG).concurrency(8);
        run(worker.lease(Duration::from_millis(300)).handle(move |_: Invoice, _: Context| {
            begun.send(()).unwrap();
            async {}
        }))
    };
    queue.push_many((0..200).map(invoice)).await?;
    for _ in 0..4 {
        let worker = start();
        for _ in 0..20 {
            begins.recv().await;
        }
        worker.kill().await;
    }
    let worker = start();
    until(&queue, "default", "all jobs", is_empty).await?;
    let all = async || (queue.ended("default", 0, 1_000).await.ok()?.len() == 200).then_some(());
    eventually("a record of each job", all).await?;
    worker.stop().await
}
