//! Who works on what: locks of volumes, and the jobs that are running.

use std::{
    collections::{BTreeMap, HashSet},
    sync::Arc,
    time::{SystemTime, UNIX_EPOCH},
};

use parking_lot::Mutex;
use thinbak_proto::{Failed, FailureKind, v1::RunningJob};
use uuid::Uuid;

/// The volumes that jobs of this process are working on.
#[derive(Clone, Default)]
pub(super) struct VolumeLocks {
    held: Arc<Mutex<HashSet<(Uuid, String)>>>,
}

/// As long as it lives, no other job works on the volume.
#[derive(Debug)]
pub struct VolumeLock {
    held: Arc<Mutex<HashSet<(Uuid, String)>>>,
    volume: (Uuid, String),
}

impl VolumeLocks {
    pub(super) fn lock(&self, pool: Uuid, volume: &str) -> Result<VolumeLock, Failed> {
        let key = (pool, volume.to_owned());
        if !self.held.lock().insert(key.clone()) {
            return Err(Failed::new(
                FailureKind::Busy,
                format!("another job is working on volume `{volume}`"),
            )
            .with_hint("thinbak agent status shows it; try again when it is done"));
        }
        Ok(VolumeLock { held: Arc::clone(&self.held), volume: key })
    }

    /// Whether a job works on any volume of the pool.
    pub(super) fn any(&self, pool: Uuid) -> bool {
        self.held.lock().iter().any(|(held, _)| *held == pool)
    }
}

impl Drop for VolumeLock {
    fn drop(&mut self) {
        self.held.lock().remove(&self.volume);
    }
}

/// The jobs that are running in this process.
#[derive(Clone, Default)]
pub struct JobTable {
    jobs: Arc<Mutex<Jobs>>,
}

#[derive(Default)]
struct Jobs {
    next: u64,
    running: BTreeMap<u64, RunningJob>,
}

/// An entry of the table, removed when this is dropped.
pub struct RunningJobGuard {
    table: JobTable,
    number: u64,
}

impl JobTable {
    /// Enters a job that begins now.
    #[must_use]
    pub fn start(&self, job: &str, volume: &str) -> RunningJobGuard {
        let entry = RunningJob {
            job: job.to_owned(),
            volume: volume.to_owned(),
            started_at_ms: now_ms(),
            ..RunningJob::default()
        };
        let mut jobs = self.jobs.lock();
        let number = jobs.next;
        jobs.next += 1;
        jobs.running.insert(number, entry);
        RunningJobGuard { table: self.clone(), number }
    }

    /// All that are running, oldest first.
    #[must_use]
    pub fn list(&self) -> Vec<RunningJob> {
        self.jobs.lock().running.values().cloned().collect()
    }
}

impl RunningJobGuard {
    /// Says how far the job is.
    pub fn update(&self, phase: &str, done_bytes: u64, total_bytes: u64) {
        if let Some(job) = self.table.jobs.lock().running.get_mut(&self.number) {
            if job.phase != phase {
                phase.clone_into(&mut job.phase);
            }
            job.done_bytes = done_bytes;
            job.total_bytes = total_bytes;
        }
    }
}

impl Drop for RunningJobGuard {
    fn drop(&mut self) {
        self.table.jobs.lock().running.remove(&self.number);
    }
}

/// Milliseconds since 1970.
pub(crate) fn now_ms() -> u64 {
    let elapsed = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_jobs_on_one_volume_exclude_each_other_until_the_first_ends() {
        let locks = VolumeLocks::default();
        let (pool, other) = (Uuid::from_u128(1), Uuid::from_u128(2));
        let first = locks.lock(pool, "v").unwrap();
        assert_eq!(locks.lock(pool, "v").unwrap_err().exit_code(), 11);
        let _beside = (locks.lock(pool, "w").unwrap(), locks.lock(other, "v").unwrap());
        drop(first);
        assert!(locks.lock(pool, "v").is_ok());
    }

    #[test]
    fn a_job_is_listed_while_its_guard_lives() {
        let table = JobTable::default();
        let guard = table.start("backup", "p/v");
        guard.update("transfer", 3, 10);
        let listed = table.list();
        assert_eq!(listed.len(), 1);
        assert_eq!((listed[0].phase.as_str(), listed[0].done_bytes), ("transfer", 3));
        drop(guard);
        assert_eq!(table.list(), []);
    }
}
