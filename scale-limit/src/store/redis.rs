//! One table for the whole fleet, on the server's clock.
//!
//! | key | type | holds | expires |
//! | --- | --- | --- | --- |
//! | `{app}:limit:{<key>}:<policy>` | string | the theoretical arrival time, µs | when the bucket is full again |
//!
//! The hash tag is the limited key (an address, a user), so all policies of one key share a slot. In a Cluster, charges of different
//! keys go to different slots: they are ruled on one after the other, and what was charged before a denial is given back.

use std::time::Duration;

use async_trait::async_trait;
use redis::Script;
use scale_redis::Keys;

use super::{Charge, Store};
use crate::error::Error;
use crate::gcra::Ruling;

/// Longer keys are hashed by the caller or cut: a header value must not become a megabyte of Redis key.
const LONGEST_KEY: usize = 256;

pub(crate) struct Redis {
    server: scale_redis::Redis,
    keys: Keys,
    charge: Script,
}

impl std::fmt::Debug for Redis {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Redis").field(&self.server).finish()
    }
}

impl Redis {
    pub(crate) fn new(server: scale_redis::Redis, app: &str) -> Self {
        Self { server, keys: Keys::new(app, "limit"), charge: Script::new(include_str!("charge.lua")) }
    }

    /// One script call. `sign` -1 gives the cost back.
    async fn run(&self, charges: &[Charge<'_>], sign: i64) -> Result<Vec<Ruling>, Error> {
        let mut call = self.charge.prepare_invoke();
        for charge in charges {
            let key = &charge.key[..charge.key.floor_char_boundary(LONGEST_KEY)];
            call.key(self.keys.tagged(key, charge.policy.name()));
            call.arg(charge.rate().interval / 1e3).arg(charge.policy.burst_size());
            call.arg(i64::from(charge.cost) * sign).arg(u8::from(charge.policy.is_dry_run()));
        }
        let reply: Vec<String> = call.invoke_async(&mut self.server.clone()).await.map_err(|e| Error::Store(Box::new(e)))?;
        if reply.len() != charges.len() * 3 {
            return Err(Error::Store("the script's reply cannot be read".into()));
        }
        Ok(charges.iter().zip(reply.chunks_exact(3)).map(|(charge, row)| read(charge, row)).collect())
    }

    /// Slot by slot; a denial gives back what earlier slots had charged.
    async fn one_by_one(&self, charges: &[Charge<'_>]) -> Result<Vec<Ruling>, Error> {
        let mut rulings: Vec<Option<Ruling>> = vec![None; charges.len()];
        let mut charged: Vec<Charge<'_>> = Vec::new();
        let mut denied = false;
        for (n, charge) in charges.iter().enumerate() {
            if rulings[n].is_some() {
                continue;
            }
            let mates: Vec<usize> = (n..charges.len()).filter(|m| charges[*m].key == charge.key).collect();
            let group: Vec<Charge<'_>> = mates.iter().map(|m| charges[*m]).collect();
            let ruled = self.run(&group, 1).await?;
            let admitted = super::is_charged(&group, &ruled);
            for (m, ruling) in mates.into_iter().zip(ruled) {
                rulings[m] = Some(ruling);
            }
            if admitted {
                charged.extend(group);
            }
            denied |= !admitted;
        }
        if denied {
            for charge in charged {
                self.run(&[charge], -1).await?;
            }
        }
        Ok(rulings.into_iter().flatten().collect())
    }
}

fn read(charge: &Charge<'_>, row: &[String]) -> Ruling {
    let micros = |text: &String| text.parse::<f64>().unwrap_or(0.0).max(0.0);
    let (before, after) = (micros(&row[1]), micros(&row[2]));
    let interval = charge.rate().interval / 1e3;
    let capacity = f64::from(charge.policy.burst_size()) * interval;
    let admitted = row[0] == "1";
    let held = if admitted { after } else { before };
    Ruling {
        admitted,
        remaining: ((capacity - held).max(0.0) / interval + 1e-6) as u32,
        retry_after: if admitted {
            Some(Duration::ZERO)
        } else {
            (charge.cost <= charge.policy.burst_size()).then(|| Duration::from_secs_f64((after - capacity).max(0.0) / 1e6))
        },
        full_after: Duration::from_secs_f64(held / 1e6),
    }
}

#[async_trait]
impl Store for Redis {
    async fn charge(&self, charges: &[Charge<'_>]) -> Result<Vec<Ruling>, Error> {
        let one_slot = charges.windows(2).all(|pair| pair[0].key == pair[1].key);
        if charges.is_empty() {
            Ok(Vec::new())
        } else if one_slot || !self.server.is_cluster() {
            self.run(charges, 1).await
        } else {
            self.one_by_one(charges).await
        }
    }
}
