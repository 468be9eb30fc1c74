//! Threads that hash. One that has nothing to do is kept for a while: a new one for each hash, put onto a processor before it can say that
//! it gives way, was seen to hold up one request in a hundred for three milliseconds.

use std::io;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::{Builder, ThreadId, current};
use std::time::Duration;

use parking_lot::Mutex;

use super::Place;

/// How long a thread waits for more.
const KEPT: Duration = Duration::from_secs(10);

/// Returns its place, which is free once its thread is.
pub(super) type Task = Box<dyn FnOnce() -> Place + Send>;

/// Those that wait for something to do.
#[derive(Default)]
pub(super) struct Threads(Mutex<Vec<(ThreadId, Sender<Task>)>>);

impl Threads {
    /// # Errors
    /// If a thread cannot be started; the task is gone, and its place free.
    pub(super) fn run(self: &Arc<Self>, task: Task) -> io::Result<()> {
        let waiting = self.0.lock().pop();
        let unsent = match waiting {
            Some((_, thread)) => thread.send(task).err().map(|unsent| unsent.0),
            None => Some(task),
        };
        let Some(task) = unsent else { return Ok(()) };
        let (sender, tasks) = channel();
        let threads = Arc::clone(self);
        Builder::new().name("password".into()).spawn(move || threads.work(task, &sender, &tasks)).map(drop)
    }

    fn work(&self, first: Task, sender: &Sender<Task>, tasks: &Receiver<Task>) {
        gives_way();
        let mut next = Some(first);
        while let Some(task) = next {
            let place = task();
            self.0.lock().push((current().id(), sender.clone()));
            drop(place);
            next = tasks.recv_timeout(KEPT).ok().or_else(|| if self.leave() { None } else { tasks.recv().ok() });
        }
    }

    /// `false`: somebody has chosen this thread, and its task is on its way.
    fn leave(&self) -> bool {
        let mut waiting = self.0.lock();
        let place = waiting.iter().position(|(thread, _)| *thread == current().id());
        place.map(|place| waiting.swap_remove(place)).is_some()
    }
}

/// What answers requests goes before what guesses passwords: as many log-ins as there may be, the others hardly notice.
fn gives_way() {
    #[cfg(target_os = "linux")]
    let _ = rustix::process::setpriority_process(Some(rustix::thread::gettid()), 10);
}
