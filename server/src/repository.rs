//! A repository: a directory that holds chunks, map nodes and manifests in packs, and a catalogue.
//!
//! | name | what |
//! |---|---|
//! | `thinbak-repository` | JSON: what this is; written last by `init`, never changed |
//! | `lock` | held with an exclusive `flock` by the one process that has the repository open |
//! | `catalogue.sqlite` | what is visible (and its `-wal`, `-shm`) |
//! | `packs/`, `index/` | the store |

mod config;
mod pins;
mod sessions;
#[cfg(test)]
mod tests;
mod volumes;

use std::{
    fs::{self, File, TryLockError},
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use thinbak_proto::{Failed, FailureKind};
use tokio::sync::{Semaphore, watch};
use uuid::Uuid;

pub use config::InitOptions;
use config::{FILE_NAME, RepositoryFile};
pub(crate) use pins::{Pin, Pins};
pub(crate) use sessions::SessionGuard;
use sessions::Sessions;
pub(crate) use volumes::{check_volume_name, selector_of};

use crate::{
    catalogue::{Catalogue, CatalogueError},
    content::Unpackers,
    environment::Environment,
    store::{Store, StoreError},
};

const LOCK_NAME: &str = "lock";
const CATALOGUE_NAME: &str = "catalogue.sqlite";
/// Groups of chunks that are read for clients at one time, each of at most
/// [`READ_GROUP_BYTES`](crate::content::READ_GROUP_BYTES) and one chunk.
const READERS: usize = 24;

/// Why a repository cannot be made or opened.
#[derive(Debug, thiserror::Error)]
pub enum RepositoryError {
    /// There is no repository in the directory.
    #[error("{} is no repository: it has no file {FILE_NAME}", .0.display())]
    NotFound(PathBuf),
    /// `init` makes a repository in a new or empty directory only.
    #[error("cannot make a repository in {}: {}", dir.display(), if *repository { "one is there already" } else { "the directory is not empty" })]
    NotEmpty {
        /// The directory.
        dir: PathBuf,
        /// It holds a repository.
        repository: bool,
    },
    /// A chunk size that the format does not allow.
    #[error("chunks cannot have {0} bytes: a power of two from 4096 to 1048576 is needed")]
    ChunkBytes(u32),
    /// Made by a newer program.
    #[error("repository {} has format version {found}; this program knows versions up to {known}", dir.display())]
    NewerFormat {
        /// The directory.
        dir: PathBuf,
        /// Its version.
        found: u32,
        /// The newest that is known here.
        known: u32,
    },
    /// Another process has it open.
    #[error("repository {} is open in another process", .0.display())]
    Busy(PathBuf),
    /// The file that says what the repository is cannot be understood.
    #[error("{} is damaged: {reason}", path.display())]
    Config {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The catalogue.
    #[error(transparent)]
    Catalogue(#[from] CatalogueError),
    /// The store of chunks.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A file operation failed.
    #[error("cannot {attempt} {}: {source}", path.display())]
    Io {
        /// What was attempted.
        attempt: &'static str,
        /// On what.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
}

impl RepositoryError {
    fn io(attempt: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io { attempt, path: path.into(), source }
    }
}

impl From<RepositoryError> for Failed {
    fn from(error: RepositoryError) -> Self {
        let (kind, hint) = match &error {
            RepositoryError::NotFound(_) => {
                (FailureKind::NotFound, Some("`thinbak-server init --repo DIR` makes a repository"))
            }
            RepositoryError::NotEmpty { .. } => {
                (FailureKind::Refused, Some("name a new or an empty directory"))
            }
            RepositoryError::ChunkBytes(_) => (FailureKind::Usage, None),
            RepositoryError::NewerFormat { .. } => {
                (FailureKind::Failed, Some("use the program that made it, or a newer one"))
            }
            RepositoryError::Busy(_) => {
                (FailureKind::Busy, Some("address the server that has it open, or stop that server first"))
            }
            RepositoryError::Config { .. } => {
                (FailureKind::Damaged, Some("restore the file from a copy; the packs are not touched"))
            }
            RepositoryError::Catalogue(CatalogueError::Damaged { .. }) => (
                FailureKind::Damaged,
                Some(
                    "restore catalogue.sqlite from a copy; all content and all manifests are still in packs/",
                ),
            ),
            RepositoryError::Catalogue(CatalogueError::Newer { .. }) => {
                (FailureKind::Failed, Some("use the program that wrote it, or a newer one"))
            }
            RepositoryError::Store(error) if error.is_damage() => (FailureKind::Damaged, None),
            RepositoryError::Store(StoreError::RecordTooLarge { .. }) => (FailureKind::Usage, None),
            RepositoryError::Store(StoreError::NoSpace { .. }) => {
                (FailureKind::Failed, Some("make room on the repository's file system"))
            }
            RepositoryError::Catalogue(_) | RepositoryError::Store(_) | RepositoryError::Io { .. } => {
                (FailureKind::Failed, None)
            }
        };
        let failed = Failed::new(kind, error.to_string());
        match hint {
            Some(hint) => failed.with_hint(hint),
            None => failed,
        }
    }
}

impl From<CatalogueError> for Failed {
    fn from(error: CatalogueError) -> Self {
        match error {
            CatalogueError::NameTaken { .. } => Failed::new(FailureKind::Refused, error.to_string())
                .with_hint("`--adopt` gives the name to this volume; what was backed up so far stays under NAME.UUID"),
            CatalogueError::TooLarge(_) => Failed::new(FailureKind::Usage, error.to_string()),
            error => RepositoryError::Catalogue(error).into(),
        }
    }
}

impl From<StoreError> for Failed {
    fn from(error: StoreError) -> Self {
        RepositoryError::Store(error).into()
    }
}

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
    /// Limits the threads that hash and decompress.
    pub(crate) processors: Arc<Semaphore>,
    /// What decompresses and identifies chunks.
    pub(crate) unpackers: Unpackers,
    /// Limits the memory taken by chunks on their way out.
    pub(crate) readers: Arc<Semaphore>,
    /// Held while a generation is deleted or its protection changed, so that the record and the catalogue
    /// say the same.
    pub(crate) marking: tokio::sync::Mutex<()>,
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
        fs::create_dir_all(dir).map_err(RepositoryError::io("create the directory", dir))?;
        let mut entries = fs::read_dir(dir).map_err(RepositoryError::io("list", dir))?;
        if entries.next().is_some() {
            let repository = dir.join(FILE_NAME).exists();
            return Err(RepositoryError::NotEmpty { dir: dir.into(), repository });
        }
        let path = dir.join(LOCK_NAME);
        // Of two that find the directory empty one makes the lock file.
        let _lock = File::create_new(&path).map_err(RepositoryError::io("create", &path))?;
        Store::init(dir, file.uuid)?.close().await;
        Catalogue::create(&dir.join(CATALOGUE_NAME)).await?;
        file.write(dir)?;
        Ok(file.uuid)
    }

    /// Opens the repository in `dir`.
    pub async fn open(dir: &Path) -> Result<Arc<Self>, RepositoryError> {
        Self::open_in(dir, Environment::system()).await
    }

    /// Opens the repository in `dir`, which then lives by the clock, the randomness and the packs of `environment`.
    pub async fn open_in(dir: &Path, environment: Environment) -> Result<Arc<Self>, RepositoryError> {
        let file = RepositoryFile::read(dir)?;
        let path = dir.join(LOCK_NAME);
        let lock = File::options().read(true).write(true).create(true).truncate(false).open(&path);
        let lock = lock.map_err(RepositoryError::io("open", &path))?;
        lock.try_lock().map_err(|error| match error {
            TryLockError::WouldBlock => RepositoryError::Busy(dir.into()),
            TryLockError::Error(source) => RepositoryError::Io { attempt: "lock", path, source },
        })?;
        let catalogue = Catalogue::open(&dir.join(CATALOGUE_NAME)).await?;
        let (store_dir, uuid, outside) = (dir.to_path_buf(), file.uuid, environment.clone());
        let store = tokio::task::spawn_blocking(move || Store::open_in(&store_dir, uuid, &outside));
        let store = store
            .await
            .map_err(io::Error::other)
            .map_err(RepositoryError::io("open the store in", dir))??;
        for problem in store.problems() {
            tracing::warn!(repository = %dir.display(), %problem, "opened with a problem");
        }
        let chunk_bytes = file.chunk_bytes;
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        Ok(Arc::new(Self {
            dir: dir.into(),
            environment,
            file,
            store,
            catalogue,
            sessions: Arc::default(),
            pins: Arc::default(),
            processors: Arc::new(Semaphore::new(processors)),
            unpackers: Unpackers::new(chunk_bytes),
            readers: Arc::new(Semaphore::new(READERS)),
            marking: tokio::sync::Mutex::default(),
            stopping: watch::Sender::new(false),
            _lock: lock,
        }))
    }

    /// Ends running sessions, seals the pack being written and closes the catalogue. The directory can be
    /// opened again when the last handle, and every service made of it, is dropped.
    pub async fn close(&self) {
        self.stop();
        self.store.clone().close().await;
        self.catalogue.close().await;
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
