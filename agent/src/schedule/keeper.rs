//! The jobs of a process: its configuration, what runs, what is counted, and the end of it all.

use std::{
    collections::HashSet,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use jiff::tz::TimeZone;
use parking_lot::{Mutex, RwLock};
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family},
};
use thinbak_proto::{
    Failed, FailureKind, MAX_MESSAGE_LEN,
    v1::{JobEvent, jobs_client::JobsClient, pools_client::PoolsClient},
};
use tokio::sync::{Notify, mpsc, oneshot, watch};
use tonic::Status;

use super::{
    run::{self, Order},
    scheduler::{Again, Scheduler, Timing, Went, again},
    state::{JobState, RunLock, State, StateFile},
};
use crate::{
    channel::{BoxedChannel, in_process},
    config::{JobConfig, Settings, host_name},
    daemon::agent_routes,
    pools::{PoolManager, blocking, now_ms},
};

/// Who asks whether a job is running holds its lock for a moment.
const LOCK_ATTEMPTS: u32 = 20;
const LOCK_PAUSE: Duration = Duration::from_millis(25);

/// Reads the configuration anew.
pub type ReadSettings = Box<dyn Fn() -> Result<Settings, Failed> + Send + Sync>;

/// The jobs of this process.
pub struct Keeper {
    services: BoxedChannel,
    state: StateFile,
    settings: RwLock<Arc<Settings>>,
    read_settings: Option<ReadSettings>,
    /// True: what runs is to end, and nothing begins any more.
    stop: watch::Sender<bool>,
    /// How many runs are running.
    runs: watch::Sender<usize>,
    /// The jobs that are running.
    running: Mutex<HashSet<String>>,
    /// The configuration is another one.
    pub(super) changed: Notify,
    kept: AtomicBool,
    counters: Counters,
    /// When this process began, in milliseconds since 1970.
    since_ms: u64,
    /// Why what happened last could not be remembered.
    forgotten: Mutex<Option<String>>,
}

/// How many runs and backups have ended how, in this process.
#[derive(Debug, Clone, Default)]
pub(crate) struct Counters {
    pub(crate) runs: Family<RunEnded, Counter>,
    pub(crate) volumes: Family<VolumeEnded, Counter>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct RunEnded {
    pub(crate) job: String,
    pub(crate) outcome: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct VolumeEnded {
    pub(crate) job: String,
    pub(crate) volume: String,
    pub(crate) outcome: &'static str,
}

/// What a run tells, to whoever listens.
pub(super) type Told = mpsc::Sender<Result<JobEvent, Status>>;

/// That a run is running.
struct RunGuard {
    keeper: Arc<Keeper>,
    job: String,
}

impl Drop for RunGuard {
    fn drop(&mut self) {
        self.keeper.running.lock().remove(&self.job);
        self.keeper.runs.send_modify(|runs| *runs -= 1);
    }
}

impl Keeper {
    /// The jobs of `settings` on the pools of `manager`. `read_settings` is what a daemon reloads by.
    #[must_use]
    pub fn new(
        manager: Arc<PoolManager>,
        settings: Settings,
        read_settings: Option<ReadSettings>,
    ) -> Arc<Self> {
        Arc::new(Self {
            services: in_process(agent_routes(manager)),
            state: StateFile::new(settings.state_dir.clone()),
            settings: RwLock::new(Arc::new(settings)),
            read_settings,
            stop: watch::Sender::new(false),
            runs: watch::Sender::new(0),
            running: Mutex::default(),
            changed: Notify::new(),
            kept: AtomicBool::new(false),
            counters: Counters::default(),
            since_ms: now_ms(),
            forgotten: Mutex::default(),
        })
    }

    pub(crate) fn settings(&self) -> Arc<Settings> {
        Arc::clone(&self.settings.read())
    }

    pub(crate) fn counters(&self) -> &Counters {
        &self.counters
    }

    /// When this process began to know of jobs, in milliseconds since 1970.
    pub(super) fn since_ms(&self) -> u64 {
        self.since_ms
    }

    /// Why what happened last could not be remembered.
    pub(super) fn forgotten(&self) -> Option<String> {
        self.forgotten.lock().clone()
    }

    pub(crate) fn pools(&self) -> PoolsClient<BoxedChannel> {
        PoolsClient::new(self.services.clone())
            .max_decoding_message_size(MAX_MESSAGE_LEN)
            .max_encoding_message_size(MAX_MESSAGE_LEN)
    }

    pub(super) fn jobs(&self) -> JobsClient<BoxedChannel> {
        JobsClient::new(self.services.clone()).max_decoding_message_size(MAX_MESSAGE_LEN)
    }

    /// Whether a daemon keeps the schedules here.
    pub(crate) fn is_kept(&self) -> bool {
        self.kept.load(Ordering::Relaxed)
    }

    pub(super) fn now_kept(&self) {
        self.kept.store(true, Ordering::Relaxed);
    }

    /// What is remembered, and what is wrong with that.
    pub(crate) async fn remembered(&self) -> Result<(State, Option<String>), Failed> {
        let file = self.state.clone();
        blocking(move || file.read()).await
    }

    /// Whether a job is running, here or in another process.
    pub(crate) async fn is_running(&self, job: &str) -> bool {
        let (file, job) = (self.state.clone(), job.to_owned());
        blocking(move || Ok(file.is_running(&job))).await.unwrap_or(false)
    }

    /// Changes what is remembered of a job. That it cannot be written is told, and keeps nothing from going on.
    pub(super) async fn remember(&self, job: &str, change: impl FnOnce(&mut JobState) + Send + 'static) {
        let (file, name) = (self.state.clone(), job.to_owned());
        let change = move |state: &mut State| {
            let known = state.jobs.entry(name).or_default();
            if known.known_since_ms == 0 {
                known.known_since_ms = now_ms();
            }
            change(known);
        };
        match blocking(move || file.change(change)).await {
            Ok(true) => *self.forgotten.lock() = None,
            Ok(false) => {}
            Err(failed) => {
                tracing::error!(job, error = %failed, "what happened cannot be remembered");
                *self.forgotten.lock() =
                    Some(format!("what happens to jobs cannot be remembered: {}", failed.message));
            }
        }
    }

    /// The scheduler of a state.
    pub(crate) fn scheduler(&self, state: &State, now_ms: u64) -> Scheduler {
        let settings = self.settings();
        let jobs = timings(&settings).into_iter().map(|timing| {
            let plan = state.jobs.get(&timing.name).and_then(|job| job.plan.clone());
            (timing, plan)
        });
        Scheduler::new(jobs, TimeZone::system(), settings.jobs.max_running, now_ms)
    }

    /// The job of that name.
    pub(super) fn job(&self, name: &str) -> Result<Arc<JobConfig>, Failed> {
        let settings = self.settings();
        let job = settings.jobs.jobs.iter().find(|job| job.name == name).cloned();
        job.map(Arc::new).ok_or_else(|| {
            Failed::new(FailureKind::NotFound, format!("the configuration has no job called `{name}`"))
                .with_hint("thinbak job list shows those that it has; thinbak agent reload reads it again")
        })
    }

    /// Begins a run; what follows it arrives when it has ended. [`FailureKind::Busy`] while the job is running.
    pub(super) async fn start(
        self: &Arc<Self>,
        order: Order,
        told: Option<Told>,
    ) -> Result<oneshot::Receiver<Option<Again>>, Failed> {
        let name = order.job.name.clone();
        if *self.stop.borrow() {
            return Err(Failed::new(FailureKind::Busy, format!("run job `{name}`: the agent is stopping")));
        }
        let busy = || {
            Failed::new(FailureKind::Busy, format!("run job `{name}`: it is running"))
                .with_hint("thinbak job list shows since when")
        };
        if !self.running.lock().insert(name.clone()) {
            return Err(busy());
        }
        self.runs.send_modify(|runs| *runs += 1);
        let guard = RunGuard { keeper: Arc::clone(self), job: name.clone() };
        let lock = match self.lock(&name).await {
            Ok(Some(lock)) => Some(lock),
            Ok(None) => return Err(busy()),
            Err(failed) => {
                tracing::error!(job = name, error = %failed, "other processes cannot be kept from running the job");
                None
            }
        };
        let (sender, receiver) = oneshot::channel();
        let keeper = Arc::clone(self);
        tokio::spawn(async move {
            let again = run::run(&keeper, order, told).await;
            drop((lock, guard));
            let _ = sender.send(again);
        });
        Ok(receiver)
    }

    async fn lock(&self, job: &str) -> Result<Option<RunLock>, Failed> {
        for attempt in 0..LOCK_ATTEMPTS {
            if attempt > 0 {
                tokio::time::sleep(LOCK_PAUSE).await;
            }
            let (file, job) = (self.state.clone(), job.to_owned());
            if let Some(lock) = blocking(move || file.lock_run(&job)).await? {
                return Ok(Some(lock));
            }
        }
        Ok(None)
    }

    /// Settles runs of processes that ended in the middle of them.
    pub(super) async fn recover(self: &Arc<Self>) {
        let Ok((state, _)) = self.remembered().await else { return };
        for (name, _) in state.jobs.iter().filter(|(_, job)| job.running.is_some()) {
            let Ok(Some(_lock)) = self.lock(name).await else { continue };
            // Who had the lock meanwhile may have ended that run well, or settled it.
            let Ok((state, _)) = self.remembered().await else { continue };
            if let Some(job) = state.jobs.get(name) {
                self.settle(name, job).await;
            }
        }
    }

    /// Settles a run that did not end. The caller holds the job's lock.
    pub(super) async fn settle(&self, name: &str, job: &JobState) {
        let Some(broken) = job.running.clone() else { return };
        let config = self.job(name).ok();
        tracing::warn!(job = name, started_ms = broken.started_ms, "a run of this job did not end");
        run::owed_after(self, name, &broken).await;
        let retry = config.map(|config| config.retry).unwrap_or_default();
        self.remember(name, move |job| {
            let now_ms = now_ms();
            job.running = None;
            job.last_end_ms = Some(now_ms);
            job.failed(now_ms, "the agent ended in the middle of the run");
            if let Some(plan) = job.plan.as_mut().filter(|_| broken.attempt > 0) {
                plan.retry = again(retry, broken.attempt, Went::BrokenOff, now_ms, Vec::new());
            }
        })
        .await;
    }

    /// Resolves when what runs is to end.
    pub(super) async fn stopped(&self) {
        // The sender lives as long as this.
        let _ = self.stop.subscribe().wait_for(|stop| *stop).await;
    }

    /// Has what runs end, and nothing begin any more.
    pub fn stop(&self) {
        self.stop.send_replace(true);
    }

    /// Resolves when nothing runs.
    pub async fn drained(&self) {
        let _ = self.runs.subscribe().wait_for(|runs| *runs == 0).await;
    }

    /// Reads the configuration again and says what changed. One that is refused changes nothing.
    pub fn reload(&self) -> Result<Vec<String>, Failed> {
        let read = self.read_settings.as_ref().ok_or_else(|| {
            Failed::new(FailureKind::Refused, "no daemon is running, so there is nothing to reload")
                .with_hint("every command reads the configuration when it begins")
        })?;
        let new = read()?;
        check_jobs(&new)?;
        let old = self.settings();
        let fixed = [
            ("state_dir", new.state_dir != old.state_dir),
            ("socket", new.socket != old.socket),
            ("metrics", new.metrics != old.metrics),
        ];
        if let Some((key, _)) = fixed.iter().find(|(_, differs)| *differs) {
            return Err(Failed::new(
                FailureKind::Refused,
                format!("reload the configuration: `{key}` is another one, and it cannot change while the agent runs"),
            )
            .with_hint("restart the agent"));
        }
        let changes = changes(&old.jobs.jobs, &new.jobs.jobs);
        *self.settings.write() = Arc::new(new);
        self.changed.notify_one();
        Ok(changes)
    }
}

/// Those that have a schedule.
pub(super) fn timings(settings: &Settings) -> Vec<Timing> {
    let host = host_name();
    settings.jobs.jobs.iter().filter_map(|job| Timing::of(job, &host)).collect()
}

/// That every job has somewhere to go.
pub(crate) fn check_jobs(settings: &Settings) -> Result<(), Failed> {
    settings.jobs.jobs.iter().try_for_each(|job| settings.repository_of(job).map(|_| ()))
}

fn changes(old: &[JobConfig], new: &[JobConfig]) -> Vec<String> {
    let find = |jobs: &[JobConfig], name: &str| jobs.iter().find(|job| job.name == name).cloned();
    let kept = new.iter().filter_map(|job| match find(old, &job.name) {
        None => Some(format!("job `{}` is new", job.name)),
        Some(before) if before != *job => Some(format!("job `{}` has changed", job.name)),
        Some(_) => None,
    });
    let gone = old.iter().filter(|job| find(new, &job.name).is_none());
    kept.chain(gone.map(|job| format!("job `{}` is gone", job.name))).collect()
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::{
        config::{Level, Surroundings},
        schedule::state::RunState,
    };

    fn keeper(dir: &Path) -> Arc<Keeper> {
        let around = Surroundings { variable: &|_| None, root: true, directory: dir.to_owned() };
        let file = dir.join("agent.toml");
        std::fs::write(&file, "").unwrap();
        let flags = Level { state_dir: Some(dir.to_owned()), ..Level::default() };
        let settings = Settings::resolve(flags, Some(&file), &around).unwrap();
        Keeper::new(PoolManager::new(dir.to_owned()), settings, None)
    }

    /// On a clock that goes on only while all wait for it.
    #[tokio::test(start_paused = true)]
    async fn a_run_that_ends_while_its_lock_is_waited_for_is_not_settled() {
        let dir = tempfile::tempdir().unwrap();
        let keeper = keeper(dir.path());
        let running = |state: &mut State| {
            let run = RunState { started_ms: 1, ..RunState::default() };
            state.jobs.entry("j".into()).or_default().running = Some(run);
        };
        keeper.state.change(running).unwrap();
        let lock = keeper.state.lock_run("j").unwrap();
        assert!(lock.is_some());
        let recovering = Arc::clone(&keeper);
        let recovered = tokio::spawn(async move { recovering.recover().await });
        // Then it has asked for the lock at least once, and waits to ask again.
        tokio::time::sleep(LOCK_PAUSE / 2).await;
        keeper.state.change(|state| state.jobs.get_mut("j").unwrap().running = None).unwrap();
        drop(lock);
        recovered.await.unwrap();
        let (state, _) = keeper.remembered().await.unwrap();
        assert_eq!(state.jobs["j"].last_failure, None, "it went well");
        // One that nobody runs is settled.
        keeper.state.change(running).unwrap();
        keeper.recover().await;
        let (state, _) = keeper.remembered().await.unwrap();
        assert!(state.jobs["j"].running.is_none() && state.jobs["j"].last_failure.is_some());
    }

    #[tokio::test]
    async fn what_cannot_be_remembered_is_known_until_it_can() {
        let dir = tempfile::tempdir().unwrap();
        let keeper = keeper(dir.path());
        std::fs::create_dir(dir.path().join("jobs.json.new")).unwrap();
        keeper.remember("j", |job| job.last_start_ms = Some(1)).await;
        assert!(keeper.forgotten().is_some());
        std::fs::remove_dir(dir.path().join("jobs.json.new")).unwrap();
        keeper.remember("j", |job| job.last_start_ms = Some(2)).await;
        assert_eq!(keeper.forgotten(), None);
    }
}
