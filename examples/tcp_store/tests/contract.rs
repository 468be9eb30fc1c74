//! The contract of a second level, on a server of its own for each case.

use anyhow::Result;
use tcp_store::{TcpStore, serve};
use tokio::net::TcpListener;

/// Starts a server, and returns three handles of it, as three processes have them.
async fn connect(_case: &str) -> Result<[TcpStore; 3]> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let server = listener.local_addr()?;
    tokio::spawn(serve(listener));
    let store = async || TcpStore::connect(server).await;
    Ok([store().await?, store().await?, store().await?])
}

scale_cache::store_contract!(tcp, crate::connect);
