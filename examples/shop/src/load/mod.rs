//! Load of a real shop, in an open loop: requests arrive when they arrive, however long the shop
//! takes, and a request's latency counts from the moment at which it should have been sent.
//!
//! | module | contents |
//! | --- | --- |
//! | `mix` | kinds of visits, and how often each happens |
//! | `visitor` | one visitor: cookies, pages, forms |
//! | `client` | a connection |
//! | `report` | the table and the chart |
//! | `cpu` | CPU time of the processes that were started |

mod client;
pub(crate) mod cpu;
mod mix;
mod report;
mod visitor;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use clap::{Args, ValueEnum};
use tokio::sync::Mutex;
use tokio::time::Instant;

pub(crate) use self::client::Client;
use self::mix::Mix;
use self::report::Report;
pub(crate) use self::report::Tally;
pub(crate) use self::visitor::Visitor;
use crate::db::seed;
use crate::fleet::{Fleet, Member, Plan, STAFF};

/// A fixed load on a shop: browse 72 %, search 15, cart 8, checkout 2, staff 2.8, log-in 0.2.
#[derive(Args)]
pub(crate) struct Options {
    /// Shop to measure, for example http://127.0.0.1:3000: one without limits.
    #[arg(long, conflicts_with = "tier")]
    url: Option<String>,
    /// Password of the staff account ann@example.com there.
    #[arg(long, env = "SHOP_PASSWORD", hide_env_values = true)]
    password: Option<String>,
    /// Starts a shop on this machine, and measures it; several run one after the other.
    #[arg(long, value_enum)]
    tier: Vec<Tier>,
    /// Requests per second; several are measured one after the other.
    #[arg(long, value_delimiter = ',', default_value = "500,1000,2000,3000")]
    rate: Vec<u32>,
    /// Duration of each rate, in seconds.
    #[arg(long, default_value_t = 20)]
    seconds: u64,
    /// Connections, which each have one request under way.
    #[arg(long, default_value_t = 128)]
    connections: usize,
    /// Visitors who take turns; nine of ten have a session.
    #[arg(long, default_value_t = 1_000)]
    visitors: usize,
    /// Web processes of the tier `fleet`.
    #[arg(long, default_value_t = 2)]
    webs: usize,
    /// Seed of the random numbers: the same one makes the same requests at the same moments.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Writes the chart of latencies to this file.
    #[arg(long)]
    svg: Option<PathBuf>,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Tier {
    /// One process on an SQLite file.
    Embedded,
    /// Postgres with two replicas, Redis with Sentinels, web processes behind HAProxy, a worker.
    Fleet,
}

/// Limits that the load does not reach: all of it comes from one address.
pub(crate) const NO_LIMITS: &str = "site = { name = \"site\", quota = 100000000, per = \"1s\" }\n\
    login = { name = \"login\", quota = 100000000, per = \"1s\" }\n\
    search = { name = \"search\", quota = 100000000, per = \"1s\" }\n";

pub(crate) async fn run(options: Options) -> Result<()> {
    ensure!(options.rate.iter().all(|rate| *rate > 0), "--rate: more than 0");
    ensure!(
        options.connections > 0 && options.visitors > 0,
        "--connections, --visitors: 1 or more"
    );
    let mut report = Report::default();
    if let Some(url) = &options.url {
        let address = url.strip_prefix("http://").unwrap_or(url).trim_end_matches('/');
        let address = tokio::net::lookup_host(address)
            .await
            .with_context(|| format!("--url: expected http://host:port, not {url}"))?
            .next()
            .context("--url: the host has no address")?;
        let password = options.password.clone().unwrap_or_else(|| seed::PASSWORD.into());
        measure(&options, "shop", address, &password, &mut report).await?;
    }
    ensure!(options.url.is_some() || !options.tier.is_empty(), "pass --url or --tier");
    for tier in &options.tier {
        match tier {
            Tier::Embedded => embedded(&options, &mut report).await?,
            Tier::Fleet => fleet(&options, &mut report).await?,
        }
    }
    if let Some(file) = &options.svg {
        std::fs::write(file, report.svg())
            .with_context(|| format!("writing {}", file.display()))?;
    }
    Ok(())
}

async fn embedded(options: &Options, report: &mut Report) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let config = folder.path().join("shop.toml");
    let url = format!("sqlite://{}?mode=rwc", folder.path().join("shop.db").display());
    let text = format!(
        "plain_http = true\n[database]\nurl = {url:?}\n[queue]\nurl = {url:?}\n\
         [mail]\ntakes = \"20ms\"\n[session]\nurl = {url:?}\n[limit]\n{NO_LIMITS}"
    );
    std::fs::write(&config, text)?;
    let shop = Member::start(&config, folder.path(), "shop", None).await?;
    measure(options, "embedded", shop.address(), seed::PASSWORD, report).await?;
    shop.terminate()?;
    shop.ended().await
}

async fn fleet(options: &Options, report: &mut Report) -> Result<()> {
    let listen = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?;
    let plan = Plan { listen, webs: options.webs, workers: 1, limits: NO_LIMITS };
    let fleet = Fleet::start(&plan).await?;
    measure(options, "fleet", listen, &fleet.password, report).await?;
    fleet.stop().await
}

/// Measures each rate.
async fn measure(
    options: &Options,
    name: &str,
    address: SocketAddr,
    password: &str,
    report: &mut Report,
) -> Result<()> {
    let mut load = Load::prepare(address, password, options.visitors, options.seed).await?;
    for rate in &options.rate {
        let time = Duration::from_secs(options.seconds);
        let tally = load.play(*rate, time, options.connections).await?;
        report.add(name, *rate, tally);
    }
    Ok(())
}

/// Visitors of a shop, ready to come.
pub(crate) struct Load {
    address: SocketAddr,
    crowd: Arc<Crowd>,
    random: fastrand::Rng,
}

impl Load {
    /// Makes the visitors' sessions, and the caches warm.
    pub(crate) async fn prepare(
        address: SocketAddr,
        password: &str,
        visitors: usize,
        seed: u64,
    ) -> Result<Self> {
        let mut random = fastrand::Rng::with_seed(seed);
        let crowd = Arc::new(Crowd::new(address, password, visitors, &mut random).await?);
        Ok(Self { address, crowd, random })
    }

    /// Plays requests of that rate for some time, on connections that take them in turn.
    pub(crate) async fn play(
        &mut self,
        rate: u32,
        time: Duration,
        connections: usize,
    ) -> Result<Tally> {
        let arrivals = Arc::new(mix::arrivals(rate, time, &mut self.random));
        let next = Arc::new(AtomicUsize::new(0));
        let start = Instant::now() + Duration::from_millis(100);
        let mut tasks = tokio::task::JoinSet::new();
        for _ in 0..connections {
            let (arrivals, next, crowd) = (arrivals.clone(), next.clone(), self.crowd.clone());
            let (mut client, seed) = (Client::new(self.address), self.random.u64(..));
            tasks.spawn(async move {
                let mut tally = Tally::default();
                while let Some(arrival) = arrivals.get(next.fetch_add(1, Relaxed)) {
                    let due = start + arrival.at;
                    tokio::time::sleep_until(due).await;
                    let place = crowd.place(arrival.what);
                    let visitor = place.lock().await.pop();
                    let mut visitor = visitor.unwrap_or_else(|| Visitor::new(seed));
                    visitor.act(&mut client, arrival.what, &crowd.password, due, &mut tally).await;
                    place.lock().await.push(visitor);
                }
                tally
            });
        }
        let mut all = Tally::default();
        while let Some(tally) = tasks.join_next().await {
            all.add(tally?);
        }
        all.took = start.elapsed();
        Ok(all)
    }
}

/// Visitors between two of their requests.
struct Crowd {
    customers: Mutex<Vec<Visitor>>,
    staff: Mutex<Vec<Visitor>>,
    password: String,
}

/// Members of the staff who are logged in.
const STAFF_AT_WORK: usize = 8;

impl Crowd {
    async fn new(
        address: SocketAddr,
        password: &str,
        visitors: usize,
        random: &mut fastrand::Rng,
    ) -> Result<Self> {
        let mut client = Client::new(address);
        let mut customers = Vec::with_capacity(visitors);
        for n in 0..visitors {
            let mut visitor = Visitor::new(random.u64(..));
            if n % 10 != 0 {
                visitor.put_into_cart(&mut client).await.context("a first request")?;
            }
            customers.push(visitor);
        }
        let mut staff = Vec::new();
        for _ in 0..STAFF_AT_WORK {
            let mut visitor = Visitor::new(random.u64(..));
            visitor.log_in(&mut client, STAFF, password).await.context("logging in as staff")?;
            staff.push(visitor);
        }
        let (customers, staff) = (Mutex::new(customers), Mutex::new(staff));
        Ok(Self { customers, staff, password: password.to_owned() })
    }

    fn place(&self, what: Mix) -> &Mutex<Vec<Visitor>> {
        if what == Mix::Staff { &self.staff } else { &self.customers }
    }
}
