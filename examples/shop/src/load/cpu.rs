//! CPU time of the processes that this one has started, by program.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

/// Returns the CPU time used so far by this process (as `load`) and its descendants.
pub(crate) fn used() -> BTreeMap<String, Duration> {
    let all: HashMap<u32, Entry> = std::fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter_map(|pid: u32| Some((pid, read(pid)?)))
        .collect();
    let this = std::process::id();
    let mut used = BTreeMap::new();
    for (pid, entry) in &all {
        let is_ours = std::iter::successors(Some(*pid), |pid| all.get(pid).map(|e| e.parent))
            .take(16)
            .any(|pid| pid == this);
        if is_ours {
            let name = if *pid == this { "load" } else { &entry.name };
            *used.entry(name.to_owned()).or_insert(Duration::ZERO) += entry.time;
        }
    }
    used
}

struct Entry {
    name: String,
    parent: u32,
    time: Duration,
}

/// Clock ticks of `/proc`, per second: a constant of Linux' interface.
const TICKS: u64 = 100;

fn read(pid: u32) -> Option<Entry> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (head, rest) = text.rsplit_once(')')?;
    let name = head.split_once('(')?.1.to_owned();
    let fields: Vec<&str> = rest.split_whitespace().collect();
    let number = |at: usize| fields.get(at)?.parse::<u64>().ok();
    // Numbered from the state, which is the third field.
    let ticks = number(11)? + number(12)?;
    let parent = u32::try_from(number(1)?).ok()?;
    Some(Entry { name, parent, time: Duration::from_millis(ticks * 1_000 / TICKS) })
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    #[test]
    fn work_of_this_process_counts() {
        let used = || super::used().get("load").copied().unwrap_or_default();
        let (before, began) = (used(), Instant::now());
        while used() < before + Duration::from_millis(30) {
            assert!(began.elapsed() < Duration::from_secs(30), "no CPU time was counted");
        }
    }
}
