//! The command `cluster`: a fleet on this machine with customers who buy all the time, to look at
//! and to break.
//!
//! | module | contents |
//! | --- | --- |
//! | `customers` | customers, and the count of what they have lost |
//! | `action` | what one can do to the fleet: kill, pause, promote, replace |
//! | `watch` | the state of everything, once a second |
//! | `page` | the live page, with buttons |
//! | `terminal` | the same in the terminal, with words |
//! | `chaos` | the script that plays all actions unattended |

mod action;
mod chaos;
mod customers;
mod page;
mod terminal;
mod watch;

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, Result};
use clap::Args;

use self::action::Action;
use self::customers::Customers;
use crate::fleet::{Fleet, Plan, STAFF};

/// Port of the balancer, and of the live page.
const PORTS: [u16; 2] = [3000, 3100];

#[derive(Args)]
pub(crate) struct Options {
    /// Web processes.
    #[arg(long, default_value_t = 3)]
    webs: usize,
    /// Workers.
    #[arg(long, default_value_t = 2)]
    workers: usize,
    /// Customers who buy all the time; 0 for none.
    #[arg(long, default_value_t = 8)]
    customers: usize,
    /// Address of the live page.
    #[arg(long)]
    live: Option<SocketAddr>,
    /// Plays the script of faults, prints what was lost, and ends.
    #[arg(long)]
    chaos: bool,
}

/// The fleet, its customers, and what is known about both.
struct Cluster {
    fleet: Fleet,
    customers: Customers,
    /// The last action, and its result.
    last: Mutex<String>,
}

impl Cluster {
    /// Does something in the background. Actions may overlap, as faults do.
    fn begin(self: &Arc<Self>, action: Action) {
        let (cluster, here) = (self.clone(), tokio::runtime::Handle::current());
        // Waiting for a condition is not `Send`: it needs a thread of its own.
        tokio::task::spawn_blocking(move || {
            here.block_on(async {
                cluster.note(format!("{action} …"));
                match cluster.act(&action).await {
                    Ok(()) => cluster.note(format!("{action}: done")),
                    Err(error) => cluster.note(format!("{action}: {error:#}")),
                }
            });
        });
    }

    fn note(&self, text: String) {
        *self.last.lock().unwrap_or_else(PoisonError::into_inner) = text;
    }

    fn last(&self) -> String {
        self.last.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

pub(crate) async fn run(listen: Option<SocketAddr>, options: Options) -> Result<()> {
    say("Starting Postgres with two replicas, Redis with Sentinels, and the shop …");
    let (listen, live) = (bound(listen, PORTS[0])?, bound(options.live, PORTS[1])?);
    let Options { webs, workers, customers, chaos, .. } = options;
    let limits = if customers > 0 { crate::load::NO_LIMITS } else { "" };
    let fleet = Fleet::start(&Plan { listen, webs, workers, limits }).await?;
    let customers = Customers::start(listen, customers);
    let cluster = Arc::new(Cluster { fleet, customers, last: Mutex::default() });
    let ended = if chaos {
        chaos::play(&cluster).await
    } else {
        describe(&cluster, live);
        let state = watch::begin(&cluster);
        tokio::select! {
            ended = page::serve(live, cluster.clone(), state.clone()) => ended,
            ended = terminal::run(&cluster, state) => ended,
            () = super::stopped() => Ok(()),
        }
    };
    cluster.customers.stop().await;
    say("Stopping …");
    cluster.fleet.stop().await?;
    ended
}

#[allow(clippy::print_stdout)]
fn say(text: &str) {
    println!("{text}");
}

fn describe(cluster: &Cluster, live: SocketAddr) {
    let fleet = &cluster.fleet;
    say(&format!("shop       http://{}", fleet.balancer.address()));
    say(&format!("live page  http://{live}"));
    for member in fleet.webs.iter().chain(&fleet.workers) {
        let (name, operations, log) = (member.name(), member.operations(), member.log().display());
        say(&format!("{name:<10} metrics http://{operations}/metrics, log {log}"));
    }
    for node in fleet.postgres.nodes() {
        say(&format!("postgres   {}", node.url()));
    }
    say(&format!("redis      {}", fleet.redis.url()));
    say(&format!("config     {}", fleet.config.display()));
    say(&format!("log in as {STAFF}, password {}", fleet.password));
    say("Press Ctrl-C to stop everything.");
}

/// Returns the address to listen on: the one given, with a free port instead of 0.
fn bound(address: Option<SocketAddr>, port: u16) -> Result<SocketAddr> {
    let address = address.unwrap_or_else(|| SocketAddr::from(([127, 0, 0, 1], port)));
    Ok(std::net::TcpListener::bind(address)
        .with_context(|| format!("listening on {address}"))?
        .local_addr()?)
}
