//! Journal of a worker process: one line per event, written at once, so that a kill loses none.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::Path;
use std::str::FromStr;
use std::sync::Arc;

use anyhow::{Context, Result, bail};

use super::now_us;

/// Event of a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum What {
    /// The handler began.
    Begin,
    /// The handler ran to its end.
    End,
    /// The handler's future was dropped before its end.
    Dropped,
}

/// A line of the journal.
#[derive(Clone, Debug)]
pub(super) struct Line {
    pub(super) at_us: u64,
    pub(super) what: What,
    pub(super) kind: String,
    /// Subject of the event: a number, or two.
    pub(super) a: u64,
    pub(super) b: u64,
    /// Id of the job.
    pub(super) id: String,
}

#[derive(Clone, Debug)]
pub(super) struct Journal(Arc<File>);

impl Journal {
    pub(super) fn create(path: &Path) -> Result<Self> {
        Ok(Self(Arc::new(OpenOptions::new().create(true).append(true).open(path)?)))
    }

    /// Writes one line in one call: the kernel has it when this returns.
    pub(super) fn note(&self, what: What, kind: &str, a: u64, b: u64, id: &str) {
        let word = match what {
            What::Begin => 'B',
            What::End => 'E',
            What::Dropped => 'X',
        };
        let line = format!("{} {word} {kind} {a} {b} {id}\n", now_us());
        let _ = (&*self.0).write_all(line.as_bytes());
    }
}

/// Records that a handler's future was dropped, unless the handler ran to its end.
pub(super) struct Run {
    journal: Journal,
    kind: &'static str,
    a: u64,
    b: u64,
    id: String,
    ended: bool,
}

impl Run {
    pub(super) fn begin(journal: &Journal, kind: &'static str, a: u64, b: u64, id: String) -> Self {
        journal.note(What::Begin, kind, a, b, &id);
        Self { journal: journal.clone(), kind, a, b, id, ended: false }
    }

    pub(super) fn end(mut self) {
        self.ended = true;
        self.journal.note(What::End, self.kind, self.a, self.b, &self.id);
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        if !self.ended {
            self.journal.note(What::Dropped, self.kind, self.a, self.b, &self.id);
        }
    }
}

impl FromStr for Line {
    type Err = anyhow::Error;

    fn from_str(line: &str) -> Result<Self> {
        let fields: Vec<&str> = line.split(' ').collect();
        let [at, what, kind, a, b, id] = fields[..] else { bail!("not a line: {line}") };
        let what = match what {
            "B" => What::Begin,
            "E" => What::End,
            "X" => What::Dropped,
            _ => bail!("not a line: {line}"),
        };
        Ok(Self {
            at_us: at.parse()?,
            what,
            kind: kind.into(),
            a: a.parse()?,
            b: b.parse()?,
            id: id.into(),
        })
    }
}

/// Journal of one process, and the times at which the process did not run.
#[derive(Clone, Debug, Default)]
pub(super) struct Notes {
    pub(super) lines: Vec<Line>,
    /// Time of the kill, if the process was killed.
    pub(super) killed_us: Option<u64>,
    /// Begin and end of each stop.
    pub(super) stops_us: Vec<(u64, u64)>,
}

pub(super) fn read(path: &Path) -> Result<Vec<Line>> {
    let text = std::fs::read_to_string(path).with_context(|| format!("{}", path.display()))?;
    // The last line of a killed process may be incomplete.
    Ok(text
        .split_inclusive('\n')
        .filter(|line| line.ends_with('\n'))
        .filter_map(|line| line.trim_end().parse().ok())
        .collect())
}

/// Groups lines by subject.
pub(super) fn by_subject<'n>(notes: &'n [Notes], kind: &str) -> HashMap<(u64, u64), Vec<&'n Line>> {
    let mut subjects: HashMap<(u64, u64), Vec<&Line>> = HashMap::new();
    for line in notes.iter().flat_map(|notes| &notes.lines).filter(|line| line.kind == kind) {
        subjects.entry((line.a, line.b)).or_default().push(line);
    }
    for lines in subjects.values_mut() {
        lines.sort_by_key(|line| line.at_us);
    }
    subjects
}
