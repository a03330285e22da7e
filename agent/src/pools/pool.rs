//! What jobs and services ask of a thin pool, whoever runs it: the engine or the kernel.

use std::{collections::HashMap, path::Path};

use thinbak_engine::{Base, DeviceId, Kind, MetadataView, Point, Roots, Volume};
use thinbak_proto::{Failed, v1::PoolInfo};
use uuid::Uuid;

/// A thin pool that is open here and nowhere else on this host.
///
/// All methods block and may be called from several threads. What a kind of pool cannot do is refused with the reason,
/// before anything is changed.
pub trait ThinPool: Send + Sync {
    /// The name that the pool goes by.
    fn name(&self) -> &str;
    /// The pool's identity.
    fn uuid(&self) -> Uuid;
    /// Size of a data block in bytes.
    fn block_bytes(&self) -> u64;
    /// What is told of it.
    fn info(&self) -> Result<PoolInfo, Failed>;

    /// All volumes and snapshots and the devices that are not known, each with its mapped bytes; no private devices.
    fn list(&self) -> Result<Vec<(Volume, u64)>, Failed>;
    /// The tags of its volumes, as they were last seen.
    fn tags(&self) -> HashMap<DeviceId, Vec<String>> {
        HashMap::new()
    }
    /// What there is, without what thinbak keeps for itself, by those who manage the pool: no metadata are read for it.
    fn parts(&self) -> Result<PoolParts, Failed>;
    /// The volume of this name.
    fn volume(&self, name: &str) -> Result<Volume, Failed>;
    /// The snapshot or base of this name.
    fn snapshot(&self, volume: &str, snapshot: &str) -> Result<Volume, Failed>;
    /// The device of this id, if it is known.
    fn by_device(&self, device: DeviceId) -> Option<Volume>;
    /// How much of a device is mapped, in bytes.
    fn mapped_bytes(&self, volume: &Volume) -> Result<u64, Failed>;
    /// Makes an empty volume, over an external origin if one is given.
    fn create_volume(&self, name: &str, size_bytes: u64, origin: Option<&Path>) -> Result<Volume, Failed>;
    /// Takes read-only snapshots, (volume, snapshot) each, of one moment; all or none.
    fn take_snapshots(&self, snapshots: &[(&str, &str)]) -> Result<Vec<Volume>, Failed>;
    /// Changes the size of a volume.
    fn resize_volume(&self, name: &str, size_bytes: u64) -> Result<Volume, Failed>;
    /// Removes a volume that has no snapshots, with its bases.
    fn remove_volume(&self, name: &str) -> Result<(), Failed>;
    /// Removes a snapshot, or a base with its record.
    fn remove_snapshot(&self, volume: &str, snapshot: &str) -> Result<(), Failed>;

    /// Why so many volumes cannot be backed up at one moment, if so. `any_moments`: they need not be, or nobody writes to them
    /// meanwhile.
    fn check_group(&self, _volumes: usize, _any_moments: bool) -> Result<(), Failed> {
        Ok(())
    }
    /// Takes private read-only snapshots of volumes, of one moment where [`check_group`](Self::check_group) says so; all or none. What is left of them after a crash goes
    /// when the pool is opened the next time.
    fn take_candidates(&self, volumes: &[&str]) -> Result<Vec<Volume>, Failed>;
    /// Makes a private writable device, empty or a snapshot of `like`; as transient as a candidate.
    fn create_head(&self, size_bytes: u64, like: Option<DeviceId>) -> Result<Volume, Failed>;
    /// Changes the size of a head.
    fn resize_head(&self, head: &Volume, size_bytes: u64) -> Result<Volume, Failed>;
    /// Takes a private read-only snapshot of a head.
    fn snapshot_head(&self, head: &Volume) -> Result<Volume, Failed>;
    /// Unmaps or zeroes what a head has beyond its end: it would come back when the volume is grown.
    fn forget_beyond(&self, head: &Volume) -> Result<(), Failed>;
    /// Makes a head a new volume of this name, and snapshots of it the volume's, in one step.
    fn publish_head(
        &self,
        head: &Volume,
        as_volume: &str,
        snapshots: &[(Volume, String)],
    ) -> Result<Volume, Failed>;
    /// Refuses a volume that somebody has open, where it could not be replaced then.
    fn check_closed(&self, _volume: &Volume) -> Result<(), Failed> {
        Ok(())
    }
    /// Why the content of a volume cannot be replaced by that of a head, if so.
    fn check_replaceable(&self) -> Result<(), Failed>;
    /// Gives a volume the content and size of a head, in one step.
    fn replace_volume(&self, volume: &str, head: &Volume) -> Result<Volume, Failed>;
    /// Deletes a head or candidate.
    fn drop_transient(&self, volume: &Volume) -> Result<(), Failed>;

    /// Reserves the metadata snapshot for a job of this process.
    fn reserve(&self) -> Result<Frozen, Failed>;
    /// The metadata as they are now, or the metadata snapshot that is held.
    fn view(&self, roots: Roots) -> Result<Frozen, Failed>;
    /// The metadata snapshot that is held, if there is one.
    fn msnap(&self) -> Result<Option<HeldMsnap>, Failed>;
    /// Reserves the metadata snapshot until it is released by hand.
    fn hold_msnap(&self) -> Result<(), Failed>;
    /// Releases the metadata snapshot; by `force` also one that a job uses or that is not ours.
    fn release_msnap(&self, force: bool) -> Result<(), Failed>;

    /// The base of a volume for a repository.
    fn base(&self, repository: Uuid, volume: Uuid) -> Option<Base>;
    /// Makes a candidate the base of its volume and repository in place of the former one, which is deleted.
    fn keep_base(&self, candidate: &Volume, base: Base) -> Result<(), Failed>;
    /// Records a newer generation of a volume that did not change.
    fn update_base(&self, base: Base) -> Result<(), Failed>;
    /// All bases.
    fn bases(&self) -> Vec<Base>;
    /// Deletes a base with its record; one that is not there is no error.
    fn forget_base(&self, repository: Uuid, volume: Uuid) -> Result<(), Failed>;
    /// Describes a snapshot as `view` shows it.
    fn point(&self, snapshot: &Volume, view: &MetadataView) -> Result<Point, Failed>;
    /// Proves that the snapshot of a point is still there, read-only and never written; else the reason.
    fn prove(&self, point: &Point, view: &MetadataView) -> Result<(), String>;
    /// Proves once more that a candidate is what it was when it was described, where others can change the pool.
    fn confirm(&self, point: &Point) -> Result<(), Failed>;

    /// Opens a device for reading, and for writing if it is not read-only.
    fn content(self: std::sync::Arc<Self>, volume: &Volume) -> Result<Box<dyn Content>, Failed>;
}

/// What a pool consists of beside content.
#[derive(Debug, Clone, Default)]
pub struct PoolParts {
    /// Volumes and snapshots, each with the name of the volume in the pool that it was made a snapshot of, if there is one.
    pub parts: Vec<(Volume, Option<String>)>,
    /// The volume group as LVM's own tools write it; empty where LVM is not involved.
    pub volume_group: String,
}

/// A volume or snapshot of a registry as a part of its pool.
pub(super) fn part(volume: Volume) -> Option<(Volume, Option<String>)> {
    match &volume.kind {
        Kind::Volume => Some((volume, None)),
        Kind::Snapshot { of } => {
            let of = of.clone();
            Some((volume, Some(of)))
        }
        _ => None,
    }
}

/// The content of a device of a pool. Offsets and lengths in bytes, inside the device. All methods block.
pub trait Content: Send + Sync {
    /// Fills `buf` from `offset`.
    fn read(&self, offset: u64, buf: &mut [u8]) -> Result<(), Failed>;
    /// Writes `data` at `offset`; what else is in the blocks stays as it reads.
    fn write(&self, offset: u64, data: &[u8]) -> Result<(), Failed>;
    /// Unmaps whole blocks.
    fn discard(&self, offset: u64, len: u64) -> Result<(), Failed>;
    /// Whether unmapping a block makes it read as zero.
    fn can_unmap(&self) -> bool;
    /// The mapped runs of `from .. to`, ascending, (first block, number of blocks) each; no more than `limit`. Where it
    /// is not known what is mapped, all is.
    fn mapped_runs(&self, from: u64, to: u64, limit: usize) -> Result<Vec<(u64, u64)>, Failed>;
    /// Puts everything written so far on stable storage.
    fn flush(&self) -> Result<(), Failed>;
    /// Fails if what was read may have been something else: where a read-only device is kept from changing by nobody.
    fn confirm(&self) -> Result<(), Failed> {
        Ok(())
    }
}

/// The metadata snapshot that a pool holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HeldMsnap {
    /// The metadata block of the superblock's copy.
    pub root: u64,
    /// Whether thinbak reserved it.
    pub ours: bool,
}

/// Metadata that stay as they are while this lives.
pub struct Frozen {
    /// What they are.
    pub view: MetadataView,
    release: Option<Release>,
}

/// Gives back what keeps metadata as they are; when it is dropped instead, failures are only logged.
type Release = Box<dyn FnOnce() -> Result<(), Failed> + Send>;

impl Frozen {
    /// Metadata that nobody holds for us.
    pub(super) fn unheld(view: MetadataView) -> Self {
        Self { view, release: None }
    }

    /// Metadata that are given back by `release`, or when that is dropped.
    pub(super) fn held(view: MetadataView, release: Release) -> Self {
        Self { view, release: Some(release) }
    }

    /// Gives them back now.
    pub fn release(mut self) -> Result<(), Failed> {
        self.release.take().map_or(Ok(()), |release| release())
    }
}
