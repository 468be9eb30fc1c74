//! Journal of a process: one line per event, in a file that survives the process.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use anyhow::Result;
use parking_lot::Mutex;

/// A completed operation. Times are microseconds since 1970.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Entry {
    /// A row was written on the node with this port, and its writer got this mark.
    Wrote { id: u64, began: u64, ended: u64, port: u16, mark: String },
    /// A read with a row's mark found this number of rows, on the node with this port.
    Read { id: u64, began: u64, found: i64, port: u16 },
    /// A read without a mark returned this row as the newest.
    Newest { began: u64, id: u64 },
    /// An operation failed after this time.
    Failed { began: u64, ended: u64, what: String },
}

impl Entry {
    fn line(&self) -> String {
        match self {
            Self::Wrote { id, began, ended, port, mark } => {
                format!("W {id} {began} {ended} {port} {mark}\n")
            }
            Self::Read { id, began, found, port } => format!("R {id} {began} {found} {port}\n"),
            Self::Newest { began, id } => format!("N {began} {id}\n"),
            Self::Failed { began, ended, what } => {
                format!("F {began} {ended} {}\n", what.replace('\n', " "))
            }
        }
    }

    fn parse(line: &str) -> Option<Self> {
        let mut parts = line.splitn(6, ' ');
        let kind = parts.next()?;
        let mut number = || parts.next()?.parse::<u64>().ok();
        Some(match kind {
            "W" => {
                let (id, began, ended, port) = (number()?, number()?, number()?, number()? as u16);
                Self::Wrote { id, began, ended, port, mark: parts.next()?.to_owned() }
            }
            "R" => Self::Read {
                id: number()?,
                began: number()?,
                found: number()? as i64,
                port: number()? as u16,
            },
            "N" => Self::Newest { began: number()?, id: number()? },
            "F" => Self::Failed {
                began: number()?,
                ended: number()?,
                what: parts.collect::<Vec<_>>().join(" "),
            },
            _ => return None,
        })
    }
}

/// Writer of a journal.
pub(super) struct Journal(Mutex<File>);

impl Journal {
    pub(super) fn open(path: &Path) -> Result<Self> {
        Ok(Self(Mutex::new(File::options().create(true).append(true).open(path)?)))
    }

    pub(super) fn note(&self, entry: &Entry) -> Result<()> {
        Ok(self.0.lock().write_all(entry.line().as_bytes())?)
    }
}

pub(super) fn path(folder: &Path, number: usize) -> PathBuf {
    folder.join(format!("{number}.journal"))
}

pub(super) fn read(path: &Path) -> Result<Vec<Entry>> {
    Ok(std::fs::read_to_string(path)?.lines().filter_map(Entry::parse).collect())
}

/// Returns the last few entries.
pub(super) fn tail(path: &Path) -> Result<Vec<Entry>> {
    let mut file = File::open(path)?;
    let length = file.seek(SeekFrom::End(0))?;
    file.seek(SeekFrom::Start(length.saturating_sub(4_096)))?;
    let mut text = Vec::new();
    file.read_to_end(&mut text)?;
    let text = String::from_utf8_lossy(&text);
    // The first and the last line may be incomplete.
    let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
    Ok(whole.lines().skip(1).filter_map(Entry::parse).collect())
}
