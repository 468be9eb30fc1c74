//! Trace context of OpenTelemetry: a job carries the context of the span in which it was pushed.
//!
//! | when | then |
//! | --- | --- |
//! | a job is pushed in a span that is traced | the context is added to its [metadata](crate::Context::metadata), by the propagator that the application has set: usually `traceparent` |
//! | a job follows another one: in a chain, batch or workflow | it carries the context of the push of the first one |
//! | an attempt begins | its span, `job`, links to that context; with [`Worker::continue_traces`](crate::Worker::continue_traces) it is its parent |
//! | an attempt fails | the status of its span is an error |
//!
//! The application sets a propagator, as for its HTTP calls:
//! `opentelemetry::global::set_text_map_propagator(TraceContextPropagator::new())`, and adds the
//! layer of `tracing-opentelemetry` to its subscriber.

use std::collections::HashMap;

use opentelemetry::global::get_text_map_propagator;
use opentelemetry::trace::TraceContextExt;
use tracing::Span;
use tracing_opentelemetry::OpenTelemetrySpanExt;

/// Adds the context of the current span to the metadata of a job. An entry that the application has
/// set is kept.
pub(crate) fn carry(metadata: &mut Vec<(String, String)>) {
    let context = Span::current().context();
    if !context.span().span_context().is_valid() {
        return;
    }
    let mut entries = HashMap::<String, String>::new();
    get_text_map_propagator(|propagator| propagator.inject_context(&context, &mut entries));
    for (name, value) in entries {
        if !value.is_empty() && metadata.iter().all(|(known, _)| *known != name) {
            metadata.push((name, value));
        }
    }
}

/// Lets the span of an attempt follow the push of its job.
pub(crate) fn follow(span: &Span, metadata: &[(String, String)], is_parent: bool) {
    if metadata.is_empty() || span.is_disabled() {
        return;
    }
    let entries: HashMap<String, String> = metadata.iter().cloned().collect();
    let context = get_text_map_propagator(|propagator| propagator.extract(&entries));
    let pushed = context.span().span_context().clone();
    if !pushed.is_valid() {
        return;
    }
    if is_parent {
        // Fails only without the layer of `tracing-opentelemetry`: then nothing is traced.
        let _ = span.set_parent(context);
    } else {
        span.add_link(pushed);
    }
}
