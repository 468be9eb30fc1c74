//! Free loopback ports that no other test process will use.

use std::io::{ErrorKind, Write};
use std::net::{Ipv4Addr, TcpListener};
use std::path::PathBuf;

use anyhow::{Context, Result, bail};

use crate::home::alive;

/// Below Linux' ephemeral range, so that no outgoing connection uses them.
const RANGE: std::ops::Range<u16> = 20_000..32_000;

/// A port reserved for this process until dropped.
#[derive(Debug)]
pub(crate) struct Port {
    number: u16,
    claim: PathBuf,
}

impl Port {
    pub(crate) fn claim() -> Result<Self> {
        let folder = std::env::temp_dir().join("scale-testkit.ports");
        std::fs::create_dir_all(&folder).with_context(|| format!("making {}", folder.display()))?;
        let span = u64::from(RANGE.end - RANGE.start);
        let seed =
            std::hash::BuildHasher::hash_one(&std::hash::RandomState::new(), std::process::id());
        for step in 0..span {
            let number = RANGE.start + ((seed.wrapping_add(step * 7)) % span) as u16;
            let claim = folder.join(number.to_string());
            if !take(&claim)? {
                continue;
            }
            if TcpListener::bind((Ipv4Addr::LOCALHOST, number)).is_ok() {
                return Ok(Self { number, claim });
            }
            let _ = std::fs::remove_file(&claim);
        }
        bail!("no free port in {RANGE:?}")
    }

    pub(crate) fn number(&self) -> u16 {
        self.number
    }
}

impl Drop for Port {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.claim);
    }
}

/// Creates the claim file, or removes that of a process that has ended.
fn take(claim: &PathBuf) -> Result<bool> {
    match std::fs::OpenOptions::new().write(true).create_new(true).open(claim) {
        Ok(mut file) => {
            write!(file, "{}", std::process::id())?;
            Ok(true)
        }
        Err(e) if e.kind() == ErrorKind::AlreadyExists => {
            let owner = std::fs::read_to_string(claim).unwrap_or_default();
            if !owner.is_empty() && !alive(&owner) {
                let _ = std::fs::remove_file(claim);
            }
            Ok(false)
        }
        Err(e) => Err(e).with_context(|| format!("claiming {}", claim.display())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_claims_differ_and_are_free_again_after_drop() {
        let (a, b) = (Port::claim().unwrap(), Port::claim().unwrap());
        assert_ne!(a.number(), b.number());
        let claim = a.claim.clone();
        assert!(claim.exists());
        drop(a);
        assert!(!claim.exists());
    }
}
