//! What the server does by itself, and when.
//!
//! A [`Scheduler`] knows when each job was last begun and says what is due; it takes the time as an argument
//! and touches nothing. [`keep`] asks it, runs one job after the other, and has the catalogue remember, so that
//! what was due while the server was down is done once when it is up again.

mod jobs;
#[cfg(test)]
mod tests;

use std::{fmt, time::Duration};

use jiff::tz::TimeZone;
use thinbak_proto::When;

pub use jobs::{Jobs, MissingJob, keep};

/// What the server can do by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Job {
    /// Apply the stored retention policies.
    Prune,
    /// Free what no generation needs.
    Collect,
    /// Read stored content back.
    Verify,
    /// Copy the catalogue.
    CatalogueBackup,
}

impl fmt::Display for Job {
    /// The name in the configuration and in the catalogue.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Prune => "prune",
            Self::Collect => "collect",
            Self::Verify => "verify",
            Self::CatalogueBackup => "catalogue_backup",
        })
    }
}

/// Which job is due when. Pure.
#[derive(Debug)]
pub struct Scheduler {
    entries: Vec<Entry>,
    zone: TimeZone,
}

#[derive(Debug)]
struct Entry {
    job: Job,
    when: When,
    /// The job is due at the first moment of its schedule after this one.
    counted_from_ms: u64,
}

impl Scheduler {
    /// A scheduler of jobs, each with its schedule and when it was last begun. Calendar schedules are in `zone`.
    #[must_use]
    pub fn new(jobs: impl IntoIterator<Item = (Job, When, u64)>, zone: TimeZone) -> Self {
        let entry = |(job, when, counted_from_ms)| Entry { job, when, counted_from_ms };
        Self { entries: jobs.into_iter().map(entry).collect(), zone }
    }

    /// Takes note of the time: a job that was begun in the future, by a wrong clock, is not waited for.
    pub fn look(&mut self, now_ms: u64) {
        for entry in &mut self.entries {
            entry.counted_from_ms = entry.counted_from_ms.min(now_ms);
        }
    }

    /// A job that is due.
    #[must_use]
    pub fn due(&self, now_ms: u64) -> Option<Job> {
        let due = |entry: &&Entry| self.next(entry).is_some_and(|next| next <= now_ms);
        self.entries.iter().find(due).map(|entry| entry.job)
    }

    /// How long until something is due; `None`: never.
    #[must_use]
    pub fn wait(&self, now_ms: u64) -> Option<Duration> {
        let next = self.entries.iter().filter_map(|entry| self.next(entry)).min()?;
        Some(Duration::from_millis(next.saturating_sub(now_ms)))
    }

    /// Notes that a job was begun.
    pub fn begun(&mut self, job: Job, now_ms: u64) {
        for entry in self.entries.iter_mut().filter(|entry| entry.job == job) {
            entry.counted_from_ms = now_ms;
        }
    }

    fn next(&self, entry: &Entry) -> Option<u64> {
        entry.when.next(entry.counted_from_ms, &self.zone)
    }
}
