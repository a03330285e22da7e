//! A repository that nobody has open.

use std::{
    fs::{File, TryLockError},
    path::{Path, PathBuf},
};

use uuid::Uuid;

use super::{LOCK_NAME, RepositoryError, config::RepositoryFile};

/// A repository's directory with its lock held: no other process has it open.
pub(crate) struct Offline {
    dir: PathBuf,
    pub(super) file: RepositoryFile,
    pub(super) lock: File,
}

impl Offline {
    /// Takes the lock.
    pub(crate) fn lock(dir: &Path) -> Result<Self, RepositoryError> {
        let file = RepositoryFile::read(dir)?;
        let path = dir.join(LOCK_NAME);
        let lock = File::options().read(true).write(true).create(true).truncate(false).open(&path);
        let lock = lock.map_err(RepositoryError::io("open", &path))?;
        lock.try_lock().map_err(|error| match error {
            TryLockError::WouldBlock => RepositoryError::Busy(dir.into()),
            TryLockError::Error(source) => RepositoryError::Io { attempt: "lock", path, source },
        })?;
        Ok(Self { dir: dir.into(), file, lock })
    }

    /// The directory.
    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    /// The repository's identity.
    pub(crate) fn uuid(&self) -> Uuid {
        self.file.uuid
    }

    /// Bytes of a chunk.
    pub(crate) fn chunk_bytes(&self) -> u32 {
        self.file.chunk_bytes
    }
}
