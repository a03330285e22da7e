//! Thin devices that are open, as the kernel's `thin` target opens them.

use std::collections::HashMap;
use std::sync::Arc;

use crate::block_device::BlockDevice;
use crate::format::DeviceId;

use super::io::Target;
use super::{Pool, PoolError, PoolMode, Result};

/// How often devices are open.
pub(super) type OpenCounts = HashMap<DeviceId, usize>;

/// A thin device that is open: it has a size, perhaps an external origin, and cannot be deleted.
///
/// Neither is in the pool's metadata. Where nothing is mapped, the external origin is read, and zeroes beyond its end; it is
/// never written. Whoever opens a snapshot of such a device must give it the same origin.
pub struct Thin<'a> {
    pool: &'a Pool,
    id: DeviceId,
    size_bytes: u64,
    origin: Option<Arc<dyn BlockDevice>>,
}

impl Pool {
    /// Opens a device of `size_bytes` bytes. A size below what is mapped hides the rest. It may be open several times.
    ///
    /// # Errors
    /// [`PoolError::NoSuchDevice`], [`PoolError::Failed`], damaged metadata.
    pub fn open_thin(
        &self,
        id: DeviceId,
        size_bytes: u64,
        origin: Option<Arc<dyn BlockDevice>>,
    ) -> Result<Thin<'_>> {
        // The count first: a deletion that looks at it afterwards is refused, one that looked before has deleted.
        *self.open.lock().entry(id).or_default() += 1;
        let thin = Thin { pool: self, id, size_bytes, origin };
        self.device(id)?.ok_or(PoolError::NoSuchDevice(id))?;
        Ok(thin)
    }

    /// Refuses a device that is open.
    pub(super) fn check_closed(&self, id: DeviceId) -> Result<()> {
        if self.open.lock().contains_key(&id) { Err(PoolError::DeviceOpen(id)) } else { Ok(()) }
    }
}

impl Thin<'_> {
    /// The device's id.
    #[must_use]
    pub fn id(&self) -> DeviceId {
        self.id
    }

    /// The size with which it was opened, in bytes.
    #[must_use]
    pub fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    fn target(&self, offset: u64, length: u64) -> Result<Target<'_>> {
        if offset.checked_add(length).is_none_or(|end| end > self.size_bytes) {
            return Err(PoolError::OutOfRange { offset, length });
        }
        Ok(Target { id: self.id, origin: self.origin.as_deref() })
    }

    /// Fills `buf` from `offset`.
    ///
    /// # Errors
    /// [`PoolError::OutOfRange`] beyond the size; as [`Pool::read`]; a failed read of the external origin.
    pub fn read(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        let target = self.target(offset, buf.len() as u64)?;
        self.pool.read_target(target, offset, buf)
    }

    /// Writes `buf` at `offset`. What a new block has beside that comes from the external origin.
    ///
    /// # Errors
    /// [`PoolError::OutOfRange`] beyond the size; as [`Pool::write`]; a failed read of the external origin.
    pub fn write(&self, offset: u64, buf: &[u8]) -> Result<()> {
        let target = self.target(offset, buf.len() as u64)?;
        self.pool.write_target(target, offset, buf)
    }

    /// Unmaps whole blocks. Over an external origin they then read as that.
    ///
    /// # Errors
    /// [`PoolError::OutOfRange`] beyond the size; as [`Pool::discard`].
    pub fn discard(&self, offset: u64, length: u64) -> Result<()> {
        self.target(offset, length)?;
        self.pool.discard(self.id, offset, length)
    }

    /// Makes everything durable that was written to the pool.
    ///
    /// # Errors
    /// As [`Pool::commit`].
    pub fn flush(&self) -> Result<()> {
        self.pool.commit()
    }

    /// What the kernel prints after `thin`.
    ///
    /// # Errors
    /// Damaged metadata.
    pub fn status(&self) -> Result<String> {
        if self.pool.status().mode == PoolMode::Fail {
            return Ok("Fail".to_owned());
        }
        self.pool.device_status(self.id)
    }
}

impl Drop for Thin<'_> {
    fn drop(&mut self) {
        let mut open = self.pool.open.lock();
        if let Some(count) = open.get_mut(&self.id) {
            *count -= 1;
            if *count == 0 {
                open.remove(&self.id);
            }
        }
    }
}
