//! Dead jobs.

use scale_sql::Connection;

use super::push::{notify, push_one};
use super::{SqlStore, failed, hex, millis};
use crate::error::Error;
use crate::format::without_failures;
use crate::store::{AfterDeath, Entry};

/// Average number of deaths between two removals of dead jobs beyond the bounds, so there may be a
/// few more than allowed.
const TRIM_EVERY: u32 = 64;

impl SqlStore {
    pub(super) async fn keep_dead(
        &self,
        tx: &mut Connection<'_>,
        queue: &str,
        tag: &[u8],
        reason: &str,
        body: &[u8],
    ) -> Result<(), Error> {
        let bury =
            self.of(&self.texts.dead.bury, queue).bind(hex(tag)).bind(reason).bind(body.to_vec());
        bury.execute(&mut *tx).await.map_err(failed)?;
        if fastrand::u32(..TRIM_EVERY) == 0 {
            let old = self.of(&self.texts.dead.too_old, queue).bind(millis(self.history.age));
            let many = self.of(&self.texts.dead.too_many, queue).bind(self.history.dead as i64);
            for which in [old, many] {
                let rows = which.fetch_all(&mut *tx).await.map_err(failed)?;
                let numbers: Vec<i64> =
                    rows.iter().map(|row| row.get(0)).collect::<Result<_, _>>().map_err(failed)?;
                if !numbers.is_empty() {
                    self.texts.dead.remove.bind(numbers).execute(&mut *tx).await.map_err(failed)?;
                }
            }
        }
        Ok(())
    }

    pub(super) async fn take_one_dead(
        &self,
        queue: &str,
        tag: &[u8],
        died_ms: u64,
        then: &AfterDeath,
    ) -> Result<bool, Error> {
        let mut tx = self.begin().await?;
        let one = self.of(&self.texts.dead.one, queue).bind(hex(tag)).bind(died_ms as i64);
        let Some(row) = one.fetch_optional(&mut tx).await.map_err(failed)? else {
            return Ok(false);
        };
        let number: i64 = row.get(0).map_err(failed)?;
        if self.texts.dead.remove.bind(vec![number]).execute(&mut tx).await.map_err(failed)? == 0 {
            return Ok(false);
        }
        if *then != AfterDeath::Delete {
            let body: Vec<u8> = row.get(1).map_err(failed)?;
            let bytes = then.content().map_or_else(|| without_failures(&body), <[u8]>::to_vec);
            let entry = Entry { bytes, unique: then.unique().cloned(), ..Entry::default() };
            // Another job holds its unique key: the transaction is rolled back, and the job stays
            // dead.
            if push_one(self.texts, &mut tx, &self.app_text, queue, &entry, None).await?.is_some() {
                return Ok(false);
            }
            self.fold(&mut tx, queue, 0, 0, -1).await?;
            notify(self.texts, &mut tx, self.payload(queue)).await?;
        }
        tx.commit().await.map_err(failed)?;
        if *then != AfterDeath::Delete {
            self.idle.wake(queue, 1);
        }
        Ok(true)
    }
}
