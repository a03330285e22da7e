//! External origins: files and block devices that volumes were created over.
//!
//! An origin is opened for each access, reading only: nothing is held open, and what stands at its path now is what is
//! read. A path that leads nowhere any more concerns the volumes over it and nothing else in the pool.

use std::io;
use std::path::Path;
use std::sync::Arc;

use super::EmbeddedError;
use crate::block_device::{Access, BlockDevice, FileDevice};
use crate::registry::ExternalOrigin;

/// The origin of a volume that is being created. It must not be one of `devices`, the pool's own.
pub(super) fn record(volume: &str, path: &Path, devices: &[&Path]) -> Result<ExternalOrigin, EmbeddedError> {
    let refused = |reason| EmbeddedError::OriginPath { path: path.to_owned(), reason };
    if !path.is_absolute() {
        return Err(refused("the path must be absolute"));
    }
    let device = open_file(volume, path)?;
    let resolved = path.canonicalize().ok();
    if devices.iter().any(|device| device.canonicalize().ok() == resolved) {
        return Err(refused("it is a device of this pool"));
    }
    Ok(ExternalOrigin { path: path.to_owned(), size_bytes: device.size_bytes() })
}

/// Opens what was recorded.
pub(super) fn open(volume: &str, origin: &ExternalOrigin) -> Result<Arc<dyn BlockDevice>, EmbeddedError> {
    let device = open_file(volume, &origin.path)?;
    let found = device.size_bytes();
    if found < origin.size_bytes {
        return Err(EmbeddedError::OriginShorter {
            volume: volume.to_owned(),
            path: origin.path.clone(),
            recorded: origin.size_bytes,
            found,
        });
    }
    Ok(Arc::new(Recorded { device, size_bytes: origin.size_bytes }))
}

fn open_file(volume: &str, path: &Path) -> Result<FileDevice, EmbeddedError> {
    FileDevice::open(path, Access::ReadOnly).map_err(|source| match source.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => {
            EmbeddedError::OriginMissing { volume: volume.to_owned(), path: path.to_owned() }
        }
        io::ErrorKind::InvalidInput => EmbeddedError::OriginPath {
            path: path.to_owned(),
            reason: "it is neither a regular file nor a block device",
        },
        _ => EmbeddedError::Origin { volume: volume.to_owned(), path: path.to_owned(), source },
    })
}

/// An origin as long as it was recorded: what has been appended to it since is not part of the volume.
struct Recorded {
    device: FileDevice,
    size_bytes: u64,
}

impl BlockDevice for Recorded {
    fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        self.device.read_at(offset, buf)
    }

    fn write_at(&self, _offset: u64, _buf: &[u8]) -> io::Result<()> {
        Err(io::ErrorKind::ReadOnlyFilesystem.into())
    }

    fn flush(&self) -> io::Result<()> {
        Ok(())
    }

    fn discard(&self, _offset: u64, _len: u64) -> io::Result<()> {
        Err(io::ErrorKind::ReadOnlyFilesystem.into())
    }

    fn can_discard(&self) -> bool {
        false
    }

    fn resize(&self, _size: u64) -> io::Result<()> {
        Err(io::ErrorKind::ReadOnlyFilesystem.into())
    }
}
