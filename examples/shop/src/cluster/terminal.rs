//! The fleet in the terminal: its state is redrawn each second, and actions are typed as words.

use std::fmt::Write as _;
use std::io::{IsTerminal, Write as _};
use std::sync::Arc;

use anyhow::Result;
use tokio::io::{AsyncBufReadExt, BufReader};

use super::Cluster;
use super::action::Action;
use super::watch::{State, Watched};

/// Shows the state, and does what is typed, until `quit`. Without a terminal it does nothing.
pub(super) async fn run(cluster: &Arc<Cluster>, mut state: Watched) -> Result<()> {
    if !std::io::stdout().is_terminal() || !std::io::stdin().is_terminal() {
        return std::future::pending().await;
    }
    let mut typed = BufReader::new(tokio::io::stdin()).lines();
    loop {
        tokio::select! {
            changed = state.changed() => {
                if changed.is_err() {
                    return Ok(());
                }
                let drawn = draw(&state.borrow_and_update());
                std::io::stdout().write_all(drawn.as_bytes())?;
                std::io::stdout().flush()?;
            }
            line = typed.next_line() => match line?.as_deref().map(str::trim) {
                None | Some("quit") => return Ok(()),
                Some("") => {}
                Some(words) => match words.parse::<Action>() {
                    Ok(action) => cluster.begin(action),
                    Err(error) => cluster.note(error.to_string()),
                },
            },
        }
    }
}

/// Returns the state as text that replaces what the terminal shows.
fn draw(state: &State) -> String {
    let mut text = String::from("\x1b[2J\x1b[H");
    let account = &state.account;
    let _ = writeln!(
        text,
        "{:>8.0} requests/s   {:>6.0} failures/s   {} of {} requests failed\n\
         {:>8} orders   {} lost   {} receipts on their way   {} sessions lost\n",
        state.requests_per_second,
        state.failures_per_second,
        account.failures,
        account.requests,
        account.orders,
        account.orders_lost,
        account.receipts_missing,
        account.sessions_lost
    );
    for part in &state.parts {
        let sign = if part.is_well { "\x1b[32m●\x1b[0m" } else { "\x1b[31m○\x1b[0m" };
        let _ = writeln!(text, "{sign} {:<12} {}", part.name, part.state);
    }
    let _ = write!(
        text,
        "\n{}\nkill, pause or resume web-1, worker-1, replica, redis · promote · roll · quit\n> ",
        state.last
    );
    text
}
