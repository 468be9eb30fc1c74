//! Groups: which of their jobs have a turn, and which wait in line.

use std::collections::{BTreeMap, HashMap, VecDeque};

use crate::format::{tag_of, turn_of};
use crate::group::{Group, line_of};

#[derive(Debug, Default)]
pub(super) struct Groups {
    /// Jobs that have a turn, and the group of each.
    turns: HashMap<Vec<u8>, Group>,
    /// Lines by the group's key.
    lines: BTreeMap<String, Line>,
}

#[derive(Debug)]
struct Line {
    /// Number of turns: that of the job with which the group began.
    at_once: u32,
    /// Number of turns that are taken.
    taken: u32,
    /// Jobs in line.
    jobs: VecDeque<Vec<u8>>,
}

impl Line {
    fn new(group: &Group) -> Self {
        Self { at_once: group.at_once, taken: 0, jobs: VecDeque::new() }
    }
}

impl Groups {
    /// Returns the job if it has no group or gets a turn; otherwise puts it in line.
    pub(super) fn join(&mut self, job: Vec<u8>) -> Option<Vec<u8>> {
        let Some(group) = turn_of(&job) else { return Some(job) };
        let line = self.lines.entry(group.key.clone()).or_insert_with(|| Line::new(&group));
        if line.taken < line.at_once && line.jobs.is_empty() {
            line.taken += 1;
            self.turns.insert(tag_of(&job).to_vec(), group);
            return Some(job);
        }
        line.jobs.push_back(job);
        None
    }

    /// Returns a job that comes back if it has no group or has a turn; otherwise puts it in line
    /// again, at its place among those that were pushed before and after it.
    pub(super) fn rejoin(&mut self, job: Vec<u8>) -> Option<Vec<u8>> {
        let Some(group) = turn_of(&job) else { return Some(job) };
        if self.turns.contains_key(tag_of(&job)) {
            return Some(job);
        }
        let line = self.lines.entry(group.key.clone()).or_insert_with(|| Line::new(&group));
        let later = |other: &Vec<u8>| tag_of(other) > tag_of(&job);
        let place = line.jobs.iter().position(later).unwrap_or(line.jobs.len());
        line.jobs.insert(place, job);
        None
    }

    /// Gives free turns of a group to the jobs in its line.
    pub(super) fn give_turns(&mut self, group: &Group) -> Vec<Vec<u8>> {
        let mut next = Vec::new();
        if let Some(line) = self.lines.get_mut(&group.key) {
            while line.taken < line.at_once
                && let Some(job) = line.jobs.pop_front()
            {
                line.taken += 1;
                self.turns.insert(tag_of(&job).to_vec(), group.clone());
                next.push(job);
            }
            if line.taken == 0 {
                self.lines.remove(&group.key);
            }
        }
        next
    }

    /// Ends the turn of a job, if it has one. Returns the jobs that have one now.
    pub(super) fn end_turn(&mut self, tag: &[u8]) -> Vec<Vec<u8>> {
        let Some(group) = self.turns.remove(tag) else { return Vec::new() };
        if let Some(line) = self.lines.get_mut(&group.key) {
            line.taken -= 1;
        }
        self.give_turns(&group)
    }

    /// Returns the number of jobs in line.
    pub(super) fn waiting(&self) -> usize {
        self.lines.values().map(|line| line.jobs.len()).sum()
    }

    /// Returns the jobs in line, each with the name of its line.
    pub(super) fn iter(&self) -> impl Iterator<Item = (String, &Vec<u8>)> {
        let lines = self.lines.iter();
        lines.flat_map(|(key, line)| line.jobs.iter().map(|job| (line_of(key), job)))
    }

    /// Removes a job that is in line.
    pub(super) fn remove(&mut self, tag: &[u8]) -> Option<Vec<u8>> {
        self.lines.values_mut().find_map(|line| {
            let place = line.jobs.iter().position(|job| tag_of(job) == tag)?;
            line.jobs.remove(place)
        })
    }

    /// Takes all jobs that are in line.
    pub(super) fn take_all(&mut self) -> Vec<Vec<u8>> {
        let jobs = self.lines.values_mut().flat_map(|line| line.jobs.drain(..)).collect();
        self.lines.retain(|_, line| line.taken > 0);
        jobs
    }
}
