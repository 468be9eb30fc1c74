//! One pipelined connection that is replaced when it breaks.
//!
//! A background task makes the connections; commands only read the state that it publishes. So
//! while a server is down, commands fail without waiting, and a thousand commands cause one attempt
//! to reconnect, not a thousand.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use parking_lot::RwLock;
use redis::aio::MultiplexedConnection;
use redis::{
    Cmd, ErrorKind, Pipeline, PushInfo, PushKind, RedisError, RedisResult, ServerErrorKind, Value,
};
use tokio::sync::{mpsc, watch};

use crate::address::Address;
use crate::config::Config;
use crate::connect::{Connector, too_late};

const FIRST_DELAY: Duration = Duration::from_millis(10);

/// Time after which the log says again that a server does not answer.
const REMIND: Duration = Duration::from_mins(1);

#[derive(Clone)]
enum State {
    /// The first attempt of a series is under way: commands wait for its end.
    Connecting,
    Up(MultiplexedConnection, u64),
    /// The last attempt failed: commands fail at once with its error.
    Down(Arc<RedisError>),
}

/// A connection that reconnects by itself.
pub(crate) struct Link {
    kept: RwLock<Kept>,
    connector: Arc<Connector>,
    config: Config,
    /// Number of connections made by all keepers so far.
    made: Arc<AtomicU64>,
    patience: Duration,
    response_timeout: Duration,
    allowed: Arc<Allowed>,
}

/// Channels of the task that keeps the connection. The task ends with the runtime on which it was
/// started; then another one replaces it.
#[derive(Clone)]
struct Kept {
    state: watch::Receiver<State>,
    complaints: mpsc::UnboundedSender<Complaint>,
}

/// Sum of the allowances of running commands, in microseconds: a command sent after a large answer
/// waits for that answer too.
#[derive(Default)]
struct Allowed(AtomicU64);

impl Allowed {
    /// Adds an allowance until the guard is dropped. Returns the new sum.
    fn add(&self, allowance: Duration) -> (AllowedGuard<'_>, Duration) {
        let own = u64::try_from(allowance.as_micros()).unwrap_or(u64::MAX / 1_000);
        let sum = self.0.fetch_add(own, Relaxed) + own;
        (AllowedGuard { allowed: self, own }, Duration::from_micros(sum))
    }
}

struct AllowedGuard<'a> {
    allowed: &'a Allowed,
    own: u64,
}

impl Drop for AllowedGuard<'_> {
    fn drop(&mut self) {
        self.allowed.0.fetch_sub(self.own, Relaxed);
    }
}

enum Complaint {
    /// The connection of that number is broken.
    Broken(u64),
    /// The connection of that number did not answer in time, and has to be checked.
    Silent(u64),
}

impl Link {
    /// Starts connecting in the background.
    pub(crate) fn new(connector: Arc<Connector>, config: Config) -> Self {
        let patience = config.connect_timeout.min(config.response_timeout);
        let response_timeout = config.response_timeout;
        let (allowed, made): (Arc<Allowed>, Arc<AtomicU64>) = (Arc::default(), Arc::default());
        let kept = RwLock::new(keep(&connector, &config, &made, &allowed));
        Self { kept, connector, config, made, patience, response_timeout, allowed }
    }

    /// Returns the number of the current connection.
    pub(crate) fn generation(&self) -> Option<u64> {
        match &*self.kept.read().state.borrow() {
            State::Up(_, number) => Some(*number),
            _ => None,
        }
    }

    /// Returns the current keeper, or starts one on the current runtime if the runtime of the last
    /// one has ended.
    fn kept(&self) -> RedisResult<Kept> {
        let kept = self.kept.read().clone();
        if kept.state.has_changed().is_ok() {
            return Ok(kept);
        }
        if tokio::runtime::Handle::try_current().is_err() {
            return Err(too_late("no tokio runtime is running"));
        }
        let mut place = self.kept.write();
        if place.state.has_changed().is_err() {
            *place = keep(&self.connector, &self.config, &self.made, &self.allowed);
        }
        Ok(place.clone())
    }

    /// Runs a command. `allowance` is added to the response timeout.
    pub(crate) async fn command(&self, cmd: &Cmd, allowance: Duration) -> RedisResult<Value> {
        let (mut connection, number) = self.connection().await?;
        let (_guard, allowance) = self.allowed.add(allowance);
        let result =
            in_time(self.response_timeout + allowance, connection.send_packed_command(cmd)).await;
        self.judge(result, number)
    }

    pub(crate) async fn pipeline(
        &self,
        pipeline: &Pipeline,
        offset: usize,
        count: usize,
        allowance: Duration,
    ) -> RedisResult<Vec<Value>> {
        let (mut connection, number) = self.connection().await?;
        let (_guard, allowance) = self.allowed.add(allowance);
        let answers = connection.send_packed_commands(pipeline, offset, count);
        let result = in_time(self.response_timeout + allowance, answers).await;
        self.judge(result, number)
    }

    async fn connection(&self) -> RedisResult<(MultiplexedConnection, u64)> {
        {
            let kept = self.kept.read();
            if let State::Up(connection, number) = &*kept.state.borrow()
                && kept.state.has_changed().is_ok()
            {
                return Ok((connection.clone(), *number));
            }
        }
        let mut state = self.kept()?.state;
        let known = state.wait_for(|s| !matches!(s, State::Connecting));
        match tokio::time::timeout(self.patience, known).await {
            Ok(Ok(state)) => match &*state {
                State::Up(connection, number) => Ok((connection.clone(), *number)),
                State::Down(error) => Err(refused(error)),
                State::Connecting => Err(too_late("still connecting")),
            },
            Ok(Err(_)) => Err(too_late("the runtime of the connection has ended")),
            Err(_) => Err(too_late("still connecting")),
        }
    }

    /// Returns the result, after reporting to the keeper what it says about the connection.
    fn judge<T>(&self, result: RedisResult<T>, number: u64) -> RedisResult<T> {
        if let Err(error) = &result {
            let complaint = if error.is_timeout() {
                Some(Complaint::Silent(number))
            } else if error.is_io_error()
                || error.is_connection_dropped()
                || error.is_unrecoverable_error()
                || demoted(error)
            {
                Some(Complaint::Broken(number))
            } else {
                None
            };
            if let Some(complaint) = complaint {
                let _ = self.kept.read().complaints.send(complaint);
            }
        }
        result
    }
}

/// Starts a keeper.
fn keep(
    connector: &Arc<Connector>,
    config: &Config,
    made: &Arc<AtomicU64>,
    allowed: &Arc<Allowed>,
) -> Kept {
    let (publish, state) = watch::channel(State::Connecting);
    let (complaints, inbox) = mpsc::unbounded_channel();
    let (connector, config, made, allowed) =
        (Arc::clone(connector), config.clone(), Arc::clone(made), Arc::clone(allowed));
    tokio::spawn(LinkTask { connector, config, publish, inbox, number: 0, made, allowed }.run());
    Kept { state, complaints }
}

async fn in_time<T>(
    limit: Duration,
    answer: impl Future<Output = RedisResult<T>>,
) -> RedisResult<T> {
    tokio::time::timeout(limit, answer).await.unwrap_or_else(|_| Err(too_late("no answer in time")))
}

/// Returns whether the server is no longer a master, so that another one takes writes.
fn demoted(error: &RedisError) -> bool {
    matches!(
        error.kind(),
        ErrorKind::Server(ServerErrorKind::ReadOnly | ServerErrorKind::MasterDown)
    )
}

fn refused(error: &RedisError) -> RedisError {
    let kind = if error.is_timeout() {
        std::io::ErrorKind::TimedOut
    } else {
        std::io::ErrorKind::ConnectionRefused
    };
    RedisError::from(std::io::Error::new(
        kind,
        format!("the last attempt to connect failed: {error}"),
    ))
}

/// Background task that connects, waits for trouble, and connects again.
struct LinkTask {
    connector: Arc<Connector>,
    config: Config,
    publish: watch::Sender<State>,
    inbox: mpsc::UnboundedReceiver<Complaint>,
    number: u64,
    made: Arc<AtomicU64>,
    allowed: Arc<Allowed>,
}

impl LinkTask {
    async fn run(mut self) {
        let mut delay = FIRST_DELAY;
        let place = self.config.url.parse::<Address>().map(|address| address.to_string());
        let place = place.unwrap_or_default();
        // Time of the last line of the log about a server that does not answer.
        let mut told: Option<Instant> = None;
        loop {
            let (pushes, mut heard) = mpsc::unbounded_channel();
            match self.connector.connect(&self.config, Some(pushes)).await {
                Ok(connection) => {
                    delay = FIRST_DELAY;
                    if told.take().is_some() {
                        tracing::info!(redis = %place, "connected to Redis again");
                    }
                    self.number = self.made.fetch_add(1, Relaxed) + 1;
                    metrics::counter!("scale_redis_connects_total").increment(1);
                    self.publish.send_replace(State::Up(connection.clone(), self.number));
                    if self.until_broken(connection, &mut heard).await.is_none() {
                        return;
                    }
                    self.publish.send_replace(State::Connecting);
                    tracing::warn!(redis = %place, "lost the connection to Redis; reconnecting");
                    told = Some(Instant::now());
                }
                Err(error) => {
                    if told.is_none_or(|told| told.elapsed() > REMIND) {
                        tracing::warn!(redis = %place, %error, "no connection to Redis; trying");
                        told = Some(Instant::now());
                    } else {
                        tracing::debug!(redis = %place, %error, "no connection to Redis");
                    }
                    metrics::counter!("scale_redis_connect_errors_total").increment(1);
                    self.publish.send_replace(State::Down(Arc::new(error)));
                    let jittered = delay.mul_f64(0.5 + fastrand::f64() / 2.0);
                    if self.pause(jittered).await.is_none() {
                        return;
                    }
                    delay = (delay * 2).min(self.config.max_reconnect_delay);
                }
            }
        }
    }

    /// Returns when the connection is broken; `None` when the last handle is dropped.
    async fn until_broken(
        &mut self,
        connection: MultiplexedConnection,
        heard: &mut mpsc::UnboundedReceiver<PushInfo>,
    ) -> Option<()> {
        loop {
            tokio::select! {
                push = heard.recv() => match push {
                    Some(push) if push.kind != PushKind::Disconnection => {}
                    _ => return Some(()),
                },
                complaint = self.inbox.recv() => match complaint? {
                    Complaint::Broken(number) if number == self.number => return Some(()),
                    Complaint::Silent(number) if number == self.number => {
                        let mut probe = connection.clone();
                        let ping = redis::cmd("PING");
                        let (_guard, allowance) = self.allowed.add(Duration::ZERO);
                        let answer = in_time(
                            self.config.response_timeout + allowance,
                            ping.query_async::<Value>(&mut probe),
                        ).await;
                        if answer.is_err_and(|e| e.is_timeout() || e.is_io_error()) {
                            return Some(());
                        }
                    }
                    _ => {}
                },
            }
        }
    }

    /// Waits between two attempts; reports about older connections are ignored.
    async fn pause(&mut self, delay: Duration) -> Option<()> {
        let end = tokio::time::Instant::now() + delay;
        loop {
            tokio::select! {
                () = tokio::time::sleep_until(end) => return Some(()),
                complaint = self.inbox.recv() => { complaint?; }
            }
        }
    }
}
