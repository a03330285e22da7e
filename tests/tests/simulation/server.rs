//! The server's process and its disk: started, killed, and what a power failure leaves of it.

use std::{
    collections::HashSet,
    fs, io,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use anyhow::{Context as _, Result, ensure};
use rand::{Rng as _, SeedableRng as _, rngs::StdRng};
use tempfile::TempDir;
use thinbak_proto::FailureKind;
use thinbak_server::{
    Clock, Damage, Environment, InitOptions, Random, Repository, RepositoryError, rebuild_catalogue_in,
    store::{Problem, StoreError},
    testing::MemoryMedium,
};
use tokio::sync::watch;

use crate::{network::Network, volume::CHUNK};

/// Unix time at which a world begins, in milliseconds.
const BEGINNING: u64 = 1_700_000_000_000;
const CATALOGUE: &str = "catalogue.sqlite";

/// A machine with a repository.
pub(crate) struct Server {
    dir: TempDir,
    medium: Arc<MemoryMedium>,
    pub(crate) clock: Arc<AtomicU64>,
    draws: Arc<AtomicU64>,
    process: Option<Process>,
}

struct Process {
    repository: Arc<Repository>,
    down: watch::Sender<bool>,
}

/// How a process ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    /// Everything is sealed and closed.
    Closed,
    /// The process is no more, the disk has all that was written.
    Killed,
    /// The disk has what was synced, and of the rest any part; the index may be as it was, or gone.
    PowerLost { index_lost: bool },
}

impl Server {
    pub(crate) async fn new(seed: u64) -> Result<Self> {
        let dir = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir())?;
        Repository::init(&repository(&dir), InitOptions { chunk_bytes: CHUNK as u32 }).await?;
        let clock = Arc::new(AtomicU64::new(BEGINNING));
        Ok(Self { dir, medium: Arc::default(), clock, draws: Arc::new(AtomicU64::new(seed)), process: None })
    }

    /// Starts the server and lets clients reach it.
    pub(crate) async fn start(&mut self, network: &Network) -> Result<()> {
        let environment = self.environment();
        let repository = loop {
            match Repository::open_in(&repository(&self.dir), environment.clone()).await {
                Ok(repository) => break repository,
                // A thread of the process before has the index for a moment more.
                Err(RepositoryError::Store(StoreError::IndexLocked { .. })) => {
                    tokio::task::yield_now().await;
                }
                Err(error) => return Err(error).context("the repository does not open"),
            }
        };
        let down = watch::Sender::new(false);
        network.connect(thinbak_server::routes(Arc::clone(&repository)), down.subscribe());
        self.process = Some(Process { repository, down });
        Ok(())
    }

    /// Makes the catalogue of the server, which is stopped, anew from the packs.
    pub(crate) async fn rebuild_catalogue(&self) -> Result<()> {
        loop {
            match rebuild_catalogue_in(&repository(&self.dir), &self.environment()).await {
                Ok(rebuilt) => {
                    // A header that was torn when power failed costs nothing; and of a commit that died unheard a
                    // collection may have freed the map before the manifest. What agents heard of is checked elsewhere.
                    let harmless = |damage: &Damage| {
                        matches!(
                            damage,
                            Damage::Store(Problem::PackHeader { .. } | Problem::Skipped { .. })
                                | Damage::RootMissing { .. }
                                | Damage::Unborn { .. }
                        )
                    };
                    let damage: Vec<_> = rebuilt.damage.iter().filter(|damage| !harmless(damage)).collect();
                    ensure!(damage.is_empty(), "the rebuilt catalogue lacks something: {damage:?}");
                    return Ok(());
                }
                Err(failed) if failed.kind == FailureKind::Busy => tokio::task::yield_now().await,
                Err(failed) => return Err(failed).context("the catalogue cannot be rebuilt"),
            }
        }
    }

    fn environment(&self) -> Environment {
        let (clock, draws) = (Arc::clone(&self.clock), Arc::clone(&self.draws));
        let random = move || StdRng::seed_from_u64(draws.fetch_add(1, Ordering::Relaxed)).random();
        let clock = Clock::new(move || clock.fetch_add(1, Ordering::Relaxed));
        Environment::new(clock, Random::new(random)).with_packs_in(Arc::clone(&self.medium))
    }

    /// Where the catalogue is kept as it was when power failed.
    fn then(&self) -> PathBuf {
        self.dir.path().join("catalogue-then")
    }

    /// The generations, by volume and number, of which there is a manifest in the packs.
    pub(crate) fn manifests(&self) -> Result<HashSet<(String, u64)>> {
        let process = self.process.as_ref().context("no server runs")?;
        Ok(process.repository.manifests()?.into_iter().collect())
    }

    /// How many operations the disk has done.
    pub(crate) fn operations(&self) -> u64 {
        self.medium.operations()
    }

    /// Lets one operation of the disk fail.
    pub(crate) fn fail(&self, operation: u64) {
        self.medium.fail(operation..operation + 1);
    }

    /// Lets every operation from this one on fail.
    pub(crate) fn fail_from(&self, operation: u64) {
        self.medium.fail(operation..u64::MAX);
    }

    /// Lets the disk do what it is asked again.
    pub(crate) fn recover(&self) {
        self.medium.fail(0..0);
    }

    /// Power fails just before this operation: the disk does nothing any more, nobody hears from the server, and the
    /// catalogue is what it was at that moment.
    pub(crate) fn lose_power_before(&self, operation: u64) -> Result<()> {
        self.medium.fail(operation..u64::MAX);
        let (from, to) = (repository(&self.dir), self.then());
        fs::create_dir(&to)?;
        let down = self.process.as_ref().context("no server runs")?.down.clone();
        self.medium.before(operation, move || {
            down.send_replace(true);
            for name in catalogue_files() {
                copy(&from, &to, &name).expect("copying the catalogue");
            }
        });
        Ok(())
    }

    /// Ends the process. Clients that are still there lose their connections.
    pub(crate) async fn end(&mut self, network: &Network, end: End, random: &mut StdRng) -> Result<()> {
        let Some(Process { repository: process, down }) = self.process.take() else { return Ok(()) };
        network.disconnect();
        down.send_replace(true);
        self.medium.before(u64::MAX, || {});
        if end == End::Closed {
            process.close().await;
        }
        process.kill().await;
        if self.then().join(CATALOGUE).exists() {
            for name in catalogue_files() {
                remove(&repository(&self.dir).join(&name))?;
                copy(&self.then(), &repository(&self.dir), &name)?;
            }
        }
        match fs::remove_dir_all(self.then()) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error.into()),
            _ => {}
        }
        if let End::PowerLost { index_lost } = end {
            self.medium = self.medium.crash(random);
            if index_lost {
                fs::remove_dir_all(repository(&self.dir).join("index"))?;
            }
        }
        self.medium.fail(0..0);
        Ok(())
    }
}

fn repository(dir: &TempDir) -> PathBuf {
    dir.path().join("repository")
}

/// Not the file that maps the log: it is made anew.
fn catalogue_files() -> [String; 2] {
    [CATALOGUE.to_owned(), format!("{CATALOGUE}-wal")]
}

fn copy(from: &Path, to: &Path, name: &str) -> io::Result<()> {
    match fs::copy(from.join(name), to.join(name)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        copied => copied.map(drop),
    }
}

fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => removed,
    }
}
