//! Errors before a query runs; queries themselves return [`sqlx::Error`], as with any sqlx executor.

/// Why a [`Db`](crate::Db) could not be made or has nobody to ask.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// An address cannot be read, or names another database system than the others.
    #[error("not a usable database address: {0}")]
    Address(String),
    /// No node answered within the connect time-out.
    #[error("no database node answered: {0}")]
    Unreachable(#[source] sqlx::Error),
    /// Nodes answer, but none is a primary that takes writes.
    #[error("no primary: {0} node(s) known, none takes writes")]
    NoPrimary(usize),
    /// Several nodes take writes, and nothing tells which of them is the primary: nothing is written until there is but one.
    #[error("nodes {nodes:?} all take writes, and nothing tells which is the primary: end all but one")]
    TwoPrimaries {
        /// Their numbers.
        nodes: Vec<usize>,
    },
    /// A read must see a write of a primary that this process does not know yet, and a node does not answer: it may be that primary.
    #[error("a write that this read must see is of a primary that is not known here, and a node does not answer")]
    Unseen,
    /// A node says it is the primary, and is one of before a fail-over: no connection to it is handed out.
    #[error("node {node} is a primary of before a fail-over")]
    Leftover {
        /// Its number.
        node: usize,
    },
    /// Every replica is down or lags too much, and the configuration forbids reading from the primary.
    #[error("no replica is fit for reading, and reading from the primary is switched off")]
    NoReplica,
    /// A replica belongs to another database cluster.
    #[error("node {node} belongs to another database cluster than node 0")]
    Stranger {
        /// Its number: 0 is the first address given.
        node: usize,
    },
    /// A set of shards that cannot be.
    #[error("not a usable set of shards: {0}")]
    Shards(String),
    /// A partition stays where it is, because its archive cannot be made or is not what it should be.
    #[error("a partition cannot be archived: {what}")]
    Archive {
        /// Where it stopped.
        what: &'static str,
        /// The system's own error.
        #[source]
        cause: std::io::Error,
    },
    /// A statement of ours failed.
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
