//! What the cache did, told in `Cache-Status` (RFC 9211).

use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};

static CACHE_STATUS: HeaderName = HeaderName::from_static("cache-status");

/// Why a request went to the origin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Forwarded {
    /// Not a request that is cached.
    Method,
    Miss,
    VaryMiss,
    Stale,
    /// The client asked for it.
    Request,
}

/// What was done.
#[derive(Clone, Copy, Debug)]
pub(super) enum Told {
    /// Seconds until it is stale.
    Hit {
        left: i64,
    },
    Forwarded {
        why: Forwarded,
        status: StatusCode,
        stored: bool,
        collapsed: bool,
    },
    /// The origin could not be asked: what is stored had to do.
    Error {
        left: i64,
    },
    /// Nothing is stored, and the client wants nothing else.
    OnlyIfCached,
}

impl Told {
    pub(super) fn add(self, headers: &mut HeaderMap) {
        let text = match self {
            Self::Hit { left } => format!("scale; hit; ttl={left}"),
            Self::Error { left } => format!("scale; hit; ttl={left}; detail=origin-failed"),
            Self::OnlyIfCached => "scale; detail=only-if-cached".to_owned(),
            Self::Forwarded { why, status, stored, collapsed } => {
                let why = match why {
                    Forwarded::Method => "method",
                    Forwarded::Miss => "uri-miss",
                    Forwarded::VaryMiss => "vary-miss",
                    Forwarded::Stale => "stale",
                    Forwarded::Request => "request",
                };
                let flag = |on: bool, name: &str| if on { format!("; {name}") } else { String::new() };
                let status = status.as_u16();
                format!("scale; fwd={why}; fwd-status={status}{}{}", flag(stored, "stored"), flag(collapsed, "collapsed"))
            }
        };
        if let Ok(value) = HeaderValue::try_from(text) {
            headers.append(&CACHE_STATUS, value);
        }
        let result = match self {
            Self::Hit { .. } => "hit",
            Self::Error { .. } => "stale",
            Self::Forwarded { collapsed: true, .. } => "collapsed",
            Self::Forwarded { .. } | Self::OnlyIfCached => "miss",
        };
        metrics::counter!("scale_cache_http_requests_total", "result" => result).increment(1);
    }
}
