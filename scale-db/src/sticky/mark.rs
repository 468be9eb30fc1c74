//! Mark of a client's last write, as text and as bytes.

use crate::position::Position;

/// A write that a later scope must see. Converts to and from text, for cookies and jobs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Mark {
    /// Nodes that have replayed up to this position are sufficient.
    At(Position),
    /// Only the primary is sufficient.
    Primary,
}

impl Mark {
    /// Returns 33 bytes that sort like marks, for a cache's invalidations, of which the latest is
    /// kept.
    pub fn to_bytes(self) -> [u8; 33] {
        let mut bytes = [FORMAT; 33];
        bytes[1..].copy_from_slice(&match self {
            Self::At(position) => position.to_bytes(),
            Self::Primary => [0xFF; 32],
        });
        bytes
    }

    /// Parses the bytes of [`to_bytes`](Self::to_bytes). Invalid bytes give `Primary`, which is
    /// always correct.
    pub fn from_bytes(bytes: &[u8]) -> Self {
        match bytes.split_first() {
            Some((&FORMAT, position)) if *position != [0xFF; 32] => {
                Position::from_bytes(position).map_or(Self::Primary, Self::At)
            }
            _ => Self::Primary,
        }
    }
}

/// Format version of marks as bytes.
pub(super) const FORMAT: u8 = 2;

/// Format version of marks as text.
pub(super) const VERSION: &str = "2.";

impl std::fmt::Display for Mark {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::At(position) => write!(f, "{VERSION}{position}"),
            Self::Primary => write!(f, "{VERSION}primary"),
        }
    }
}

impl std::str::FromStr for Mark {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        match text.strip_prefix(VERSION).ok_or(())? {
            "primary" => Ok(Self::Primary),
            position => position.parse().map(Self::At),
        }
    }
}
