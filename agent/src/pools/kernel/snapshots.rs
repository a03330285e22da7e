//! Making and deleting thin devices.
//!
//! The origin of a snapshot must be suspended while it is taken, if it is active (`thin-provisioning.rst` of the kernel). All
//! origins of one call are suspended together, so that their snapshots are of one moment. While one is, nothing of ours is
//! started or read from a file, the memory is locked, and a second process resumes it if this one dies ([`Watchdog`]).

use std::sync::Arc;

use rand::Rng as _;
use rustix::io::Errno;
use thinbak_engine::{BlockDevice, DeviceId, MetadataBlock, PoolMode, Role, Volume, format::Superblock};
use thinbak_proto::{Failed, FailureKind};
use uuid::Uuid;

use super::{Inner, book::Entry, mapper::MapperError, resumers::Resumers, watchdog::Watchdog};
use crate::pools::{
    failure::of_view,
    guard::{CLOCK_LIMIT, CLOCK_WARNING},
    running::now_ms,
};

/// Ids of ours are drawn from the upper half: others count from 0.
const FIRST_ID: u32 = 1 << 23;

/// Whether an id is one that only we give, so that nobody else's device has it.
pub(super) fn is_drawn(device: DeviceId) -> bool {
    device.get() >= FIRST_ID
}

/// A snapshot to take: of what, and the private entry that it has until it is taken.
pub(super) struct Wanted {
    pub(super) origin: DeviceId,
    pub(super) entry: Entry,
}

impl Inner {
    /// A new entry, not in the registry yet.
    pub(super) fn new_entry(&self, size_bytes: u64, role: Role, not_before: u32) -> Result<Entry, Failed> {
        let book = self.book.lock();
        let mut random = rand::rng();
        // Few ids of so many are taken.
        for _ in 0..1000 {
            let id = random.random_range(FIRST_ID..=DeviceId::MAX);
            let device = DeviceId::new(id.into()).map_err(|_| self.no_ids())?;
            if book.contents().by_device(device).is_none() {
                let (uuid, created_at_ms) = (Uuid::new_v4(), now_ms());
                return Ok(Entry { device, uuid, size_bytes, created_at_ms, role, not_before, born: None });
            }
        }
        Err(self.no_ids())
    }

    pub(super) fn no_ids(&self) -> Failed {
        Failed::new(FailureKind::Failed, format!("pool {} has no device ids left", self.name))
    }

    /// The pool's snapshot clock, when as many snapshots may still be taken.
    pub(super) fn clock(&self, snapshots: usize) -> Result<u32, Failed> {
        let time = self.time()?;
        if u64::from(time).saturating_add(snapshots as u64) > CLOCK_LIMIT {
            let message = format!("pool {} has counted {time} snapshots of at most {CLOCK_LIMIT}", self.name);
            return Err(
                Failed::new(FailureKind::Refused, message).with_hint("migrate its volumes to a new pool")
            );
        }
        if u64::from(time) > CLOCK_WARNING {
            tracing::warn!(time, limit = CLOCK_LIMIT, "the pool's snapshot clock is getting near its end");
        }
        Ok(time)
    }

    /// The pool's snapshot clock.
    pub(super) fn time(&self) -> Result<u32, Failed> {
        time(self.metadata.as_ref())
    }

    /// Takes snapshots of one moment. Their entries are transient: what a crash leaves of them goes at the next open.
    pub(super) fn take(&self, wanted: &[Wanted]) -> Result<Vec<Volume>, Failed> {
        if self.writable_status()?.mode != PoolMode::Write {
            let message = format!("pool {} has no free data blocks: writes may be waiting in it", self.name);
            return Err(Failed::new(FailureKind::Failed, message).with_hint("make room in the pool first"));
        }
        let suspended = self.to_suspend(wanted)?;
        self.book.lock().change(|book| {
            wanted.iter().for_each(|one| book.put(one.entry.clone()));
            Ok(())
        })?;
        let mut made = Vec::with_capacity(wanted.len());
        let taken = self.while_suspended(&suspended, || {
            for Wanted { origin, entry } in wanted {
                self.mapper.message(&self.name, &format!("create_snap {} {origin}", entry.device))?;
                made.push(entry.device);
            }
            Ok(())
        });
        let taken = taken.and_then(|()| self.refuse_activated(wanted, &suspended));
        if let Err(failed) = taken {
            self.undo(wanted, &made);
            return Err(failed);
        }
        let book = self.book.lock();
        Ok(wanted.iter().map(|one| book.contents().to_volume(&one.entry)).collect())
    }

    /// The names of the active devices among the origins. One that is suspended is somebody else's business.
    fn to_suspend(&self, wanted: &[Wanted]) -> Result<Vec<String>, Failed> {
        let names = self.active_origins(wanted)?;
        names.iter().try_for_each(|name| self.refuse_in_hand(name))?;
        Ok(names)
    }

    fn active_origins(&self, wanted: &[Wanted]) -> Result<Vec<String>, Failed> {
        let is_wanted = |device| wanted.iter().any(|one| one.origin == device);
        let actives = self.actives()?.into_iter().filter(|active| is_wanted(active.line.device));
        let mut names: Vec<String> = actives.map(|active| active.name).collect();
        // A device may have several targets.
        names.dedup();
        Ok(names)
    }

    /// Refuses origins that became active after it was looked what must be suspended: they may have been written meanwhile.
    fn refuse_activated(&self, wanted: &[Wanted], suspended: &[String]) -> Result<(), Failed> {
        match self.active_origins(wanted)?.iter().find(|name| !suspended.contains(name)) {
            Some(name) => {
                let message = format!("snapshot of {name}: it became active while it was taken");
                Err(Failed::new(FailureKind::Busy, message).with_hint("run it again"))
            }
            None => Ok(()),
        }
    }

    /// Refuses a device that somebody has suspended, or has loaded a table for: a resume would put that in force.
    pub(super) fn refuse_in_hand(&self, name: &str) -> Result<(), Failed> {
        let Some(info) = self.mapper.info(name)? else { return Ok(()) };
        let (what, hint) = match (info.suspended, info.has_inactive_table) {
            (true, _) => ("it is suspended", format!("dmsetup resume {name}")),
            (_, true) => ("a new table is loaded for it", format!("dmsetup resume {name}, or clear {name}")),
            (false, false) => return Ok(()),
        };
        Err(Failed::new(FailureKind::Busy, format!("device {name}: {what}"))
            .with_hint(format!("if nobody works on it: {hint}")))
    }

    /// Does something while devices are suspended; whatever happens they are resumed.
    fn while_suspended(
        &self,
        names: &[String],
        work: impl FnOnce() -> Result<(), MapperError>,
    ) -> Result<(), Failed> {
        if names.is_empty() {
            return Ok(work()?);
        }
        let resumers = Resumers::start(Arc::clone(&self.mapper), names)?;
        let mut watchdog = Watchdog::start(names)?;
        let mut suspended = Vec::with_capacity(names.len());
        let done = self
            .suspend_all(names, &mut watchdog, &mut suspended)
            .and_then(|()| work().map_err(Failed::from));
        let held = names
            .iter()
            .all(|name| self.mapper.info(name).is_ok_and(|info| info.is_some_and(|info| info.suspended)));
        watchdog.resume(&resumers, &suspended)?;
        done?;
        if !held {
            return Err(too_slow(names, "they were resumed too early"));
        }
        Ok(())
    }

    /// Suspends devices, as long as there is somebody who resumes them if this process dies.
    fn suspend_all(
        &self,
        names: &[String],
        watchdog: &mut Watchdog,
        suspended: &mut Vec<String>,
    ) -> Result<(), Failed> {
        let guarded = |watchdog: &mut Watchdog| match watchdog.guards() {
            true => Ok(()),
            false => Err(too_slow(names, "they could not all be suspended in time")),
        };
        for name in names {
            guarded(watchdog)?;
            self.refuse_in_hand(name)?;
            self.mapper.suspend(name)?;
            suspended.push(name.clone());
        }
        guarded(watchdog)
    }

    /// Takes back what was made of snapshots; what was not made is not touched.
    fn undo(&self, wanted: &[Wanted], made: &[DeviceId]) {
        for Wanted { entry, .. } in wanted {
            let device = entry.device;
            let deleted = if made.contains(&device) { self.delete(device) } else { Ok(()) };
            let forgotten = deleted.and_then(|()| {
                self.book.lock().change(|book| {
                    book.forget(device);
                    Ok(())
                })
            });
            if let Err(error) = forgotten {
                tracing::warn!(pool = self.name, %device, %error, "a private device is left until the pool is opened again");
            }
        }
    }

    /// Deletes a device; one that is not there is no error.
    pub(super) fn delete(&self, device: DeviceId) -> Result<(), Failed> {
        self.roots.lock().remove(&device);
        match self.mapper.message(&self.name, &format!("delete {device}")) {
            Ok(()) => Ok(()),
            Err(error) if error.is(Errno::NODATA) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Removes devices for good: they are trash first, so that a crash leaves nothing half removed.
    pub(super) fn remove(&self, devices: &[DeviceId]) -> Result<(), Failed> {
        for device in devices {
            if let Some(active) = self.active(*device)? {
                let message = format!("device {device} is active as {}", active.name);
                return Err(Failed::new(FailureKind::Busy, message)
                    .with_hint(format!("if nobody uses it: dmsetup remove {}", active.name)));
            }
        }
        self.book.lock().change(|book| {
            devices.iter().try_for_each(|device| book.refuse_switching(*device))?;
            for device in devices {
                book.bases.retain(|base| base.point.device_id != *device);
                if let Some(entry) = book.by_device(*device).cloned() {
                    book.put(Entry { role: Role::Trash, ..entry });
                }
            }
            Ok(())
        })?;
        for device in devices {
            self.delete(*device)?;
        }
        self.book.lock().change(|book| {
            devices.iter().for_each(|device| book.forget(*device));
            Ok(())
        })
    }
}

/// The snapshot clock of a pool with these metadata.
pub(super) fn time(metadata: &dyn BlockDevice) -> Result<u32, Failed> {
    let live = Superblock::read(metadata, MetadataBlock::new(0));
    Ok(live.map_err(|error| of_view(error.into()))?.time)
}

fn too_slow(names: &[String], what: &str) -> Failed {
    Failed::new(FailureKind::Failed, format!("snapshot of {}: {what}", names.join(", ")))
        .with_hint("suspending took too long: run it again when the pool is less busy")
}
