//! Volumes: list, look up, make, resize, remove.

use std::path::Path;

use uuid::Uuid;

use super::names::{RESERVED_PREFIX, check_volume_name};
use super::origin;
use super::volume::{Kind, Volume};
use super::{EmbeddedError, EmbeddedPool, now_ms};
use crate::format::DeviceId;
use crate::registry::{Change, Entry, ExternalOrigin, Plan, Role, State};

/// A volume cannot be larger: what its offsets in bytes and the format's block numbers surely hold.
const MAX_VOLUME_BYTES: u64 = 1 << 60;

impl EmbeddedPool {
    /// All devices that the registry knows, by ascending device id, those of running jobs included.
    #[must_use]
    pub fn volumes(&self) -> Vec<Volume> {
        let books = self.inner.books.lock();
        let state = books.registry.state();
        state.devices.values().map(|entry| Volume::of(state, entry)).collect()
    }

    /// Devices that are in the pool and not in the registry, as [`Kind::Unknown`].
    ///
    /// # Errors
    /// When the pool cannot list its devices.
    pub fn unknown_devices(&self) -> Result<Vec<Volume>, EmbeddedError> {
        let books = self.inner.books.lock();
        let state = books.registry.state();
        let devices =
            self.inner.pool.devices().map_err(EmbeddedError::pool("the devices could not be listed"))?;
        let unknown = devices.into_iter().filter(|device| !state.devices.contains_key(&device.id));
        Ok(unknown.map(|device| Volume::unknown(device.id)).collect())
    }

    /// The volume of this name.
    ///
    /// # Errors
    /// [`EmbeddedError::NoSuchVolume`].
    pub fn volume(&self, name: &str) -> Result<Volume, EmbeddedError> {
        let books = self.inner.books.lock();
        let state = books.registry.state();
        Ok(Volume::of(state, find_volume(state, name)?))
    }

    /// The snapshot or base of this name.
    ///
    /// # Errors
    /// [`EmbeddedError::NoSuchVolume`], [`EmbeddedError::NoSuchSnapshot`].
    pub fn snapshot(&self, volume: &str, snapshot: &str) -> Result<Volume, EmbeddedError> {
        let books = self.inner.books.lock();
        let state = books.registry.state();
        Ok(Volume::of(state, find_snapshot(state, volume, snapshot)?))
    }

    /// The device of this id, as far as the registry knows it.
    #[must_use]
    pub fn by_device(&self, device: DeviceId) -> Option<Volume> {
        self.known(&[device]).pop()
    }

    /// Makes an empty volume.
    ///
    /// # Errors
    /// [`EmbeddedError::Name`], [`EmbeddedError::Exists`], [`EmbeddedError::Size`] when the size is no multiple of
    /// the block size; what pool and registry say.
    pub fn create_volume(&self, name: &str, size_bytes: u64) -> Result<Volume, EmbeddedError> {
        self.make_volume(name, size_bytes, None)
    }

    /// Makes a volume over a file or block device, which it reads where nothing was written to it. Path and size of
    /// that are recorded now; it is never written.
    ///
    /// # Errors
    /// As [`create_volume`](Self::create_volume); [`EmbeddedError::OriginMissing`], [`EmbeddedError::OriginPath`], an
    /// origin that cannot be opened.
    pub fn create_volume_over(
        &self,
        name: &str,
        size_bytes: u64,
        origin: &Path,
    ) -> Result<Volume, EmbeddedError> {
        check_new_volume(name)?;
        let recorded = origin::record(name, origin, &[&self.data_path(), &self.metadata_path()])?;
        self.make_volume(name, size_bytes, Some(recorded))
    }

    fn make_volume(
        &self,
        name: &str,
        size_bytes: u64,
        origin: Option<ExternalOrigin>,
    ) -> Result<Volume, EmbeddedError> {
        check_new_volume(name)?;
        check_multiple(size_bytes, self.inner.pool.block_size().bytes())?;
        self.inner.transact(|state| {
            refuse_taken(state, name)?;
            let mut entries = Vec::new();
            for device in self.inner.fresh_ids(state, 1)? {
                entries.push(Entry {
                    device,
                    uuid: Uuid::new_v4(),
                    size_bytes,
                    created_at_ms: now_ms(),
                    role: Role::Volume { name: name.to_owned() },
                    origin: origin.clone(),
                });
            }
            let create = entries.iter().map(|entry| (entry.device, None)).collect();
            Ok((Plan { create, changes: entries.into_iter().map(Change::Put).collect() }, ()))
        })?;
        self.volume(name)
    }

    /// Changes the size of a volume. Nothing that it maps is touched: what lies past a new, smaller end comes back
    /// when the volume grows again.
    ///
    /// # Errors
    /// [`EmbeddedError::NoSuchVolume`], [`EmbeddedError::Size`]; what the registry says.
    pub fn resize_volume(&self, name: &str, size_bytes: u64) -> Result<Volume, EmbeddedError> {
        check_multiple(size_bytes, self.inner.pool.block_size().bytes())?;
        let mut books = self.inner.books.lock();
        let entry = Entry { size_bytes, ..find_volume(books.registry.state(), name)?.clone() };
        let volume = Volume::of(books.registry.state(), &entry);
        books.registry.record(vec![Change::Put(entry)])?;
        Ok(volume)
    }

    /// Removes a volume and its bases, and returns what it was.
    ///
    /// # Errors
    /// [`EmbeddedError::NoSuchVolume`]; [`EmbeddedError::HasSnapshots`] while it has any; what pool and registry say.
    pub fn remove_volume(&self, name: &str) -> Result<Volume, EmbeddedError> {
        self.inner.transact(|state| {
            let entry = find_volume(state, name)?;
            let snapshots = state.snapshot_count(entry.uuid);
            if snapshots > 0 {
                return Err(EmbeddedError::HasSnapshots { name: name.to_owned(), snapshots });
            }
            let mut changes = vec![Change::Remove(entry.device)];
            changes.extend(state.base_snapshots(entry.uuid).map(|base| Change::Remove(base.device)));
            let records = state.bases.values().filter(|base| base.volume == entry.uuid);
            changes.extend(
                records.map(|base| Change::RemoveBase { repository: base.repository, volume: base.volume }),
            );
            Ok((Plan { create: Vec::new(), changes }, Volume::of(state, entry)))
        })
    }
}

pub(super) fn find_volume<'a>(state: &'a State, name: &str) -> Result<&'a Entry, EmbeddedError> {
    state.volume(name).ok_or_else(|| EmbeddedError::NoSuchVolume { name: name.to_owned() })
}

pub(super) fn find_snapshot<'a>(
    state: &'a State,
    volume: &str,
    snapshot: &str,
) -> Result<&'a Entry, EmbeddedError> {
    let uuid = find_volume(state, volume)?.uuid;
    let named = |entry: &&Entry| Volume::of(state, entry).snapshot_name() == Some(snapshot);
    let found = if snapshot.starts_with(RESERVED_PREFIX) {
        state.base_snapshots(uuid).find(named)
    } else {
        state.snapshot(uuid, snapshot)
    };
    found.ok_or_else(|| EmbeddedError::NoSuchSnapshot {
        volume: volume.to_owned(),
        snapshot: snapshot.to_owned(),
    })
}

pub(super) fn check_new_volume(name: &str) -> Result<(), EmbeddedError> {
    check_volume_name(name).map_err(|source| EmbeddedError::Name { name: name.to_owned(), source })
}

pub(super) fn refuse_taken(state: &State, name: &str) -> Result<(), EmbeddedError> {
    match state.volume(name) {
        Some(_) => Err(EmbeddedError::Exists { name: name.to_owned() }),
        None => Ok(()),
    }
}

/// Refuses a size that is zero, no multiple, or beyond any volume.
pub(super) fn check_multiple(size: u64, multiple_of: u64) -> Result<(), EmbeddedError> {
    if size > 0 && size <= MAX_VOLUME_BYTES && size.is_multiple_of(multiple_of) {
        return Ok(());
    }
    let next = size.max(1).checked_next_multiple_of(multiple_of).filter(|&next| next <= MAX_VOLUME_BYTES);
    Err(EmbeddedError::Size { size, multiple_of, next })
}

impl Kind {
    /// Whether it is a snapshot of any sort, thinbak's own included.
    #[must_use]
    pub fn is_snapshot(&self) -> bool {
        matches!(self, Self::Snapshot { .. } | Self::Base { .. } | Self::Candidate)
    }

    /// Whether it belongs to a running job or is on its way out: nothing that a user has made.
    #[must_use]
    pub fn is_private(&self) -> bool {
        matches!(self, Self::Head | Self::Candidate | Self::Trash)
    }
}
