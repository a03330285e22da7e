//! What is in the pool, and what of the registry is not any more.

use std::collections::HashMap;

use thinbak_engine::{DeviceId, DeviceInfo};
use thinbak_proto::Failed;

use super::{KernelPool, book::Entry, lease, mapper::MapperError, text::ThinLine};
use crate::pools::failure::of_view;

/// An active device of the pool.
#[derive(Debug, Clone)]
pub(super) struct Active {
    pub(super) name: String,
    pub(super) sectors: u64,
    pub(super) line: ThinLine,
}

impl super::Inner {
    /// The active devices of the pool.
    pub(super) fn actives(&self) -> Result<Vec<Active>, MapperError> {
        let mut actives = Vec::new();
        for (name, _) in self.mapper.devices()? {
            // One that went in between is not active.
            let Ok(targets) = self.mapper.table(&name) else { continue };
            let [(_, sectors, kind, line)] = targets.as_slice() else { continue };
            let line = ThinLine::parse(line).filter(|line| kind == "thin" && line.pool == self.found.number);
            if let Some(line) = line {
                actives.push(Active { name, sectors: *sectors, line });
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
                    _ if entry.role.is_transient() => {}
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
            if found.get(&device).is_some_and(|info| is_that_of(entry, info))
                && let Err(error) = self.inner.delete(device)
            {
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
fn is_that_of(entry: &Entry, info: &DeviceInfo) -> bool {
    let details = &info.details;
    match entry.born {
        Some(born) => born == (details.transaction_id, details.creation_time),
        None => details.creation_time >= entry.not_before,
    }
}
