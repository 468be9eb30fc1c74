//! A TCP proxy between a client and a server, with faults on request.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// Faults that the proxy currently applies.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Weather {
    delay: Duration,
    bytes_per_second: Option<u32>,
    cut: bool,
    refuse: bool,
    /// Number of resets: connections with an older number are reset.
    resets: u64,
    /// Number of calls of `forget`: connections with an older number are silent forever.
    forgotten: u64,
}

/// Forwards a free loopback port to one server.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> anyhow::Result<()> {
/// let proxy = scale_testkit::Proxy::start(6379).await?;
/// proxy.cut();      // bytes stop, but connections stay open
/// proxy.heal();
/// assert!(proxy.port() > 0);
/// # Ok(()) }
/// ```
#[derive(Debug)]
pub struct Proxy {
    port: u16,
    weather: Arc<watch::Sender<Weather>>,
    listener: JoinHandle<()>,
}

impl Proxy {
    /// Listens on a free port, and forwards to `127.0.0.1:target`.
    pub async fn start(target: u16) -> Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let port = listener.local_addr()?.port();
        let weather = Arc::new(watch::Sender::new(Weather::default()));
        let task = tokio::spawn(listen(
            listener,
            (Ipv4Addr::LOCALHOST, target).into(),
            Arc::clone(&weather),
        ));
        Ok(Self { port, weather, listener: task })
    }

    /// Returns the port for clients.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Delays each chunk of bytes by this time, in both directions.
    pub fn delay(&self, delay: Duration) {
        self.weather.send_modify(|w| w.delay = delay);
    }

    /// Limits each direction of each connection to that many bytes per second.
    pub fn throttle(&self, bytes_per_second: u32) {
        self.weather.send_modify(|w| w.bytes_per_second = Some(bytes_per_second.max(1)));
    }

    /// Stops all bytes; connections stay open, and new ones are accepted without an answer.
    pub fn cut(&self) {
        self.weather.send_modify(|w| w.cut = true);
    }

    /// Stops all bytes of the open connections forever, like a firewall that has lost its table;
    /// new connections work.
    pub fn forget(&self) {
        self.weather.send_modify(|w| w.forgotten += 1);
    }

    /// Closes every open connection with a TCP reset; new connections work.
    pub fn reset(&self) {
        self.weather.send_modify(|w| w.resets += 1);
    }

    /// Resets open connections, and every new one until [`heal`](Self::heal).
    pub fn refuse(&self) {
        self.weather.send_modify(|w| {
            w.refuse = true;
            w.resets += 1;
        });
    }

    /// Removes all faults; bytes held back by a cut are forwarded.
    pub fn heal(&self) {
        self.weather.send_modify(|w| {
            *w = Weather { resets: w.resets, forgotten: w.forgotten, ..Weather::default() }
        });
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.listener.abort();
        self.reset();
    }
}

async fn listen(listener: TcpListener, target: SocketAddr, weather: Arc<watch::Sender<Weather>>) {
    while let Ok((client, _)) = listener.accept().await {
        tokio::spawn(carry(client, target, weather.subscribe()));
    }
}

async fn carry(client: TcpStream, target: SocketAddr, mut weather: watch::Receiver<Weather>) {
    let born = *weather.borrow_and_update();
    let _ = (client.set_zero_linger(), client.set_nodelay(true));
    if weather.borrow().refuse {
        return;
    }
    let Ok(server) = TcpStream::connect(target).await else { return };
    let _ = (server.set_zero_linger(), server.set_nodelay(true));
    let (mut from_client, mut to_client) = client.into_split();
    let (mut from_server, mut to_server) = server.into_split();
    let (up, down) = (weather.clone(), weather.clone());
    tokio::select! {
        _ = pump(&mut from_client, &mut to_server, up, born.forgotten) => {}
        _ = pump(&mut from_server, &mut to_client, down, born.forgotten) => {}
        _ = weather.wait_for(|w| w.resets != born.resets) => {}
    }
}

async fn pump<R, W>(
    from: &mut R,
    to: &mut W,
    mut weather: watch::Receiver<Weather>,
    forgotten: u64,
) -> Result<()>
where
    R: AsyncReadExt + Unpin,
    W: AsyncWriteExt + Unpin,
{
    let mut buffer = vec![0; 16 * 1024];
    loop {
        let limit = weather
            .borrow()
            .bytes_per_second
            .map_or(buffer.len(), |b| (b as usize / 20).clamp(1, buffer.len()));
        let read = from.read(&mut buffer[..limit]).await?;
        if read == 0 {
            return Ok(());
        }
        let now = *weather.wait_for(|w| !w.cut && w.forgotten == forgotten).await?;
        if !now.delay.is_zero() {
            tokio::time::sleep(now.delay).await;
        }
        if let Some(rate) = now.bytes_per_second {
            tokio::time::sleep(Duration::from_secs_f64(read as f64 / f64::from(rate))).await;
        }
        weather.wait_for(|w| !w.cut && w.forgotten == forgotten).await?;
        to.write_all(&buffer[..read]).await?;
    }
}
