//! A kernel pool, as jobs and services see it.

use std::{path::Path, sync::Arc};

use thinbak_engine::{Base, DeviceId, Kind, MetadataView, Point, Role, Roots, Volume, format::SECTOR_BYTES};
use thinbak_proto::{Failed, FailureKind, v1::PoolInfo};
use uuid::Uuid;

use super::{
    KernelPool,
    book::Entry,
    content::{HeadContent, SnapshotContent},
    lease, look,
    survey::is_that_of,
    volumes::stale,
};
use crate::pools::{
    Candidate,
    failure::of_view,
    pool::{Content, Frozen, HeldMsnap, PoolParts, ThinPool, part},
};

impl ThinPool for KernelPool {
    fn name(&self) -> &str {
        &self.inner.name
    }

    fn uuid(&self) -> Uuid {
        self.inner.book.lock().contents().pool
    }

    fn block_bytes(&self) -> u64 {
        self.inner.block_bytes()
    }

    fn info(&self) -> Result<PoolInfo, Failed> {
        let found = look::find(&self.inner.mapper, &self.inner.name)?;
        let status = self.inner.status()?;
        let info = look::info(&self.inner.name, &found, &status, Some(self.inner.book.lock().contents()));
        // Of a pool that is about to fail nobody knows it.
        Ok(PoolInfo { snapshot_clock: self.inner.time().map_or(0, u64::from), ..info })
    }

    fn list(&self) -> Result<Vec<(Volume, u64)>, Failed> {
        self.list_volumes()
    }

    fn parts(&self) -> Result<PoolParts, Failed> {
        let book = self.inner.book.lock();
        let volumes = book.contents().devices.iter().map(|entry| book.contents().to_volume(entry));
        Ok(PoolParts { parts: volumes.filter_map(part).collect(), volume_group: String::new() })
    }

    fn volume(&self, name: &str) -> Result<Volume, Failed> {
        self.find_volume(name)
    }

    fn snapshot(&self, volume: &str, snapshot: &str) -> Result<Volume, Failed> {
        self.find_snapshot(volume, snapshot)
    }

    fn by_device(&self, device: DeviceId) -> Option<Volume> {
        let book = self.inner.book.lock();
        book.contents().by_device(device).map(|entry| book.contents().to_volume(entry))
    }

    /// From the status of an active device, else from a look at the metadata.
    fn mapped_bytes(&self, volume: &Volume) -> Result<u64, Failed> {
        if let Some(active) = self.inner.active(volume.device)? {
            let status = self.inner.mapper.status(&active.name)?;
            let line = status.first().map(|(.., line)| line.as_str()).unwrap_or_default();
            if let Some(sectors) = line.split(' ').next().and_then(|word| word.parse::<u64>().ok()) {
                return Ok(sectors.saturating_mul(SECTOR_BYTES));
            }
        }
        let blocks = self.survey()?.get(&volume.device).map_or(0, |info| info.details.mapped_blocks);
        Ok(blocks.saturating_mul(self.inner.block_bytes()))
    }

    fn create_volume(&self, name: &str, size_bytes: u64, origin: Option<&Path>) -> Result<Volume, Failed> {
        match origin {
            None => self.make_volume(name, size_bytes),
            Some(_) => {
                let message = "volumes over external origins are made in embedded pools only";
                Err(Failed::new(FailureKind::Usage, message)
                    .with_hint("thinbak pool create NAME --size SIZE makes one"))
            }
        }
    }

    fn take_snapshots(&self, snapshots: &[(&str, &str)]) -> Result<Vec<Volume>, Failed> {
        self.snapshot_volumes(snapshots)
    }

    fn resize_volume(&self, name: &str, size_bytes: u64) -> Result<Volume, Failed> {
        self.resize_one(name, size_bytes)
    }

    fn remove_volume(&self, name: &str) -> Result<(), Failed> {
        self.remove_one(name)
    }

    fn remove_snapshot(&self, volume: &str, snapshot: &str) -> Result<(), Failed> {
        // What is not that device any more is forgotten, not removed.
        self.survey()?;
        let snapshot = self.find_snapshot(volume, snapshot)?;
        self.inner.remove(&[snapshot.device])
    }

    fn take_candidates(&self, volumes: &[&str]) -> Result<Vec<Volume>, Failed> {
        let volumes: Vec<Volume> =
            volumes.iter().map(|name| self.find_volume(name)).collect::<Result<_, _>>()?;
        self.take_of(volumes.iter())
    }

    fn create_head(&self, size_bytes: u64, like: Option<DeviceId>) -> Result<Volume, Failed> {
        self.make_head(size_bytes, like)
    }

    fn resize_head(&self, head: &Volume, size_bytes: u64) -> Result<Volume, Failed> {
        self.set_head_size(head, size_bytes)
    }

    fn snapshot_head(&self, head: &Volume) -> Result<Volume, Failed> {
        self.keep_moment(head)
    }

    fn forget_beyond(&self, head: &Volume) -> Result<(), Failed> {
        self.zero_beyond(head)
    }

    fn publish_head(
        &self,
        head: &Volume,
        as_volume: &str,
        snapshots: &[(Volume, String)],
    ) -> Result<Volume, Failed> {
        self.publish_all(head, as_volume, snapshots)
    }

    fn check_closed(&self, volume: &Volume) -> Result<(), Failed> {
        self.refuse_open(volume)
    }

    fn check_replaceable(&self) -> Result<(), Failed> {
        Ok(())
    }

    fn replace_volume(&self, volume: &str, head: &Volume) -> Result<Volume, Failed> {
        self.switch(volume, head)
    }

    fn drop_transient(&self, volume: &Volume) -> Result<(), Failed> {
        let entry = self.inner.book.lock().contents().by_device(volume.device).cloned();
        let entry = entry.filter(|entry| entry.uuid == volume.uuid && entry.role.is_transient());
        let entry = entry.ok_or_else(|| stale(&volume.name))?;
        self.inner.book.lock().contents().refuse_switching(entry.device)?;
        self.inner.deactivate(entry.device)?;
        self.inner.delete(entry.device)?;
        self.inner.book.lock().change(|book| {
            book.forget(entry.device);
            Ok(())
        })
    }

    fn reserve(&self) -> Result<Frozen, Failed> {
        lease::reserve(&self.inner)
    }

    /// What is live is shown by a metadata snapshot that is held as long as it is looked at.
    fn view(&self, roots: Roots) -> Result<Frozen, Failed> {
        match roots {
            Roots::Live => lease::reserve(&self.inner),
            Roots::MetadataSnap => Ok(Frozen::unheld(self.inner.open_view(roots)?)),
        }
    }

    fn msnap(&self) -> Result<Option<HeldMsnap>, Failed> {
        self.inner.msnap()
    }

    fn hold_msnap(&self) -> Result<(), Failed> {
        self.inner.hold_msnap()
    }

    fn release_msnap(&self, force: bool) -> Result<(), Failed> {
        self.inner.release_msnap(force)
    }

    fn base(&self, repository: Uuid, volume: Uuid) -> Option<Base> {
        self.inner.book.lock().contents().base(repository, volume).cloned()
    }

    /// The former base is trash in the same change, and deleted then.
    fn keep_base(&self, candidate: &Volume, base: Base) -> Result<(), Failed> {
        let former = self.inner.book.lock().change(|book| {
            let entry = book.by_device(candidate.device).cloned().ok_or_else(|| stale(&candidate.name))?;
            if entry.role != (Role::Candidate { of: base.volume }) || base.point.identity != entry.uuid {
                let message = format!("the base describes another snapshot than `{}`", candidate.name);
                return Err(Failed::new(FailureKind::Refused, message));
            }
            let role = Role::Base { of: base.volume, repository: base.repository };
            let former: Vec<Entry> =
                book.devices.iter().filter(|entry| entry.role == role).cloned().collect();
            for entry in &former {
                book.put(Entry { role: Role::Trash, ..entry.clone() });
            }
            book.put(Entry { role, ..entry });
            book.put_base(base);
            Ok(former)
        })?;
        for entry in former {
            let removed = self.inner.delete(entry.device).and_then(|()| {
                self.inner.book.lock().change(|book| {
                    book.devices.retain(|present| present.device != entry.device);
                    Ok(())
                })
            });
            if let Err(error) = removed {
                let device = entry.device;
                tracing::warn!(pool = self.inner.name, %device, %error, "a former base is left until the pool is opened again");
            }
        }
        Ok(())
    }

    fn update_base(&self, base: Base) -> Result<(), Failed> {
        self.inner.book.lock().change(|book| match book.base(base.repository, base.volume) {
            Some(present) if present.point == base.point => {
                book.put_base(base);
                Ok(())
            }
            _ => Err(Failed::new(FailureKind::NotFound, "the base of the volume is another one by now")),
        })
    }

    fn bases(&self) -> Vec<Base> {
        self.inner.book.lock().contents().bases.clone()
    }

    fn forget_base(&self, repository: Uuid, volume: Uuid) -> Result<(), Failed> {
        // What is not that device any more is forgotten, not removed.
        self.survey()?;
        match self.base(repository, volume) {
            Some(base) => self.inner.remove(&[base.point.device_id]),
            None => Ok(()),
        }
    }

    fn point(&self, snapshot: &Volume, view: &MetadataView) -> Result<Point, Failed> {
        let entry = self.inner.book.lock().contents().by_device(snapshot.device).cloned();
        let entry = entry.ok_or_else(|| stale(&snapshot.name))?;
        let device = view.device(entry.device).map_err(of_view)?.filter(|info| is_that_of(&entry, info));
        let device = device.ok_or_else(|| stale(&snapshot.name))?;
        self.inner.roots.lock().insert(entry.device, (device.root, view.clone()));
        let current = self.to_volume(&entry);
        Point::of(&current, self.uuid(), self.inner.block_bytes(), &device, view).map_err(of_view)
    }

    fn prove(&self, point: &Point, view: &MetadataView) -> Result<(), String> {
        let not_proven =
            |why: String| format!("snapshot {} is not as it was recorded: {why}", point.identity);
        let entry = self.inner.book.lock().contents().by_identity(point.identity).cloned();
        let Some(entry) = entry else { return Err(not_proven("it was removed".to_owned())) };
        if !entry.role.is_read_only() {
            return Err(not_proven("it is not read-only".to_owned()));
        }
        let snapshot = Volume { device: entry.device, ..self.to_volume(&entry) };
        let found = self.point(&snapshot, view).map_err(|failed| not_proven(failed.message))?;
        if found == *point {
            return Ok(());
        }
        self.inner.roots.lock().remove(&entry.device);
        Err(not_proven(difference(point, &found)))
    }

    fn confirm(&self, point: &Point) -> Result<(), Failed> {
        // What was read may have been another pool's, if somebody changed the devices below this name.
        let found = look::find(&self.inner.mapper, &self.inner.name)?;
        if !found.is_same(&self.inner.found) {
            let message = format!("pool dm:{} was replaced while it was read", self.inner.name);
            return Err(Failed::new(FailureKind::Refused, message)
                .with_hint("nothing was committed: run the backup again"));
        }
        let proven = lease::look_once(&self.inner, |view| self.prove(point, view))?;
        proven.map_err(|why| {
            let message = format!("the snapshot was changed while it was read: {why}");
            Failed::new(FailureKind::Refused, message)
                .with_hint("nothing was committed: run the backup again")
        })
    }

    /// A volume that is in use is read at one moment: through a private snapshot that goes with the content.
    fn content(self: Arc<Self>, volume: &Volume) -> Result<Box<dyn Content>, Failed> {
        match volume.kind {
            Kind::Head => Ok(Box::new(HeadContent::open(&self.inner, volume)?)),
            Kind::Volume => {
                let mut taken = self.take_of([volume].into_iter())?;
                let moment = taken.pop().ok_or_else(|| stale(&volume.name))?;
                let inner = Arc::clone(&self.inner);
                let candidate = Candidate::new(self, moment.clone());
                Ok(Box::new(SnapshotContent::open(&inner, &moment, Some(candidate))?))
            }
            _ => Ok(Box::new(SnapshotContent::open(&self.inner, volume, None)?)),
        }
    }
}

impl KernelPool {
    fn to_volume(&self, entry: &Entry) -> Volume {
        self.inner.book.lock().contents().to_volume(entry)
    }
}

/// The first thing in which two descriptions of a snapshot differ.
fn difference(recorded: &Point, found: &Point) -> String {
    if recorded.pool_uuid != found.pool_uuid {
        return format!("it belongs to pool {}", recorded.pool_uuid);
    }
    let numbers = [
        ("device id", recorded.device_id.key(), found.device_id.key()),
        ("size in bytes", recorded.size_bytes, found.size_bytes),
        ("time of creation in ms", recorded.created_at_ms, found.created_at_ms),
        ("block size", recorded.block_bytes, found.block_bytes),
        ("transaction id", recorded.transaction_id, found.transaction_id),
        ("number of mapped blocks", recorded.mapped_blocks, found.mapped_blocks),
        ("mapping tree's root", recorded.root_block.0, found.root_block.0),
        ("root's checksum", recorded.root_checksum.into(), found.root_checksum.into()),
    ];
    match numbers.iter().find(|(_, recorded, found)| recorded != found) {
        Some((what, recorded, found)) => format!("its {what} is {found}, not {recorded}"),
        None => "it is another one".to_owned(),
    }
}
