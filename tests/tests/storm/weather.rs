//! The server that is killed and started, and jobs that may be killed and may find it gone.

use std::{
    collections::BTreeMap,
    net::TcpListener,
    path::PathBuf,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use rand::{Rng as _, rngs::StdRng};
use thinbak_tests::{Outcome, Program, Scratch, ServerProcess, program};

/// How often a client is killed.
const CLIENTS_KILLED: f64 = 0.12;
/// How often the catalogue is made anew while the server is down.
const REBUILDS: f64 = 0.3;
/// What has not succeeded once when the storm has lasted so many times as long as it should is a failure.
const PATIENCE: u32 = 6;

/// What must succeed now and then, or nothing was shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Job {
    Backup,
    Delete,
    Undelete,
    Prune,
    Restore,
    RestoreInPlace,
    RestoreWhileDeleted,
    Look,
    Verify,
    Collect,
    /// Packs that collections removed.
    Remove,
    /// Bytes that collections moved.
    Move,
    KillServer,
    KillClient,
    Rebuild,
}

const JOBS: [Job; 15] = [
    Job::Backup,
    Job::Delete,
    Job::Undelete,
    Job::Prune,
    Job::Restore,
    Job::RestoreInPlace,
    Job::RestoreWhileDeleted,
    Job::Look,
    Job::Verify,
    Job::Collect,
    Job::Remove,
    Job::Move,
    Job::KillServer,
    Job::KillClient,
    Job::Rebuild,
];

/// How a job ended.
pub(crate) enum Answer {
    Done(Outcome),
    /// It failed although the server was there all the time.
    Refused(Outcome),
    /// It was killed, or the server was: it may have been done.
    Unheard,
}

/// What all threads share.
pub(crate) struct Storm {
    pub(crate) scratch: Scratch,
    /// Where the server listens, always.
    address: String,
    server: Program,
    /// Odd while it is down. A job during which this did not change had a server all the time.
    epoch: AtomicU64,
    over: AtomicBool,
    succeeded: Mutex<BTreeMap<Job, u64>>,
}

/// Address of the loopback below the ports that the kernel gives to clients: it stays free while nobody listens.
fn address() -> Result<String> {
    let begin = 12_000 + (std::process::id() % 1000) as u16 * 16;
    let free = |port: &u16| TcpListener::bind(("127.0.0.1", *port)).is_ok();
    let port = (begin..begin + 200).find(free).context("no free port")?;
    Ok(format!("127.0.0.1:{port}"))
}

impl Storm {
    pub(crate) fn new() -> Result<Self> {
        let scratch = Scratch::new()?;
        let server = program("thinbak-server", &scratch.join("state"))?;
        server.ok(&["init", "--repo", &scratch.join("repo").display().to_string()])?;
        Ok(Self {
            scratch,
            address: address()?,
            server,
            epoch: AtomicU64::new(1),
            over: AtomicBool::new(false),
            succeeded: Mutex::default(),
        })
    }

    fn repo(&self) -> PathBuf {
        self.scratch.join("repo")
    }

    /// The `thinbak` command of one client.
    pub(crate) fn thinbak(&self, state: &str) -> Result<Program> {
        program("thinbak", &self.scratch.join(state))
    }

    /// A command on the server.
    pub(crate) fn words(&self, words: &[&str]) -> Vec<String> {
        let url = format!("http://{}", self.address);
        let all = [&["--server", &url, "--json"], words].concat();
        all.into_iter().map(str::to_owned).collect()
    }

    /// Of the server's life; odd while it is dead.
    pub(crate) fn epoch(&self) -> u64 {
        self.epoch.load(Ordering::SeqCst)
    }

    fn succeeded(&self) -> MutexGuard<'_, BTreeMap<Job, u64>> {
        self.succeeded.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn count(&self, job: Job, times: u64) {
        *self.succeeded().entry(job).or_default() += times;
    }

    /// How often what succeeded.
    pub(crate) fn told(&self) -> String {
        format!("{:?}", self.succeeded())
    }

    pub(crate) fn end(&self) {
        self.over.store(true, Ordering::SeqCst);
    }

    /// Repeats some work. Who fails ends the storm.
    pub(crate) fn until_over(&self, mut work: impl FnMut() -> Result<()>) -> Result<()> {
        while !self.over.load(Ordering::SeqCst) {
            work().inspect_err(|_| self.end())?;
        }
        Ok(())
    }

    /// Runs a command on the server, and kills it now and then. Damage and panics are errors, and so is anything but a
    /// clear answer where the server is gone.
    pub(crate) fn run(
        &self,
        job: Job,
        program: &Program,
        words: &[&str],
        random: &mut StdRng,
    ) -> Result<Answer> {
        let epoch = self.epoch();
        let mut running = program.start(&self.words(words))?;
        if random.random_bool(CLIENTS_KILLED) {
            // The moment of the kill is the random thing under test; most jobs are short.
            std::thread::sleep(
                Duration::from_millis(1200).mul_f64(random.random_range(0.0_f64..1.0).powi(3)),
            );
            self.count(Job::KillClient, u64::from(running.kill()?));
            return Ok(Answer::Unheard);
        }
        self.judge(job, words, epoch, running.wait()?)
    }

    /// What the end of a command means that was started in `epoch`.
    pub(crate) fn judge(&self, job: Job, words: &[&str], epoch: u64, outcome: Outcome) -> Result<Answer> {
        let Outcome { code, stderr, .. } = &outcome;
        ensure!(!stderr.contains("panicked") && *code != 4, "{words:?}: {code}: {stderr}{}", outcome.text());
        if *code == 0 {
            self.count(job, 1);
            return Ok(Answer::Done(outcome));
        }
        // Refused for safety is an answer of a server that was there.
        if *code != 5 && (epoch % 2 == 1 || epoch != self.epoch()) {
            ensure!(matches!(code, 1 | 3 | 10 | 11), "{words:?}: {code}: {stderr}{}", outcome.text());
            return Ok(Answer::Unheard);
        }
        Ok(Answer::Refused(outcome))
    }

    fn is_complete(&self) -> bool {
        let succeeded = self.succeeded();
        JOBS.iter().all(|job| succeeded.get(job).is_some_and(|times| *times > 0))
    }

    /// Kills the server again and again; it is up when this returns.
    pub(crate) fn rage(&self, random: &mut StdRng) -> Result<ServerProcess> {
        let seconds = std::env::var("THINBAK_STORM_SECONDS").ok().and_then(|text| text.parse().ok());
        let duration = Duration::from_secs(seconds.unwrap_or(45));
        let since = Instant::now();
        let mut server = self.start()?;
        while !self.over.load(Ordering::SeqCst) && (since.elapsed() < duration || !self.is_complete()) {
            ensure!(since.elapsed() < duration * PATIENCE, "hardly anything succeeds: {}", self.told());
            // The moment of the kill is the random thing under test.
            std::thread::sleep(Duration::from_millis(random.random_range(200..4000)));
            self.epoch.fetch_add(1, Ordering::SeqCst);
            let log = server.kill()?;
            ensure!(!log.contains("panicked"), "{log}");
            self.count(Job::KillServer, 1);
            if random.random_bool(REBUILDS) {
                self.rebuild(random)?;
            }
            server = self.start()?;
        }
        Ok(server)
    }

    fn start(&self) -> Result<ServerProcess> {
        let server = ServerProcess::start_at(&self.server, &self.repo(), &self.address)?;
        self.epoch.fetch_add(1, Ordering::SeqCst);
        Ok(server)
    }

    /// Makes the catalogue anew; killed now and then, and begun again.
    fn rebuild(&self, random: &mut StdRng) -> Result<()> {
        let repo = self.repo().display().to_string();
        let words = ["rebuild-catalogue", "--repo", &repo];
        if random.random_bool(0.3) {
            let mut running = self.server.start(&words)?;
            // The moment of the kill is the random thing under test.
            std::thread::sleep(Duration::from_millis(random.random_range(0..400)));
            running.kill()?;
            // Whatever it left is opened or made anew.
            if random.random_bool(0.5) {
                return Ok(());
            }
        }
        self.server.ok(&words)?;
        self.count(Job::Rebuild, 1);
        Ok(())
    }
}
