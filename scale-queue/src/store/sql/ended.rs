//! Jobs that have ended.

use async_trait::async_trait;

use super::{SqlStore, again, failed, hex, key_text, millis};
use crate::error::Error;
use crate::store::{EndedStore, EndingJob, PAGE_BYTES};

/// Number of records that are read at a time.
const STEP: usize = 20;
/// Average number of kept jobs between two removals.
const TRIM_EVERY: u32 = 64;

#[async_trait]
impl EndedStore for SqlStore {
    async fn keep_ended(&self, queue: &str, job: &EndingJob) -> Result<(), Error> {
        again(|| self.keep_one(queue, job)).await?;
        if fastrand::u32(..TRIM_EVERY) == 0 {
            again(|| self.trim_ended(queue, job)).await?;
        }
        Ok(())
    }

    async fn ended(
        &self,
        queue: &str,
        tag: Option<&str>,
        offset: usize,
        limit: usize,
    ) -> Result<Vec<(u64, Vec<u8>)>, Error> {
        let texts = &self.texts.ended;
        let (mut found, mut bytes) = (Vec::new(), 0);
        // A few at a time: each may have a MiB.
        while found.len() < limit && bytes < PAGE_BYTES {
            let list = match tag {
                None => self.of(&texts.list, queue),
                Some(tag) => self.of(&texts.with_tag, queue).bind(key_text(tag)),
            };
            let step = (limit - found.len()).min(STEP);
            let list = list.bind(step as i64).bind((offset + found.len()) as i64);
            let rows = list.fetch_all(&self.database).await.map_err(failed)?;
            for row in &rows {
                let record: Vec<u8> = row.get(1).map_err(failed)?;
                bytes += record.len();
                found.push((row.get::<i64>(0).map_err(failed)? as u64, record));
            }
            if rows.len() < step {
                break;
            }
        }
        Ok(found)
    }
}

impl SqlStore {
    async fn keep_one(&self, queue: &str, job: &EndingJob) -> Result<(), Error> {
        let texts = &self.texts.ended;
        let id = hex(&job.tag);
        let keep = self.of(&texts.keep, queue).bind(id.clone()).bind(job.record.clone());
        if job.tags.is_empty() {
            return keep.execute(&self.database).await.map(drop).map_err(failed);
        }
        let mut tx = self.begin().await?;
        keep.execute(&mut tx).await.map_err(failed)?;
        for tag in &job.tags {
            let tag = self.of(&texts.tag, queue).bind(key_text(tag)).bind(id.clone());
            tag.execute(&mut tx).await.map_err(failed)?;
        }
        tx.commit().await.map_err(failed)
    }

    async fn trim_ended(&self, queue: &str, job: &EndingJob) -> Result<(), Error> {
        let texts = &self.texts.ended;
        let old = self.of(&texts.too_old, queue).bind(millis(job.age));
        let many = self.of(&texts.too_many, queue).bind(job.most as i64);
        for which in [old, many] {
            let rows = which.fetch_all(&self.database).await.map_err(failed)?;
            let ids: Vec<String> =
                rows.iter().map(|row| row.get(0)).collect::<Result<_, _>>().map_err(failed)?;
            if !ids.is_empty() {
                let mut tx = self.begin().await?;
                for remove in [&texts.remove, &texts.remove_tags] {
                    let remove = self.of(remove, queue).bind(ids.clone());
                    remove.execute(&mut tx).await.map_err(failed)?;
                }
                tx.commit().await.map_err(failed)?;
            }
        }
        Ok(())
    }
}
