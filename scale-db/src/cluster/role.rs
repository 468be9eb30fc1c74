//! Role of a node.

/// Role of a node, as reported by the node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
#[non_exhaustive]
pub enum Role {
    /// The node has not answered lately.
    Down = 0,
    /// The node takes writes.
    Primary = 1,
    /// The node follows a primary.
    Replica = 2,
}
