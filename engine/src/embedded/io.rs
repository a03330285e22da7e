//! Content of volumes, within their bounds.

use super::heads::find_current;
use super::volume::Volume;
use super::{EmbeddedError, EmbeddedPool};
use crate::format::DeviceId;

impl EmbeddedPool {
    /// Fills `buf` from `offset`. What was never written reads as zero.
    ///
    /// # Errors
    /// [`EmbeddedError::OutOfBounds`], [`EmbeddedError::Stale`]; what the pool says.
    pub fn read(&self, volume: &Volume, offset: u64, buf: &mut [u8]) -> Result<(), EmbeddedError> {
        let device = self.within(volume, offset, buf.len() as u64, Purpose::Read)?;
        let attempt = "the volume could not be read";
        self.inner.pool.read(device, offset, buf).map_err(EmbeddedError::pool(attempt))
    }

    /// Writes all of `buf` at `offset`. It is durable after [`flush`](Self::flush).
    ///
    /// # Errors
    /// [`EmbeddedError::OutOfBounds`], [`EmbeddedError::ReadOnly`], [`EmbeddedError::Stale`]; what the pool says.
    pub fn write(&self, volume: &Volume, offset: u64, buf: &[u8]) -> Result<(), EmbeddedError> {
        let device = self.within(volume, offset, buf.len() as u64, Purpose::Write)?;
        let attempt = "the volume could not be written";
        self.inner.pool.write(device, offset, buf).map_err(EmbeddedError::pool(attempt))
    }

    /// Unmaps the whole blocks inside a range: they read as zero and take no space.
    ///
    /// # Errors
    /// [`EmbeddedError::OutOfBounds`], [`EmbeddedError::ReadOnly`], [`EmbeddedError::Stale`]; what the pool says.
    pub fn discard(&self, volume: &Volume, offset: u64, length: u64) -> Result<(), EmbeddedError> {
        let device = self.within(volume, offset, length, Purpose::Write)?;
        let attempt = "the range could not be discarded";
        self.inner.pool.discard(device, offset, length).map_err(EmbeddedError::pool(attempt))
    }

    /// Makes everything durable that was written to any volume of the pool.
    ///
    /// # Errors
    /// What the pool says.
    pub fn flush(&self) -> Result<(), EmbeddedError> {
        self.inner.pool.commit().map_err(EmbeddedError::pool("the pool could not commit"))
    }

    /// The device, when the range lies inside the volume as it is now.
    fn within(
        &self,
        volume: &Volume,
        offset: u64,
        length: u64,
        purpose: Purpose,
    ) -> Result<DeviceId, EmbeddedError> {
        let books = self.inner.books.lock();
        let entry = find_current(books.registry.state(), volume)?;
        if purpose == Purpose::Write && entry.role.is_read_only() {
            return Err(EmbeddedError::ReadOnly { name: volume.name.clone() });
        }
        let size = entry.size_bytes;
        if offset.checked_add(length).is_none_or(|end| end > size) {
            return Err(EmbeddedError::OutOfBounds { name: volume.name.clone(), offset, length, size });
        }
        Ok(entry.device)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Purpose {
    Read,
    Write,
}
