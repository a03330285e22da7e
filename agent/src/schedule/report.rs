//! What is told of jobs, and of every volume: when it was backed up, whether that is long ago, and when it will be.

use std::sync::Arc;

use jiff::tz::TimeZone;
use thinbak_proto::{
    Failed, format_local,
    v1::{BackupState, BackupStatusResponse, JobInfo, ListJobsResponse, VolumeBackup, VolumeInfo},
};

use super::{
    keeper::Keeper,
    scheduler::{Scheduler, Timing, milliseconds},
    select::{PoolVolumes, survey},
    state::{JobState, State, VolumeState},
};
use crate::{
    config::{JobConfig, Selector, Settings, host_name},
    pools::now_ms,
};

/// A success that is further in the future was told by a clock that was ahead, and does not say how long ago it was.
const AHEAD_MS: u64 = 5 * 60 * 1000;

/// What is known of the jobs.
struct Known {
    settings: Arc<Settings>,
    state: State,
    scheduler: Scheduler,
    /// What is wrong with what is remembered.
    problems: Vec<String>,
    /// When this process began.
    since_ms: u64,
    now_ms: u64,
}

impl Known {
    async fn of(keeper: &Keeper) -> Result<Self, Failed> {
        let (state, problem) = keeper.remembered().await?;
        let now_ms = now_ms();
        let scheduler = keeper.scheduler(&state, now_ms);
        let problems = problem.into_iter().chain(keeper.forgotten()).collect();
        let (settings, since_ms) = (keeper.settings(), keeper.since_ms());
        Ok(Self { settings, state, scheduler, problems, since_ms, now_ms })
    }

    async fn jobs(&self, keeper: &Keeper) -> Vec<JobInfo> {
        let mut infos = Vec::new();
        for job in &self.settings.jobs.jobs {
            let known = self.state.jobs.get(&job.name).cloned().unwrap_or_default();
            let running = match known.running {
                Some(ref run) if keeper.is_running(&job.name).await => run.started_ms,
                _ => 0,
            };
            infos.push(JobInfo { running_since_ms: running, ..self.info(job, known) });
        }
        infos
    }

    fn info(&self, job: &JobConfig, known: JobState) -> JobInfo {
        let again = self.scheduler.plan(&job.name).and_then(|plan| plan.retry.as_ref());
        let (failed_ms, failed) =
            known.last_failure.map(|last| (last.at_ms, last.message)).unwrap_or_default();
        JobInfo {
            name: job.name.clone(),
            schedule: job.schedule.as_ref().map(|schedule| schedule.text.clone()).unwrap_or_default(),
            volumes: job.volumes.iter().map(ToString::to_string).collect(),
            exclude: job.exclude.iter().map(ToString::to_string).collect(),
            group: job.group,
            next_run_ms: self.scheduler.next(&job.name).unwrap_or_default(),
            running_since_ms: 0,
            last_start_ms: known.last_start_ms.unwrap_or_default(),
            last_end_ms: known.last_end_ms.unwrap_or_default(),
            last_success_ms: known.last_success_ms.unwrap_or_default(),
            last_failure_ms: failed_ms,
            last_failure: failed,
            attempt: again.map_or(0, |again| again.attempt),
        }
    }

    /// A volume in a job.
    fn covered(&self, pool: &PoolVolumes, volume: &VolumeInfo, job: &JobConfig) -> VolumeBackup {
        let of_job = self.state.jobs.get(&job.name);
        let known = of_job.and_then(|of_job| of_job.volumes.get(&volume.uuid)).cloned().unwrap_or_default();
        let latest = self.now_ms.saturating_add(AHEAD_MS);
        let since = of_job.map(|of_job| of_job.known_since_ms.max(volume.created_at_ms));
        let since = since.filter(|since| *since <= latest).unwrap_or(self.since_ms);
        let is_failed = known.is_failed();
        let VolumeState { last_success_ms, last_failure, done, .. } = known;
        let (failed_ms, failed) = last_failure.map(|last| (last.at_ms, last.message)).unwrap_or_default();
        let state = match last_success_ms {
            _ if is_failed => BackupState::Failed,
            success if is_overdue(job, success.filter(|at| *at <= latest).unwrap_or(since), self.now_ms) => {
                BackupState::Overdue
            }
            None => BackupState::Waiting,
            Some(_) => BackupState::Ok,
        };
        let done = done.unwrap_or_default();
        VolumeBackup {
            job: job.name.clone(),
            state: state.into(),
            last_success_ms: last_success_ms.unwrap_or_default(),
            last_failure_ms: failed_ms,
            last_failure: failed,
            next_run_ms: self.scheduler.next(&job.name).unwrap_or_default(),
            generation: done.generation,
            sent_bytes: done.sent_bytes,
            seconds: done.seconds,
            ..named(pool, volume)
        }
    }
}

/// Whether a volume that was last well at `success_ms` has missed a whole run since, or what its job says of that.
fn is_overdue(job: &JobConfig, success_ms: u64, now_ms: u64) -> bool {
    if let Some(limit) = job.overdue {
        return now_ms > success_ms.saturating_add(milliseconds(limit));
    }
    let Some(timing) = Timing::of(job, &host_name()) else { return false };
    let zone = TimeZone::system();
    let next = timing.when.next(success_ms.saturating_sub(timing.jitter_ms), &zone);
    let after = next.and_then(|next| timing.when.next(next, &zone));
    after.is_some_and(|after| now_ms > after.saturating_add(timing.jitter_ms))
}

fn named(pool: &PoolVolumes, volume: &VolumeInfo) -> VolumeBackup {
    VolumeBackup {
        pool: pool.spec.clone(),
        volume: volume.name.clone(),
        uuid: volume.uuid.clone(),
        size_bytes: volume.size_bytes,
        ..VolumeBackup::default()
    }
}

/// The jobs of the configuration.
pub(crate) async fn jobs(keeper: &Keeper) -> Result<ListJobsResponse, Failed> {
    let known = Known::of(keeper).await?;
    let jobs = known.jobs(keeper).await;
    Ok(ListJobsResponse { jobs, kept: keeper.is_kept(), warnings: known.problems })
}

/// Every volume of every known pool, and of those that jobs name by their places.
pub(crate) async fn status(keeper: &Keeper) -> Result<BackupStatusResponse, Failed> {
    let known = Known::of(keeper).await?;
    let config = &known.settings.jobs;
    let of_jobs = config
        .jobs
        .iter()
        .flat_map(|job| job.volumes.iter().chain(&job.exclude))
        .chain(&config.not_backed_up);
    let places = of_jobs.filter_map(Selector::place).collect();
    let pools = survey(keeper.pools(), places, None).await?;
    let mut problems = known.problems.clone();
    let mut volumes = Vec::new();
    for pool in &pools {
        if let Some(failed) = &pool.error {
            problems.push(format!("pool {} cannot be looked at: {}", pool.spec, failed.message));
        }
        for volume in &pool.volumes {
            let before = volumes.len();
            let covering = config.jobs.iter().filter(|job| pool.is_covered(volume, job));
            volumes.extend(covering.map(|job| known.covered(pool, volume, job)));
            if volumes.len() == before {
                let state = match pool.is_named(volume, &config.not_backed_up) {
                    true => BackupState::LeftOut,
                    false => BackupState::Uncovered,
                };
                volumes.push(VolumeBackup { state: state.into(), ..named(pool, volume) });
            }
        }
    }
    let jobs = known.jobs(keeper).await;
    let is_failed = |job: &&JobInfo| known.state.jobs.get(&job.name).is_some_and(JobState::is_failed);
    for job in jobs.iter().filter(is_failed) {
        let told = |volume: &VolumeBackup| volume.job == job.name && volume.state() == BackupState::Failed;
        if !volumes.iter().any(told) {
            let when = format_local(job.last_failure_ms);
            problems.push(format!("job {} failed at {when}: {}", job.name, job.last_failure));
        }
    }
    if !keeper.is_kept() && config.jobs.iter().any(|job| job.schedule.is_some()) {
        problems.push("no agent is running, so jobs do not run by themselves".to_owned());
    }
    let warnings = jobs
        .iter()
        .filter(|job| job.attempt > 0)
        .map(|job| format!("job {} is repeated at {}", job.name, format_local(job.next_run_ms)));
    let warnings = warnings.collect();
    Ok(BackupStatusResponse { volumes, jobs, kept: keeper.is_kept(), problems, warnings })
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::config::{Level, Surroundings};

    const HOUR: u64 = 3_600_000;

    fn job(rest: &str) -> JobConfig {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), format!("[[job]]\nname = \"j\"\nvolumes = [\"p/*\"]\n{rest}")).unwrap();
        let around = Surroundings { variable: &|_| None, root: true, directory: Path::new("/").to_owned() };
        let settings = Settings::resolve(Level::default(), Some(file.path()), &around).unwrap();
        settings.jobs.jobs.first().unwrap().clone()
    }

    #[test]
    fn a_volume_is_overdue_when_it_missed_a_whole_run_or_when_its_job_says_so() {
        let hourly = job("schedule = \"1h\"\n");
        assert!(!is_overdue(&hourly, 100 * HOUR, 102 * HOUR));
        assert!(is_overdue(&hourly, 100 * HOUR, 102 * HOUR + 1));
        assert!(!is_overdue(&hourly, 100 * HOUR, 50 * HOUR), "the clock was put back");
        let strict = job("schedule = \"1h\"\noverdue = \"30min\"\n");
        assert!(is_overdue(&strict, 100 * HOUR, 101 * HOUR));
        let by_hand = job("");
        assert!(!is_overdue(&by_hand, 0, u64::MAX), "nobody said when it is to be");
        assert!(is_overdue(&job("overdue = \"1d\"\n"), 0, 25 * HOUR));
    }
}
