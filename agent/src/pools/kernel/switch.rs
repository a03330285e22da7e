//! Replacing a volume: its entry of the registry takes the device of a head.
//!
//! Where the volume is not active that is one change of the registry. Where it is, and nobody has it open, its table is
//! replaced by one with the head's device id, which the kernel puts in force as a whole:
//!
//! 1. The registry says which device takes the place of which, and where the mapping tree of the one to be replaced begins.
//! 2. The new table is loaded, beside the one in force.
//! 3. It is put in force.
//! 4. The registry has the head's device under the volume's name; the one before is trash, and deleted then.
//!
//! What a crash leaves is decided at the next open. If the device of the head is active, 3 was done: 4 is done then. If the
//! former one is, 3 was not: a table that is loaded is cleared, the head goes. If neither is, the host may have been started
//! again after 3 or before it. Every block of the former device is shared with the head, so whoever wrote to it since 1 moved
//! the root of its tree: then that is what was in use, and the head goes; otherwise 4 is done.

use serde::{Deserialize, Serialize};
use thinbak_engine::{DeviceId, MetadataView, Role, Volume, format::SECTOR_BYTES};
use thinbak_proto::{Failed, FailureKind};
use uuid::Uuid;

use super::{
    Inner, KernelPool,
    book::{Contents, Entry},
    lease,
    survey::Active,
    volumes::stale,
};
use crate::pools::failure::of_view;

/// That a volume is about to be replaced.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Switch {
    /// The volume's identity.
    volume: Uuid,
    /// Its device before.
    from: DeviceId,
    /// That of the head.
    to: DeviceId,
    /// The root of the mapping tree of `from`, and its checksum.
    root: (u64, u32),
}

impl Switch {
    /// Whether this device takes the place of another one.
    pub(super) fn is_to(&self, device: DeviceId) -> bool {
        self.to == device
    }
}

impl KernelPool {
    /// Refuses a volume that is open, or has more devices than one.
    pub(super) fn refuse_open(&self, volume: &Volume) -> Result<(), Failed> {
        self.replaceable(volume.device).map(|_| ())
    }

    /// The active device of a volume, if it has one, which nobody has open.
    fn replaceable(&self, device: DeviceId) -> Result<Option<Active>, Failed> {
        let inner = &self.inner;
        let mut actives = inner.actives()?.into_iter().filter(|active| active.line.device == device);
        let Some(active) = actives.next() else { return Ok(None) };
        let name = &active.name;
        if let Some(other) = actives.next() {
            let message = format!("replace {name}: {} is the same device {device}", other.name);
            return Err(Failed::new(FailureKind::Refused, message)
                .with_hint(format!("remove one of them: dmsetup remove {}", other.name)));
        }
        inner.refuse_in_hand(name)?;
        match inner.mapper.info(name)? {
            Some(info) if info.open_count > 0 => {
                let message = format!("replace {name}: it is mounted or open ({} times)", info.open_count);
                Err(Failed::new(FailureKind::Refused, message).with_hint(
                    "unmount it and close whatever has it, or restore to a new volume: --to POOL/VOLUME",
                ))
            }
            _ => Ok(Some(active)),
        }
    }

    /// Gives a volume the device and size of a head. The former device is deleted.
    pub(super) fn switch(&self, name: &str, head: &Volume) -> Result<Volume, Failed> {
        let volume = self.find_volume(name)?;
        let inner = &self.inner;
        let switch = Switch {
            volume: volume.uuid,
            from: volume.device,
            to: head.device,
            root: inner.root_of(volume.device)?.ok_or_else(|| stale(name))?,
        };
        if let Some(active) = self.replaceable(volume.device)? {
            inner.record_switch(Some(switch))?;
            let sectors = head.size_bytes / SECTOR_BYTES;
            let target = (0, sectors, "thin".to_owned(), format!("{} {}", inner.found.number, head.device));
            let loaded = inner.mapper.load(&active.name, target);
            let done = loaded.and_then(|()| inner.mapper.resume(&active.name));
            // What is in force counts, not what was answered.
            let private = inner.private_name(switch.to);
            let is_new = |other: &Active| other.line.device == switch.to && other.name != private;
            let in_force = inner.actives()?.iter().any(is_new);
            if !in_force {
                inner.undo_switch(switch)?;
                done?;
                let message = format!("replace {name}: its new table did not come into force");
                return Err(Failed::new(FailureKind::Failed, message));
            }
            if let Err(error) = done {
                tracing::warn!(pool = inner.name, device = active.name, %error, "the new table is in force all the same");
            }
        }
        inner.finish_switch(switch)
    }

    /// Decides about a volume that a dead process was replacing. Private devices are not active any more.
    pub(super) fn recover_switch(&self) -> Result<(), Failed> {
        let inner = &self.inner;
        let Some(switch) = inner.book.lock().contents().switch else { return Ok(()) };
        let actives = inner.actives()?;
        let is_active = |device| actives.iter().any(|active| active.line.device == device);
        let forward = match (is_active(switch.to), is_active(switch.from)) {
            (true, _) => true,
            (false, true) => false,
            (false, false) => inner.root_of(switch.from)?.is_none_or(|root| root == switch.root),
        };
        let (from, to) = (switch.from, switch.to);
        if forward {
            tracing::info!(pool = inner.name, %from, %to, "a volume is replaced that a dead process was replacing");
            inner.finish_switch(switch).map(|_| ())
        } else {
            tracing::info!(pool = inner.name, %from, %to, "a volume stays that a dead process was replacing");
            inner.undo_switch(switch)
        }
    }
}

impl Inner {
    fn record_switch(&self, switch: Option<Switch>) -> Result<(), Failed> {
        self.book.lock().change(|book| {
            book.switch = switch;
            Ok(())
        })
    }

    /// Leaves the former device in force; a table that was loaded for it goes.
    fn undo_switch(&self, switch: Switch) -> Result<(), Failed> {
        for active in self.actives()?.iter().filter(|active| active.line.device == switch.from) {
            if self.mapper.info(&active.name)?.is_some_and(|info| info.has_inactive_table) {
                self.mapper.clear(&active.name)?;
            }
        }
        self.record_switch(None)
    }

    fn finish_switch(&self, switch: Switch) -> Result<Volume, Failed> {
        let volume = self.book.lock().change(|book| replace(book, switch))?;
        let removed = self.delete(switch.from).and_then(|()| {
            self.book.lock().change(|book| {
                book.devices.retain(|entry| entry.device != switch.from);
                Ok(())
            })
        });
        if let Err(error) = removed {
            let device = switch.from;
            tracing::warn!(pool = self.name, %device, %error, "the device of a volume that was replaced is left");
        }
        self.roots.lock().remove(&switch.to);
        Ok(volume)
    }

    /// Where the mapping tree of a device begins now.
    fn root_of(self: &std::sync::Arc<Self>, device: DeviceId) -> Result<Option<(u64, u32)>, Failed> {
        let frozen = lease::reserve(self)?;
        let root = root_in(&frozen.view, device);
        frozen.release()?;
        root
    }
}

fn root_in(view: &MetadataView, device: DeviceId) -> Result<Option<(u64, u32)>, Failed> {
    let Some(info) = view.device(device).map_err(of_view)? else { return Ok(None) };
    let checksum = view.root_checksum(info.root).map_err(of_view)?;
    Ok(Some((info.root.0, checksum)))
}

/// The volume has the head's device, its own is trash.
fn replace(book: &mut Contents, switch: Switch) -> Result<Volume, Failed> {
    book.switch = None;
    let volume = book.by_identity(switch.volume).filter(|entry| entry.device == switch.from).cloned();
    let head = book.by_device(switch.to).filter(|entry| entry.role == Role::Head).cloned();
    let (Some(volume), Some(head)) = (volume, head) else {
        return Err(stale(&format!("#{}", switch.to)));
    };
    book.put(Entry { uuid: Uuid::new_v4(), role: Role::Trash, ..volume.clone() });
    let Entry { device, size_bytes, not_before, born, .. } = head;
    let entry = Entry { device, size_bytes, not_before, born, ..volume };
    book.put(entry.clone());
    Ok(book.to_volume(&entry))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_volume_keeps_its_identity_and_takes_the_device_of_the_head() {
        let entry = |device: u64, role, size_bytes| Entry {
            device: DeviceId::new(device).unwrap(),
            uuid: Uuid::new_v4(),
            size_bytes,
            created_at_ms: device,
            role,
            not_before: 7,
            born: None,
        };
        let volume = entry(0, Role::Volume { name: "v".to_owned() }, 1 << 20);
        let head = entry(9_000_000, Role::Head, 2 << 20);
        let mut book: Contents = serde_json::from_str(
            r#"{"format":1,"pool":"00000000-0000-0000-0000-000000000000","devices":[],"bases":[],"msnap":null}"#,
        )
        .unwrap();
        book.put(volume.clone());
        book.put(head.clone());
        let switch = Switch { volume: volume.uuid, from: volume.device, to: head.device, root: (1, 2) };
        book.switch = Some(switch);
        let replaced = replace(&mut book, switch).unwrap();
        assert_eq!(
            (replaced.device, replaced.size_bytes, replaced.uuid),
            (head.device, 2 << 20, volume.uuid)
        );
        assert_eq!(replaced.created_at_ms, 0);
        assert_eq!(book.by_device(volume.device).unwrap().role, Role::Trash);
        assert_eq!(book.switch, None);
        // Done once.
        assert!(replace(&mut book, switch).is_err());
    }
}
