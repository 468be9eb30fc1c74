//! Position in a primary's log, as contained in marks.

use std::fmt;
use std::str::FromStr;

/// Position in the log of a primary. Opaque and ordered; 32 bytes.
///
/// | system | ordered by | written by |
/// | --- | --- | --- |
/// | Postgres | timeline, LSN | |
/// | MariaDB | replication domain, sequence number | server id |
/// | MySQL | transactions in `gtid_executed`, number of the last one of this server | server UUID |
/// | SQLite | all are equal: every reader sees every commit | |
///
/// Positions are ordered by time of writing along a succession of primaries. A server that was
/// promoted by mistake may reach a higher position than the real primary; it is recognized by its
/// timeline or server id, not by the order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Position {
    pub(crate) era: u64,
    pub(crate) sequence: u64,
    pub(crate) origin: u128,
}

/// Bytes of a position.
pub(crate) const BYTES: usize = 32;

impl Position {
    /// Returns 32 bytes that sort like the positions.
    pub fn to_bytes(self) -> [u8; BYTES] {
        let mut bytes = [0; BYTES];
        bytes[..8].copy_from_slice(&self.era.to_be_bytes());
        bytes[8..16].copy_from_slice(&self.sequence.to_be_bytes());
        bytes[16..].copy_from_slice(&self.origin.to_be_bytes());
        bytes
    }

    /// Parses the bytes of [`to_bytes`](Self::to_bytes); `None` for another length.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let bytes: &[u8; BYTES] = bytes.try_into().ok()?;
        Some(Self {
            era: u64::from_be_bytes(bytes[..8].try_into().ok()?),
            sequence: u64::from_be_bytes(bytes[8..16].try_into().ok()?),
            origin: u128::from_be_bytes(bytes[16..].try_into().ok()?),
        })
    }
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:x}-{:x}", self.era, self.sequence)?;
        if self.origin == 0 { Ok(()) } else { write!(f, "-{:x}", self.origin) }
    }
}

impl FromStr for Position {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        // `from_str_radix` would accept a sign.
        let is_number = |part: &&str| part.bytes().all(|byte| byte.is_ascii_hexdigit());
        let short = |part: Option<&str>| {
            u64::from_str_radix(part.filter(is_number).ok_or(())?, 16).map_err(drop)
        };
        let mut parts = text.split('-');
        let (era, sequence) = (short(parts.next())?, short(parts.next())?);
        let origin = match parts.next() {
            Some(part) if is_number(&part) => u128::from_str_radix(part, 16).map_err(drop)?,
            Some(_) => return Err(()),
            None => 0,
        };
        if parts.next().is_none() { Ok(Self { era, sequence, origin }) } else { Err(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    proptest::proptest! {
        #[test]
        fn text_and_bytes_come_back(era: u64, sequence: u64, origin: u128) {
            let p = Position { era, sequence, origin };
            assert_eq!(p.to_string().parse(), Ok(p));
            assert_eq!(Position::from_bytes(&p.to_bytes()), Some(p));
        }

        #[test]
        fn bytes_have_the_order_of_positions(a: (u64, u64, u128), b: (u64, u64, u128)) {
            let of = |(era, sequence, origin)| Position { era, sequence, origin };
            assert_eq!(of(a).cmp(&of(b)), of(a).to_bytes().cmp(&of(b).to_bytes()));
        }

        #[test]
        fn any_text_is_read_or_refused(text: String) {
            let _ = text.parse::<Position>();
        }
    }

    #[test]
    fn what_is_no_position_is_refused() {
        for bad in
            ["", "1", "1-", "-1", "1-+1", "1-1-", "1-1-1-1", "g-1", "1-11111111111111111", " 1-1"]
        {
            assert_eq!(bad.parse::<Position>(), Err(()), "{bad}");
        }
    }
}
