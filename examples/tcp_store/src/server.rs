//! The server: entries, load leases and tag versions in memory, one lock around all of them.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use anyhow::Result;
use scale_cache::store::format;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::broadcast;

use crate::protocol::{Answer, Call, Event, Outcome, TagVersion, receive, send};

/// Events that a subscriber may be behind. One that is further behind is disconnected: its caches
/// then check what they missed.
const EVENTS: usize = 10_000;

/// Serves until the listener fails.
///
/// # Errors
/// If the listener fails.
pub async fn serve(listener: TcpListener) -> Result<()> {
    let data = Arc::new(Data { state: Mutex::default(), events: broadcast::channel(EVENTS).0 });
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        let data = Arc::clone(&data);
        // A connection ends with its first invalid message.
        tokio::spawn(async move { converse(&data, stream).await });
    }
}

async fn converse(data: &Data, mut stream: TcpStream) -> std::io::Result<()> {
    loop {
        match receive(&mut stream).await? {
            Call::Subscribe => break,
            call => {
                let answer = data.answer(call);
                send(&mut stream, &answer).await?;
            }
        }
    }
    let mut events = data.events.subscribe();
    send(&mut stream, &Event::Subscribed).await?;
    while let Ok(event) = events.recv().await {
        send(&mut stream, &event).await?;
    }
    Ok(())
}

struct Data {
    state: Mutex<State>,
    events: broadcast::Sender<Event>,
}

#[derive(Default)]
struct State {
    entries: HashMap<String, Entry>,
    leases: HashMap<String, Lease>,
    versions: HashMap<String, TagVersion>,
    last_us: u64,
}

struct Entry {
    bytes: Vec<u8>,
    ends: Instant,
}

struct Lease {
    token: u64,
    ends: Instant,
}

impl Data {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Answers a call. The lock is held until the event is sent, so that events have the order of
    /// the changes.
    fn answer(&self, call: Call) -> Answer {
        let mut state = self.state();
        let result = self.outcome(&mut state, call);
        Answer { now_us: state.tick(), result }
    }

    fn outcome(&self, state: &mut State, call: Call) -> Outcome {
        let now = Instant::now();
        match call {
            Call::Get { key } => Outcome::Entry(state.entry(&key)),
            Call::Begin { key, token, lease_ms } => {
                let won = state.leases.get(&key).is_none_or(|lease| lease.ends <= now);
                if won {
                    let ends = now + Duration::from_millis(lease_ms);
                    state.leases.insert(key.clone(), Lease { token, ends });
                }
                Outcome::Begun { won, entry: state.entry(&key) }
            }
            Call::Renew { key, token, lease_ms } => {
                let is_held = state.holds(&key, token);
                if let Some(lease) = state.leases.get_mut(&key).filter(|_| is_held) {
                    lease.ends = now + Duration::from_millis(lease_ms);
                }
                Outcome::Done(is_held)
            }
            Call::Fill { key, token, bytes, keep_ms } => {
                let is_held = state.holds(&key, token);
                if is_held {
                    state.leases.remove(&key);
                    state.keep(key, bytes, keep_ms);
                }
                Outcome::Done(is_held)
            }
            Call::Release { key, token } => {
                let is_held = state.holds(&key, token);
                if is_held {
                    state.leases.remove(&key);
                }
                Outcome::Done(is_held)
            }
            Call::Set { key, bytes, keep_ms } => {
                state.leases.remove(&key);
                state.keep(key.clone(), bytes, keep_ms);
                self.publish(Event::Changed { key })
            }
            Call::Touch { key, ends, keep_ms } => Outcome::Done(state.touch(&key, ends, keep_ms)),
            Call::Remove { key } => {
                state.leases.remove(&key);
                state.entries.remove(&key);
                self.publish(Event::Changed { key })
            }
            Call::Version { tag } => {
                let new = TagVersion { at_us: state.tick(), position: None };
                Outcome::Version(state.versions.entry(tag).or_insert(new).clone())
            }
            Call::Invalidate { tag, position } => {
                let old = state.versions.get(&tag).and_then(|version| version.position.clone());
                let version = TagVersion { at_us: state.tick(), position: position.max(old) };
                state.versions.insert(tag.clone(), version.clone());
                self.publish(Event::Invalidated { tag, version: version.clone() });
                Outcome::Version(version)
            }
            Call::Subscribe => Outcome::Done(false),
        }
    }

    fn publish(&self, event: Event) -> Outcome {
        // Without subscribers nobody needs the event.
        let _ = self.events.send(event);
        Outcome::Done(true)
    }
}

impl State {
    /// Returns the time in µs since 1970; each answer is later than the one before.
    fn tick(&mut self) -> u64 {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        self.last_us = (now.as_micros() as u64).max(self.last_us + 1);
        self.last_us
    }

    fn entry(&mut self, key: &str) -> Option<Vec<u8>> {
        if self.entries.get(key)?.ends <= Instant::now() {
            self.entries.remove(key);
        }
        self.entries.get(key).map(|entry| entry.bytes.clone())
    }

    fn keep(&mut self, key: String, bytes: Vec<u8>, keep_ms: u64) {
        let ends = Instant::now() + Duration::from_millis(keep_ms);
        self.entries.insert(key, Entry { bytes, ends });
    }

    fn holds(&self, key: &str, token: u64) -> bool {
        self.leases.get(key).is_some_and(|l| l.token == token && l.ends > Instant::now())
    }

    /// Replaces the end times of a fresh entry.
    fn touch(&mut self, key: &str, ends: [u8; 16], keep_ms: u64) -> bool {
        let now_us = self.tick();
        let Some(mut bytes) = self.entry(key) else { return false };
        let is_fresh = format::fresh_until(&bytes).is_some_and(|until| until > now_us);
        if is_fresh {
            bytes[format::ENDS].copy_from_slice(&ends);
            self.keep(key.to_owned(), bytes, keep_ms);
        }
        is_fresh
    }
}
