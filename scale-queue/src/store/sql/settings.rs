//! Settings of the store.

use scale_sql::Options;

/// Durability of pushes in an SQLite file.
///
/// All other writes may be lost in a power failure without losing a job: leases, acknowledgements,
/// permits. The job then runs again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Synchronous {
    /// A successful push is on disk: a power failure loses none.
    #[default]
    Full,
    /// A power failure may lose the last pushes; a crash of the process loses none.
    Normal,
}

/// Settings of a [`SqlStore`](super::SqlStore).
#[derive(Clone, Debug, Default)]
pub(crate) struct Settings {
    pub(crate) options: Options,
    /// True to migrate; `None`: only an SQLite file.
    pub(crate) migrate: Option<bool>,
    pub(crate) synchronous: Synchronous,
}
