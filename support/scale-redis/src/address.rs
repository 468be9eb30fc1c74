//! Parsing of addresses; keeps secrets out of printed text.

use std::fmt;

use redis::{ConnectionInfo, IntoConnectionInfo};

use crate::error::Error;

const SENTINEL_PORT: u16 = 26_379;
const REDIS_PORT: u16 = 6_379;

/// A parsed address of Redis.
#[derive(Clone)]
pub(crate) struct Address {
    pub(crate) shape: Shape,
    pub(crate) tls: bool,
    shown: String,
}

#[derive(Clone)]
pub(crate) enum Shape {
    Single(ConnectionInfo),
    Sentinel {
        /// Without credentials: those in the address are for the master.
        sentinels: Vec<ConnectionInfo>,
        name: String,
        /// Credentials and database of the master; its host is not used.
        master: ConnectionInfo,
    },
    Cluster(Vec<ConnectionInfo>),
}

impl fmt::Debug for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.shown)
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.shown)
    }
}

impl std::str::FromStr for Address {
    type Err = Error;

    fn from_str(url: &str) -> Result<Self, Error> {
        let (scheme, rest) =
            url.split_once("://").ok_or_else(|| Error::Address("no `://` in it".into()))?;
        let (credentials, rest) = rest.rsplit_once('@').unwrap_or(("", rest));
        let (hosts, path) = rest.split_once('/').unwrap_or((rest, ""));
        if hosts.is_empty() {
            return Err(Error::Address(format!("no host after `{scheme}://`")));
        }
        let (security, kind) = scheme.split_once('+').unwrap_or((scheme, ""));
        let tls = match security {
            "redis" => false,
            "rediss" if cfg!(feature = "tls") => true,
            "rediss" => return Err(Error::Address("`rediss` needs the feature `tls`".into())),
            other => {
                return Err(Error::Address(format!(
                    "unsupported scheme `{other}`: expected `redis` or `rediss`"
                )));
            }
        };
        let node = |host: &str, port: u16, credentials: &str, database: &str| {
            let at = if credentials.is_empty() { String::new() } else { format!("{credentials}@") };
            let has_port = host
                .rsplit_once(':')
                .is_some_and(|(name, port)| !name.is_empty() && !port.contains(']'));
            let port = if has_port { String::new() } else { format!(":{port}") };
            // The client's error text may contain the password, so it is replaced.
            format!("{security}://{at}{host}{port}/{database}").into_connection_info().map_err(
                |_| {
                    // Without an `@`, the host may be a password.
                    let shown = if at.is_empty() { String::new() } else { format!(" `{host}`") };
                    Error::Address(format!(
                        "host{shown}, port, database or password cannot be read: expected \
                     {scheme}://user:password@host:port/database, with special characters of the \
                     password percent-encoded"
                    ))
                },
            )
        };
        let all = |port, credentials, database| {
            hosts
                .split(',')
                .map(|h| node(h, port, credentials, database))
                .collect::<Result<Vec<_>, _>>()
        };
        let shape = match kind {
            "" if hosts.contains(',') => {
                return Err(Error::Address(
                    "several hosts given: expected scheme `redis+sentinel` or \
                     `redis+cluster`"
                        .into(),
                ));
            }
            "" => Shape::Single(node(hosts, REDIS_PORT, credentials, path)?),
            "sentinel" => {
                let (name, database) = path.split_once('/').unwrap_or((path, ""));
                if name.is_empty() {
                    return Err(Error::Address(
                        "no master name: expected redis+sentinel://h1,h2/name".into(),
                    ));
                }
                let master = node("master", REDIS_PORT, credentials, database)?;
                Shape::Sentinel {
                    sentinels: all(SENTINEL_PORT, "", "")?,
                    name: name.into(),
                    master,
                }
            }
            "cluster" if path.is_empty() || path == "0" => {
                Shape::Cluster(all(REDIS_PORT, credentials, "")?)
            }
            "cluster" => {
                return Err(Error::Address(
                    "invalid database: a Cluster has only database 0".into(),
                ));
            }
            other => {
                return Err(Error::Address(format!(
                    "unsupported `+{other}`: expected `+sentinel` or `+cluster`"
                )));
            }
        };
        let path = if path.is_empty() { String::new() } else { format!("/{path}") };
        Ok(Self { shape, tls, shown: format!("{scheme}://{hosts}{path}") })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(url: &str) -> Result<Address, Error> {
        url.parse()
    }

    #[test]
    fn every_documented_form_is_read() {
        assert!(matches!(read("redis://127.0.0.1").unwrap().shape, Shape::Single(_)));
        assert!(matches!(
            read("redis://u:p@[::1]:7000/3").unwrap().shape,
            Shape::Single(i) if i.redis_settings().db() == 3,
        ));
        let Shape::Sentinel { sentinels, name, master } =
            read("redis+sentinel://:pw@a,b:1/main/2").unwrap().shape
        else {
            panic!()
        };
        assert_eq!((sentinels.len(), name.as_str(), master.redis_settings().db()), (2, "main", 2));
        assert_eq!(sentinels[0].addr().to_string(), "a:26379");
        assert_eq!(sentinels[1].addr().to_string(), "b:1");
        assert!(sentinels[0].redis_settings().password().is_none());
        assert!(matches!(
            read("redis+cluster://a,b,c").unwrap().shape, Shape::Cluster(n) if n.len() == 3,
        ));
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (url, word) in [
            ("127.0.0.1", "://"),
            ("http://a", "http"),
            ("redis://", "no host"),
            ("redis://a,b", "several hosts"),
            ("redis+sentinel://a", "name"),
            ("redis+cluster://a/1", "database"),
            ("redis+ring://a", "+ring"),
            ("redis://a/x", "database"),
        ] {
            let error = read(url).unwrap_err().to_string();
            assert!(error.contains(word), "{url}: {error}");
        }
    }

    #[test]
    fn secrets_are_not_shown() {
        let address = read("redis://bob:hunter2@a:1/0").unwrap();
        assert_eq!(format!("{address} {address:?}"), "redis://a:1/0 redis://a:1/0");
        for url in ["redis://:hunter2@", "redis://:hunter2@h/x", "redis+what://:hunter2@h"] {
            assert!(!read(url).unwrap_err().to_string().contains("hunter2"));
        }
    }
}
