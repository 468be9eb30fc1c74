//! An export to S3 or another object store, in parts.
//!
//! | when | then |
//! | --- | --- |
//! | the worker is stopped, or dies | the next run goes on after the last part that was stored |
//! | the last part is stored | the object appears, whole; it is written once, so each export needs a name of its own |
//! | the job is dead, and not revived | the parts stay until the bucket's rule for incomplete uploads removes them |
//!
//! The cursor has the id of each part, so an export has at most about 400 parts of 8 MiB.

use std::sync::Arc;

use object_store::multipart::{MultipartStore, PartId};
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt};
use scale_queue::worker::{BoxError, State};
use scale_queue::{Context, Job};
use serde::{Deserialize, Serialize};

/// Bytes of a part; S3 asks for at least 5 MiB.
pub const PART: usize = 8 * 1024 * 1024;

/// An export of a table.
#[derive(Serialize, Deserialize)]
pub struct Export {
    /// Table to be exported.
    pub table: String,
    /// Name of the object.
    pub object: String,
}

impl Job for Export {
    const NAME: &'static str = "export";
    const QUEUE: &'static str = "exports";
    const TIMEOUT: std::time::Duration = std::time::Duration::from_hours(6);
}

/// Rows to be exported, in the order of their ids.
pub trait Rows: Send + Sync {
    /// Returns the next rows of a table after an id, or the first ones: the id and the line of
    /// each. None are left if there are none.
    fn after(
        &self,
        table: &str,
        id: Option<i64>,
    ) -> impl Future<Output = Result<Vec<(i64, String)>, BoxError>> + Send;
}

/// An object store that takes objects in parts.
pub trait Objects: ObjectStore + MultipartStore {}

impl<T: ObjectStore + MultipartStore> Objects for T {}

/// Exporter: the state of a worker.
pub struct Exporter<R> {
    /// Source of the rows.
    pub rows: Arc<R>,
    /// The object store, for example `object_store::aws::AmazonS3`.
    pub store: Arc<dyn Objects>,
    /// Bytes after which a part is stored.
    pub part: usize,
}

impl<R> Clone for Exporter<R> {
    fn clone(&self) -> Self {
        Self { rows: Arc::clone(&self.rows), store: Arc::clone(&self.store), part: self.part }
    }
}

/// Progress of an export.
#[derive(Default, Serialize, Deserialize)]
struct Cursor {
    upload: String,
    parts: Vec<String>,
    /// Last row of the last part.
    last: Option<i64>,
    /// True if all parts are stored.
    is_whole: bool,
}

/// Handles a job.
pub async fn export<R: Rows + 'static>(
    State(exporter): State<Exporter<R>>,
    job: Export,
    context: Context,
) -> Result<(), BoxError> {
    let Exporter { rows, store, part } = exporter;
    let path = Path::parse(&job.object)?;
    let mut cursor = context.cursor::<Cursor>()?.unwrap_or_default();
    if cursor.upload.is_empty() {
        cursor.upload = store.create_multipart(&path).await?;
        context.checkpoint(&cursor).await?;
    }
    let (mut lines, mut last) = (String::new(), cursor.last);
    while !cursor.is_whole {
        let page = rows.after(&job.table, last).await?;
        let is_end = page.is_empty();
        for (id, line) in page {
            (lines, last) = (lines + &line + "\n", Some(id));
        }
        if lines.len() < part && !is_end {
            continue;
        }
        if !lines.is_empty() {
            let number = cursor.parts.len();
            let content = std::mem::take(&mut lines).into();
            let stored = store.put_part(&path, &cursor.upload, number, content).await?;
            cursor.parts.push(stored.content_id);
            cursor.last = last;
        }
        cursor.is_whole = is_end;
        // If the worker stops, this returns an error, and the next run goes on from here.
        context.checkpoint(&cursor).await?;
    }
    let parts = cursor.parts.into_iter().map(|content_id| PartId { content_id }).collect();
    match store.complete_multipart(&path, &cursor.upload, parts).await {
        // An earlier run has done it, and died before its end was stored.
        Err(_) if store.head(&path).await.is_ok() => Ok(()),
        completed => Ok(completed.map(drop)?),
    }
}
