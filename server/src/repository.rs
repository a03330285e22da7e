//! A repository: a directory that holds chunks, map nodes and manifests in packs, and a catalogue.
//!
//! | name | what |
//! |---|---|
//! | `thinbak-repository` | JSON: what this is; written last by `init`, never changed |
//! | `lock` | held with an exclusive `flock` by the one process that has the repository open |
//! | `catalogue.sqlite` | what is visible (and its `-wal`, `-shm`) |
//! | `catalogue-backups/` | copies of it |
//! | `packs/`, `index/` | the store |
//! | `tls/` | the server's certificate and its key, unless others are named |

mod catalogue_backups;
mod config;
mod damage;
mod error;
mod offline;
mod pins;
mod sessions;
mod sound;
#[cfg(test)]
mod tests;
mod volumes;

use std::{
    fs::{self, File},
    io,
    os::unix::fs::DirBuilderExt as _,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use tokio::sync::{Semaphore, watch};
use uuid::Uuid;

pub use catalogue_backups::CatalogueBackup;
pub(crate) use catalogue_backups::file_time;
pub use config::InitOptions;
use config::{FILE_NAME, RepositoryFile};
pub use error::RepositoryError;
pub(crate) use offline::Offline;
pub(crate) use pins::{Pin, Pins};
pub(crate) use sessions::SessionGuard;
use sessions::Sessions;
use sound::SoundTrees;
pub(crate) use volumes::{check_volume_name, selector_of, unknown_volume};

use crate::{
    access::Tokens,
    catalogue::{CATALOGUE_NAME, Catalogue, finish_swap},
    content::Unpackers,
    environment::{ChangeGate, Environment},
    metrics::Metrics,
    retention::RetentionRule,
    store::{Quarantined, Store},
};

const LOCK_NAME: &str = "lock";
/// Groups of chunks that are read for clients at one time, each of at most
/// [`READ_GROUP_BYTES`](crate::content::READ_GROUP_BYTES) and one chunk.
const READERS: usize = 24;

/// An open repository. One process has it open at a time, and in it any number of clients.
pub struct Repository {
    dir: PathBuf,
    environment: Environment,
    file: RepositoryFile,
    pub(crate) store: Store,
    pub(crate) catalogue: Catalogue,
    pub(crate) sessions: Arc<Sessions>,
    /// Trees that must not be collected.
    pub(crate) pins: Arc<Pins>,
    /// Trees that need not be walked to know that nothing of them is damaged.
    pub(crate) sound: SoundTrees,
    /// Limits the threads that hash and decompress.
    pub(crate) processors: Arc<Semaphore>,
    /// What decompresses and identifies chunks.
    pub(crate) unpackers: Unpackers,
    /// Limits the memory taken by chunks on their way out.
    pub(crate) readers: Arc<Semaphore>,
    /// Held while a generation is deleted or its protection changed, so that the record and the catalogue
    /// say the same.
    pub(crate) marking: tokio::sync::Mutex<()>,
    /// Held by the one collection that runs.
    pub(crate) collecting: tokio::sync::Mutex<()>,
    /// Held while the catalogue is copied.
    copying: tokio::sync::Mutex<()>,
    /// What was done since the repository was opened.
    pub(crate) metrics: Metrics,
    /// The policies of the server's configuration; the first that matches a volume counts.
    retention: parking_lot::RwLock<Arc<[RetentionRule]>>,
    /// Held while damage is written into the catalogue, so that it comes there in order.
    quarantine_writer: tokio::sync::Mutex<()>,
    /// Who may do what.
    pub(crate) tokens: Tokens,
    stopping: watch::Sender<bool>,
    /// The last field: given back after the store has let go of its files.
    _lock: File,
}

impl std::fmt::Debug for Repository {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Repository").field("dir", &self.dir).field("file", &self.file).finish_non_exhaustive()
    }
}

impl Repository {
    /// Makes a repository in a new or empty directory and returns its uuid. The file that makes it one is
    /// written last: what a crash leaves behind does not open.
    pub async fn init(dir: &Path, options: InitOptions) -> Result<Uuid, RepositoryError> {
        let file = RepositoryFile::new(options)?;
        // Content is not for everybody on this host.
        let mut private = fs::DirBuilder::new();
        private.recursive(true).mode(0o700);
        private.create(dir).map_err(RepositoryError::io("create the directory", dir))?;
        let mut entries = fs::read_dir(dir).map_err(RepositoryError::io("list", dir))?;
        if entries.next().is_some() {
            let repository = dir.join(FILE_NAME).exists();
            return Err(RepositoryError::NotEmpty { dir: dir.into(), repository });
        }
        let path = dir.join(LOCK_NAME);
        // Of two that find the directory empty one makes the lock file.
        let _lock = File::create_new(&path).map_err(RepositoryError::io("create", &path))?;
        Store::init(dir, file.uuid)?.close().await;
        Catalogue::create(&dir.join(CATALOGUE_NAME), &ChangeGate::default()).await?;
        file.write(dir)?;
        Ok(file.uuid)
    }

    /// Opens the repository in `dir`.
    pub async fn open(dir: &Path) -> Result<Arc<Self>, RepositoryError> {
        Self::open_in(dir, Environment::system()).await
    }

    /// Opens the repository in `dir`, which then lives by the clock, the randomness and the packs of `environment`.
    pub async fn open_in(dir: &Path, environment: Environment) -> Result<Arc<Self>, RepositoryError> {
        let Offline { file, lock, .. } = Offline::lock(dir)?;
        let changes = &environment.changes;
        finish_swap(dir, changes).map_err(RepositoryError::io("replace the catalogue in", dir))?;
        let catalogue = Catalogue::open(&dir.join(CATALOGUE_NAME), changes).await;
        let catalogue = catalogue.map_err(RepositoryError::no_catalogue(dir))?;
        catalogue.bind_to(file.uuid).await.map_err(RepositoryError::no_catalogue(dir))?;
        let (store_dir, uuid, outside) = (dir.to_path_buf(), file.uuid, environment.clone());
        let tokens = Tokens::load(&catalogue, dir).await?;
        let known = catalogue.quarantined().await?;
        let places: Vec<Quarantined> = known.iter().map(|entry| entry.place).collect();
        let store = tokio::task::spawn_blocking(move || Store::open_in(&store_dir, uuid, &outside, &places));
        let store = store
            .await
            .map_err(io::Error::other)
            .map_err(RepositoryError::io("open the store in", dir))??;
        for problem in store.problems() {
            tracing::warn!(repository = %dir.display(), %problem, "opened with a problem");
        }
        damage::settle(&store, &known).await?;
        let chunk_bytes = file.chunk_bytes;
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        let repository = Arc::new(Self {
            dir: dir.into(),
            environment,
            file,
            store,
            catalogue,
            sessions: Arc::default(),
            pins: Arc::default(),
            sound: SoundTrees::default(),
            processors: Arc::new(Semaphore::new(processors)),
            unpackers: Unpackers::new(chunk_bytes),
            readers: Arc::new(Semaphore::new(READERS)),
            marking: tokio::sync::Mutex::default(),
            collecting: tokio::sync::Mutex::default(),
            copying: tokio::sync::Mutex::default(),
            metrics: Metrics::default(),
            retention: parking_lot::RwLock::new(Arc::new([])),
            tokens,
            stopping: watch::Sender::new(false),
            quarantine_writer: tokio::sync::Mutex::default(),
            _lock: lock,
        });
        tokio::spawn(damage::keep_while_open(Arc::downgrade(&repository)));
        Ok(repository)
    }

    /// Ends running sessions, seals the pack being written and closes the catalogue. The directory can be
    /// opened again when the last handle, and every service made of it, is dropped.
    pub async fn close(&self) {
        self.stop();
        self.store.clone().close().await;
        if let Err(error) = self.keep_damage().await {
            tracing::error!(%error, "damage could not be noted in the catalogue; it will be found again");
        }
        self.catalogue.close().await;
    }

    /// Sets the policies that are applied when none is named. They are kept in memory only.
    pub fn set_retention(&self, rules: Vec<RetentionRule>) {
        *self.retention.write() = rules.into();
    }

    pub(crate) fn retention(&self) -> Arc<[RetentionRule]> {
        Arc::clone(&self.retention.read())
    }

    /// Sets how long deletions can be undone, now and from now on; kept in the catalogue.
    pub async fn set_grace(&self, grace: Duration) -> Result<(), crate::CatalogueError> {
        self.catalogue.set_grace_ms(u64::try_from(grace.as_millis()).unwrap_or(u64::MAX)).await
    }

    /// Ends as a killed process does: nothing is sealed. Returns when all files are closed, for which every service
    /// made of the repository must be dropped.
    #[cfg(any(test, fuzzing, feature = "testing"))]
    #[doc(hidden)]
    pub async fn kill(self: Arc<Self>) {
        self.catalogue.close().await;
        // What the sessions left to other threads holds a handle for a moment.
        while Arc::strong_count(&self) > 1 {
            tokio::task::yield_now().await;
        }
    }

    /// Volume and number of every generation that has a manifest in the packs, once a manifest.
    #[cfg(any(fuzzing, feature = "testing"))]
    #[doc(hidden)]
    pub fn manifests(&self) -> Result<Vec<(String, u64)>, crate::store::StoreError> {
        let manifests = self.store.records(crate::store::Kind::Manifest)?;
        let subject = |record| crate::manifest::subject_of(&record).map(|(key, _)| key);
        let keys = manifests.map(|record| Ok(subject(record?)));
        let keys = keys.collect::<Result<Vec<_>, crate::store::StoreError>>()?.into_iter().flatten();
        Ok(keys.map(|key| (key.volume.to_string(), key.number)).collect())
    }

    /// Tells running sessions to end; what they had acknowledged stays usable.
    pub(crate) fn stop(&self) {
        self.stopping.send_replace(true);
    }

    /// Turns to `true` when the repository is about to be closed.
    pub(crate) fn stopping(&self) -> watch::Receiver<bool> {
        self.stopping.subscribe()
    }

    /// Unix time in milliseconds, by the clock of the repository's environment.
    pub(crate) fn now_ms(&self) -> u64 {
        self.environment.clock.now_ms()
    }

    /// 64 random bits of the repository's environment.
    pub(crate) fn draw(&self) -> u64 {
        self.environment.random.draw()
    }

    /// The directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The repository's identity.
    pub fn uuid(&self) -> Uuid {
        self.file.uuid
    }

    /// Bytes of a chunk.
    pub fn chunk_bytes(&self) -> u32 {
        self.file.chunk_bytes
    }

    /// Version of the format on disk.
    pub fn format_version(&self) -> u32 {
        self.file.format_version
    }
}
