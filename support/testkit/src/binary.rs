//! Locates the servers' binaries, with installation hints for missing ones.

use std::path::{Path, PathBuf};

use anyhow::{Result, bail};

/// Debian package of each binary.
const PACKAGES: &[(&str, &str)] = &[
    ("initdb", "postgresql"),
    ("postgres", "postgresql"),
    ("pg_basebackup", "postgresql"),
    ("pg_ctl", "postgresql"),
    ("psql", "postgresql"),
    ("pgbouncer", "pgbouncer"),
    ("pgpool", "pgpool2"),
    ("mariadbd", "mariadb-server"),
    ("mariadb", "mariadb-server"),
    ("mariadb-install-db", "mariadb-server"),
    ("redis-server", "redis-server"),
    ("redis-cli", "redis-server"),
    ("setpriv", "util-linux"),
];

/// Returns the full path of a server's binary; the error names its Debian package.
///
/// ```
/// let missing = scale_testkit::require("no-such-server").unwrap_err().to_string();
/// assert!(missing.contains("no-such-server"));
/// ```
pub fn require(name: &str) -> Result<PathBuf> {
    let on_path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&on_path)
        .chain(["/usr/sbin".into(), "/usr/local/sbin".into()])
        .chain(postgres_folders())
        .map(|folder| folder.join(name))
        .find(|path| path.is_file());
    if let Some(path) = found {
        return Ok(path);
    }
    match PACKAGES.iter().find(|(binary, _)| *binary == name) {
        Some((_, package)) => {
            bail!("`{name}` is missing: install it with apt-get install -y {package}")
        }
        None => bail!("`{name}` is missing"),
    }
}

/// Returns the folders of Postgres' server binaries, newest version first: Debian keeps them out of
/// the PATH.
fn postgres_folders() -> Vec<PathBuf> {
    let mut versions: Vec<u32> = std::fs::read_dir(Path::new("/usr/lib/postgresql"))
        .into_iter()
        .flatten()
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .collect();
    versions.sort_unstable_by(|a, b| b.cmp(a));
    versions.into_iter().map(|v| PathBuf::from(format!("/usr/lib/postgresql/{v}/bin"))).collect()
}
