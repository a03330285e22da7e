//! Nobody else has the pool open.
//!
//! The lock file says it for the directory, a lock on each device for the devices, which two directories may name. A
//! block device is claimed from the kernel too, so that it is not mounted or given to device-mapper meanwhile.

use std::fs::{File, OpenOptions, TryLockError};
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::Path;

use rustix::fs::OFlags;

use super::EmbeddedError;

/// The lock file of a directory.
pub(super) const LOCK: &str = "lock";

/// Held until it is dropped.
#[derive(Debug)]
pub(super) struct Lock {
    file: File,
    /// Device and inode, or the number of a block device.
    identity: (u64, u64),
}

impl Lock {
    /// Locks a file or block device that exists.
    pub(super) fn take(path: &Path) -> Result<Self, EmbeddedError> {
        let mut options = OpenOptions::new();
        options.read(true).write(true);
        let metadata = std::fs::metadata(path).map_err(|source| match source.kind() {
            std::io::ErrorKind::NotFound => EmbeddedError::Missing { path: path.to_owned() },
            _ => EmbeddedError::Io { attempt: "look at", path: path.to_owned(), source },
        })?;
        let is_block_device = metadata.file_type().is_block_device();
        if is_block_device {
            options.custom_flags(OFlags::EXCL.bits().cast_signed());
        }
        let file = options.open(path).map_err(|source| match source.kind() {
            std::io::ErrorKind::ResourceBusy => EmbeddedError::Busy { path: path.to_owned() },
            _ => EmbeddedError::Io { attempt: "open", path: path.to_owned(), source },
        })?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(EmbeddedError::Busy { path: path.to_owned() }),
            Err(TryLockError::Error(source)) => {
                return Err(EmbeddedError::Io { attempt: "lock", path: path.to_owned(), source });
            }
        }
        let identity = if is_block_device { (0, metadata.rdev()) } else { (metadata.dev(), metadata.ino()) };
        Ok(Self { file, identity })
    }

    /// Locks both devices of a pool.
    pub(super) fn take_devices(metadata: &Path, data: &Path) -> Result<[Self; 2], EmbeddedError> {
        let first = Self::take(metadata)?;
        let second = Self::take(data).map_err(|error| match error {
            EmbeddedError::Busy { path } if same(metadata, data) => EmbeddedError::SameDevice { path },
            other => other,
        })?;
        if first.identity == second.identity {
            return Err(EmbeddedError::SameDevice { path: data.to_owned() });
        }
        Ok([first, second])
    }
}

impl Drop for Lock {
    /// A process that is being spawned by another thread has a copy of the descriptor for a moment, and closing this one would
    /// leave the lock to that copy.
    fn drop(&mut self) {
        if let Err(error) = self.file.unlock() {
            tracing::warn!(%error, "a lock could not be given up");
        }
    }
}

fn same(one: &Path, other: &Path) -> bool {
    match (one.canonicalize(), other.canonicalize()) {
        (Ok(one), Ok(other)) => one == other,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_lock_is_refused_until_the_first_is_gone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(LOCK);
        assert!(matches!(Lock::take(&path), Err(EmbeddedError::Missing { .. })));
        File::create(&path).unwrap();
        let first = Lock::take(&path).unwrap();
        assert!(matches!(Lock::take(&path), Err(EmbeddedError::Busy { .. })));
        drop(first);
        Lock::take(&path).unwrap();
    }

    /// Seen as a pool that was `Busy` right after it was closed, while another thread started a process.
    #[test]
    fn a_lock_that_is_dropped_is_gone_whoever_has_a_copy_of_its_descriptor() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let lock = Lock::take(file.path()).unwrap();
        let inherited = lock.file.try_clone().unwrap();
        drop(lock);
        Lock::take(file.path()).unwrap();
        drop(inherited);
    }

    #[test]
    fn one_file_under_two_names_is_not_two_devices() {
        let dir = tempfile::tempdir().unwrap();
        let (one, two) = (dir.path().join("one"), dir.path().join("two"));
        File::create(&one).unwrap();
        std::os::unix::fs::symlink(&one, &two).unwrap();
        assert!(matches!(Lock::take_devices(&one, &two), Err(EmbeddedError::SameDevice { .. })));
    }
}
