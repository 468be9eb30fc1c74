//! A second level within one process: for tests of several caches that share one, and for the
//! contract that Redis must meet.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::Duration;

use async_trait::async_trait;
use futures_util::StreamExt;
use futures_util::stream::{self, BoxStream};
use parking_lot::Mutex;
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::{Begun, Position, Store, StoreEvent, Version};
use crate::clock::steady_us;
use crate::error::Error;
use crate::format::{ENDS, fresh_until};

/// A store to be cloned into several caches, which then act like processes on one Redis.
#[derive(Clone, Debug, Default)]
pub struct SharedMemory(Arc<Core>);

#[derive(Debug, Default)]
struct Core {
    state: Mutex<State>,
    /// `true` if the store refuses every call.
    down: AtomicBool,
}

#[derive(Debug, Default)]
struct State {
    entries: HashMap<String, (Vec<u8>, Instant)>,
    leases: HashMap<String, (u64, Instant)>,
    versions: HashMap<String, Version>,
    listeners: Vec<mpsc::UnboundedSender<StoreEvent>>,
    last_us: u64,
}

impl SharedMemory {
    /// Creates an empty store.
    pub fn new() -> Self {
        Self::default()
    }

    /// Stops answering and cuts every link, or resumes.
    pub fn set_down(&self, down: bool) {
        if self.0.down.swap(down, SeqCst) != down {
            self.with(|state| {
                state.tell(if down { &StoreEvent::Lost } else { &StoreEvent::Restored });
            });
        }
    }

    fn with<T>(&self, work: impl FnOnce(&mut State) -> T) -> T {
        work(&mut self.0.state.lock())
    }

    fn ask<T>(&self, work: impl FnOnce(&mut State) -> T) -> Result<T, Error> {
        if self.0.down.load(SeqCst) {
            Err(Error::store("the store is down"))
        } else {
            Ok(self.with(work))
        }
    }
}

impl State {
    fn tell(&mut self, news: &StoreEvent) {
        self.listeners.retain(|listener| listener.send(news.clone()).is_ok());
    }

    /// Returns the current time, strictly increasing.
    fn tick(&mut self) -> u64 {
        self.last_us = steady_us().max(self.last_us + 1);
        self.last_us
    }

    fn may_fill(&mut self, key: &str, token: u64) -> bool {
        let may = self
            .leases
            .get(key)
            .is_some_and(|(holder, until)| *holder == token && *until > Instant::now());
        if may {
            self.leases.remove(key);
        }
        may
    }
}

#[async_trait]
impl Store for SharedMemory {
    async fn get(&self, key: &str) -> Result<Option<Vec<u8>>, Error> {
        let now = Instant::now();
        self.ask(|state| {
            state.entries.get(key).filter(|(_, until)| *until > now).map(|(bytes, _)| bytes.clone())
        })
    }

    async fn begin(&self, key: &str, token: u64, lease: Duration) -> Result<Begun, Error> {
        let now = Instant::now();
        self.ask(|state| {
            let won = state.leases.get(key).is_none_or(|(_, until)| *until <= now);
            if won {
                state.leases.insert(key.to_owned(), (token, now + lease));
            }
            let entry = state
                .entries
                .get(key)
                .filter(|(_, until)| *until > now)
                .map(|(bytes, _)| bytes.clone());
            Begun { won, entry, now_us: state.tick() }
        })
    }

    async fn renew(&self, key: &str, token: u64, lease: Duration) -> Result<bool, Error> {
        let now = Instant::now();
        self.ask(|state| match state.leases.get_mut(key) {
            Some((holder, until)) if *holder == token && *until > now => {
                *until = now + lease;
                true
            }
            _ => false,
        })
    }

    async fn fill(
        &self,
        key: &str,
        token: u64,
        bytes: &[u8],
        keep: Duration,
    ) -> Result<bool, Error> {
        let until = Instant::now() + keep;
        self.ask(|state| {
            let may = state.may_fill(key, token);
            if may {
                state.entries.insert(key.to_owned(), (bytes.to_vec(), until));
            }
            may
        })
    }

    async fn release(&self, key: &str, token: u64) -> Result<(), Error> {
        self.ask(|state| {
            state.may_fill(key, token);
        })
    }

    async fn set(&self, key: &str, bytes: &[u8], keep: Duration) -> Result<(), Error> {
        let until = Instant::now() + keep;
        self.ask(|state| {
            state.leases.remove(key);
            state.entries.insert(key.to_owned(), (bytes.to_vec(), until));
            state.tell(&StoreEvent::Changed(key.into()));
        })
    }

    async fn touch(&self, key: &str, ends: [u8; 16], keep: Duration) -> Result<bool, Error> {
        let now = Instant::now();
        self.ask(|state| match state.entries.get_mut(key) {
            Some((bytes, until))
                if *until > now
                    && fresh_until(bytes).is_some_and(|fresh_until| fresh_until > steady_us()) =>
            {
                bytes[ENDS].copy_from_slice(&ends);
                *until = now + keep;
                true
            }
            _ => false,
        })
    }

    async fn remove(&self, key: &str) -> Result<(), Error> {
        self.ask(|state| {
            state.leases.remove(key);
            state.entries.remove(key);
            state.tell(&StoreEvent::Changed(key.into()));
        })
    }

    async fn version(&self, tag: &str) -> Result<(Version, u64), Error> {
        self.ask(|state| {
            let now_us = state.tick();
            let new = Version { at_us: now_us, position: None };
            (state.versions.entry(tag.to_owned()).or_insert(new).clone(), now_us)
        })
    }

    async fn invalidate(&self, tag: &str, position: Option<&Position>) -> Result<Version, Error> {
        self.ask(|state| {
            let old = state.versions.get(tag).and_then(|v| v.position.clone());
            let version = Version { at_us: state.tick(), position: position.cloned().max(old) };
            state.versions.insert(tag.to_owned(), version.clone());
            state.tell(&StoreEvent::Invalidated(tag.into(), version.clone()));
            version
        })
    }

    fn events(&self) -> BoxStream<'static, StoreEvent> {
        let (sender, receiver) = mpsc::unbounded_channel();
        if !self.0.down.load(SeqCst) {
            let _ = sender.send(StoreEvent::Restored);
        }
        self.with(|state| state.listeners.push(sender));
        stream::unfold(receiver, |mut receiver| async {
            receiver.recv().await.map(|news| (news, receiver))
        })
        .boxed()
    }

    fn now_us(&self) -> u64 {
        steady_us()
    }
}
