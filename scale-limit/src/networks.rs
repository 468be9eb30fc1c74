//! Lists of networks that are always admitted, or always refused.

use std::collections::{BTreeMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

use arc_swap::ArcSwap;
use ipnet::IpNet;

/// A list of networks that can be replaced at run time. A look-up costs one hash for each length of
/// prefix in the list, for any length of the list. A clone costs one reference count.
///
/// ```
/// use scale_limit::client::Networks;
///
/// let denied = Networks::new(
///     ["203.0.113.0/24".parse().unwrap(), "2001:db8::/32".parse().unwrap()]
/// );
/// assert!(denied.contains("203.0.113.7".parse().unwrap()));
/// denied.replace([]);
/// assert!(!denied.contains("203.0.113.7".parse().unwrap()));
/// ```
#[derive(Clone, Debug, Default)]
pub struct Networks(Arc<ArcSwap<Lengths>>);

/// Networks by family and length of prefix.
type Lengths = BTreeMap<(bool, u8), HashSet<IpNet>>;

impl Networks {
    /// Creates a list of these networks.
    pub fn new(networks: impl IntoIterator<Item = IpNet>) -> Self {
        let list = Self::default();
        list.replace(networks);
        list
    }

    /// Replaces the list by these networks.
    pub fn replace(&self, networks: impl IntoIterator<Item = IpNet>) {
        let mut lengths = Lengths::new();
        for network in networks {
            let network = canonical(network);
            lengths
                .entry((network.addr().is_ipv6(), network.prefix_len()))
                .or_default()
                .insert(network);
        }
        self.0.store(Arc::new(lengths));
    }

    /// Returns whether the address is in one of the networks. An IPv4 address in IPv6 form counts
    /// as IPv4.
    pub fn contains(&self, ip: IpAddr) -> bool {
        let ip = ip.to_canonical();
        self.0.load().iter().any(|((v6, length), networks)| {
            *v6 == ip.is_ipv6()
                && IpNet::new(ip, *length).is_ok_and(|network| networks.contains(&network.trunc()))
        })
    }
}

/// Removes the host bits of a network. An IPv4 network in IPv6 form (`::ffff:10.0.0.0/104`) becomes
/// an IPv4 network.
pub(crate) fn canonical(network: IpNet) -> IpNet {
    let network = network.trunc();
    let v4 = match network.addr().to_canonical() {
        ip @ IpAddr::V4(_) if network.addr().is_ipv6() => {
            network.prefix_len().checked_sub(96).map(|length| IpNet::new(ip, length))
        }
        _ => None,
    };
    v4.and_then(Result::ok).unwrap_or(network)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn networks_of_ipv4_are_found_however_they_are_written() {
        let list = Networks::new(["::ffff:10.0.0.0/104".parse().unwrap(), "::/0".parse().unwrap()]);
        for inside in ["10.1.2.3", "::ffff:10.1.2.3", "2001:db8::1"] {
            assert!(list.contains(inside.parse().unwrap()), "{inside}");
        }
        assert!(!list.contains("11.1.2.3".parse().unwrap()));
    }

    proptest! {
        /// The result equals that of a search through all networks.
        #[test]
        fn agrees_with_a_search(
            networks in prop::collection::vec((any::<u32>(), 0_u8..=32), 0..20),
            ip in any::<u32>(),
        ) {
            let networks: Vec<IpNet> = networks.into_iter()
                .map(|(n, l)| IpNet::new(IpAddr::V4(n.into()), l).unwrap())
                .collect();
            let ip = IpAddr::V4(ip.into());
            prop_assert_eq!(
                Networks::new(networks.clone()).contains(ip),
                networks.iter().any(|n| n.contains(&ip)),
            );
        }
    }

    #[test]
    fn families_are_kept_apart_and_mapped_addresses_are_seen_through() {
        let everything_v4 = Networks::new(["0.0.0.0/0".parse().unwrap()]);
        assert!(everything_v4.contains("::ffff:1.2.3.4".parse().unwrap()));
        assert!(!everything_v4.contains("2001:db8::1".parse().unwrap()));
    }
}
