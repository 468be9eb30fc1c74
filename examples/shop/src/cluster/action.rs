//! Actions on the fleet: kill, pause, promote, replace.

use std::fmt;
use std::str::FromStr;

use anyhow::{Context, Result, ensure};

use super::Cluster;
use crate::fleet::Member;

/// An action, in words: `kill web-1`, `promote`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Action {
    /// Kills a process of the shop, or a server: `web-1`, `worker-1`, `replica`, `redis`.
    Kill(String),
    /// Stops it without killing it: its connections stay open.
    Pause(String),
    /// Lets it run on, or starts it again.
    Resume(String),
    /// Kills the primary, and makes the first replica the primary.
    Promote,
    /// Replaces the web processes one after the other, as a deployment does.
    Roll,
}

impl FromStr for Action {
    type Err = anyhow::Error;

    fn from_str(words: &str) -> Result<Self> {
        let mut words = words.split_whitespace();
        let (verb, object) = (words.next().unwrap_or_default(), words.next().map(str::to_owned));
        let object = || object.context("of what? For example: kill web-1");
        Ok(match verb {
            "kill" => Self::Kill(object()?),
            "pause" => Self::Pause(object()?),
            "resume" => Self::Resume(object()?),
            "promote" => Self::Promote,
            "roll" => Self::Roll,
            _ => anyhow::bail!("expected kill, pause, resume, promote or roll, not “{verb}”"),
        })
    }
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Kill(what) => write!(f, "kill {what}"),
            Self::Pause(what) => write!(f, "pause {what}"),
            Self::Resume(what) => write!(f, "resume {what}"),
            Self::Promote => f.write_str("promote"),
            Self::Roll => f.write_str("roll"),
        }
    }
}

impl Cluster {
    pub(super) async fn act(&self, action: &Action) -> Result<()> {
        match action {
            Action::Kill(what) => self.kill(what),
            Action::Pause(what) => self.pause(what),
            Action::Resume(what) => self.resume(what).await,
            Action::Promote => self.promote().await,
            Action::Roll => self.fleet.roll().await,
        }
    }

    /// Returns the number of the current primary.
    pub(super) async fn primary(&self) -> usize {
        for (number, node) in self.fleet.postgres.nodes().iter().enumerate() {
            if node.sql("select pg_is_in_recovery()").await.is_ok_and(|answer| answer == "f") {
                return number;
            }
        }
        0
    }

    fn member(&self, name: &str) -> Result<&Member> {
        let all = self.fleet.webs.iter().chain(&self.fleet.workers);
        all.into_iter().find(|member| member.name() == name).with_context(|| {
            format!("there is no {name}: web-1, worker-1, replica, redis, and so on")
        })
    }

    fn kill(&self, what: &str) -> Result<()> {
        match what {
            "replica" => self.fleet.postgres.node(2).kill(),
            "redis" => self.fleet.redis.server(0).kill(),
            name => self.member(name)?.kill(),
        }
    }

    fn pause(&self, what: &str) -> Result<()> {
        match what {
            "replica" => self.fleet.postgres.node(2).freeze(),
            "redis" => self.fleet.redis.server(0).pause(),
            name => self.member(name)?.pause(),
        }
    }

    async fn resume(&self, what: &str) -> Result<()> {
        match what {
            "replica" => {
                let (node, primary) = (self.fleet.postgres.node(2), self.primary().await);
                ensure!(primary != 2, "it is the primary now");
                let _ = node.thaw();
                if node.sql("select 1").await.is_err() {
                    node.rejoin(self.fleet.postgres.node(primary)).await?;
                }
                Ok(())
            }
            "redis" => {
                let server = self.fleet.redis.server(0);
                // Paused, or killed.
                let _ = server.resume();
                if server.command(&["PING"]).await.is_err() {
                    server.restart().await?;
                }
                Ok(())
            }
            name => {
                let member = self.member(name)?;
                if member.is_running() { member.resume() } else { member.restart().await }
            }
        }
    }

    /// Kills the primary, makes the first replica the primary, and lets the others follow it.
    async fn promote(&self) -> Result<()> {
        let nodes = self.fleet.postgres.nodes();
        let old = self.primary().await;
        let new = usize::from(old == 0);
        nodes[old].kill()?;
        nodes[new].promote().await?;
        for (number, node) in nodes.iter().enumerate() {
            if number == old {
                node.rejoin(&nodes[new]).await?;
            } else if number != new {
                node.follow(&nodes[new]).await?;
            }
        }
        Ok(())
    }
}
