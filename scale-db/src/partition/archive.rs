//! Archives: one table in one compressed file, verified to contain every row.

use std::fs::File;
use std::io::{self, BufReader, Read, Write};
use std::path::{Path, PathBuf};

use bytes::Bytes;
use data_encoding::{HEXLOWER, HEXUPPER};
use sha2::{Digest, Sha256};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use crate::error::Error;

/// Compression level: a compromise between size and time for rows of text.
const LEVEL: i32 = 6;

/// A table that was archived to a file.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Archived {
    /// Name of the table, without its schema.
    pub table: String,
    /// Path of the file: CSV with a header line, compressed with zstd.
    pub path: PathBuf,
    /// Number of rows in the file.
    pub rows: u64,
    /// SHA-256 of the file, in hexadecimal.
    pub sha256: String,
}

/// Summary of a file's content.
#[derive(Debug, PartialEq, Eq)]
struct Content {
    rows: u64,
    /// SHA-256 of the uncompressed text.
    text: [u8; 32],
    /// SHA-256 of the file.
    file: [u8; 32],
}

/// Writer of an archive file.
pub(super) struct Writer {
    chunks: mpsc::Sender<Bytes>,
    writing: JoinHandle<io::Result<(Draft, [u8; 32])>>,
    folder: PathBuf,
    name: String,
}

impl Writer {
    /// Creates a draft of the table's file.
    pub(super) fn begin(folder: &Path, name: &str) -> Self {
        let (chunks, mut received) = mpsc::channel::<Bytes>(16);
        let draft = Draft(draft(folder, name));
        let writing = tokio::task::spawn_blocking(move || {
            let mut text = Sha256::new();
            let mut encoder = zstd::Encoder::new(File::create_new(&draft.0)?, LEVEL)?;
            encoder.include_checksum(true)?;
            while let Some(chunk) = received.blocking_recv() {
                text.update(&chunk);
                encoder.write_all(&chunk)?;
            }
            encoder.finish()?.sync_all()?;
            Ok((draft, text.finalize().into()))
        });
        Self { chunks, writing, folder: folder.to_owned(), name: name.to_owned() }
    }

    /// Adds text. An error is reported by `finish`.
    pub(super) async fn write(&self, chunk: Bytes) {
        let _ = self.chunks.send(chunk).await;
    }

    /// Completes the file and reads it back: it must have as many records as the table has rows,
    /// which are counted independently.
    pub(super) async fn finish(self, count: u64) -> Result<Archived, Error> {
        let Self { chunks, writing, folder, name } = self;
        drop(chunks);
        let (draft, text) =
            joined(writing.await).map_err(failed("the file could not be written"))?;
        let finishing = tokio::task::spawn_blocking(move || {
            let (path, content) = settle(&draft.0, &folder, &name, text)?;
            if content.rows != count || content.text != text {
                let found =
                    format!("{} has {} records, the table {count}", path.display(), content.rows);
                return Err(io::Error::new(io::ErrorKind::InvalidData, found));
            }
            let sha256 = HEXLOWER.encode(&content.file);
            let file = path.file_name().unwrap_or_default().to_string_lossy();
            let note = format!("{NOTE}table {name}, {count} rows\n{sha256}  {file}\n");
            put(&folder, &format!("{file}.sha256"), note.as_bytes())?;
            Ok(Archived { table: name, path, rows: content.rows, sha256 })
        });
        joined(finishing.await).map_err(failed("the file does not match the table"))
    }
}

/// Prefix of the first line in the file next to an archive.
const NOTE: &str = "# scale-db archive 1: ";

/// Reads a whole archive, and compares it with the file next to it. Returns the number of rows.
pub(super) fn check(path: &Path) -> io::Result<u64> {
    let invalid = |what: String| io::Error::new(io::ErrorKind::InvalidData, what);
    let mut beside = path.as_os_str().to_owned();
    beside.push(".sha256");
    let note = std::fs::read_to_string(&beside)?;
    let mut lines = note.lines();
    let noted = || invalid(format!("invalid archive note {}", Path::new(&beside).display()));
    let rows = lines
        .next()
        .and_then(|line| line.strip_prefix(NOTE))
        .and_then(|line| line.rsplit_once(", "));
    let rows: u64 =
        rows.and_then(|(_, rows)| rows.strip_suffix(" rows")?.parse().ok()).ok_or_else(noted)?;
    let sha256 = lines.next().and_then(|line| line.split(' ').next()).ok_or_else(noted)?;
    let content = read(path)?;
    if HEXLOWER.encode(&content.file) != sha256 || content.rows != rows {
        return Err(invalid(format!(
            "{} does not match its checksum or row count",
            path.display()
        )));
    }
    Ok(rows)
}

pub(super) fn failed(what: &'static str) -> impl Fn(io::Error) -> Error {
    move |cause| Error::Archive { what, cause }
}

/// Encodes a table's name as a file name: slashes, percent signs, control characters and a leading
/// dot are escaped.
fn file_name(name: &str) -> String {
    let mut encoded = String::new();
    for (at, c) in name.char_indices() {
        if matches!(c, '/' | '\\' | '%') || c.is_control() || (c == '.' && at == 0) {
            let mut bytes = [0; 4];
            for byte in c.encode_utf8(&mut bytes).bytes() {
                encoded.push('%');
                encoded.push_str(&HEXUPPER.encode(&[byte]));
            }
        } else {
            encoded.push(c);
        }
    }
    encoded
}

/// Returns a unique name for a draft. A fixed one might be a hard link of a finished file, left by
/// a process that died.
fn draft(folder: &Path, name: &str) -> PathBuf {
    folder.join(format!(".{}.{:016x}.draft", file_name(name), fastrand::u64(..)))
}

/// A file that is not finished; removed when dropped.
struct Draft(PathBuf);

impl Drop for Draft {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

pub(super) fn joined<T>(result: Result<io::Result<T>, tokio::task::JoinError>) -> io::Result<T> {
    result.unwrap_or_else(|panic| Err(io::Error::other(panic)))
}

/// Links the draft to its final name, and reads it back from there. A file of that name with other
/// content is kept, and the next free name is used. A file with the same content, left by a call
/// that died before it dropped the table, is used as it is.
fn settle(
    draft: &Path,
    folder: &Path,
    name: &str,
    text: [u8; 32],
) -> io::Result<(PathBuf, Content)> {
    for number in 1.. {
        let suffix = if number == 1 { String::new() } else { format!("-{number}") };
        let path = folder.join(format!("{}{suffix}.csv.zst", file_name(name)));
        // Unlike a rename, a hard link never replaces a file.
        match std::fs::hard_link(draft, &path) {
            Ok(()) => {
                File::open(folder)?.sync_all()?;
                let content = read(&path)?;
                return Ok((path, content));
            }
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                if let Ok(content) = read(&path)
                    && content.text == text
                {
                    return Ok((path, content));
                }
            }
            Err(error) => return Err(error),
        }
    }
    unreachable!("some name is free")
}

/// Writes a small file atomically.
fn put(folder: &Path, name: &str, bytes: &[u8]) -> io::Result<()> {
    let draft = Draft(draft(folder, name));
    let mut file = File::create_new(&draft.0)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    std::fs::rename(&draft.0, folder.join(name))?;
    File::open(folder)?.sync_all()
}

/// Reads a whole file, and computes its checksums.
fn read(path: &Path) -> io::Result<Content> {
    let mut hashed = Hashed { inner: File::open(path)?, hash: Sha256::new() };
    let (mut text, mut records) = (Sha256::new(), Records::default());
    {
        let mut decoder =
            zstd::Decoder::with_buffer(BufReader::with_capacity(1 << 17, &mut hashed))?;
        let mut buffer = vec![0; 1 << 17];
        loop {
            let length = decoder.read(&mut buffer)?;
            if length == 0 {
                break;
            }
            text.update(&buffer[..length]);
            records.count(&buffer[..length]);
        }
    }
    // Bytes after the compressed frames, if any, are part of the file's checksum too.
    io::copy(&mut hashed, &mut io::sink())?;
    let rows = records.0.saturating_sub(1);
    Ok(Content { rows, text: text.finalize().into(), file: hashed.hash.finalize().into() })
}

struct Hashed<R> {
    inner: R,
    hash: Sha256,
}

impl<R: Read> Read for Hashed<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = self.inner.read(buffer)?;
        self.hash.update(&buffer[..length]);
        Ok(length)
    }
}

/// Counts CSV records: a line break within quotes does not count. Doubled quotes toggle twice,
/// which has no effect.
#[derive(Default)]
struct Records(u64, bool);

impl Records {
    fn count(&mut self, bytes: &[u8]) {
        for byte in bytes {
            match byte {
                b'"' => self.1 = !self.1,
                b'\n' if !self.1 => self.0 += 1,
                _ => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn archive(folder: &Path, name: &str, text: &str) -> io::Result<(PathBuf, Content)> {
        let draft = Draft(folder.join("draft"));
        std::fs::write(&draft.0, zstd::encode_all(text.as_bytes(), LEVEL)?)?;
        settle(&draft.0, folder, name, Sha256::digest(text.as_bytes()).into())
    }

    #[test]
    fn records_are_counted_as_csv_counts_them() {
        for (text, count) in
            [("", 0), ("h\n", 1), ("h\na\nb\n", 3), ("h\n\"a\nb\"\"\n\"\n", 2), ("h\n\n\n", 3)]
        {
            let mut records = Records::default();
            text.as_bytes().chunks(2).for_each(|c| records.count(c));
            assert_eq!(records.0, count, "{text:?}");
        }
    }

    #[test]
    fn no_name_leads_out_of_the_folder() {
        assert_eq!(file_name("events_2026"), "events_2026");
        assert_eq!(file_name("Größe von x"), "Größe von x");
        for (name, file) in [
            ("/evil", "%2Fevil"),
            ("../up", "%2E.%2Fup"),
            ("a/b", "a%2Fb"),
            ("a%2Fb", "a%252Fb"),
            ("a\nb", "a%0Ab"),
        ] {
            assert_eq!(file_name(name), file);
        }
    }

    #[test]
    fn nothing_is_replaced_and_equal_content_serves() {
        let folder = tempfile::tempdir().unwrap();
        let (first, content) = archive(folder.path(), "t", "id\n1\n2\n").unwrap();
        assert_eq!(content.rows, 2);
        let (again, _) = archive(folder.path(), "t", "id\n1\n2\n").unwrap();
        let (other, content) = archive(folder.path(), "t", "id\n3\n").unwrap();
        assert_eq!((&again, content.rows), (&first, 1));
        assert_eq!(other.file_name().unwrap(), "t-2.csv.zst");
        assert_eq!(read(&first).unwrap().rows, 2, "the first is as it was");
    }

    #[test]
    fn a_damaged_file_is_seen() {
        let folder = tempfile::tempdir().unwrap();
        let text =
            (0..5_000).map(|n| (n * 7_919 % 1_009).to_string()).collect::<Vec<_>>().join("\n");
        let (path, content) = archive(folder.path(), "t", &text).unwrap();
        let whole = std::fs::read(&path).unwrap();
        for at in [0, whole.len() / 2, whole.len() - 1] {
            let mut damaged = whole.clone();
            damaged[at] ^= 1;
            std::fs::write(&path, &damaged).unwrap();
            assert!(
                read(&path).ok().is_none_or(|c| c.file != content.file && c.text != content.text),
                "byte {at}"
            );
            std::fs::write(&path, &whole[..at]).unwrap();
            assert!(read(&path).ok().is_none_or(|c| c.rows != content.rows), "cut at {at}");
        }
    }
}
