//! State of a layer's services: settings, stored pages, running fetches, and names of pages.

use std::fmt::Write;
use std::hash::{BuildHasher, Hash};
use std::sync::Arc;
use std::time::Duration;

use http::{Extensions, HeaderMap, HeaderName, Uri};
use moka::sync::Cache as Moka;

use super::address::Address;
use super::flight::Flights;
use super::freshness::Rules;
use super::stored::{Page, selecting};
use crate::cache::Cache;
use crate::policy::versions::RESERVED_PREFIX;
use crate::space::Space;

/// Maximum length of a page's name: an address and its key headers.
const LONGEST_NAME: usize = 8_192;
/// Number of tags that URLs share for invalidation.
const BUCKETS: u64 = 1 << 16;
/// Time during which requests for a response that could not be stored do not wait for each other.
const PASS: Duration = Duration::from_secs(10);
const PASSES: u64 = 10_000;
/// Minimum interval between two refreshes of a stale page.
const REFRESH: Duration = Duration::from_secs(1);

/// Settings of a layer.
#[derive(Clone, Debug)]
pub(super) struct Settings {
    pub(super) cache: Cache,
    pub(super) largest: usize,
    /// Time without data after which a body is given up.
    pub(super) stall: Duration,
    pub(super) rules: Rules,
    /// `true` if directives of requests are followed.
    pub(super) obey: bool,
    pub(super) namespace: Arc<str>,
    pub(super) keyed_by: Arc<[HeaderName]>,
    pub(super) original: Option<OriginalUri>,
}

/// Function that returns the address that a client requested, if a router has changed it.
#[derive(Clone)]
pub(super) struct OriginalUri(pub(super) Arc<dyn Fn(&Extensions) -> Option<Uri> + Send + Sync>);

impl std::fmt::Debug for OriginalUri {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("OriginalUri")
    }
}

/// State shared by all services of a layer.
pub(super) struct Shared {
    pub(super) pages: Space<Page>,
    pub(super) flights: Arc<Flights>,
    /// URLs whose responses could not be stored for any client.
    pub(super) passes: Moka<Arc<str>, ()>,
    /// URLs whose responses to requests with cookies could not be stored.
    pub(super) personal: Moka<Arc<str>, ()>,
    /// URLs that were refreshed a moment ago, or are being refreshed.
    pub(super) refreshed: Moka<Arc<str>, ()>,
    hasher: foldhash::quality::FixedState,
}

impl Shared {
    pub(super) fn new(cache: &Cache) -> Self {
        let passes = || Moka::builder().max_capacity(PASSES).time_to_live(PASS).build();
        Self {
            pages: cache.space("http"),
            flights: Arc::default(),
            passes: passes(),
            personal: passes(),
            refreshed: Moka::builder().max_capacity(PASSES).time_to_live(REFRESH).build(),
            hasher: foldhash::quality::FixedState::with_seed(0),
        }
    }
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Shared")
    }
}

/// State shared by all clones of a service.
#[derive(Debug)]
pub(super) struct ServiceState {
    pub(super) shared: Arc<Shared>,
    pub(super) settings: Settings,
}

impl ServiceState {
    /// Returns the name that an address is stored under, for all methods. Its parts are separated
    /// by spaces, which occur nowhere else.
    pub(super) fn named(&self, address: &Address, headers: &HeaderMap) -> Option<Arc<str>> {
        let mut name = match &*self.settings.namespace {
            "" => address.text()?,
            namespace => format!("{namespace} {}", address.text()?),
        };
        for header in &*self.settings.keyed_by {
            name.push_str(" =");
            for value in headers.get_all(header) {
                for byte in value.as_bytes() {
                    let _ = write!(name, "{byte:02x}");
                }
                name.push(',');
            }
        }
        (name.len() <= LONGEST_NAME).then(|| name.into())
    }

    /// Returns the tag by which a URL is invalidated, independently of the scheme, which is unknown
    /// with HTTP/1. A few URLs share each tag, which bounds the number of tags.
    pub(super) fn bucket(&self, url: &str) -> Arc<str> {
        let url = url.split_once("://").map_or(url, |(_, rest)| rest);
        format!("{RESERVED_PREFIX}http:{:x}", self.shared.hasher.hash_one(url) % BUCKETS).into()
    }

    pub(super) fn key(&self, url: &str, vary: &[(String, String)]) -> String {
        if vary.is_empty() {
            return url.to_owned();
        }
        let mut hasher = self.shared.hasher.build_hasher();
        vary.hash(&mut hasher);
        format!("{url} {:016x}", std::hash::Hasher::finish(&hasher))
    }

    pub(super) fn selected(names: &[String], headers: &HeaderMap) -> Vec<(String, String)> {
        names.iter().map(|name| (name.clone(), selecting(headers, name))).collect()
    }

    pub(super) fn now(&self) -> u64 {
        self.settings.cache.0.now_ms()
    }
}
