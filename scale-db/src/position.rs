//! How far a node has written or replayed.

use std::fmt;
use std::str::FromStr;

/// A point in the primary's log: what a node must have replayed to show a write. Opaque, ordered, 8 bytes.
///
/// On Postgres it is the LSN. On SQLite every reader sees every commit, and positions are all zero.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Position(pub(crate) u64);

impl Position {
    /// For whoever carries it as bytes, for example a cache invalidation.
    pub fn to_bytes(self) -> [u8; 8] {
        self.0.to_be_bytes()
    }

    /// `None` for bytes that are not a position.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        Some(Self(u64::from_be_bytes(bytes.try_into().ok()?)))
    }

    /// Reads Postgres' `16/B374D848`.
    pub(crate) fn from_lsn(text: &str) -> Option<Self> {
        let (high, low) = text.split_once('/')?;
        Some(Self((u64::from(u32::from_str_radix(high, 16).ok()?) << 32) | u64::from(u32::from_str_radix(low, 16).ok()?)))
    }
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:X}/{:X}", self.0 >> 32, self.0 & 0xFFFF_FFFF)
    }
}

impl FromStr for Position {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        Self::from_lsn(text).ok_or(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    proptest::proptest! {
        #[test]
        fn text_and_bytes_come_back(n: u64) {
            let p = Position(n);
            assert_eq!(p.to_string().parse(), Ok(p));
            assert_eq!(Position::from_bytes(&p.to_bytes()), Some(p));
        }

        #[test]
        fn any_text_is_read_or_refused(text: String) {
            let _ = text.parse::<Position>();
        }
    }
}
