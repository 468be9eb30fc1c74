//! Trace context of OpenTelemetry, from the push of a job to its attempts; and log lines of jobs.
#![cfg(all(feature = "opentelemetry", feature = "logs"))]
#![allow(clippy::unwrap_used)]

mod common;

use std::time::Duration;

use anyhow::Result;
use common::running;
use opentelemetry::trace::{SpanId, Status, TraceId, TracerProvider};
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::{InMemorySpanExporter, SdkTracerProvider, SpanData};
use scale_queue::log::JobLogs;
use scale_queue::{Context, Job, Queue, Retry, Worker};
use serde::{Deserialize, Serialize};
use testkit::eventually;
use tracing::Instrument;
use tracing_subscriber::layer::SubscriberExt;

#[derive(Serialize, Deserialize)]
struct Traced {
    fails: u16,
}

impl Job for Traced {
    const NAME: &'static str = "traced";
    const RETRY: Retry = Retry::custom(3, |_| Duration::from_millis(1));
}

#[derive(Serialize, Deserialize)]
struct Next;

impl Job for Next {
    const NAME: &'static str = "next";
}

fn worker(queue: &Queue) -> Worker {
    let worker = Worker::new(queue).keep_logs(Duration::from_hours(1));
    let worker = worker.handle(|job: Traced, context: Context| async move {
        context.log(&format!("attempt {}", context.attempt));
        tracing::info!(rows = 7, "reads rows");
        if context.attempt <= job.fails { Err("not yet") } else { Ok(()) }
    });
    worker.handle(async |_: Next| {})
}

fn trace_of(span: &SpanData) -> TraceId {
    span.span_context.trace_id()
}

/// The subscriber is one of the process, so all cases are one test.
#[tokio::test]
async fn a_job_carries_the_context_of_its_push() -> Result<()> {
    opentelemetry::global::set_text_map_propagator(TraceContextPropagator::new());
    let exporter = InMemorySpanExporter::default();
    let provider = SdkTracerProvider::builder().with_simple_exporter(exporter.clone()).build();
    let layer = tracing_opentelemetry::layer().with_tracer(provider.tracer("test"));
    let subscriber = tracing_subscriber::registry().with(layer).with(JobLogs::new());
    tracing::subscriber::set_global_default(subscriber)?;

    let queue = Queue::memory();
    let workers = running([worker(&queue)]);
    let pushed = async {
        let pushed = queue.push(Traced { fails: 1 }).await?;
        queue.chain().then(Traced { fails: 0 }).then(Next).push().await?;
        queue.workflow().job("a", Traced { fails: 0 }).job("b", Next).after(["a"]).push().await?;
        anyhow::Ok(pushed)
    };
    let pushed = pushed.instrument(tracing::info_span!("request")).await?;
    let done = async |count: u64| {
        let done = async || (queue.stats("default").await.ok()?.done_total == count).then_some(());
        eventually("the jobs", done).await
    };
    done(5).await?;
    let find = |name: &str| -> Result<Vec<SpanData>> {
        let spans = exporter.get_finished_spans()?;
        Ok(spans.into_iter().filter(|span| span.name == name).collect())
    };
    let request = find("request")?.pop().unwrap();
    let jobs = find("job")?;
    assert_eq!(jobs.len(), 6, "each attempt");
    for job in &jobs {
        let links: Vec<_> = job.links.iter().map(|link| link.span_context.clone()).collect();
        assert_eq!(links.len(), 1);
        assert_eq!(links[0].trace_id(), trace_of(&request));
        assert_eq!(links[0].span_id(), request.span_context.span_id());
        assert_ne!(trace_of(job), trace_of(&request), "a trace of its own");
        assert_eq!(job.parent_span_id, SpanId::INVALID);
    }
    let failed = jobs.iter().filter(|job| matches!(job.status, Status::Error { .. })).count();
    assert_eq!(failed, 1);

    let lines = queue.log(Traced::NAME, pushed.id).await?;
    let lines: Vec<_> = lines.iter().map(|line| (line.attempt, &*line.text)).collect();
    let event = "INFO reads rows rows=7";
    assert_eq!(lines, [(1, "attempt 1"), (1, event), (2, "attempt 2"), (2, event)]);

    // A job that was pushed in no span carries nothing.
    exporter.reset();
    queue.push(Traced { fails: 0 }).await?;
    done(6).await?;
    assert!(find("job")?[0].links.is_empty());
    workers.stop().await?;

    exporter.reset();
    let workers = running([worker(&queue).continue_traces()]);
    let push = async { queue.push(Traced { fails: 0 }).await };
    push.instrument(tracing::info_span!("request")).await?;
    done(7).await?;
    workers.stop().await?;
    let (request, job) = (find("request")?.pop().unwrap(), find("job")?.pop().unwrap());
    assert_eq!(trace_of(&job), trace_of(&request), "one trace");
    assert_eq!(job.parent_span_id, request.span_context.span_id());
    Ok(())
}
