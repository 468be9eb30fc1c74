//! Lines of the log, for tests of what an operator is told.

use std::io;
use std::sync::Arc;

use parking_lot::Mutex;
use tracing::subscriber::DefaultGuard;
use tracing_subscriber::fmt::MakeWriter;

/// Log of the current thread: for tests on a runtime of one thread.
///
/// ```
/// let (log, _recording) = scale_testkit::Log::record();
/// tracing::warn!(node = 2, "no answer");
/// assert_eq!(log.lines_with(&["WARN", "node=2"]), 1);
/// ```
#[derive(Clone, Debug, Default)]
pub struct Log(Arc<Mutex<Vec<u8>>>);

impl Log {
    /// Records lines of the levels `INFO`, `WARN` and `ERROR` until the guard is dropped.
    pub fn record() -> (Self, DefaultGuard) {
        let log = Self::default();
        let lines = tracing_subscriber::fmt().with_ansi(false).with_writer(log.clone());
        (log, tracing::subscriber::set_default(lines.finish()))
    }

    /// Returns the number of lines that contain all these texts.
    pub fn lines_with(&self, texts: &[&str]) -> usize {
        let bytes = self.0.lock();
        let log = String::from_utf8_lossy(&bytes);
        log.lines().filter(|line| texts.iter().all(|text| line.contains(text))).count()
    }
}

impl io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl MakeWriter<'_> for Log {
    type Writer = Self;

    fn make_writer(&self) -> Self {
        self.clone()
    }
}
