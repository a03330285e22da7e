//! Volumes and snapshots of a kernel pool.
//!
//! Nobody tells a thin-pool how large its devices are and what they are called. A volume that was made elsewhere is taken in
//! under the name of its active device the first time that it is asked for by it; the size is that of the active device's
//! table from then on, and stays as it was last seen when it is not active.

use std::collections::HashMap;

use thinbak_engine::{
    DeviceId, Kind, Role, Volume,
    embedded::{check_snapshot_name, check_volume_name},
    format::SECTOR_BYTES,
};
use thinbak_proto::{Failed, FailureKind};

use super::{
    KernelPool,
    book::{Contents, Entry},
    snapshots::Wanted,
    survey::Active,
};

impl KernelPool {
    /// All but private devices, with their mapped bytes.
    pub(super) fn list_volumes(&self) -> Result<Vec<(Volume, u64)>, Failed> {
        let found = self.survey()?;
        let actives = self.inner.actives()?;
        let names: HashMap<DeviceId, &Active> =
            actives.iter().map(|active| (active.line.device, active)).collect();
        let book = self.inner.book.lock();
        let block_bytes = self.inner.block_bytes();
        let mut listed: Vec<_> = found
            .values()
            .map(|info| {
                let volume = match book.contents().by_device(info.id) {
                    Some(entry) => book.contents().to_volume(entry),
                    None => unknown(info.id, names.get(&info.id).copied()),
                };
                (volume, info.details.mapped_blocks.saturating_mul(block_bytes))
            })
            .filter(|(volume, _)| !volume.kind.is_private())
            .collect();
        listed.sort_by_key(|(volume, _)| volume.device.get());
        Ok(listed)
    }

    /// The volume of this name, taken in if an active device has it.
    pub(super) fn find_volume(&self, wanted: &str) -> Result<Volume, Failed> {
        let actives = self.inner.actives()?;
        let known = self.inner.book.lock().contents().volume(wanted).cloned();
        if let Some(entry) = known {
            refuse_other(&entry, wanted, &actives)?;
            let active = actives.iter().find(|active| active.line.device == entry.device);
            return self.seen(entry, active);
        }
        let active = actives.iter().find(|active| active.name == wanted);
        match active {
            Some(active) => self.take_in(active),
            None => Err(self.no_volume(wanted)),
        }
    }

    fn no_volume(&self, wanted: &str) -> Failed {
        let name = &self.inner.name;
        Failed::new(FailureKind::NotFound, format!("there is no volume `{wanted}` in pool {name}"))
            .with_hint(format!(
                "thinbak volume list dm:{name} shows what is there; a volume made with dmsetup has the name of its active device"
            ))
    }

    /// A known volume with the size that it has now.
    fn seen(&self, entry: Entry, active: Option<&Active>) -> Result<Volume, Failed> {
        let size_bytes =
            active.map_or(entry.size_bytes, |active| active.sectors.saturating_mul(SECTOR_BYTES));
        if let Some(active) = active {
            refuse_unserved(active)?;
        }
        let entry = Entry { size_bytes, ..entry };
        self.inner.book.lock().change(|book| {
            book.put(entry.clone());
            Ok(book.to_volume(&entry))
        })
    }

    fn take_in(&self, active: &Active) -> Result<Volume, Failed> {
        refuse_unserved(active)?;
        let device = active.line.device;
        let name = active.name.clone();
        check_volume_name(&name).map_err(|error| {
            Failed::new(
                FailureKind::Usage,
                format!("device `{name}` cannot be a volume of that name: {error}"),
            )
        })?;
        let size_bytes = active.sectors.saturating_mul(SECTOR_BYTES);
        let new = self.inner.new_entry(size_bytes, Role::Volume { name }, 0)?;
        self.inner.book.lock().change(|book| {
            if let Some(other) = book.by_device(device) {
                let known = book.to_volume(other).name;
                let message = format!("device {} has id {device}, which is `{known}`", active.name);
                return Err(Failed::new(FailureKind::NotFound, message)
                    .with_hint(format!("name it {}/{known}", self.inner.name)));
            }
            let entry = Entry { device, ..new };
            book.put(entry.clone());
            Ok(book.to_volume(&entry))
        })
    }

    pub(super) fn find_snapshot(&self, volume: &str, snapshot: &str) -> Result<Volume, Failed> {
        let of = self.find_volume(volume)?;
        let wanted = format!("{}@{snapshot}", of.name);
        let book = self.inner.book.lock();
        let shown = book.contents().devices.iter().map(|entry| book.contents().to_volume(entry));
        let mut snapshots =
            shown.filter(|volume| matches!(volume.kind, Kind::Snapshot { .. } | Kind::Base { .. }));
        snapshots
            .find(|volume| volume.name == wanted)
            .ok_or_else(|| Failed::new(FailureKind::NotFound, format!("there is no snapshot `{wanted}`")))
    }

    /// Makes an empty device that only we know of, under an id that no device has.
    pub(super) fn make_empty(&self, size_bytes: u64) -> Result<Entry, Failed> {
        let found = self.survey()?;
        let clock = self.inner.clock(0)?;
        let entry = loop {
            let entry = self.inner.new_entry(size_bytes, Role::Head, clock)?;
            if !found.contains_key(&entry.device) {
                break entry;
            }
        };
        self.inner.book.lock().change(|book| {
            book.put(entry.clone());
            Ok(())
        })?;
        let made = self.inner.mapper.message(&self.inner.name, &format!("create_thin {}", entry.device));
        if let Err(error) = made {
            self.inner.book.lock().change(|book| {
                book.forget(entry.device);
                Ok(())
            })?;
            return Err(error.into());
        }
        Ok(entry)
    }

    pub(super) fn make_volume(&self, name: &str, size_bytes: u64) -> Result<Volume, Failed> {
        check_new_name(name)?;
        let block = self.inner.block_bytes();
        if size_bytes == 0 || !size_bytes.is_multiple_of(block) {
            let message = format!("{size_bytes} bytes is no size for this: it must be a multiple of {block}");
            return Err(Failed::new(FailureKind::Usage, message));
        }
        refuse_taken(self.inner.book.lock().contents(), name)?;
        let head = self.make_head(size_bytes, None)?;
        self.publish_all(&head, name, &[])
    }

    /// Takes snapshots and gives them their names.
    pub(super) fn snapshot_volumes(&self, snapshots: &[(&str, &str)]) -> Result<Vec<Volume>, Failed> {
        let mut roles = Vec::with_capacity(snapshots.len());
        for &(volume, name) in snapshots {
            check_snapshot_name(name)
                .map_err(|error| Failed::new(FailureKind::Usage, format!("`{name}` is no name: {error}")))?;
            let of = self.find_volume(volume)?;
            let role = Role::Snapshot { of: of.uuid, name: name.to_owned() };
            let book = self.inner.book.lock();
            if roles.iter().any(|(_, other)| *other == role)
                || book.contents().devices.iter().any(|entry| entry.role == role)
            {
                return Err(Failed::new(FailureKind::Refused, format!("`{volume}@{name}` exists already")));
            }
            drop(book);
            roles.push((of, role));
        }
        let taken = self.take_of(roles.iter().map(|(of, _)| of))?;
        self.inner.book.lock().change(|book| {
            let mut named = Vec::with_capacity(taken.len());
            for (taken, (_, role)) in taken.iter().zip(roles) {
                let entry = book.by_device(taken.device).cloned().ok_or_else(|| stale(&taken.name))?;
                let entry = Entry { role, ..entry };
                book.put(entry.clone());
                named.push(book.to_volume(&entry));
            }
            Ok(named)
        })
    }

    /// Takes candidates of volumes, of one moment.
    pub(super) fn take_of<'a>(
        &self,
        origins: impl Iterator<Item = &'a Volume>,
    ) -> Result<Vec<Volume>, Failed> {
        let origins: Vec<&Volume> = origins.collect();
        let clock = self.inner.clock(origins.len())?;
        let mut wanted: Vec<Wanted> = Vec::with_capacity(origins.len());
        for origin in origins {
            let role = Role::Candidate { of: origin.uuid };
            // A snapshot advances the clock, and is as young as that.
            let entry = self.inner.new_entry(origin.size_bytes, role, clock.saturating_add(1))?;
            wanted.push(Wanted { origin: origin.device, entry });
        }
        self.inner.take(&wanted)
    }

    pub(super) fn remove_one(&self, name: &str) -> Result<(), Failed> {
        // What is not that device any more is forgotten, not removed.
        self.survey()?;
        let volume = self.find_volume(name)?;
        let devices: Vec<DeviceId> = {
            let book = self.inner.book.lock();
            let of = |role: &Role| match role {
                Role::Snapshot { of, .. } => Some((*of, true)),
                Role::Base { of, .. } => Some((*of, false)),
                _ => None,
            };
            let devices = &book.contents().devices;
            let belonging = devices.iter().filter_map(|entry| of(&entry.role).map(|of| (entry.device, of)));
            let belonging: Vec<_> = belonging.filter(|(_, (of, _))| *of == volume.uuid).collect();
            let snapshots = belonging.iter().filter(|(_, (_, is_snapshot))| *is_snapshot).count();
            if snapshots > 0 {
                let message = format!("volume `{name}` has {snapshots} snapshots");
                return Err(
                    Failed::new(FailureKind::Refused, message).with_hint("remove the snapshots first")
                );
            }
            belonging.iter().map(|(device, _)| *device).chain([volume.device]).collect()
        };
        self.inner.remove(&devices)
    }

    pub(super) fn resize_one(&self, name: &str, size_bytes: u64) -> Result<Volume, Failed> {
        let volume = self.find_volume(name)?;
        if let Some(active) = self.inner.active(volume.device)? {
            let message = format!("`{name}` is active: its size is that of the table of {}", active.name);
            return Err(Failed::new(FailureKind::Usage, message)
                .with_hint(format!("load a longer table with: dmsetup reload {}", active.name)));
        }
        if size_bytes == 0 || !size_bytes.is_multiple_of(self.inner.block_bytes()) {
            let message = format!("{size_bytes} bytes is no multiple of the pool's blocks");
            return Err(Failed::new(FailureKind::Usage, message));
        }
        self.inner.book.lock().change(|book| {
            let entry = book.by_device(volume.device).cloned().ok_or_else(|| stale(name))?;
            let entry = Entry { size_bytes, ..entry };
            book.put(entry.clone());
            Ok(book.to_volume(&entry))
        })
    }
}

/// A device that nobody has named: its size is known while it is active.
fn unknown(device: DeviceId, active: Option<&Active>) -> Volume {
    Volume {
        name: format!("#{device}"),
        uuid: uuid::Uuid::nil(),
        device,
        size_bytes: active.map_or(0, |active| active.sectors.saturating_mul(SECTOR_BYTES)),
        created_at_ms: 0,
        kind: Kind::Unknown,
        read_only: true,
        origin: None,
    }
}

/// Refuses a name that another device goes by than the one that was registered under it.
fn refuse_other(entry: &Entry, wanted: &str, actives: &[Active]) -> Result<(), Failed> {
    let mut named = actives.iter().filter(|active| active.name == wanted).map(|active| active.line.device);
    let Some(other) = named.find(|device| *device != entry.device) else { return Ok(()) };
    let registered = entry.device;
    let message = format!(
        "`{wanted}` is registered as device {registered}, but the active device of that name is {other}"
    );
    Err(Failed::new(FailureKind::Refused, message)
        .with_hint(format!("if it is another volume, give it another name: dmsetup rename {wanted} NAME")))
}

fn refuse_unserved(active: &Active) -> Result<(), Failed> {
    if !active.is_whole {
        let message = format!("{} has several targets, which this version does not read", active.name);
        return Err(Failed::new(FailureKind::Refused, message)
            .with_hint("a volume is an active device whose table is one thin target"));
    }
    if !active.line.has_origin {
        return Ok(());
    }
    let message = format!("{} lies over an external origin, which this version does not read", active.name);
    Err(Failed::new(FailureKind::Refused, message)
        .with_hint("volumes over external origins are served in embedded pools only"))
}

pub(super) fn check_new_name(name: &str) -> Result<(), Failed> {
    check_volume_name(name)
        .map_err(|error| Failed::new(FailureKind::Usage, format!("`{name}` is no name: {error}")))
}

pub(super) fn refuse_taken(book: &Contents, name: &str) -> Result<(), Failed> {
    match book.volume(name) {
        Some(_) => Err(Failed::new(FailureKind::Refused, format!("`{name}` exists already"))),
        None => Ok(()),
    }
}

pub(super) fn stale(name: &str) -> Failed {
    Failed::new(FailureKind::NotFound, format!("`{name}` is no longer there: it was removed or replaced"))
}
