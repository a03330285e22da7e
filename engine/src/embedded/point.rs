//! Describing a snapshot so that it can be recognised, and recognising it.

use uuid::Uuid;

use super::heads::find_current;
use super::volume::Volume;
use super::{EmbeddedError, EmbeddedPool};
use crate::format::{DeviceId, DeviceInfo, MetadataBlock};
use crate::metadata_view::{MetadataView, ViewError};
use crate::registry::{Entry, Point};

/// A point that is not, or no longer, the snapshot in the pool.
#[derive(Debug, thiserror::Error)]
#[error("snapshot {identity} is not as it was recorded: {reason}")]
pub struct BaseNotProven {
    /// The snapshot's identity.
    pub identity: Uuid,
    /// What does not match.
    pub reason: NotProven,
}

/// What of a point does not match the pool.
#[derive(Debug, thiserror::Error)]
pub enum NotProven {
    /// It was recorded in another pool.
    #[error("it belongs to pool {recorded}")]
    OtherPool {
        /// The pool of the record.
        recorded: Uuid,
    },
    /// The registry does not know it.
    #[error("it was removed")]
    Removed,
    /// It can be written.
    #[error("it is not read-only")]
    Writable,
    /// It has another device id.
    #[error("it is device {found}, not {recorded}")]
    Device {
        /// In the record.
        recorded: DeviceId,
        /// In the pool.
        found: DeviceId,
    },
    /// Pool or view do not have its device.
    #[error("the pool's metadata has no device {device}")]
    NoDevice {
        /// The device.
        device: DeviceId,
    },
    /// A number differs.
    #[error("its {what} is {found}, not {recorded}")]
    Number {
        /// Which one.
        what: &'static str,
        /// In the record.
        recorded: u64,
        /// In the pool.
        found: u64,
    },
    /// Its mapping tree has another root: it was written, or replaced.
    #[error(
        "its mapping tree begins at block {found} (checksum {found_checksum:#010x}), not at {recorded} \
         ({recorded_checksum:#010x})"
    )]
    Root {
        /// In the record.
        recorded: MetadataBlock,
        /// In the record.
        recorded_checksum: u32,
        /// In the pool.
        found: MetadataBlock,
        /// In the pool.
        found_checksum: u32,
    },
    /// The metadata cannot be read.
    #[error(transparent)]
    Unreadable(#[from] ViewError),
}

impl Point {
    /// Describes a snapshot, which is `device` in `view`.
    ///
    /// # Errors
    /// The root of its mappings cannot be read.
    pub fn of(
        snapshot: &Volume,
        pool_uuid: Uuid,
        block_bytes: u64,
        device: &DeviceInfo,
        view: &MetadataView,
    ) -> Result<Self, ViewError> {
        Ok(Self {
            identity: snapshot.uuid,
            pool_uuid,
            device_id: snapshot.device,
            transaction_id: device.details.transaction_id,
            created_at_ms: snapshot.created_at_ms,
            size_bytes: snapshot.size_bytes,
            block_bytes,
            mapped_blocks: device.details.mapped_blocks,
            root_block: device.root,
            root_checksum: view.root_checksum(device.root)?,
        })
    }
}

impl EmbeddedPool {
    /// Describes a snapshot as `view` shows it, so that [`prove`](Self::prove) recognises it later.
    ///
    /// # Errors
    /// [`EmbeddedError::Stale`] when registry or view do not know it; unreadable metadata.
    pub fn point(&self, snapshot: &Volume, view: &MetadataView) -> Result<Point, EmbeddedError> {
        let entry = find_current(self.inner.books.lock().registry.state(), snapshot)?.clone();
        let stale = || EmbeddedError::Stale { name: snapshot.name.clone(), device: entry.device };
        let device = view.device(entry.device)?.ok_or_else(stale)?;
        let current = Volume {
            uuid: entry.uuid,
            size_bytes: entry.size_bytes,
            created_at_ms: entry.created_at_ms,
            ..snapshot.clone()
        };
        Ok(Point::of(&current, self.uuid(), self.inner.pool.block_size().bytes(), &device, view)?)
    }

    /// Proves that the snapshot of a point is still in this pool, read-only, and never written: every field of the
    /// point matches the registry and what `view` shows.
    ///
    /// # Errors
    /// The first thing that does not match.
    pub fn prove(&self, point: &Point, view: &MetadataView) -> Result<(), BaseNotProven> {
        self.matches(point, view).map_err(|reason| BaseNotProven { identity: point.identity, reason })
    }

    fn matches(&self, point: &Point, view: &MetadataView) -> Result<(), NotProven> {
        if point.pool_uuid != self.uuid() {
            return Err(NotProven::OtherPool { recorded: point.pool_uuid });
        }
        let entry = self.entry_of(point.identity).ok_or(NotProven::Removed)?;
        if !entry.role.is_read_only() {
            return Err(NotProven::Writable);
        }
        if entry.device != point.device_id {
            return Err(NotProven::Device { recorded: point.device_id, found: entry.device });
        }
        let device = view.device(entry.device)?.ok_or(NotProven::NoDevice { device: entry.device })?;
        let numbers = [
            ("size in bytes", point.size_bytes, entry.size_bytes),
            ("time of creation in ms", point.created_at_ms, entry.created_at_ms),
            ("block size", point.block_bytes, view.superblock().block_size.bytes()),
            ("transaction id", point.transaction_id, device.details.transaction_id),
            ("number of mapped blocks", point.mapped_blocks, device.details.mapped_blocks),
        ];
        if let Some(&(what, recorded, found)) = numbers.iter().find(|(_, recorded, found)| recorded != found)
        {
            return Err(NotProven::Number { what, recorded, found });
        }
        let found_checksum = view.root_checksum(device.root)?;
        if (point.root_block, point.root_checksum) != (device.root, found_checksum) {
            return Err(NotProven::Root {
                recorded: point.root_block,
                recorded_checksum: point.root_checksum,
                found: device.root,
                found_checksum,
            });
        }
        Ok(())
    }

    fn entry_of(&self, identity: Uuid) -> Option<Entry> {
        let books = self.inner.books.lock();
        books.registry.state().by_identity(identity).cloned()
    }
}
