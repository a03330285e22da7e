//! A pool of LVM, as jobs and services see it.

use std::{collections::HashMap, path::Path, sync::Arc};

use thinbak_engine::{Base, DeviceId, Kind, MetadataView, Point, Role, Roots, Volume};
use thinbak_proto::{Failed, FailureKind, v1::PoolInfo};
use uuid::Uuid;

use super::{
    super::{book::Entry, content::SnapshotContent, lease, look, volumes::stale},
    LvmPool, command, find_target, name,
    replace::refuse_in_use,
    report::Logical,
    sync,
};
use crate::pools::{
    Candidate,
    pool::{Content, Frozen, HeldMsnap, PoolParts, ThinPool, part},
};

impl ThinPool for LvmPool {
    fn name(&self) -> &str {
        &self.kernel.inner.name
    }

    fn uuid(&self) -> Uuid {
        self.kernel.uuid()
    }

    fn block_bytes(&self) -> u64 {
        self.kernel.block_bytes()
    }

    fn info(&self) -> Result<PoolInfo, Failed> {
        let inner = &self.kernel.inner;
        let (target, found) = find_target(&inner.mapper, &self.place, &self.group_uuid, &self.pool_uuid)?;
        let status = look::status(&inner.mapper, &target)?;
        let info = look::info(&inner.name, &found, &status, Some(inner.book.lock().contents()));
        Ok(PoolInfo { kind: "lvm".to_owned(), ..info })
    }

    fn list(&self) -> Result<Vec<(Volume, u64)>, Failed> {
        let group = self.refresh()?;
        let found = self.kernel.survey()?;
        let logicals: HashMap<DeviceId, &Logical> = sync::thin_volumes(&group, &self.pool_uuid)
            .filter_map(|logical| Some((logical.device?, logical)))
            .collect();
        let book = self.kernel.inner.book.lock();
        let block_bytes = self.block_bytes();
        let mut listed: Vec<_> = found
            .values()
            .map(|info| {
                let shown = match (book.contents().by_device(info.id), logicals.get(&info.id)) {
                    // Named as ours, and somebody else's: nothing to work with.
                    (Some(entry), Some(logical))
                        if logical.is_own() && matches!(entry.role, Role::Volume { .. }) =>
                    {
                        sync::unknown(logical, unnamed(info.id))
                    }
                    (Some(entry), _) => book.contents().to_volume(entry),
                    (None, Some(logical)) => sync::unknown(logical, unnamed(info.id)),
                    (None, None) => unnamed(info.id),
                };
                (shown, info.details.mapped_blocks.saturating_mul(block_bytes))
            })
            .filter(|(volume, _)| !volume.kind.is_private())
            .collect();
        listed.sort_by_key(|(volume, _)| volume.device.get());
        Ok(listed)
    }

    fn tags(&self) -> HashMap<DeviceId, Vec<String>> {
        self.tags.lock().clone()
    }

    fn parts(&self) -> Result<PoolParts, Failed> {
        let group = self.refresh()?;
        let origins: HashMap<DeviceId, &str> = sync::thin_volumes(&group, &self.pool_uuid)
            .filter_map(|logical| Some((logical.device?, logical.origin.as_str())))
            .filter(|(_, origin)| !origin.is_empty())
            .collect();
        let volume_group = command::describe(&self.place.group)?;
        let book = self.kernel.inner.book.lock();
        let volumes = book.contents().devices.iter().map(|entry| book.contents().to_volume(entry));
        let known = volumes.filter(|volume| !volume.name.starts_with(name::OWN_PREFIX));
        let parts = known.filter_map(part).map(|(volume, of)| {
            let origin = origins.get(&volume.device).map(|origin| (*origin).to_owned());
            (volume, of.or(origin))
        });
        Ok(PoolParts { parts: parts.collect(), volume_group })
    }

    fn volume(&self, name: &str) -> Result<Volume, Failed> {
        let group = self.refresh()?;
        self.find(&group, name).map(|(_, volume)| volume)
    }

    fn snapshot(&self, volume: &str, snapshot: &str) -> Result<Volume, Failed> {
        let of = self.volume(volume)?;
        let wanted = format!("{}@{snapshot}", of.name);
        let book = self.kernel.inner.book.lock();
        let mut shown = book.contents().devices.iter().map(|entry| book.contents().to_volume(entry));
        let is_it = |one: &Volume| {
            matches!(one.kind, Kind::Snapshot { .. } | Kind::Base { .. }) && one.name == wanted
        };
        shown
            .find(is_it)
            .ok_or_else(|| Failed::new(FailureKind::NotFound, format!("there is no snapshot `{wanted}`")))
    }

    fn by_device(&self, device: DeviceId) -> Option<Volume> {
        self.kernel.by_device(device)
    }

    fn mapped_bytes(&self, volume: &Volume) -> Result<u64, Failed> {
        self.kernel.mapped_bytes(volume)
    }

    fn create_volume(&self, name: &str, size_bytes: u64, origin: Option<&Path>) -> Result<Volume, Failed> {
        if origin.is_some() {
            return Err(unserved("volumes over external origins are made in embedded pools only"));
        }
        match self.volume(name) {
            Err(failed) if failed.kind == FailureKind::NotFound => {}
            Err(failed) => return Err(failed),
            Ok(_) => {
                let message = format!("{} exists already", self.place.path(name));
                return Err(Failed::new(FailureKind::Refused, message));
            }
        }
        let head = self.make_empty(size_bytes)?;
        self.publish(&head, name).inspect_err(|_| {
            if let Err(error) = self.remove_own(head.uuid) {
                tracing::warn!(%error, "a private volume is left until the pool is opened again");
            }
        })
    }

    /// One only: LVM takes one after the other.
    fn take_snapshots(&self, snapshots: &[(&str, &str)]) -> Result<Vec<Volume>, Failed> {
        match snapshots {
            [(volume, snapshot)] => Ok(vec![self.take_named(volume, snapshot)?]),
            _ => Err(not_one_moment("name one snapshot per call")),
        }
    }

    fn check_group(&self, volumes: usize, any_moments: bool) -> Result<(), Failed> {
        if any_moments || volumes < 2 {
            return Ok(());
        }
        Err(not_one_moment(
            "pause the writers with the `before` and `after` hooks of a job with `group = true`, or leave --group out",
        ))
    }

    /// Larger only: what would be cut off cannot be brought back. LVM rounds up to whole extents.
    fn resize_volume(&self, name: &str, size_bytes: u64) -> Result<Volume, Failed> {
        let group = self.changeable()?;
        let (logical, volume) = self.find(&group, name)?;
        let path = self.place.path(name);
        if size_bytes < logical.size_bytes {
            let message = format!("{path} has {} bytes: it is not made smaller", logical.size_bytes);
            return Err(Failed::new(FailureKind::Refused, message)
                .with_hint(format!("if nothing is lost by it: lvreduce -L {size_bytes}b {path}")));
        }
        if size_bytes > logical.size_bytes {
            command::change(&["lvextend", "-L", &format!("{size_bytes}b"), &path])?;
            self.refresh()?;
        }
        self.known(volume.uuid).ok_or_else(|| stale(name))
    }

    fn remove_volume(&self, name: &str) -> Result<(), Failed> {
        let group = self.changeable()?;
        let (logical, volume) = self.find(&group, name)?;
        let (snapshots, bases): (Vec<Entry>, Vec<Entry>) = {
            let book = self.kernel.inner.book.lock();
            let of_it = |entry: &&Entry| match &entry.role {
                Role::Snapshot { of, .. } | Role::Base { of, .. } => *of == volume.uuid,
                _ => false,
            };
            let devices = book.contents().devices.iter().filter(of_it).cloned();
            devices.partition(|entry| matches!(entry.role, Role::Snapshot { .. }))
        };
        if !snapshots.is_empty() {
            let message = format!("volume `{name}` has {} snapshots", snapshots.len());
            return Err(Failed::new(FailureKind::Refused, message).with_hint("remove the snapshots first"));
        }
        if logical.is_open {
            let message = format!("{} is open", self.place.path(name));
            return Err(Failed::new(FailureKind::Refused, message).with_hint("unmount it first"));
        }
        self.refuse_needed(&group, name)?;
        self.remove_by_uuid(&logical.uuid)?;
        self.forget(volume.uuid)?;
        bases.iter().try_for_each(|base| self.remove_own(base.uuid))
    }

    fn remove_snapshot(&self, volume: &str, snapshot: &str) -> Result<(), Failed> {
        let snapshot = self.snapshot(volume, snapshot)?;
        self.remove_own(snapshot.uuid)
    }

    fn take_candidates(&self, volumes: &[&str]) -> Result<Vec<Volume>, Failed> {
        let group = self.changeable()?;
        self.take(&group, volumes)
    }

    fn create_head(&self, size_bytes: u64, like: Option<DeviceId>) -> Result<Volume, Failed> {
        let Some(like) = like else { return self.make_empty(size_bytes) };
        let of = self.by_device(like).ok_or_else(|| stale(&format!("#{like}")))?;
        self.make_like(&of, size_bytes)
    }

    fn resize_head(&self, _head: &Volume, _size_bytes: u64) -> Result<Volume, Failed> {
        Err(one_at_a_time())
    }

    fn snapshot_head(&self, _head: &Volume) -> Result<Volume, Failed> {
        Err(one_at_a_time())
    }

    /// A head that replaces a volume has its size: there is nothing beyond.
    fn forget_beyond(&self, _head: &Volume) -> Result<(), Failed> {
        Ok(())
    }

    fn publish_head(
        &self,
        head: &Volume,
        as_volume: &str,
        snapshots: &[(Volume, String)],
    ) -> Result<Volume, Failed> {
        if !snapshots.is_empty() {
            return Err(one_at_a_time());
        }
        self.publish(head, as_volume)
    }

    fn check_closed(&self, volume: &Volume) -> Result<(), Failed> {
        let group = self.refresh()?;
        let (logical, _) = self.find(&group, &volume.name)?;
        refuse_in_use(logical, &self.place.path(&volume.name))
    }

    fn check_replaceable(&self) -> Result<(), Failed> {
        Ok(())
    }

    fn replace_volume(&self, volume: &str, head: &Volume) -> Result<Volume, Failed> {
        self.replace(volume, head)
    }

    fn drop_transient(&self, volume: &Volume) -> Result<(), Failed> {
        let entry = self.kernel.inner.book.lock().contents().by_identity(volume.uuid).cloned();
        let entry = entry.filter(|entry| entry.role.is_transient()).ok_or_else(|| stale(&volume.name))?;
        self.remove_own(entry.uuid)
    }

    fn reserve(&self) -> Result<Frozen, Failed> {
        self.kernel.reserve()
    }

    fn view(&self, roots: Roots) -> Result<Frozen, Failed> {
        self.kernel.view(roots)
    }

    fn msnap(&self) -> Result<Option<HeldMsnap>, Failed> {
        self.kernel.msnap()
    }

    fn hold_msnap(&self) -> Result<(), Failed> {
        self.kernel.hold_msnap()
    }

    fn release_msnap(&self, force: bool) -> Result<(), Failed> {
        self.kernel.release_msnap(force)
    }

    fn base(&self, repository: Uuid, volume: Uuid) -> Option<Base> {
        self.kernel.base(repository, volume)
    }

    fn bases(&self) -> Vec<Base> {
        self.kernel.bases()
    }

    fn forget_base(&self, repository: Uuid, volume: Uuid) -> Result<(), Failed> {
        self.refresh()?;
        match self.base(repository, volume) {
            Some(base) => self.remove_own(base.point.identity),
            None => Ok(()),
        }
    }

    /// The registry first; tags and the removal of the former base after it.
    fn keep_base(&self, candidate: &Volume, base: Base) -> Result<(), Failed> {
        let kept = Role::Base { of: base.volume, repository: base.repository };
        let was = Role::Candidate { of: base.volume };
        let role = kept.clone();
        let former = self.kernel.inner.book.lock().change(|book| {
            let entry = book.by_identity(candidate.uuid).cloned().ok_or_else(|| stale(&candidate.name))?;
            if entry.role != was || base.point.identity != entry.uuid {
                let message = format!("the base describes another snapshot than `{}`", candidate.name);
                return Err(Failed::new(FailureKind::Refused, message));
            }
            let former: Vec<Entry> =
                book.devices.iter().filter(|entry| entry.role == role).cloned().collect();
            for entry in &former {
                book.put(Entry { role: Role::Trash, ..entry.clone() });
            }
            book.put(Entry { role, ..entry });
            book.put_base(base);
            Ok(former)
        })?;
        if let Err(error) = self.retag(candidate, &was, &kept) {
            tracing::warn!(%error, "a base has the tags of a candidate");
        }
        for entry in former {
            if let Err(error) = self.remove_own(entry.uuid) {
                let device = entry.device;
                tracing::warn!(pool = %self.place, %device, %error, "a former base is left until the pool is opened again");
            }
        }
        Ok(())
    }

    fn update_base(&self, base: Base) -> Result<(), Failed> {
        self.kernel.update_base(base)
    }

    fn point(&self, snapshot: &Volume, view: &MetadataView) -> Result<Point, Failed> {
        if self.known(snapshot.uuid).is_none_or(|known| known.device != snapshot.device) {
            return Err(stale(&snapshot.name));
        }
        self.kernel.point(snapshot, view).map_err(|failed| match failed.kind {
            FailureKind::NotFound => self.not_made(snapshot),
            _ => failed,
        })
    }

    fn prove(&self, point: &Point, view: &MetadataView) -> Result<(), String> {
        self.kernel.prove(point, view)
    }

    fn confirm(&self, point: &Point) -> Result<(), Failed> {
        let refused = |message: String| {
            Failed::new(FailureKind::Refused, message)
                .with_hint("nothing was committed: run the backup again")
        };
        if !self.is_current() {
            return Err(refused(format!("pool {} was replaced while it was read", self.place)));
        }
        let proven = lease::look_once(&self.kernel.inner, |view| self.prove(point, view))?;
        proven.map_err(|why| refused(format!("the snapshot was changed while it was read: {why}")))
    }

    /// A volume that is in use is read at one moment: through a private snapshot that goes with the content.
    fn content(self: Arc<Self>, volume: &Volume) -> Result<Box<dyn Content>, Failed> {
        let inner = Arc::clone(&self.kernel.inner);
        match volume.kind {
            Kind::Head => Ok(Box::new(self.open_head(volume)?)),
            Kind::Volume => {
                let mut taken = self.take_candidates(&[&volume.name])?;
                let moment = taken.pop().ok_or_else(|| stale(&volume.name))?;
                let candidate = Candidate::new(self, moment.clone());
                Ok(Box::new(SnapshotContent::open(&inner, &moment, Some(candidate))?))
            }
            _ => Ok(Box::new(SnapshotContent::open(&inner, volume, None)?)),
        }
    }
}

impl LvmPool {
    /// For people who look at what LVM has.
    fn retag(&self, of: &Volume, was: &Role, is: &Role) -> Result<(), Failed> {
        let own = self.own.lock().get(&of.uuid).cloned().ok_or_else(|| stale(&of.name))?;
        let (was, is, path) = (name::tags(was), name::tags(is), self.place.path(&own.name));
        let mut words = vec!["lvchange"];
        words.extend(was.iter().filter(|tag| !is.contains(tag)).flat_map(|tag| ["--deltag", tag]));
        words.extend(is.iter().filter(|tag| !was.contains(tag)).flat_map(|tag| ["--addtag", tag]));
        words.push(&path);
        Ok(command::change(&words)?)
    }
}

/// A device of the pool that LVM does not know.
fn unnamed(device: DeviceId) -> Volume {
    Volume {
        name: format!("#{device}"),
        uuid: Uuid::nil(),
        device,
        size_bytes: 0,
        created_at_ms: 0,
        kind: Kind::Unknown,
        read_only: true,
        origin: None,
    }
}

fn unserved(what: &str) -> Failed {
    Failed::new(FailureKind::Usage, what)
}

fn not_one_moment(hint: &str) -> Failed {
    let message = "LVM takes one snapshot after the other: several volumes cannot be of one moment";
    Failed::new(FailureKind::Refused, message).with_hint(hint)
}

fn one_at_a_time() -> Failed {
    unserved("several generations cannot be restored together to a pool of LVM by this version")
        .with_hint("restore one of them, or all to an embedded pool")
}
