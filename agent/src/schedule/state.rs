//! What is remembered of jobs: `jobs.json` in the state directory.
//!
//! The file is replaced as a whole (written beside, synced, renamed, the folder synced), under the lock file
//! `jobs.lock`. A file that is torn, damaged or of another version is set aside under a name of its own and told: the jobs
//! go on as if they were new.
//!
//! A run holds the lock file `job-NAME.lock` as long as it lasts. So no two processes run one job at a time, and a run that
//! the file calls running while nobody holds its lock is one that did not end.

use std::{
    collections::BTreeMap,
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};
use thinbak_proto::{Failed, FailureKind};

use super::Plan;
use crate::pools::now_ms;

/// The version that is written, and the only one that is understood.
const FORMAT: u32 = 1;

/// The file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct State {
    format: u32,
    /// By name; also those that the configuration no longer has.
    pub(crate) jobs: BTreeMap<String, JobState>,
}

/// Of a job. Times in milliseconds since 1970.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct JobState {
    /// When it was first known here.
    pub(crate) known_since_ms: u64,
    /// Absent: it has no schedule.
    pub(crate) plan: Option<Plan>,
    /// The run that is running, or did not end.
    pub(crate) running: Option<RunState>,
    pub(crate) last_start_ms: Option<u64>,
    pub(crate) last_end_ms: Option<u64>,
    /// The end of the last run in which all went well.
    pub(crate) last_success_ms: Option<u64>,
    pub(crate) last_failure: Option<Failure>,
    /// Whether the last run went well. Absent: written before this was remembered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) last_ok: Option<bool>,
    /// By uuid.
    pub(crate) volumes: BTreeMap<String, VolumeState>,
}

/// A run that began.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct RunState {
    pub(crate) started_ms: u64,
    /// 1, or more for a repetition; 0: by hand.
    pub(crate) attempt: u32,
    /// Whether the hook `before` was begun, so that `after` is owed.
    pub(crate) before_begun: bool,
    /// That hook as it was configured then, and how long it may take, in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) after: Option<(Vec<String>, u64)>,
    /// `POOL/VOLUME` of each.
    pub(crate) volumes: Vec<String>,
}

/// What went wrong when.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Failure {
    pub(crate) at_ms: u64,
    pub(crate) message: String,
}

/// Of a volume in a job.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct VolumeState {
    pub(crate) pool: String,
    pub(crate) volume: String,
    pub(crate) last_success_ms: Option<u64>,
    pub(crate) last_failure: Option<Failure>,
    /// Whether the last backup went well. Absent: written before this was remembered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) last_ok: Option<bool>,
    /// What the last success was.
    pub(crate) done: Option<Done>,
}

/// A backup of a volume that went well.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Done {
    pub(crate) generation: u64,
    pub(crate) changed_bytes: u64,
    pub(crate) read_bytes: u64,
    pub(crate) sent_bytes: u64,
    pub(crate) msnap_held_seconds: f64,
    pub(crate) seconds: f64,
}

impl Default for State {
    fn default() -> Self {
        Self { format: FORMAT, jobs: BTreeMap::new() }
    }
}

impl JobState {
    /// Notes a failure of the job.
    pub(crate) fn failed(&mut self, at_ms: u64, message: impl Into<String>) {
        self.last_failure = Some(Failure { at_ms, message: message.into() });
        self.last_ok = Some(false);
    }

    /// Whether the last run did not go well.
    pub(crate) fn is_failed(&self) -> bool {
        is_failed(self.last_ok, self.last_failure.as_ref(), self.last_success_ms)
    }
}

impl VolumeState {
    /// Whether the last backup did not go well.
    pub(crate) fn is_failed(&self) -> bool {
        is_failed(self.last_ok, self.last_failure.as_ref(), self.last_success_ms)
    }
}

/// The order in which things happened counts, for the clock may have been set between them. Only where it is not
/// remembered the clock is asked.
fn is_failed(last_ok: Option<bool>, failure: Option<&Failure>, success_ms: Option<u64>) -> bool {
    let by_clock = || failure.is_none_or(|failure| failure.at_ms <= success_ms.unwrap_or_default());
    !last_ok.unwrap_or_else(by_clock)
}

/// The file and its locks. Methods block.
#[derive(Debug, Clone)]
pub(crate) struct StateFile {
    dir: PathBuf,
}

/// As long as it lives, no other process runs the job.
#[derive(Debug)]
pub(crate) struct RunLock {
    _file: File,
}

impl StateFile {
    pub(crate) fn new(dir: PathBuf) -> Self {
        Self { dir }
    }

    /// What is remembered, and what is wrong with the file if it cannot be understood. Changes nothing.
    pub(crate) fn read(&self) -> Result<(State, Option<String>), Failed> {
        let text = match fs::read(self.path()) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok((State::default(), None)),
            Err(error) => return Err(self.io("read", &error)),
        };
        match understand(&text) {
            Ok(state) => Ok((state, None)),
            Err(why) => {
                let problem = format!("what is remembered of jobs, {}, {why}", self.path().display());
                Ok((State::default(), Some(problem)))
            }
        }
    }

    /// Changes the file while no other process does. What it was if it cannot be understood is set aside. Returns whether
    /// there was anything to write.
    pub(crate) fn change(&self, change: impl FnOnce(&mut State)) -> Result<bool, Failed> {
        let made = DirBuilder::new().recursive(true).mode(0o700).create(&self.dir);
        made.map_err(|error| self.io("make the folder of", &error))?;
        let _lock = self.lock().map_err(|error| self.io("lock", &error))?;
        let (mut state, problem) = self.read()?;
        if let Some(problem) = problem {
            let aside = self.dir.join(format!("jobs.json.damaged-{}", now_ms()));
            fs::rename(self.path(), &aside).map_err(|error| self.io("set aside", &error))?;
            tracing::error!(problem, aside = %aside.display(), "it is set aside; the jobs go on as if they were new");
        }
        let before = state.clone();
        change(&mut state);
        let changed = state != before;
        if changed {
            self.replace(&state).map_err(|error| self.io("write", &error))?;
        }
        Ok(changed)
    }

    /// Becomes the one that runs a job; `None` if another process does.
    pub(crate) fn lock_run(&self, job: &str) -> Result<Option<RunLock>, Failed> {
        let failed = |error: io::Error| self.io("lock a job of", &error);
        DirBuilder::new().recursive(true).mode(0o700).create(&self.dir).map_err(failed)?;
        let file = lock_file(&self.run_lock(job)).map_err(failed)?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Some(RunLock { _file: file })),
            Err(rustix::io::Errno::WOULDBLOCK) => Ok(None),
            Err(error) => Err(failed(error.into())),
        }
    }

    /// Whether some process runs a job. Leaves nothing behind.
    pub(crate) fn is_running(&self, job: &str) -> bool {
        let Ok(file) = File::open(self.run_lock(job)) else { return false };
        flock(&file, FlockOperation::NonBlockingLockShared) == Err(rustix::io::Errno::WOULDBLOCK)
    }

    fn lock(&self) -> io::Result<File> {
        let file = lock_file(&self.dir.join("jobs.lock"))?;
        flock(&file, FlockOperation::LockExclusive)?;
        Ok(file)
    }

    fn replace(&self, state: &State) -> io::Result<()> {
        let new = self.dir.join("jobs.json.new");
        let mut text = serde_json::to_vec_pretty(state)?;
        text.push(b'\n');
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&new)?;
        file.write_all(&text)?;
        file.sync_all()?;
        fs::rename(&new, self.path())?;
        File::open(&self.dir)?.sync_all()
    }

    fn path(&self) -> PathBuf {
        self.dir.join("jobs.json")
    }

    fn run_lock(&self, job: &str) -> PathBuf {
        self.dir.join(format!("job-{job}.lock"))
    }

    fn io(&self, attempt: &str, error: &io::Error) -> Failed {
        let kind = match error.kind() {
            io::ErrorKind::PermissionDenied => FailureKind::Denied,
            io::ErrorKind::StorageFull => FailureKind::NoSpace,
            _ => FailureKind::Failed,
        };
        let message = format!("{attempt} what is remembered of jobs, {}: {error}", self.path().display());
        Failed::new(kind, message).with_hint("another place can be given with --state-dir")
    }
}

fn lock_file(path: &Path) -> io::Result<File> {
    OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(path)
}

fn understand(text: &[u8]) -> Result<State, String> {
    #[derive(Deserialize)]
    struct FormatOnly {
        format: u32,
    }
    let damaged = |error: serde_json::Error| format!("is damaged: {error}");
    match serde_json::from_slice::<FormatOnly>(text).map_err(damaged)? {
        FormatOnly { format: FORMAT } => serde_json::from_slice(text).map_err(damaged),
        FormatOnly { format } => Err(format!("has format {format}, where {FORMAT} is understood")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set_aside(dir: &Path) -> usize {
        let names = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
        names.filter(|name| name.starts_with("jobs.json.damaged-")).count()
    }

    #[test]
    fn what_is_remembered_is_found_by_the_next_process() {
        let dir = tempfile::tempdir().unwrap();
        let file = StateFile::new(dir.path().join("a/b"));
        assert_eq!(file.read().unwrap(), (State::default(), None));
        file.change(|state| state.jobs.entry("j".into()).or_default().failed(7, "so")).unwrap();
        let (state, problem) = StateFile::new(dir.path().join("a/b")).read().unwrap();
        assert_eq!(problem, None);
        assert_eq!(state.jobs["j"].last_failure, Some(Failure { at_ms: 7, message: "so".into() }));
    }

    #[test]
    fn a_failure_after_a_success_of_a_clock_that_was_ahead_counts() {
        let mut job = JobState { last_success_ms: Some(900), last_ok: Some(true), ..JobState::default() };
        assert!(!job.is_failed());
        job.failed(100, "so");
        assert!(job.is_failed());
        // A file of before: by the clock.
        let old = r#"{"pool":"p","volume":"v","last_success_ms":5,"last_failure":{"at_ms":7,"message":""},"done":null}"#;
        let mut volume: VolumeState = serde_json::from_str(old).unwrap();
        assert!(volume.is_failed());
        volume.last_success_ms = Some(8);
        assert!(!volume.is_failed() && !VolumeState::default().is_failed());
    }

    #[test]
    fn a_file_cut_anywhere_or_of_another_version_is_set_aside_and_told() {
        let dir = tempfile::tempdir().unwrap();
        let file = StateFile::new(dir.path().to_owned());
        file.change(|state| state.jobs.entry("j".into()).or_default().last_start_ms = Some(1)).unwrap();
        let whole = fs::read(file.path()).unwrap();
        let cuts = (0..whole.len() - 2).step_by(7).map(|len| whole[..len].to_vec());
        let odd = [b"{\"format\":2,\"jobs\":{}}".to_vec(), b"{\"format\":1,\"jobs\":{},\"x\":0}".to_vec()];
        for text in cuts.chain(odd) {
            fs::write(file.path(), &text).unwrap();
            let (state, problem) = file.read().unwrap();
            assert_eq!(state, State::default());
            assert!(problem.is_some(), "{}", String::from_utf8_lossy(&text));
            file.change(|state| assert_eq!(*state, State::default())).unwrap();
            assert_eq!(set_aside(dir.path()), 1);
            for entry in fs::read_dir(dir.path()).unwrap() {
                fs::remove_file(entry.unwrap().path()).unwrap();
            }
        }
    }

    #[test]
    fn a_job_is_run_by_one_at_a_time_and_who_asks_learns_of_it() {
        let dir = tempfile::tempdir().unwrap();
        let file = StateFile::new(dir.path().to_owned());
        assert!(!file.is_running("j"));
        let lock = file.lock_run("j").unwrap().unwrap();
        assert!(file.is_running("j") && !file.is_running("k"));
        assert!(file.lock_run("j").unwrap().is_none());
        drop(lock);
        assert!(!file.is_running("j"));
        assert!(file.lock_run("j").unwrap().is_some());
    }
}
