//! Restores the rows of an archive.

use std::io::{self, BufReader, Read};
use std::path::{Path, PathBuf};

use tokio::sync::mpsc;

use super::Partitioned;
use super::archive::{check, failed, joined};
use super::csv::{Field, Reader};
use crate::db::Db;
use crate::error::Error;

/// Maximum number of records per batch, and of their bytes (one record may have more).
const BATCH: usize = 500;
const BATCH_BYTES: usize = 1 << 20;

/// Maximum bytes of a record, more than any database supports.
const LONGEST: usize = 1 << 30;

const WHAT: &str = "the file cannot be restored";

/// Inserts the rows of an archive into a table, in one transaction, and returns their number. The
/// file is first checked against the checksum file next to it. Columns are matched by name, in any
/// order. The table must have partitions for the rows, or be a separate table.
///
/// ```no_run
/// # async fn example(db: scale_db::Db<sqlx::Postgres>) -> Result<(), Box<dyn std::error::Error>> {
/// sqlx::query("create table events_2025 (like events including defaults including constraints)")
///     .execute(&db).await?;
/// let rows = scale_db::partition::restore(
///     &db, "events_2025", "/var/lib/shop/archive/events_p20250101.csv.zst",
/// ).await?;
/// # Ok(()) }
/// ```
///
/// # Errors
/// [`Error::Archive`] for a file that is damaged or not of this crate; otherwise [`Error::Sql`]. In
/// both cases the table is unchanged.
pub async fn restore<DB: Partitioned>(
    db: &Db<DB>,
    table: &str,
    file: impl AsRef<Path>,
) -> Result<u64, Error> {
    let path = file.as_ref().to_owned();
    let checked = path.clone();
    let rows =
        joined(tokio::task::spawn_blocking(move || check(&checked)).await).map_err(failed(WHAT))?;
    let archive = Archive::open(path, rows).await?;
    Box::pin(DB::restore(db, table, archive)).await
}

/// A verified archive, opened for reading.
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
        // The first batch has only the column names.
        let Some(header) = batches.recv().await.and_then(|batch| batch.into_iter().next()) else {
            joined((&mut reading).await).map_err(failed(WHAT))?;
            return Err(failed(WHAT)(io::Error::new(
                io::ErrorKind::InvalidData,
                "no line of column names",
            )));
        };
        let name = |field: Field| {
            String::from_utf8(field.unwrap_or_default())
                .map_err(|e| failed(WHAT)(io::Error::other(e)))
        };
        let columns = header.into_iter().map(name).collect::<Result<_, _>>()?;
        Ok(Self { columns, rows, batches, reading })
    }

    /// Returns the next records; `None` after the last.
    pub(super) async fn next(&mut self) -> Result<Option<Vec<Vec<Field>>>, Error> {
        match self.batches.recv().await {
            Some(batch) if batch.iter().any(|record| record.len() != self.columns.len()) => {
                Err(failed(WHAT)(io::Error::new(
                    io::ErrorKind::InvalidData,
                    "a record does not have one field per column",
                )))
            }
            Some(batch) => Ok(Some(batch)),
            None => {
                joined((&mut self.reading).await).map_err(failed(WHAT))?;
                Ok(None)
            }
        }
    }

    /// Compares the number of rows stored by the database with that of the file.
    pub(super) fn took(&self, rows: u64) -> Result<u64, Error> {
        if rows == self.rows {
            return Ok(rows);
        }
        let found = format!("the table stored {rows} of {} rows", self.rows);
        Err(failed(WHAT)(io::Error::new(io::ErrorKind::InvalidData, found)))
    }
}

fn read(path: &Path, sender: &mpsc::Sender<Vec<Vec<Field>>>) -> io::Result<()> {
    let mut decoder =
        zstd::Decoder::with_buffer(BufReader::with_capacity(1 << 17, std::fs::File::open(path)?))?;
    let (mut reader, mut buffer) = (Reader::default(), vec![0; 1 << 17]);
    let (mut batch, mut names, mut bytes) = (Vec::new(), true, 0);
    let gone = |_| io::Error::other("the restore was abandoned");
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
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "a record is larger than 1 GiB",
            ));
        }
    }
    if !reader.is_at_end() {
        return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the last record is incomplete"));
    }
    sender.blocking_send(batch).map_err(gone)
}
