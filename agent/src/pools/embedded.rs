//! Pools that the engine runs, as jobs and services see them.

mod beyond;
mod content;

use std::{collections::HashMap, path::Path, sync::Arc};

use thinbak_engine::{
    Base, DeviceId, EmbeddedPool, MetadataView, Point, Roots, Volume, embedded::EmbeddedError,
};
use thinbak_proto::{Failed, v1::PoolInfo};
use uuid::Uuid;

use self::content::EmbeddedContent;
use super::{
    failure::{failed, of_pool, of_view},
    info,
    pool::{Content, Frozen, HeldMsnap, PoolParts, ThinPool, part},
};

impl ThinPool for EmbeddedPool {
    fn name(&self) -> &str {
        self.name()
    }

    fn uuid(&self) -> Uuid {
        self.uuid()
    }

    fn block_bytes(&self) -> u64 {
        self.pool().block_size().bytes()
    }

    fn info(&self) -> Result<PoolInfo, Failed> {
        Ok(info::embedded(self))
    }

    fn list(&self) -> Result<Vec<(Volume, u64)>, Failed> {
        let mut volumes = self.volumes();
        volumes.retain(|volume| !volume.kind.is_private());
        volumes.extend(self.unknown_devices().map_err(failed)?);
        let devices = self.pool().devices().map_err(of_pool("the devices could not be listed"))?;
        let mapped: HashMap<_, _> =
            devices.into_iter().map(|device| (device.id, device.details.mapped_blocks)).collect();
        let block_bytes = self.block_bytes();
        let listed = volumes.into_iter().map(|volume| {
            let blocks = mapped.get(&volume.device).copied().unwrap_or_default();
            (volume, blocks.saturating_mul(block_bytes))
        });
        Ok(listed.collect())
    }

    fn parts(&self) -> Result<PoolParts, Failed> {
        let volumes = self.volumes().into_iter().filter_map(part);
        Ok(PoolParts { parts: volumes.collect(), volume_group: String::new() })
    }

    fn volume(&self, name: &str) -> Result<Volume, Failed> {
        self.volume(name).map_err(failed)
    }

    fn snapshot(&self, volume: &str, snapshot: &str) -> Result<Volume, Failed> {
        self.snapshot(volume, snapshot).map_err(failed)
    }

    fn by_device(&self, device: DeviceId) -> Option<Volume> {
        self.by_device(device)
    }

    fn mapped_bytes(&self, volume: &Volume) -> Result<u64, Failed> {
        let device = self.pool().device(volume.device);
        let device = device.map_err(of_pool("the device could not be looked up"))?;
        let blocks = device.map_or(0, |device| device.details.mapped_blocks);
        Ok(blocks.saturating_mul(self.block_bytes()))
    }

    fn create_volume(&self, name: &str, size_bytes: u64, origin: Option<&Path>) -> Result<Volume, Failed> {
        let made = match origin {
            None => self.create_volume(name, size_bytes),
            Some(origin) => self.create_volume_over(name, size_bytes, origin),
        };
        made.map_err(failed)
    }

    fn take_snapshots(&self, snapshots: &[(&str, &str)]) -> Result<Vec<Volume>, Failed> {
        self.take_snapshots(snapshots).map_err(failed)
    }

    fn resize_volume(&self, name: &str, size_bytes: u64) -> Result<Volume, Failed> {
        self.resize_volume(name, size_bytes).map_err(failed)
    }

    fn remove_volume(&self, name: &str) -> Result<(), Failed> {
        self.remove_volume(name).map(|_| ()).map_err(failed)
    }

    fn remove_snapshot(&self, volume: &str, snapshot: &str) -> Result<(), Failed> {
        self.remove_snapshot(volume, snapshot).map(|_| ()).map_err(failed)
    }

    fn take_candidates(&self, volumes: &[&str]) -> Result<Vec<Volume>, Failed> {
        self.take_candidates(volumes).map_err(failed)
    }

    fn create_head(&self, size_bytes: u64, like: Option<DeviceId>) -> Result<Volume, Failed> {
        self.create_head(size_bytes, like).map_err(failed)
    }

    fn resize_head(&self, head: &Volume, size_bytes: u64) -> Result<Volume, Failed> {
        self.resize_head(head, size_bytes).map_err(failed)
    }

    fn snapshot_head(&self, head: &Volume) -> Result<Volume, Failed> {
        self.snapshot_head(head).map_err(failed)
    }

    fn forget_beyond(&self, head: &Volume) -> Result<(), Failed> {
        let attempt = "what lies beyond the end could not be unmapped";
        beyond::cut_back(self, head).map_err(|source| failed(EmbeddedError::Pool { attempt, source }))
    }

    fn publish_head(
        &self,
        head: &Volume,
        as_volume: &str,
        snapshots: &[(Volume, String)],
    ) -> Result<Volume, Failed> {
        self.publish_head(head, as_volume, snapshots).map_err(failed)
    }

    fn check_replaceable(&self) -> Result<(), Failed> {
        Ok(())
    }

    fn replace_volume(&self, volume: &str, head: &Volume) -> Result<Volume, Failed> {
        self.replace_volume(volume, head).map_err(failed)
    }

    fn drop_transient(&self, volume: &Volume) -> Result<(), Failed> {
        self.drop_transient(volume).map_err(failed)
    }

    fn reserve(&self) -> Result<Frozen, Failed> {
        let guard = self.reserve_msnap().map_err(failed)?;
        let view = open_view(self, Roots::MetadataSnap)?;
        Ok(Frozen::held(view, Box::new(move || guard.release().map_err(failed))))
    }

    /// Of a pool the last commit is shown, after one.
    fn view(&self, roots: Roots) -> Result<Frozen, Failed> {
        self.flush().map_err(failed)?;
        Ok(Frozen::unheld(open_view(self, roots)?))
    }

    fn msnap(&self) -> Result<Option<HeldMsnap>, Failed> {
        let Some(root) = self.pool().status().held_root else { return Ok(None) };
        Ok(Some(HeldMsnap { root: root.get(), ours: self.msnap_is_ours().map_err(failed)? }))
    }

    fn hold_msnap(&self) -> Result<(), Failed> {
        self.hold_msnap().map(|_| ()).map_err(failed)
    }

    fn release_msnap(&self, force: bool) -> Result<(), Failed> {
        self.release_msnap(force).map_err(failed)
    }

    fn base(&self, repository: Uuid, volume: Uuid) -> Option<Base> {
        self.base(repository, volume)
    }

    fn keep_base(&self, candidate: &Volume, base: Base) -> Result<(), Failed> {
        self.keep_base(candidate, base).map_err(failed)
    }

    fn update_base(&self, base: Base) -> Result<(), Failed> {
        self.update_base(base).map_err(failed)
    }

    fn bases(&self) -> Vec<Base> {
        self.bases()
    }

    fn forget_base(&self, repository: Uuid, volume: Uuid) -> Result<(), Failed> {
        self.forget_base(repository, volume).map_err(failed)
    }

    fn point(&self, snapshot: &Volume, view: &MetadataView) -> Result<Point, Failed> {
        self.point(snapshot, view).map_err(failed)
    }

    fn prove(&self, point: &Point, view: &MetadataView) -> Result<(), String> {
        self.prove(point, view).map_err(|not_proven| not_proven.to_string())
    }

    /// Nobody else can change the pool.
    fn confirm(&self, _point: &Point) -> Result<(), Failed> {
        Ok(())
    }

    fn content(self: Arc<Self>, volume: &Volume) -> Result<Box<dyn Content>, Failed> {
        Ok(Box::new(EmbeddedContent::new(self, volume.clone())))
    }
}

/// The live metadata beside us.
fn open_view(pool: &EmbeddedPool, roots: Roots) -> Result<MetadataView, Failed> {
    MetadataView::open(Arc::clone(pool.pool().metadata_device()), roots).map_err(of_view)
}
