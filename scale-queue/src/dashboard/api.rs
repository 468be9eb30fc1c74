//! Answers of the JSON API; its requests are listed in the parent module.

use futures_util::future::try_join_all;
use http::request::Parts;
use http::{HeaderValue, Method, StatusCode};
use serde::Serialize;
use serde_json::{Value, json};
use tokio::time::Instant;

use super::Dashboard;
use crate::ended::EndedJob;
use crate::error::Error;
use crate::format::Failure;
use crate::progress::Progress;
use crate::queue::listing::{Dead, Listing};
use crate::store::{Resolution, State};

/// Maximum number of jobs or batches in one answer.
const PAGE: usize = 50;
/// Number of jobs fetched from the store at once while searching.
const STEP: usize = 100;
/// Maximum number of jobs searched for one answer.
const LOOKED_THROUGH: usize = 2_000;
/// Maximum bytes of their payloads.
const MOST_BYTES: usize = 32 * 1024 * 1024;
/// Number of the newest dead jobs among which a job is searched by id.
const REACH: usize = 1_000;
/// Maximum number of queues whose history is shown together.
const MOST_TOGETHER: usize = 50;
/// Maximum bytes of a payload that are shown.
const SHOWN: usize = 16 * 1024;

type Answer = Result<Value, (StatusCode, String)>;

/// A job of any state.
#[derive(Serialize)]
struct Row {
    id: Option<String>,
    name: String,
    payload: String,
    /// Size of the whole payload, bytes.
    size: usize,
    tags: Vec<String>,
    failed: u16,
    failures: Vec<Failure>,
    /// Error that made the job dead, or error of its last attempt.
    reason: Option<String>,
    pushed_ms: Option<u64>,
    due_ms: Option<u64>,
    died_ms: Option<u64>,
    ended_ms: Option<u64>,
    took_ms: Option<u64>,
    worker: Option<String>,
    /// Limit or handler that a blocked job waits for.
    blocked_by: Option<String>,
    progress: Option<Progress>,
}

/// Cuts a payload to the part that is shown, and returns its original size.
fn cut(mut payload: String) -> (String, usize) {
    let size = payload.len();
    payload.truncate(payload.floor_char_boundary(SHOWN));
    (payload, size)
}

impl From<Dead> for Row {
    fn from(dead: Dead) -> Self {
        let (payload, size) = cut(dead.payload);
        Self {
            id: dead.id.map(|id| id.to_string()),
            name: dead.name,
            payload,
            size,
            tags: dead.tags,
            failed: dead.failed,
            failures: dead.failures,
            reason: Some(dead.reason),
            pushed_ms: None,
            due_ms: None,
            died_ms: Some(dead.died_ms),
            ended_ms: None,
            took_ms: None,
            worker: None,
            blocked_by: None,
            progress: None,
        }
    }
}

impl From<EndedJob> for Row {
    fn from(job: EndedJob) -> Self {
        let (payload, size) = cut(job.payload);
        Self {
            id: job.id.map(|id| id.to_string()),
            name: job.name,
            payload,
            size,
            tags: job.tags,
            failed: job.failed,
            failures: job.failures,
            reason: job.reason,
            pushed_ms: Some(job.pushed_ms),
            due_ms: None,
            died_ms: None,
            ended_ms: Some(job.ended_ms),
            took_ms: Some(job.took_ms),
            worker: Some(job.worker),
            blocked_by: None,
            progress: None,
        }
    }
}

impl From<Listing> for Row {
    fn from(job: Listing) -> Self {
        let (payload, size) = cut(job.payload);
        Self {
            id: job.id.map(|id| id.to_string()),
            name: job.name,
            payload,
            size,
            tags: job.tags,
            failed: job.failed,
            failures: job.failures,
            reason: job.last_error,
            pushed_ms: Some(job.pushed_ms),
            due_ms: job.due_ms,
            died_ms: None,
            ended_ms: None,
            took_ms: None,
            worker: job.worker,
            blocked_by: job.blocked_by,
            progress: None,
        }
    }
}

impl Row {
    fn mentions(&self, text: &str) -> bool {
        let own = [
            self.id.as_ref(),
            self.reason.as_ref(),
            self.worker.as_ref(),
            self.blocked_by.as_ref(),
        ];
        let fields = own.into_iter().chain([Some(&self.name), Some(&self.payload)]);
        fields.flatten().chain(&self.tags).any(|field| field.to_lowercase().contains(text))
    }
}

impl Dashboard {
    pub(super) async fn api(&self, request: &Parts, segments: &[&str], content: &[u8]) -> Answer {
        match (&request.method, segments) {
            (&Method::GET, ["queues"]) => self.overview(request).await,
            (&Method::GET, ["history"]) => self.history(request).await,
            (&Method::GET, ["queues", queue, "ended"]) => self.ended(request, queue).await,
            (&Method::GET, ["queues", queue, state]) => self.jobs(request, queue, state).await,
            (&Method::GET, ["jobs", id, "log"]) => self.log(request, id).await,
            (&Method::GET, ["workers"]) => {
                Ok(json!({ "workers": self.queue.workers().await.map_err(told)? }))
            }
            (&Method::GET, ["schedules"]) => {
                Ok(json!({ "schedules": self.queue.schedules().await.map_err(told)? }))
            }
            (&Method::GET, ["batches"]) => {
                let (offset, _) = query(request);
                let batches = self.queue.batches(offset, PAGE).await.map_err(told)?;
                // Some listed batches may be forgotten already, so a page is not always full.
                let next = (!batches.is_empty()).then_some(offset.saturating_add(PAGE));
                Ok(json!({ "batches": batches, "next": next }))
            }
            (&Method::GET, ["batches", id]) => {
                match self.queue.workflow_status(id).await.map_err(told)? {
                    Some(status) => Ok(json!(status)),
                    None => Err((StatusCode::NOT_FOUND, "no batch with this id".into())),
                }
            }
            (&Method::POST, rest) => {
                self.check(request)?;
                let done = self.change(rest, content).await?;
                *self.last.lock().await = None;
                Ok(json!({ "done": done }))
            }
            _ => Err((StatusCode::NOT_FOUND, "unknown path".into())),
        }
    }

    /// Makes a change; the caller has checked the permission.
    async fn change(
        &self,
        segments: &[&str],
        content: &[u8],
    ) -> Result<bool, (StatusCode, String)> {
        let done = match segments {
            ["batches", id, "cancel"] => self.queue.cancel_batch(id).await,
            ["batches", id, "nodes", node, "cancel"] => self.queue.cancel_node(id, node).await,
            ["batches", id, "nodes", node, "retry"] => self.queue.retry_node(id, node).await,
            #[cfg(feature = "schedule")]
            ["schedules", name, action @ ("pause" | "resume")] => {
                self.queue.pause_schedule(name, *action == "pause").await.map(|()| true)
            }
            #[cfg(feature = "schedule")]
            ["schedules", name, "run"] => self.queue.run_schedule(name).await.map(|()| true),
            ["workers", id, action @ ("quiet" | "resume")] => {
                self.queue.set_quiet(id, *action == "quiet").await.map(|()| true)
            }
            ["queues", queue, "pause"] => self.queue.pause(queue).await.map(|()| true),
            ["queues", queue, "resume"] => self.queue.resume(queue).await.map(|()| true),
            ["queues", queue, "drain"] => self.queue.drain(queue).await.map(|_| true),
            ["queues", queue, "jobs", id, "cancel"] => match id.parse() {
                Ok(id) => self.queue.cancel(queue, id).await,
                Err(_) => Ok(false),
            },
            ["queues", queue, "dead", "revive"] => self.queue.revive_all(queue).await.map(|_| true),
            ["queues", queue, "dead", "forget"] => self.queue.forget_all(queue).await.map(|_| true),
            ["queues", queue, "dead", id, fate @ ("revive" | "forget")] => {
                self.exhume(queue, id, fate, content).await
            }
            _ => return Err((StatusCode::NOT_FOUND, "unknown action".into())),
        };
        done.map_err(told)
    }

    pub(super) async fn overview(&self, request: &Parts) -> Answer {
        // One request at a time reads the store; the others wait for its result.
        let mut last = self.last.lock().await;
        let rows = match &*last {
            Some((at, rows)) if at.elapsed() < super::SHARED => rows.clone(),
            _ => {
                let rows = self.rows_of_queues().await?;
                *last = Some((Instant::now(), rows.clone()));
                rows
            }
        };
        Ok(json!({ "writable": self.may_change(request), "queues": rows }))
    }

    async fn rows_of_queues(&self) -> Result<Vec<Value>, (StatusCode, String)> {
        let names = self.queue.queues().await.map_err(told)?;
        let stats =
            try_join_all(names.iter().map(|name| self.queue.stats(name))).await.map_err(told)?;
        let rows = names
            .iter()
            .zip(stats)
            .map(|(name, stats)| {
                let mut row = serde_json::to_value(stats).unwrap_or_default();
                row["name"] = json!(name);
                row
            })
            .collect();
        Ok(rows)
    }

    /// Returns a page of jobs of one state that match the search, and the offset of the next page,
    /// if there may be one.
    async fn jobs(&self, request: &Parts, queue: &str, state: &str) -> Answer {
        let state = match state {
            "waiting" => Some(State::Waiting),
            "scheduled" => Some(State::Scheduled),
            "leased" => Some(State::Leased),
            "blocked" => Some(State::Blocked),
            "dead" => None,
            _ => return Err((StatusCode::NOT_FOUND, "unknown state of jobs".into())),
        };
        let (offset, search) = query(request);
        let search = search.to_lowercase();
        let step = if search.is_empty() { PAGE } else { STEP };
        let (mut found, mut at, mut next, mut bytes) = (Vec::new(), offset, None, 0);
        'looking: while next.is_none() {
            let rows = self.rows(queue, state, at, step).await.map_err(told)?;
            // A page of large jobs may be short; only an empty page is the last one.
            let is_last = rows.is_empty();
            for row in rows {
                if found.len() == PAGE {
                    next = Some(at);
                    break 'looking;
                }
                (at, bytes) = (at + 1, bytes + row.size);
                if row.mentions(&search) {
                    found.push(row);
                }
            }
            if is_last {
                break;
            }
            next = (search.is_empty() && found.len() == PAGE
                || at - offset >= LOOKED_THROUGH
                || bytes >= MOST_BYTES)
                .then_some(at);
        }
        if state == Some(State::Leased) {
            try_join_all(found.iter_mut().map(|row| self.follow(row))).await.map_err(told)?;
        }
        Ok(json!({ "jobs": found, "next": next }))
    }

    async fn rows(
        &self,
        queue: &str,
        state: Option<State>,
        offset: usize,
        limit: usize,
    ) -> Result<Vec<Row>, Error> {
        Ok(match state {
            Some(state) => self
                .queue
                .jobs(queue, state, offset, limit)
                .await?
                .into_iter()
                .map(Row::from)
                .collect(),
            None => {
                self.queue.dead(queue, offset, limit).await?.into_iter().map(Row::from).collect()
            }
        })
    }

    /// Adds the progress of a running job.
    async fn follow(&self, row: &mut Row) -> Result<(), Error> {
        if let Some(id) = row.id.as_ref().and_then(|id| id.parse().ok()) {
            row.progress = self.queue.progress(id).await?;
        }
        Ok(())
    }

    /// Removes a dead job, or revives it, with the content as its payload if there is any.
    async fn exhume(
        &self,
        queue: &str,
        id: &str,
        fate: &str,
        content: &[u8],
    ) -> Result<bool, Error> {
        let mut offset = 0;
        while offset < REACH {
            let page = self.queue.dead(queue, offset, REACH - offset).await?;
            if page.is_empty() {
                break;
            }
            offset += page.len();
            if let Some(dead) =
                page.iter().find(|dead| dead.id.is_some_and(|known| known.to_string() == id))
            {
                return match fate {
                    "forget" => self.queue.forget(queue, dead).await,
                    _ if content.is_empty() => self.queue.revive(queue, dead).await,
                    _ => {
                        let payload = str::from_utf8(content)
                            .map_err(|_| Error::Payload("the payload is no text".to_owned()))?;
                        self.queue.revive_with(queue, dead, payload).await
                    }
                };
            }
        }
        Ok(false)
    }

    async fn ended(&self, request: &Parts, queue: &str) -> Answer {
        let (offset, tag) = query(request);
        let found = if tag.is_empty() {
            self.queue.ended(queue, offset, PAGE).await
        } else {
            self.queue.ended_with_tag(queue, &tag, offset, PAGE).await
        };
        let jobs: Vec<_> = found.map_err(told)?.into_iter().map(Row::from).collect();
        let next = (!jobs.is_empty()).then_some(offset + jobs.len());
        Ok(json!({ "jobs": jobs, "next": next }))
    }

    async fn log(&self, request: &Parts, id: &str) -> Answer {
        let unknown = || (StatusCode::NOT_FOUND, "expected the id and the name of a job".into());
        let id = id.parse().map_err(|_| unknown())?;
        let query = request.uri.query().unwrap_or_default().as_bytes();
        let name = form_urlencoded::parse(query).find(|(name, _)| name == "name");
        let (_, name) = name.ok_or_else(unknown)?;
        Ok(json!({ "lines": self.queue.log(&name, id).await.map_err(told)? }))
    }

    /// Returns the samples of one queue, or of all queues, by minute or hour.
    async fn history(&self, request: &Parts) -> Answer {
        let (mut queue, mut resolution) = (None, Resolution::Minute);
        for (name, value) in
            form_urlencoded::parse(request.uri.query().unwrap_or_default().as_bytes())
        {
            match (&*name, &*value) {
                ("queue", name) => queue = Some(name.to_owned()),
                ("by", "hour") => resolution = Resolution::Hour,
                _ => {}
            }
        }
        let names = match queue {
            Some(name) => vec![name],
            None => {
                self.queue.queues().await.map_err(told)?.into_iter().take(MOST_TOGETHER).collect()
            }
        };
        let all = try_join_all(names.iter().map(|name| self.queue.history(name, resolution)))
            .await
            .map_err(told)?;
        let samples: Vec<Value> = names
            .iter()
            .zip(all)
            .map(|(name, samples)| json!({ "name": name, "samples": samples }))
            .collect();
        Ok(json!({ "step_ms": resolution.step_ms(), "queues": samples }))
    }

    /// Checks whether a change is allowed: for this client, and sent by the dashboard's own page.
    fn check(&self, request: &Parts) -> Result<(), (StatusCode, String)> {
        let header = |name: &str| request.headers.get(name).map(HeaderValue::as_bytes);
        let ours = header("x-scale-queue") == Some(b"dashboard");
        let mut sites =
            request.headers.get_all("sec-fetch-site").into_iter().map(HeaderValue::as_bytes);
        let same_site = sites.all(|site| site == b"same-origin" || site == b"none");
        match self.may_change(request) {
            true if ours && same_site => Ok(()),
            true => Err((StatusCode::FORBIDDEN, "not sent by the dashboard's page".into())),
            false => Err((StatusCode::FORBIDDEN, "read-only for this client".into())),
        }
    }
}

/// Reads the offset and the search text from the query.
fn query(request: &Parts) -> (usize, String) {
    let (mut offset, mut search) = (0, String::new());
    for (name, value) in form_urlencoded::parse(request.uri.query().unwrap_or_default().as_bytes())
    {
        match &*name {
            "offset" => offset = value.parse().unwrap_or(0),
            "search" => value.trim().clone_into(&mut search),
            _ => {}
        }
    }
    (offset, search)
}

/// Returns the answer for an error, without details of the store.
fn told(error: Error) -> (StatusCode, String) {
    match error {
        Error::Name(_) => (StatusCode::NOT_FOUND, error.to_string()),
        Error::Payload(_) => (StatusCode::UNPROCESSABLE_ENTITY, error.to_string()),
        other => {
            tracing::warn!(
                error = %other,
                "the dashboard could not read or change the store; answering 503",
            );
            (StatusCode::SERVICE_UNAVAILABLE, "the queue's store does not answer".into())
        }
    }
}
