//! Folder of a server: created in the temporary directory or in memory, removed on drop, or by a
//! later run if this one was killed.

use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::sync::Once;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, Result};
use nix::sys::statvfs::statvfs;
use nix::unistd::{Uid, User};

const PREFIX: &str = "scale-testkit-";
/// File system in memory.
const MEMORY: &str = "/dev/shm";
/// Free bytes in memory from which on folders are created there.
const ENOUGH: u64 = 4 << 30;

/// A folder owned by one server.
#[derive(Debug)]
pub(crate) struct Home(PathBuf);

impl Home {
    /// Creates an empty folder, owned by `user` if the caller is root.
    pub(crate) fn new(user: Option<&str>) -> Result<Self> {
        Self::within(&std::env::temp_dir(), user)
    }

    /// Creates an empty folder in memory, if there is enough of it. Files there outlive a killed
    /// server as files on a disk do. A disk that other programs keep busy can take a second to
    /// confirm a write, and a server that waits for it answers nobody.
    pub(crate) fn in_memory() -> Result<Self> {
        let free = statvfs(MEMORY).map_or(0, |fs| fs.blocks_available() * fs.fragment_size());
        if free < ENOUGH { Self::new(None) } else { Self::within(Path::new(MEMORY), None) }
    }

    fn within(folder: &Path, user: Option<&str>) -> Result<Self> {
        static SWEEP: Once = Once::new();
        static NEXT: AtomicU32 = AtomicU32::new(0);
        SWEEP.call_once(sweep);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = folder.join(format!("{PREFIX}{}-{number}", std::process::id()));
        std::fs::create_dir(&path).with_context(|| format!("making {}", path.display()))?;
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o700))?;
        if let Some(user) = user {
            Self::give(&path, user, 0o700)?;
        }
        Ok(Self(path))
    }

    /// Makes a file accessible to `user` only, who becomes its owner if the caller is root.
    pub(crate) fn give(path: &Path, user: &str, mode: u32) -> Result<()> {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))?;
        if Uid::effective().is_root() {
            let user = User::from_name(user)?.with_context(|| format!("no user `{user}`"))?;
            chown(path, Some(user.uid.as_raw()), Some(user.gid.as_raw()))?;
        }
        Ok(())
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }

    pub(crate) fn join(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Returns whether a process with this id exists.
pub(crate) fn alive(pid: &str) -> bool {
    Path::new("/proc").join(pid).exists()
}

/// Removes the folders of test processes that were killed before they could do so.
fn sweep() {
    let folders = [std::env::temp_dir(), MEMORY.into()];
    for entry in folders.iter().flat_map(std::fs::read_dir).flatten().flatten() {
        let name = entry.file_name();
        let owner =
            name.to_str().and_then(|n| n.strip_prefix(PREFIX)).and_then(|n| n.split('-').next());
        if owner.is_some_and(|pid| pid.bytes().all(|b| b.is_ascii_digit()) && !alive(pid)) {
            let _ = std::fs::remove_dir_all(entry.path());
        }
    }
}
