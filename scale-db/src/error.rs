//! Errors outside of statements. Statements return [`sqlx::Error`], as with any sqlx executor.

/// Error of a [`Db`](crate::Db): it could not be created, or has no node for a statement.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// An address cannot be parsed, or belongs to another database system than the others.
    #[error("unusable database address: {0}")]
    Address(String),
    /// No node answered within the connect timeout.
    #[error("no database node answered: {0}")]
    Unreachable(#[source] sqlx::Error),
    /// Nodes answer, but none of them takes writes.
    #[error("no database primary: none of the {0} known nodes takes writes")]
    NoPrimary(usize),
    /// Several nodes take writes, and none of them is provably the primary. Writes fail until only
    /// one is left.
    #[error("nodes {nodes:?} all take writes, and none is provably the primary: stop all but one")]
    TwoPrimaries {
        /// Numbers of these nodes.
        nodes: Vec<usize>,
    },
    /// A read must see a write of a primary that this process does not know yet, and a node that
    /// may be that primary does not answer.
    #[error(
        "this read must see a write of a newer primary, which is not known here: \
         a node does not answer"
    )]
    Unseen,
    /// A node claims to be the primary but was demoted by a failover; none of its connections is
    /// used.
    #[error("node {node} is a stale primary: it was demoted by a failover")]
    Leftover {
        /// Number of the node.
        node: usize,
    },
    /// Every replica is down or lags too much, and the configuration forbids reads from the
    /// primary.
    #[error("no replica is usable, and reads from the primary are disabled (`no_replica`)")]
    NoReplica,
    /// A replica belongs to another database cluster.
    #[error("node {node} belongs to another database cluster than node 0")]
    WrongCluster {
        /// Number of the node; 0 is the first address given.
        node: usize,
    },
    /// The set of shards is invalid.
    #[error("invalid set of shards: {0}")]
    Shards(String),
    /// A partition could not be archived, and is kept: its archive could not be written, or does
    /// not match it. Or an archive could not be restored.
    #[error("a partition could not be archived or restored: {what}")]
    Archive {
        /// Reason for the failure.
        what: &'static str,
        /// Error of the operating system.
        #[source]
        cause: std::io::Error,
    },
    /// A statement of this crate failed.
    #[error(transparent)]
    Sql(#[from] sqlx::Error),
}

impl From<Error> for sqlx::Error {
    fn from(error: Error) -> Self {
        match error {
            Error::Sql(error) => error,
            other => sqlx::Error::Configuration(Box::new(other)),
        }
    }
}
