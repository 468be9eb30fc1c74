//! Puts an archive's rows back.

use std::io::{self, BufReader, Read};
use std::path::{Path, PathBuf};

use tokio::sync::mpsc;

use super::Partitioned;
use super::archive::{check, failed, joined};
use super::csv::{Field, Reader};
use crate::db::Db;
use crate::error::Error;

/// Records handed over at a time, and their bytes, unless one has more.
const BATCH: usize = 500;
const BATCH_BYTES: usize = 1 << 20;

/// Bytes of a record at most: more than any database takes.
const LONGEST: usize = 1 << 30;

const WHAT: &str = "its file cannot be restored";

/// Puts the rows of an archive into a table, in one transaction, and returns how many they were. The file is checked against what was noted
/// beside it first. Columns are found by their names, whatever their order; the table's own partitions, or a table made for it, must take
/// the rows.
///
/// ```no_run
/// # async fn example(db: scale_db::Db<sqlx::Postgres>) -> Result<(), Box<dyn std::error::Error>> {
/// sqlx::query("create table events_2025 (like events including defaults including constraints)").execute(&db).await?;
/// let rows = scale_db::partition::restore(&db, "events_2025", "/var/lib/shop/archive/events_p20250101.csv.zst").await?;
/// # Ok(()) }
/// ```
///
/// # Errors
/// [`Error::Archive`] for a file that is damaged or not of this crate; else [`Error::Sql`]. The table is as it was then.
pub async fn restore<DB: Partitioned>(db: &Db<DB>, table: &str, file: impl AsRef<Path>) -> Result<u64, Error> {
    let path = file.as_ref().to_owned();
    let checked = path.clone();
    let rows = joined(tokio::task::spawn_blocking(move || check(&checked)).await).map_err(failed(WHAT))?;
    let archive = Archive::open(path, rows).await?;
    Box::pin(DB::restore(db, table, archive)).await
}

/// An archive that was checked, and is read once more.
#[derive(Debug)]
pub struct Archive {
    pub(super) columns: Vec<String>,
    rows: u64,
    batches: mpsc::Receiver<Vec<Vec<Field>>>,
    reading: tokio::task::JoinHandle<io::Result<()>>,
}

impl Archive {
    async fn open(path: PathBuf, rows: u64) -> Result<Self, Error> {
        let (sender, mut batches) = mpsc::channel(2);
        let mut reading = tokio::task::spawn_blocking(move || read(&path, &sender));
        // The names come first, by themselves.
        let Some(header) = batches.recv().await.and_then(|batch| batch.into_iter().next()) else {
            joined((&mut reading).await).map_err(failed(WHAT))?;
            return Err(failed(WHAT)(io::Error::new(io::ErrorKind::InvalidData, "it has no line of column names")));
        };
        let name = |field: Field| String::from_utf8(field.unwrap_or_default()).map_err(|e| failed(WHAT)(io::Error::other(e)));
        let columns = header.into_iter().map(name).collect::<Result<_, _>>()?;
        Ok(Self { columns, rows, batches, reading })
    }

    /// Returns the next records; `None` after the last.
    pub(super) async fn next(&mut self) -> Result<Option<Vec<Vec<Field>>>, Error> {
        match self.batches.recv().await {
            Some(batch) if batch.iter().any(|record| record.len() != self.columns.len()) => {
                Err(failed(WHAT)(io::Error::new(io::ErrorKind::InvalidData, "a record has more or fewer fields than columns")))
            }
            Some(batch) => Ok(Some(batch)),
            None => {
                joined((&mut self.reading).await).map_err(failed(WHAT))?;
                Ok(None)
            }
        }
    }

    /// Compares what the database took with what the file has.
    pub(super) fn took(&self, rows: u64) -> Result<u64, Error> {
        if rows == self.rows {
            return Ok(rows);
        }
        let found = format!("the table took {rows} rows of {}", self.rows);
        Err(failed(WHAT)(io::Error::new(io::ErrorKind::InvalidData, found)))
    }
}

fn read(path: &Path, sender: &mpsc::Sender<Vec<Vec<Field>>>) -> io::Result<()> {
    let mut decoder = zstd::Decoder::with_buffer(BufReader::with_capacity(1 << 17, std::fs::File::open(path)?))?;
    let (mut reader, mut buffer) = (Reader::default(), vec![0; 1 << 17]);
    let (mut batch, mut names, mut bytes) = (Vec::new(), true, 0);
    let gone = |_| io::Error::other("nobody takes the rows any more");
    loop {
        let length = decoder.read(&mut buffer)?;
        if length == 0 {
            break;
        }
        reader.read(&buffer[..length], |record| {
            bytes += record.iter().flatten().map(Vec::len).sum::<usize>();
            batch.push(record);
            if std::mem::take(&mut names) || batch.len() == BATCH || bytes >= BATCH_BYTES {
                bytes = 0;
                sender.blocking_send(std::mem::take(&mut batch)).map_err(gone)?;
            }
            Ok::<_, io::Error>(())
        })?;
        if reader.length() > LONGEST {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "a record has more than a gibibyte"));
        }
    }
    if !reader.is_at_end() {
        return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "its last record has no end"));
    }
    sender.blocking_send(batch).map_err(gone)
}
