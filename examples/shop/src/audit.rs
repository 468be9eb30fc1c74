//! The audit log: what staff has changed, in a chain that shows every later change of it.

use anyhow::{Context, Result};
use scale_session::auth::AuditLog;
use scale_session::auth::audit::{Event, Head, Keys, Record, Tampered};
use tokio::sync::RwLock;

use crate::app::NAME;

/// The log, on the current primary.
pub(crate) struct Audit {
    /// Addresses of all nodes of the database.
    urls: Vec<String>,
    keys: Keys,
    log: RwLock<AuditLog>,
}

impl Audit {
    /// Connects to the primary, whose address comes first; if it is away, to another node until
    /// something is to be recorded.
    pub(crate) async fn connect(urls: Vec<String>, keys: Keys) -> Result<Self> {
        let mut failed = anyhow::anyhow!("no address");
        for url in &urls {
            match AuditLog::connect(url, NAME, keys.clone()).await {
                Ok(log) => return Ok(Self { urls, keys, log: RwLock::new(log) }),
                Err(error) => failed = error.into(),
            }
        }
        Err(failed)
    }

    /// Records what somebody is about to do, once or, if a primary fails meanwhile, twice.
    ///
    /// # Errors
    /// If no node takes it: then it must not be done.
    pub(crate) async fn record(&self, event: Event) -> Result<()> {
        let log = self.log.read().await.clone();
        let Err(error) = log.append(event.clone()).await else { return Ok(()) };
        // After a failover another node is the primary; the others refuse to write.
        for url in &self.urls {
            let Ok(log) = AuditLog::connect(url, NAME, self.keys.clone()).await else { continue };
            if log.append(event.clone()).await.is_ok() {
                *self.log.write().await = log;
                return Ok(());
            }
        }
        Err(error).context("audit log")
    }

    /// Returns the newest records, the newest first.
    pub(crate) async fn newest(&self, count: usize) -> Result<Vec<Record>> {
        let log = self.log.read().await.clone();
        let head = log.head().await?;
        let mut records = log.records(head.number.saturating_sub(count as u64), count).await?;
        records.reverse();
        Ok(records)
    }

    /// Checks the chain. Returns how many records it has, and its end.
    pub(crate) async fn verify(
        &self,
        anchor: Option<Head>,
    ) -> Result<Result<(u64, Head), Tampered>> {
        let log = self.log.read().await.clone();
        // Records that are appended meanwhile belong to the next check.
        let head = log.head().await?;
        Ok(log.verify(anchor).await?.map(|_| (head.number, head)))
    }
}
