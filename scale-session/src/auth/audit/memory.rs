//! Audit log in the memory of one process.

use async_trait::async_trait;
use parking_lot::Mutex;

use super::{Head, Record, Sealer, Store};
use crate::auth::error::Error;

/// Store for development and tests.
#[derive(Debug, Default)]
pub struct MemoryAudit(Mutex<Vec<Record>>);

impl From<Vec<Record>> for MemoryAudit {
    fn from(records: Vec<Record>) -> Self {
        Self(Mutex::new(records))
    }
}

fn head(records: &[Record]) -> Head {
    records.last().map_or_else(Head::default, |last| Head { number: last.number, seal: last.seal })
}

#[async_trait]
impl Store for MemoryAudit {
    async fn append(&self, seal: &Sealer<'_>) -> Result<Head, Error> {
        let mut records = self.0.lock();
        let record = seal(&head(&records))?;
        records.push(record);
        Ok(head(&records))
    }

    async fn page(&self, after: u64, limit: usize) -> Result<Vec<Record>, Error> {
        let records = self.0.lock();
        let start = records.partition_point(|record| record.number <= after);
        Ok(records[start..].iter().take(limit).cloned().collect())
    }

    async fn head(&self) -> Result<Head, Error> {
        Ok(head(&self.0.lock()))
    }
}
