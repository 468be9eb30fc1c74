//! One table into one compressed file, proven to hold every row.

use std::fs::File;
use std::io::{self, BufReader, Read, Write};
use std::path::{Path, PathBuf};

use data_encoding::HEXLOWER;
use futures_util::TryStreamExt;
use sha2::{Digest, Sha256};
use sqlx::AssertSqlSafe;
use sqlx::postgres::PgConnection;
use tokio::sync::mpsc;

use crate::error::Error;

/// A fair trade of size for time on rows of text.
const LEVEL: i32 = 6;

/// A table that lives in a file now.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Archived {
    /// Its name, without its schema.
    pub table: String,
    /// The file: CSV with a header line, compressed with zstd.
    pub path: PathBuf,
    /// Rows in it.
    pub rows: u64,
    /// SHA-256 of the file, in hexadecimal.
    pub sha256: String,
}

/// What a file holds.
#[derive(Debug, PartialEq, Eq)]
struct Content {
    rows: u64,
    /// SHA-256 of what was compressed.
    text: [u8; 32],
    /// SHA-256 of the file.
    file: [u8; 32],
}

/// Writes the table's rows and proves that they are there. The transaction must keep them from changing.
pub(super) async fn write(tx: &mut PgConnection, part: &str, name: &str, folder: &Path) -> Result<Archived, Error> {
    let draft = draft(folder, name);
    let failed = |what: &'static str| move |cause: io::Error| Error::Archive { what, cause };
    let (chunks, mut received) = mpsc::channel::<bytes::Bytes>(16);
    let writing = {
        let draft = Draft(draft.clone());
        tokio::task::spawn_blocking(move || -> io::Result<(Draft, [u8; 32])> {
            let mut text = Sha256::new();
            let mut encoder = zstd::Encoder::new(File::create_new(&draft.0)?, LEVEL)?;
            encoder.include_checksum(true)?;
            while let Some(chunk) = received.blocking_recv() {
                text.update(&chunk);
                encoder.write_all(&chunk)?;
            }
            encoder.finish()?.sync_all()?;
            Ok((draft, text.finalize().into()))
        })
    };
    let copy = async {
        let mut rows = tx.copy_out_raw(&format!("copy (select * from {part}) to stdout (format csv, header)")).await?;
        while let Some(chunk) = rows.try_next().await? {
            if chunks.send(chunk).await.is_err() {
                break; // The writer says why.
            }
        }
        Ok::<_, sqlx::Error>(())
    };
    let copied = copy.await;
    drop(chunks);
    let written = joined(writing.await).map_err(failed("its file cannot be written"))?;
    copied?;
    let (draft, text) = written;
    let count: i64 = sqlx::query_scalar(AssertSqlSafe(format!("select count(*) from {part}"))).fetch_one(&mut *tx).await?;

    let (folder, name) = (folder.to_owned(), name.to_owned());
    let table = name.clone();
    let finishing = tokio::task::spawn_blocking(move || -> io::Result<Archived> {
        let (path, content) = settle(&draft.0, &folder, &name, text)?;
        if content.rows != count as u64 || content.text != text {
            let found = format!("{} holds {} records, the table {count}", path.display(), content.rows);
            return Err(io::Error::new(io::ErrorKind::InvalidData, found));
        }
        let sha256 = HEXLOWER.encode(&content.file);
        let file = path.file_name().unwrap_or_default().to_string_lossy();
        let note = format!("# scale-db archive 1: table {name}, {count} rows\n{sha256}  {file}\n");
        put(&folder, &format!("{file}.sha256"), note.as_bytes())?;
        Ok(Archived { table, path, rows: content.rows, sha256 })
    });
    joined(finishing.await).map_err(failed("its file does not hold what the table does"))
}

/// A name nobody else has: a draft that a dead process left may be another name of a finished file by now.
fn draft(folder: &Path, name: &str) -> PathBuf {
    folder.join(format!(".{name}.{:016x}.draft", fastrand::u64(..)))
}

/// A file not finished yet: gone when dropped.
struct Draft(PathBuf);

impl Drop for Draft {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

fn joined<T>(result: Result<io::Result<T>, tokio::task::JoinError>) -> io::Result<T> {
    result.unwrap_or_else(|panic| Err(io::Error::other(panic)))
}

/// Gives the draft its name and reads it back from there. A file of that name with other content is not touched: the next free name is
/// taken. One with the same content, of a call that died before its drop, serves as it is.
fn settle(draft: &Path, folder: &Path, name: &str, text: [u8; 32]) -> io::Result<(PathBuf, Content)> {
    for number in 1.. {
        let suffix = if number == 1 { String::new() } else { format!("-{number}") };
        let path = folder.join(format!("{name}{suffix}.csv.zst"));
        // Unlike a rename, a link never replaces anything.
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

/// Writes a small file as a whole.
fn put(folder: &Path, name: &str, bytes: &[u8]) -> io::Result<()> {
    let draft = Draft(draft(folder, name));
    let mut file = File::create_new(&draft.0)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    std::fs::rename(&draft.0, folder.join(name))?;
    File::open(folder)?.sync_all()
}

/// Reads a whole file again.
fn read(path: &Path) -> io::Result<Content> {
    let mut hashed = Hashed { inner: File::open(path)?, hash: Sha256::new() };
    let (mut text, mut records) = (Sha256::new(), Records::default());
    {
        let mut decoder = zstd::Decoder::with_buffer(BufReader::with_capacity(1 << 17, &mut hashed))?;
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
    // What follows the compressed frames, if anything does, is part of the file's checksum too.
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

/// Counts CSV records: a line break inside quotes is none. Doubled quotes switch off and on again, which is as good.
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
        for (text, count) in [("", 0), ("h\n", 1), ("h\na\nb\n", 3), ("h\n\"a\nb\"\"\n\"\n", 2), ("h\n\n\n", 3)] {
            let mut records = Records::default();
            text.as_bytes().chunks(2).for_each(|c| records.count(c));
            assert_eq!(records.0, count, "{text:?}");
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
        let text = (0..5_000).map(|n| (n * 7_919 % 1_009).to_string()).collect::<Vec<_>>().join("\n");
        let (path, content) = archive(folder.path(), "t", &text).unwrap();
        let whole = std::fs::read(&path).unwrap();
        for at in [0, whole.len() / 2, whole.len() - 1] {
            let mut damaged = whole.clone();
            damaged[at] ^= 1;
            std::fs::write(&path, &damaged).unwrap();
            assert!(read(&path).ok().is_none_or(|c| c.file != content.file && c.text != content.text), "byte {at}");
            std::fs::write(&path, &whole[..at]).unwrap();
            assert!(read(&path).ok().is_none_or(|c| c.rows != content.rows), "cut at {at}");
        }
    }
}
