//! Limits in Redis.
//!
//! | key | type | holds |
//! | --- | --- | --- |
//! | `{app}:queue:{limit:<key>}:holders` | sorted set | attempts that hold a permit, by its expiry, ms |
//! | `{app}:queue:{limit:<key>}:due` | string | time at which the next job of a rate is due, ms |
//! | `{app}:queue:{limit:<key>}:queues` | sorted set | queues that have a line for the key, by the time at which its first job is to be tried, ms |
//!
//! All expire. The keys of a limit share a hash slot of their own, because one limit may serve
//! several queues. So a permit and the line that waits for it cannot change in one step. Instead,
//! each refusal records that the queue has a line, and the first job in line is retried when the
//! next permit expires.

use std::time::Duration;

use async_trait::async_trait;
use redis::Script;
use scale_common::clock::millis;

use super::RedisStore;
use super::calls::{LineWake, allowance, failed};
use crate::error::Error;
use crate::limit::line_of;
use crate::store::{
    Admission, LINE_RETRY, LimitStore, PassOn, PassedOn, PermitRequest, RateRequest, WAKES,
};

pub(super) struct Scripts {
    acquire: Script,
    renew: Script,
    release: Script,
    pass: Script,
    take: Script,
    check: Script,
    forget: Script,
    admit: Script,
}

impl Scripts {
    pub(super) fn new() -> Self {
        Self {
            acquire: Script::new(include_str!("acquire_permit.lua")),
            renew: Script::new(include_str!("renew_permit.lua")),
            release: Script::new(include_str!("release_permit.lua")),
            pass: Script::new(include_str!("pass_permit.lua")),
            take: Script::new(&format!(
                "{}\n{}",
                include_str!("shared.lua"),
                include_str!("take_from_line.lua")
            )),
            check: Script::new(include_str!("check_permits.lua")),
            forget: Script::new(include_str!("forget_queue.lua")),
            admit: Script::new(include_str!("admit_by_rate.lua")),
        }
    }
}

impl RedisStore {
    fn limit_key(&self, key: &str, name: &str) -> String {
        self.key(&line_of(key), name)
    }

    /// Removes a queue that was recorded as having a line and has none, unless that was recorded
    /// again meanwhile.
    async fn forget_queue(&self, key: &str, queue: &str, said: f64) -> Result<(), Error> {
        let mut call = self.limits.forget.key(self.limit_key(key, "queues"));
        call.arg(queue).arg(said).invoke_async(&mut self.server.clone()).await.map_err(failed)
    }
}

#[async_trait]
impl LimitStore for RedisStore {
    async fn acquire(&self, request: PermitRequest<'_>) -> Result<Admission, Error> {
        let PermitRequest { key, holder, queue, most, life } = request;
        let mut call = self.limits.acquire.key(self.limit_key(key, "holders"));
        call.key(self.limit_key(key, "queues")).arg(holder).arg(most).arg(millis(life)).arg(queue);
        let wait: u64 = call.invoke_async(&mut self.server.clone()).await.map_err(failed)?;
        Ok(if wait == 0 {
            Admission::Now
        } else {
            Admission::Later(Duration::from_millis(wait).min(LINE_RETRY))
        })
    }

    async fn renew(&self, key: &str, holder: &str, life: Duration) -> Result<bool, Error> {
        let mut call = self.limits.renew.key(self.limit_key(key, "holders"));
        call.arg(holder)
            .arg(millis(life))
            .invoke_async(&mut self.server.clone())
            .await
            .map_err(failed)
    }

    async fn release(&self, key: &str, holder: &str, order: &[String]) -> Result<(), Error> {
        let mut call = self.limits.release.key(self.limit_key(key, "holders"));
        call.key(self.limit_key(key, "queues")).arg(holder);
        let mut queues: Vec<(String, f64)> =
            call.invoke_async(&mut self.server.clone()).await.map_err(failed)?;
        let place = |(queue, _): &(String, f64)| {
            order.iter().position(|known| known == queue).unwrap_or(usize::MAX)
        };
        queues.sort_by_key(place);
        let line = line_of(key);
        for (queue, said) in &queues {
            match self.wake_line(queue, &line).await? {
                LineWake::Woken => return Ok(()),
                LineWake::NoLine => self.forget_queue(key, queue, *said).await?,
                LineWake::Paused => {}
            }
        }
        // A job that was put in line behind others was not refused a permit, so its queue was not
        // recorded.
        for queue in order.iter().filter(|queue| {
            self.has_lines(queue) && queues.iter().all(|(known, _)| known != *queue)
        }) {
            if self.wake_line(queue, &line).await? == LineWake::Woken {
                break;
            }
        }
        Ok(())
    }

    async fn pass_on_permit(&self, pass: PassOn<'_>) -> Result<Option<PassedOn>, Error> {
        let PassOn { key, most, holder, next, life, queues, worker, lease } = pass;
        let mut call = self.limits.pass.key(self.limit_key(key, "holders"));
        let lined: Vec<&String> = queues.iter().filter(|queue| self.has_lines(queue)).collect();
        call.key(self.limit_key(key, "queues"))
            .arg(holder)
            .arg(next)
            .arg(millis(life))
            .arg(u8::from(!lined.is_empty()))
            .arg(most);
        let known: Vec<String> =
            call.invoke_async(&mut self.server.clone()).await.map_err(failed)?;
        let Some(free) =
            known.first().and_then(|passed| passed.parse::<u32>().ok()?.checked_sub(1))
        else {
            return Ok(None);
        };
        for queue in
            queues.iter().filter(|queue| known[1..].contains(queue) || lined.contains(queue))
        {
            let mut call = self.keyed(
                &self.limits.take,
                queue,
                &["paused", "blocked", "lines", "paces", "leases"],
            );
            call.key(self.held_key(queue, worker))
                .key(self.key(queue, "cancelled"))
                .key(self.left_key(queue, worker));
            call.arg(line_of(key)).arg(&**worker).arg(millis(lease));
            let mut server = self.server.allowing(allowance(crate::format::MAX_SIZE));
            let job: Option<Vec<u8>> = call.invoke_async(&mut server).await.map_err(failed)?;
            if let Some(bytes) = job {
                if free > 0 {
                    // More permits are free. If this fails, the end of the next job wakes the line.
                    let _ = self.wake_line(queue, &line_of(key)).await;
                }
                return Ok(Some(PassedOn { queue: queue.clone(), bytes, has_permit: true }));
            }
        }
        // Give the permit back to its previous holder, which releases it.
        let mut call = self.limits.pass.key(self.limit_key(key, "holders"));
        call.key(self.limit_key(key, "queues"))
            .arg(next)
            .arg(holder)
            .arg(millis(life))
            .arg(1)
            .arg(u32::MAX);
        call.invoke_async::<Vec<String>>(&mut self.server.clone()).await.map_err(failed)?;
        Ok(None)
    }

    async fn wake_if_free(&self, key: &str, most: u32, queue: &str) -> Result<(), Error> {
        let mut call = self.limits.check.key(self.limit_key(key, "holders"));
        call.key(self.limit_key(key, "queues")).arg(most).arg(queue);
        let free: u32 = call.invoke_async(&mut self.server.clone()).await.map_err(failed)?;
        for _ in 0..free.min(WAKES) {
            if self.wake_line(queue, &line_of(key)).await? != LineWake::Woken {
                break;
            }
        }
        Ok(())
    }

    async fn admit(&self, request: RateRequest<'_>) -> Result<Admission, Error> {
        let RateRequest { key, queue, spacing, burst, before } = request;
        // One more iteration for each queue that turns out to have no line, or to be paused.
        let mut before: Vec<&String> = before.iter().collect();
        for _ in 0..=before.len() {
            let mut call = self.limits.admit.key(self.limit_key(key, "due"));
            call.key(self.limit_key(key, "queues"))
                .arg(format!("{:.3}", spacing.as_secs_f64() * 1e3))
                .arg(burst)
                .arg(queue);
            for queue in &before {
                call.arg(*queue);
            }
            let (wait, first, said): (u64, String, f64) =
                call.invoke_async(&mut self.server.clone()).await.map_err(failed)?;
            if !first.is_empty() {
                match self.wake_line(&first, &line_of(key)).await? {
                    LineWake::Woken => {}
                    LineWake::NoLine => {
                        self.forget_queue(key, &first, said).await?;
                        continue;
                    }
                    LineWake::Paused => {
                        before.retain(|queue| **queue != first);
                        continue;
                    }
                }
            }
            return Ok(if wait == 0 {
                Admission::Now
            } else {
                Admission::Later(Duration::from_millis(wait))
            });
        }
        Ok(Admission::Later(spacing))
    }

    async fn refund(&self, key: &str, spacing: Duration) -> Result<(), Error> {
        use redis::AsyncCommands;
        let (mut server, due) = (self.server.clone(), self.limit_key(key, "due"));
        // If the key expires in between, `INCR` creates it anew, so it gets a life of its own; its
        // time is long past then, and has no effect.
        let mut pipe = redis::pipe();
        pipe.atomic().incr(&due, -spacing.as_secs_f64() * 1e3).ignore();
        pipe.pexpire(&due, millis(spacing.max(Duration::from_mins(1))) as i64).ignore();
        let there: bool = server.exists(&due).await.map_err(failed)?;
        if there {
            pipe.query_async::<()>(&mut server).await.map_err(failed)?;
        }
        Ok(())
    }
}
