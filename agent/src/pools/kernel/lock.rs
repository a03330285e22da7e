//! One process at a time works on a pool: a lock file of the host, named after the number of the metadata device, which no
//! two pools share and which has one number only.

use std::{
    fs::{DirBuilder, File, OpenOptions, TryLockError},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::Path,
};

use devicemapper::Device;
use thinbak_proto::{Failed, FailureKind};

/// Where the locks are, whatever the state directory: two of them may know one pool.
const FOLDER: &str = "/run/thinbak";

/// Held until it is dropped, or the process has ended.
#[derive(Debug)]
pub(super) struct HostLock {
    file: File,
}

impl HostLock {
    pub(super) fn take(metadata: Device, pool: &str) -> Result<Self, Failed> {
        Self::take_in(Path::new(FOLDER), metadata, pool)
    }

    fn take_in(folder: &Path, metadata: Device, pool: &str) -> Result<Self, Failed> {
        let path = folder.join(format!("pool-{}-{}.lock", metadata.major, metadata.minor));
        let failed = |error: std::io::Error| {
            Failed::new(FailureKind::Failed, format!("lock pool {pool} by {}: {error}", path.display()))
        };
        DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(failed)?;
        let mut options = OpenOptions::new();
        let file =
            options.write(true).create(true).truncate(false).mode(0o600).open(&path).map_err(failed)?;
        match file.try_lock() {
            Ok(()) => Ok(Self { file }),
            Err(TryLockError::WouldBlock) => {
                let message = format!("pool {pool} is in use by another process of thinbak");
                Err(Failed::new(FailureKind::Busy, message))
            }
            Err(TryLockError::Error(error)) => Err(failed(error)),
        }
    }
}

impl Drop for HostLock {
    /// A process that is being spawned by another thread has a copy of the descriptor for a moment, and closing this one
    /// would leave the lock to that copy.
    fn drop(&mut self) {
        if let Err(error) = self.file.unlock() {
            tracing::warn!(%error, "a lock could not be given up");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pool_is_locked_once() {
        let dir = tempfile::tempdir().unwrap();
        let number = Device { major: 253, minor: 0 };
        let first = HostLock::take_in(dir.path(), number, "p").unwrap();
        assert_eq!(HostLock::take_in(dir.path(), number, "p").unwrap_err().exit_code(), 11);
        HostLock::take_in(dir.path(), Device { minor: 1, ..number }, "q").unwrap();
        drop(first);
        HostLock::take_in(dir.path(), number, "p").unwrap();
    }
}
