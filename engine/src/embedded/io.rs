//! Content of volumes, within their bounds.

use super::heads::find_current;
use super::origin;
use super::volume::Volume;
use super::{EmbeddedError, EmbeddedPool};
use crate::format::DeviceId;
use crate::pool::{PoolError, Thin};
use crate::registry::ExternalOrigin;

impl EmbeddedPool {
    /// Fills `buf` from `offset`. What was never written reads as the external origin, and as zero beyond that or without.
    ///
    /// # Errors
    /// [`EmbeddedError::OutOfBounds`], [`EmbeddedError::Stale`]; [`EmbeddedError::OriginMissing`] and
    /// [`EmbeddedError::OriginShorter`], also where nothing of it is needed; what the pool says.
    pub fn read(&self, volume: &Volume, offset: u64, buf: &mut [u8]) -> Result<(), EmbeddedError> {
        let target = self.within(volume, offset, buf.len() as u64, Purpose::Read)?;
        let done = match &target.origin {
            None => self.inner.pool.read(target.device, offset, buf),
            Some(origin) => self.open_over(volume, &target, origin)?.read(offset, buf),
        };
        done.map_err(origin_failed(volume, &target, "the volume could not be read"))
    }

    /// Writes all of `buf` at `offset`. It is durable after [`flush`](Self::flush).
    ///
    /// # Errors
    /// [`EmbeddedError::OutOfBounds`], [`EmbeddedError::ReadOnly`], [`EmbeddedError::Stale`]; of the external origin as
    /// [`read`](Self::read); what the pool says.
    pub fn write(&self, volume: &Volume, offset: u64, buf: &[u8]) -> Result<(), EmbeddedError> {
        let target = self.within(volume, offset, buf.len() as u64, Purpose::Write)?;
        let done = match &target.origin {
            None => self.inner.pool.write(target.device, offset, buf),
            Some(origin) => self.open_over(volume, &target, origin)?.write(offset, buf),
        };
        done.map_err(origin_failed(volume, &target, "the volume could not be written"))
    }

    /// Unmaps the whole blocks inside a range: they take no space and read as if they had never been written.
    ///
    /// # Errors
    /// [`EmbeddedError::OutOfBounds`], [`EmbeddedError::ReadOnly`], [`EmbeddedError::Stale`]; what the pool says.
    pub fn discard(&self, volume: &Volume, offset: u64, length: u64) -> Result<(), EmbeddedError> {
        let target = self.within(volume, offset, length, Purpose::Write)?;
        let attempt = "the range could not be discarded";
        self.inner.pool.discard(target.device, offset, length).map_err(EmbeddedError::pool(attempt))
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
    ) -> Result<Target, EmbeddedError> {
        let books = self.inner.books.lock();
        let entry = find_current(books.registry.state(), volume)?;
        if purpose == Purpose::Write && entry.role.is_read_only() {
            return Err(EmbeddedError::ReadOnly { name: volume.name.clone() });
        }
        let size = entry.size_bytes;
        if offset.checked_add(length).is_none_or(|end| end > size) {
            return Err(EmbeddedError::OutOfBounds { name: volume.name.clone(), offset, length, size });
        }
        Ok(Target { device: entry.device, size, origin: entry.origin.clone() })
    }

    fn open_over(
        &self,
        volume: &Volume,
        target: &Target,
        origin: &ExternalOrigin,
    ) -> Result<Thin<'_>, EmbeddedError> {
        let origin = origin::open(&volume.name, origin)?;
        let thin = self.inner.pool.open_thin(target.device, target.size, Some(origin));
        thin.map_err(EmbeddedError::pool("the volume could not be opened"))
    }
}

/// A device, and what stands behind it.
struct Target {
    device: DeviceId,
    size: u64,
    origin: Option<ExternalOrigin>,
}

/// For `map_err` on a transfer: a failure of the origin names it.
fn origin_failed(
    volume: &Volume,
    target: &Target,
    attempt: &'static str,
) -> impl FnOnce(PoolError) -> EmbeddedError {
    move |error| match (error, &target.origin) {
        (PoolError::Origin { source, .. }, Some(origin)) => {
            EmbeddedError::Origin { volume: volume.name.clone(), path: origin.path.clone(), source }
        }
        (source, _) => EmbeddedError::Pool { attempt, source },
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Purpose {
    Read,
    Write,
}
