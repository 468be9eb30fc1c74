//! Threads that hash passwords. An idle thread is kept for a while: with a new thread for each
//! hash, which starts before it can lower its priority, one request in a hundred was delayed by
//! three milliseconds.

use std::io;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::{Builder, ThreadId, current};
use std::time::Duration;

use parking_lot::Mutex;

use super::Place;

/// Time that an idle thread waits for more work.
const KEPT: Duration = Duration::from_secs(10);

/// A hash to compute. Returns its permit, to be released once the thread is idle.
pub(super) type Task = Box<dyn FnOnce() -> Place + Send>;

/// Idle threads.
#[derive(Default)]
pub(super) struct Threads(Mutex<Vec<(ThreadId, Sender<Task>)>>);

impl Threads {
    /// Runs a task on an idle thread, or on a new one.
    ///
    /// # Errors
    /// A thread cannot be started; the task is dropped, and its permit released.
    pub(super) fn run(self: &Arc<Self>, task: Task) -> io::Result<()> {
        let waiting = self.0.lock().pop();
        let unsent = match waiting {
            Some((_, thread)) => thread.send(task).err().map(|unsent| unsent.0),
            None => Some(task),
        };
        let Some(task) = unsent else { return Ok(()) };
        let (sender, tasks) = channel();
        let threads = Arc::clone(self);
        Builder::new()
            .name("password".into())
            .spawn(move || threads.work(task, &sender, &tasks))
            .map(drop)
    }

    fn work(&self, first: Task, sender: &Sender<Task>, tasks: &Receiver<Task>) {
        gives_way();
        let mut next = Some(first);
        while let Some(task) = next {
            let place = task();
            self.0.lock().push((current().id(), sender.clone()));
            drop(place);
            next = tasks
                .recv_timeout(KEPT)
                .ok()
                .or_else(|| if self.leave() { None } else { tasks.recv().ok() });
        }
    }

    /// Removes this thread from the idle ones. Returns `false` if another caller has chosen this
    /// thread and its task will arrive.
    fn leave(&self) -> bool {
        let mut waiting = self.0.lock();
        let place = waiting.iter().position(|(thread, _)| *thread == current().id());
        place.map(|place| waiting.swap_remove(place)).is_some()
    }
}

/// Lowers the priority of this thread, so that many concurrent log-ins hardly delay other requests.
fn gives_way() {
    #[cfg(target_os = "linux")]
    let _ = rustix::process::setpriority_process(Some(rustix::thread::gettid()), 10);
}
