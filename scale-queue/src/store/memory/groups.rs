//! Groups: which of their jobs have a turn, and which wait in line.

use std::collections::{BTreeMap, HashMap, VecDeque};

use crate::format::{tag_of, turn_of};
use crate::group::{Group, line_of};

#[derive(Debug, Default)]
pub(super) struct Groups {
    /// Jobs that have a turn, and the group of each.
    turns: HashMap<Vec<u8>, Group>,
    /// Number of turns that are taken, and the jobs in line, by the group's key.
    lines: BTreeMap<String, (u32, VecDeque<Vec<u8>>)>,
}

impl Groups {
    /// Returns the job if it has no group or gets a turn; otherwise puts it in line.
    pub(super) fn join(&mut self, job: Vec<u8>) -> Option<Vec<u8>> {
        let Some(group) = turn_of(&job) else { return Some(job) };
        let (taken, line) = self.lines.entry(group.key.clone()).or_default();
        if *taken < group.at_once && line.is_empty() {
            *taken += 1;
            self.turns.insert(tag_of(&job).to_vec(), group);
            return Some(job);
        }
        line.push_back(job);
        None
    }

    /// Ends the turn of a job, if it has one. Returns the jobs that have one now.
    pub(super) fn end_turn(&mut self, tag: &[u8]) -> Vec<Vec<u8>> {
        let Some(group) = self.turns.remove(tag) else { return Vec::new() };
        let mut next = Vec::new();
        if let Some((taken, line)) = self.lines.get_mut(&group.key) {
            *taken -= 1;
            while let Some(first) = line.front().and_then(|job| turn_of(job))
                && *taken < first.at_once
                && let Some(job) = line.pop_front()
            {
                *taken += 1;
                self.turns.insert(tag_of(&job).to_vec(), first);
                next.push(job);
            }
            if *taken == 0 && line.is_empty() {
                self.lines.remove(&group.key);
            }
        }
        next
    }

    /// Returns the number of jobs in line.
    pub(super) fn waiting(&self) -> usize {
        self.lines.values().map(|(_, line)| line.len()).sum()
    }

    /// Returns the jobs in line, each with the name of its line.
    pub(super) fn iter(&self) -> impl Iterator<Item = (String, &Vec<u8>)> {
        let lines = self.lines.iter();
        lines.flat_map(|(key, (_, line))| line.iter().map(|job| (line_of(key), job)))
    }

    /// Removes a job that is in line.
    pub(super) fn remove(&mut self, tag: &[u8]) -> Option<Vec<u8>> {
        self.lines.values_mut().find_map(|(_, line)| {
            let place = line.iter().position(|job| tag_of(job) == tag)?;
            line.remove(place)
        })
    }

    /// Takes all jobs that are in line.
    pub(super) fn take_all(&mut self) -> Vec<Vec<u8>> {
        let jobs = self.lines.values_mut().flat_map(|(_, line)| line.drain(..)).collect();
        self.lines.retain(|_, (taken, _)| *taken > 0);
        jobs
    }
}
