//! What is due when. Takes the time as an argument and touches nothing.
//!
//! A job's schedule names moments. One run counts for all moments up to when it began, so what was missed while the
//! agent was down is made up for once. Jitter is a clock that is late: on it everything is as without jitter.
//!
//! **Clocks that are set.** Put forward, a clock passes moments: they are made up for once. Put back, it comes to moments
//! again that a run was counted for: they stay counted, so nothing is done twice, unless it was put back by more than lies
//! between two moments of the job; then the job is counted from now. So it waits for twice that time at most.

use std::time::Duration;

use jiff::tz::TimeZone;
use serde::{Deserialize, Serialize};
use thinbak_proto::When;

use crate::config::{JobConfig, Retry};

/// What the scheduler has to know of a job's configuration.
#[derive(Debug, Clone)]
pub(crate) struct Timing {
    /// The job.
    pub(crate) name: String,
    /// Its schedule as it is written.
    pub(crate) text: String,
    /// What that means.
    pub(crate) when: When,
    /// How late it is, in milliseconds.
    pub(crate) jitter_ms: u64,
}

impl Timing {
    /// Of a job with a schedule. How late it is within its jitter follows from the names of host and job alone.
    pub(crate) fn of(job: &JobConfig, host: &str) -> Option<Self> {
        let schedule = job.schedule.as_ref()?;
        let hash = blake3::hash(format!("{host}\0{}", job.name).as_bytes());
        let drawn = hash.as_bytes().first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes));
        let jitter_ms = drawn % milliseconds(job.jitter).saturating_add(1);
        let (text, when) = (schedule.text.clone(), schedule.when.clone());
        Some(Self { name: job.name.clone(), text, when, jitter_ms })
    }
}

/// What is remembered of a job's schedule.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Plan {
    /// The schedule that was counted by, as it was written.
    pub(crate) schedule: String,
    /// On the clock that is late by the jitter: the job is due at the schedule's first moment after this one.
    pub(crate) counted_from_ms: u64,
    /// The repetition that is to come.
    pub(crate) retry: Option<Again>,
}

/// A repetition of a run that did not go well.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Again {
    /// When.
    pub(crate) at_ms: u64,
    /// Which attempt it is: 2 for the first repetition.
    pub(crate) attempt: u32,
    /// Uuids of the volumes that it is for; empty: all.
    pub(crate) volumes: Vec<String>,
}

/// How a run went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Went {
    /// All is backed up.
    Well,
    /// Something is not.
    Badly,
    /// It was broken off, by the end of the agent say.
    BrokenOff,
}

/// The repetition that follows a run which ended at `now_ms`, if one does.
pub(crate) fn again(
    retry: Retry,
    attempt: u32,
    went: Went,
    now_ms: u64,
    volumes: Vec<String>,
) -> Option<Again> {
    let (allowed, wait) = match went {
        Went::Well => return None,
        Went::Badly => {
            let doublings = attempt.saturating_sub(1).min(31);
            let wait = milliseconds(retry.first).saturating_mul(1 << doublings);
            (retry.count, wait.min(milliseconds(retry.max)))
        }
        // What ended the agent may be the job itself: not for ever.
        Went::BrokenOff => (retry.count.max(1), 0),
    };
    let again = Again { at_ms: now_ms.saturating_add(wait), attempt: attempt.saturating_add(1), volumes };
    (attempt <= allowed).then_some(again)
}

/// A job that is due.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Due {
    /// The job.
    pub(crate) name: String,
    /// 1, or more for a repetition.
    pub(crate) attempt: u32,
    /// Uuids of the volumes that it is for; empty: all.
    pub(crate) volumes: Vec<String>,
}

/// The jobs that have a schedule.
#[derive(Debug)]
pub(crate) struct Scheduler {
    entries: Vec<Entry>,
    zone: TimeZone,
    max_running: usize,
}

#[derive(Debug)]
struct Entry {
    timing: Timing,
    plan: Plan,
    running: bool,
    /// It could not begin; it is not due before this moment.
    postponed_ms: u64,
}

impl Entry {
    /// When the job is due next, by the clock that everybody reads. Milliseconds since 1970.
    fn next(&self, zone: &TimeZone) -> Option<u64> {
        let moment = self.timing.when.next(self.plan.counted_from_ms, zone);
        let moment = moment.map(|moment| moment.saturating_add(self.timing.jitter_ms));
        let again = self.plan.retry.as_ref().map(|again| again.at_ms);
        moment.into_iter().chain(again).min().map(|next| next.max(self.postponed_ms))
    }

    /// The time on the job's own clock.
    fn own(&self, now_ms: u64) -> u64 {
        now_ms.saturating_sub(self.timing.jitter_ms)
    }
}

impl Scheduler {
    /// Jobs, each with what is remembered of it. One that is new, or has another schedule than before, is counted from
    /// now: if it runs every so often it is due at once, else at the next moment of its schedule.
    pub(crate) fn new(
        jobs: impl IntoIterator<Item = (Timing, Option<Plan>)>,
        zone: TimeZone,
        max_running: usize,
        now_ms: u64,
    ) -> Self {
        let entries = jobs.into_iter().map(|(timing, plan)| {
            let known = plan.filter(|plan| plan.schedule == timing.text);
            let plan = known.unwrap_or_else(|| {
                let every = timing.when.every().map_or(0, milliseconds);
                let counted_from_ms = now_ms.saturating_sub(every);
                Plan { schedule: timing.text.clone(), counted_from_ms, retry: None }
            });
            Entry { timing, plan, running: false, postponed_ms: 0 }
        });
        let mut scheduler = Self { entries: entries.collect(), zone, max_running };
        scheduler.look(now_ms);
        scheduler
    }

    /// The same process with another configuration. What is running stays so.
    pub(crate) fn reloaded(
        &self,
        jobs: impl IntoIterator<Item = Timing>,
        zone: TimeZone,
        max_running: usize,
        now_ms: u64,
    ) -> Self {
        let jobs = jobs.into_iter().map(|timing| {
            let plan = self.plan(&timing.name).cloned();
            (timing, plan)
        });
        let mut next = Self::new(jobs, zone, max_running, now_ms);
        for entry in &mut next.entries {
            entry.running =
                self.entries.iter().any(|old| old.timing.name == entry.timing.name && old.running);
        }
        next
    }

    /// Takes note of the time, which may have been set.
    pub(crate) fn look(&mut self, now_ms: u64) {
        for entry in &mut self.entries {
            let (own, counted) = (entry.own(now_ms), entry.plan.counted_from_ms);
            let after = |moment: u64| entry.timing.when.next(moment, &self.zone);
            let period = after(counted).and_then(|next| Some(after(next)?.saturating_sub(next)));
            // A moment that no calendar has is no time to wait for either.
            if counted > own && period.is_none_or(|period| counted - own > period) {
                entry.plan.counted_from_ms = own;
            }
            entry.postponed_ms = entry.postponed_ms.min(now_ms.saturating_add(60_000));
        }
    }

    /// That a repetition is not waited for longer than its pause, although the clock was put back.
    pub(crate) fn look_at_retries(&mut self, now_ms: u64, longest: impl Fn(&str) -> Duration) {
        for entry in &mut self.entries {
            let latest = now_ms.saturating_add(milliseconds(longest(&entry.timing.name)));
            if let Some(again) = &mut entry.plan.retry {
                again.at_ms = again.at_ms.min(latest);
            }
        }
    }

    /// The job that has been due for the longest, if another may run.
    pub(crate) fn due(&self, now_ms: u64) -> Option<Due> {
        if self.is_full() {
            return None;
        }
        let waiting = self.entries.iter().filter(|entry| !entry.running);
        let due = waiting.filter_map(|entry| Some((entry.next(&self.zone)?, entry)));
        let (_, entry) = due.filter(|(next, _)| *next <= now_ms).min_by_key(|(next, _)| *next)?;
        let name = entry.timing.name.clone();
        // A moment of the schedule is for all volumes, and goes before a repetition for some.
        let own = entry.own(now_ms);
        let regular =
            entry.timing.when.next(entry.plan.counted_from_ms, &self.zone).is_some_and(|next| next <= own);
        Some(match &entry.plan.retry {
            Some(again) if !regular => Due { name, attempt: again.attempt, volumes: again.volumes.clone() },
            _ => Due { name, attempt: 1, volumes: Vec::new() },
        })
    }

    /// Notes that a job that was due is begun. Returns what is to be remembered before anything of it is done.
    pub(crate) fn begin(&mut self, due: &Due, now_ms: u64) -> Option<Plan> {
        let entry = self.entries.iter_mut().find(|entry| entry.timing.name == due.name)?;
        (entry.running, entry.postponed_ms) = (true, 0);
        entry.plan.retry = None;
        if due.attempt == 1 {
            entry.plan.counted_from_ms = entry.own(now_ms).max(entry.plan.counted_from_ms);
        }
        Some(entry.plan.clone())
    }

    /// Takes back that a job was begun, which could not be; it is due again after a pause.
    pub(crate) fn postpone(&mut self, name: &str, before: Option<Plan>, now_ms: u64, pause: Duration) {
        if let Some(entry) = self.entries.iter_mut().find(|entry| entry.timing.name == name) {
            entry.running = false;
            entry.postponed_ms = now_ms.saturating_add(milliseconds(pause));
            entry.plan = before.unwrap_or_else(|| entry.plan.clone());
        }
    }

    /// Notes that a run has ended, and what follows it.
    pub(crate) fn ended(&mut self, name: &str, again: Option<Again>) {
        if let Some(entry) = self.entries.iter_mut().find(|entry| entry.timing.name == name) {
            entry.running = false;
            entry.plan.retry = again;
        }
    }

    fn is_full(&self) -> bool {
        self.entries.iter().filter(|entry| entry.running).count() >= self.max_running
    }

    /// How long until something is due; `None`: never, or not before something ends.
    pub(crate) fn wait(&self, now_ms: u64) -> Option<Duration> {
        if self.is_full() {
            return None;
        }
        let waiting = self.entries.iter().filter(|entry| !entry.running);
        let next = waiting.filter_map(|entry| entry.next(&self.zone)).min()?;
        Some(Duration::from_millis(next.saturating_sub(now_ms)))
    }

    /// When a job is due next, in milliseconds since 1970.
    pub(crate) fn next(&self, name: &str) -> Option<u64> {
        self.entries.iter().find(|entry| entry.timing.name == name)?.next(&self.zone)
    }

    /// What is to be remembered of a job.
    pub(crate) fn plan(&self, name: &str) -> Option<&Plan> {
        Some(&self.entries.iter().find(|entry| entry.timing.name == name)?.plan)
    }

    /// What is to be remembered of all.
    pub(crate) fn plans(&self) -> impl Iterator<Item = (&str, &Plan)> {
        self.entries.iter().map(|entry| (entry.timing.name.as_str(), &entry.plan))
    }
}

/// Milliseconds of a length of time, the most there can be for one that is too long.
pub(crate) fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
