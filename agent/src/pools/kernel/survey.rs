//! What is in the pool, and what of the registry is not any more.

use std::collections::{HashMap, HashSet};

use rustix::io::Errno;
use thinbak_engine::{DeviceId, DeviceInfo};
use thinbak_proto::Failed;
use uuid::Uuid;

use super::{KernelPool, book::Entry, lease, mapper::MapperError, snapshots::is_drawn, text::ThinLine};
use crate::pools::failure::of_view;

/// An active device of the pool, or a part of one that has several targets.
#[derive(Debug, Clone)]
pub(super) struct Active {
    pub(super) name: String,
    pub(super) sectors: u64,
    pub(super) line: ThinLine,
    /// Whether this is all of the device.
    pub(super) is_whole: bool,
}

impl super::Inner {
    /// The active devices of the pool.
    pub(super) fn actives(&self) -> Result<Vec<Active>, MapperError> {
        let mut actives = Vec::new();
        for (name, _) in self.mapper.devices()? {
            let targets = match self.mapper.table(&name) {
                Ok(targets) => targets,
                // One that went in between is not active; of any other it must be known.
                Err(error) if error.is(Errno::NXIO) => continue,
                Err(error) => return Err(error),
            };
            let is_whole = targets.len() == 1;
            for (_, sectors, _, line) in targets.iter().filter(|(_, _, kind, _)| kind == "thin") {
                let line = ThinLine::parse(line).filter(|line| line.pool == self.found.number);
                if let Some(line) = line {
                    actives.push(Active { name: name.clone(), sectors: *sectors, line, is_whole });
                }
            }
        }
        Ok(actives)
    }

    /// The active device of this id.
    pub(super) fn active(&self, device: DeviceId) -> Result<Option<Active>, MapperError> {
        Ok(self.actives()?.into_iter().find(|active| active.line.device == device))
    }

    /// The name of a device that we activate for ourselves.
    pub(super) fn private_name(&self, device: DeviceId) -> String {
        format!("thinbak-{}-{}-{device}", self.found.number.major, self.found.number.minor)
    }
}

impl KernelPool {
    /// Looks at all devices of the pool. Entries of devices that are gone, or that others have made anew under the same id,
    /// are forgotten.
    pub(super) fn survey(&self) -> Result<HashMap<DeviceId, DeviceInfo>, Failed> {
        // What was made since then may not be in the view. What was private then may have been nothing but an intent.
        let known: HashSet<Uuid> = {
            let book = self.inner.book.lock();
            let devices = book.contents().devices.iter().filter(|entry| !entry.role.is_transient());
            devices.map(|entry| entry.uuid).collect()
        };
        let frozen = lease::reserve(&self.inner)?;
        let devices = frozen.view.devices().map_err(of_view)?;
        frozen.release()?;
        let found: HashMap<DeviceId, DeviceInfo> =
            devices.into_iter().map(|device| (device.id, device)).collect();
        self.inner.book.lock().change(|book| {
            let mut gone = Vec::new();
            for entry in &mut book.devices {
                match found.get(&entry.device) {
                    Some(info) if is_that_of(entry, info) => {
                        entry.born = Some((info.details.transaction_id, info.details.creation_time));
                    }
                    _ if entry.role.is_transient() || !known.contains(&entry.uuid) => {}
                    _ => gone.push((entry.device, entry.role.clone())),
                }
            }
            for (device, role) in gone {
                tracing::warn!(pool = self.inner.name, %device, ?role, "the device is gone, or another one has its id");
                book.forget(device);
            }
            Ok(())
        })?;
        Ok(found)
    }

    /// Clears away what a dead process left: the metadata snapshot, private devices, both active and in the pool.
    pub(super) fn recover(&self) -> Result<(), Failed> {
        let inner = &self.inner;
        inner.recover_msnap()?;
        let prefix = inner.private_name(DeviceId::new(0).map_err(|_| inner.no_ids())?);
        let prefix = prefix.trim_end_matches('0');
        // By name: one may have died before its device had a table.
        for (name, _) in inner.mapper.devices()?.iter().filter(|(name, _)| name.starts_with(prefix)) {
            if let Err(error) = inner.mapper.remove(name) {
                tracing::warn!(device = name, %error, "a private device of a dead process is left");
            }
        }
        // Before it is decided which volume is the right one, nothing private goes.
        if let Err(error) = self.recover_switch() {
            tracing::warn!(pool = inner.name, %error, "a volume that a dead process was replacing is left as it is");
            return Ok(());
        }
        let left: Vec<Entry> = {
            let book = inner.book.lock();
            book.contents().devices.iter().filter(|entry| entry.role.is_transient()).cloned().collect()
        };
        if left.is_empty() {
            return Ok(());
        }
        // Somebody who holds the metadata snapshot keeps us from looking, not from everything else.
        match self.survey() {
            Ok(found) => self.delete_left(&left, &found),
            Err(error) => {
                tracing::warn!(pool = inner.name, %error, "private devices of a dead process are left");
                Ok(())
            }
        }
    }

    fn delete_left(&self, left: &[Entry], found: &HashMap<DeviceId, DeviceInfo>) -> Result<(), Failed> {
        for entry in left {
            let device = entry.device;
            let is_there = found.get(&device).is_some_and(|info| is_that_of(entry, info));
            if is_there && !is_drawn(device) {
                // Such an id is given again by others: to a new device, which may look as this one did.
                tracing::warn!(pool = self.inner.name, %device, "a device that was being removed is left, and forgotten");
            } else if is_there && let Err(error) = self.inner.delete(device) {
                tracing::warn!(pool = self.inner.name, %device, %error, "a private device is left");
                continue;
            }
            self.inner.book.lock().change(|book| {
                book.forget(device);
                Ok(())
            })?;
        }
        Ok(())
    }
}

/// Whether a device of the pool is the one of an entry: made when that was seen to be made, or as late as it says.
pub(super) fn is_that_of(entry: &Entry, info: &DeviceInfo) -> bool {
    let details = &info.details;
    match entry.born {
        Some(born) => born == (details.transaction_id, details.creation_time),
        None => details.creation_time >= entry.not_before,
    }
}
