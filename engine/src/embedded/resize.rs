//! Larger devices for a pool.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::{EmbeddedError, EmbeddedPool, volumes};
use crate::block_device::BlockDevice;
use crate::format::BLOCK_BYTES;
use crate::pool::PoolMode;

impl EmbeddedPool {
    /// Makes the pool's data device larger. A block device has its size already: all of it is taken.
    ///
    /// # Errors
    /// [`EmbeddedError::PoolShrink`], [`EmbeddedError::Size`] when it is no multiple of the block size; a device that
    /// is not that large; what the pool says.
    pub fn grow(&self, data_bytes: u64) -> Result<(), EmbeddedError> {
        let _books = self.inner.books.lock();
        let pool = &self.inner.pool;
        let block = pool.block_size().bytes();
        volumes::check_multiple(data_bytes, block)?;
        let present = pool.status().data_total.saturating_mul(block);
        let size = enlarge(pool.data_device(), self.data_path(), present, data_bytes)?;
        pool.grow_data(size / block * block).map_err(EmbeddedError::pool("the pool could not grow"))
    }

    /// Makes the pool's metadata device larger, and takes as much of it into use as the format can. A block device has
    /// its size already: all of it is taken.
    ///
    /// # Errors
    /// [`EmbeddedError::PoolShrink`], [`EmbeddedError::Size`] when it is no multiple of a metadata block; a device that
    /// is not that large; what the pool says, before anything is changed when it is read-only.
    pub fn grow_metadata(&self, metadata_bytes: u64) -> Result<(), EmbeddedError> {
        let _books = self.inner.books.lock();
        let pool = &self.inner.pool;
        volumes::check_multiple(metadata_bytes, BLOCK_BYTES as u64)?;
        let attempt = "the pool's metadata could not grow";
        // A pool that may not write says so before its file is touched.
        pool.grow_metadata().map_err(EmbeddedError::pool(attempt))?;
        let present = pool.metadata_device().size_bytes();
        enlarge(pool.metadata_device(), self.metadata_path(), present, metadata_bytes)?;
        pool.grow_metadata().map_err(EmbeddedError::pool(attempt))
    }

    /// Takes a metadata device that has become larger into use, as the kernel does when it resumes a pool.
    pub(super) fn take_larger_metadata(&self) -> Result<(), EmbeddedError> {
        if self.pool().status().mode >= PoolMode::ReadOnly {
            return Ok(());
        }
        self.pool().grow_metadata().map_err(EmbeddedError::pool("the pool's metadata could not grow"))
    }
}

/// Brings a device of `present` bytes to `wanted`; its size then.
fn enlarge(
    device: &Arc<dyn BlockDevice>,
    path: impl AsRef<Path>,
    present: u64,
    wanted: u64,
) -> Result<u64, EmbeddedError> {
    if wanted < present {
        return Err(EmbeddedError::PoolShrink { present, wanted });
    }
    // A file may be longer than what the pool uses of it: that stays.
    if wanted > device.size_bytes() || is_block_device(path.as_ref()) {
        let path: PathBuf = path.as_ref().to_owned();
        device.resize(wanted).map_err(EmbeddedError::io("resize", path))?;
    }
    Ok(if is_block_device(path.as_ref()) { device.size_bytes() } else { wanted })
}

fn is_block_device(path: &Path) -> bool {
    use std::os::unix::fs::FileTypeExt as _;
    std::fs::metadata(path).is_ok_and(|metadata| metadata.file_type().is_block_device())
}
