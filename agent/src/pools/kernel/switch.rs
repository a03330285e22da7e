//! Replacing a volume: its entry of the registry takes the device of a head.
//!
//! Where the volume is not active that is one change of the registry. Where it is, and nobody has it open, its table is
//! replaced by one with the head's device id, which the kernel puts in force as a whole:
//!
//! 1. The device is opened for nobody else, so that it cannot be mounted, and the registry says which device takes the place
//!    of which, and where the mapping tree of the one to be replaced begins.
//! 2. The new table is loaded, beside the one in force; it is looked once more that nobody else has the device open.
//! 3. It is put in force.
//! 4. The registry has the head's device under the volume's name; the one before is trash, and deleted then.
//!
//! What a crash leaves is decided at the next open. If the device of the head is active, 3 was done: 4 is done then. If the
//! former one is, 3 was not: a table that is loaded is cleared, the head goes. If neither is, the host may have been started
//! again after 3 or before it. Every block of the former device is shared with the head, so whoever wrote to it since 1 moved
//! the root of its tree: then that is what was in use, and the head goes; otherwise 4 is done. The private device by which the
//! head was written says nothing about it. There is one such intent at a time, and while it is there neither device is removed.

use std::{fs::File, os::unix::fs::OpenOptionsExt as _, sync::Arc, thread, time::Duration};

use rustix::{
    fs::{Advice, OFlags, fadvise},
    io::Errno,
};
use serde::{Deserialize, Serialize};
use thinbak_engine::{DeviceId, MetadataView, Role, Volume, format::SECTOR_BYTES};
use thinbak_proto::{Failed, FailureKind};
use uuid::Uuid;

use super::{
    Inner, KernelPool,
    book::{Contents, Entry},
    lease,
    mapper::{self, MapperError},
    survey::Active,
    volumes::stale,
};
use crate::pools::failure::of_view;

/// How often it is looked whether somebody who has a device open has closed it, and how long after each time.
const LOOKS: u32 = 10;
const BETWEEN_LOOKS: Duration = Duration::from_millis(100);

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

impl Contents {
    /// Notes an intent. There is one at a time: what another one was left for is not known any more once it is gone.
    fn begin_switch(&mut self, switch: Switch) -> Result<(), Failed> {
        if let Some(present) = self.switch {
            return Err(present.busy());
        }
        self.switch = Some(switch);
        Ok(())
    }

    /// Takes back this intent, and no other.
    fn end_switch(&mut self, switch: Switch) {
        if self.switch == Some(switch) {
            self.switch = None;
        }
    }

    /// Refuses a device that is about to replace another one, or to be replaced.
    pub(super) fn refuse_switching(&self, device: DeviceId) -> Result<(), Failed> {
        match self.switch {
            Some(switch) if [switch.from, switch.to].contains(&device) => Err(switch.busy()),
            _ => Ok(()),
        }
    }

    /// Whether the devices of an intent are what they were when it was noted.
    fn knows(&self, switch: Switch) -> bool {
        let volume = self.by_identity(switch.volume).is_some_and(|entry| entry.device == switch.from);
        volume && self.by_device(switch.to).is_some_and(|entry| entry.role == Role::Head)
    }
}

impl Switch {
    fn busy(&self) -> Failed {
        let message = format!("device {} is about to replace device {}", self.to, self.from);
        Failed::new(FailureKind::Busy, message)
            .with_hint("if no restore is at it, it is decided when the pool is opened again")
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
        let private = inner.private_name(device);
        let is_one = |active: &Active| active.line.device == device && active.name != private;
        let mut actives = inner.actives()?.into_iter().filter(is_one);
        let Some(active) = actives.next() else { return Ok(None) };
        let name = &active.name;
        if let Some(other) = actives.next() {
            let message = format!("replace {name}: {} is the same device {device}", other.name);
            return Err(Failed::new(FailureKind::Refused, message)
                .with_hint(format!("remove one of them: dmsetup remove {}", other.name)));
        }
        inner.refuse_in_hand(name)?;
        inner.refuse_opened(name, 0)?;
        Ok(Some(active))
    }

    /// Gives a volume the device and size of a head. The former device is deleted.
    pub(super) fn switch(&self, name: &str, head: &Volume) -> Result<Volume, Failed> {
        let inner = &self.inner;
        let _alone = inner.switching.lock();
        // One that could not be finished, or not be decided about when the pool was opened.
        self.recover_switch()?;
        let volume = self.find_volume(name)?;
        let switch = Switch {
            volume: volume.uuid,
            from: volume.device,
            to: head.device,
            root: inner.root_of(volume.device)?.ok_or_else(|| stale(name))?,
        };
        if let Some(active) = self.replaceable(volume.device)? {
            let held = inner.hold(&active.name)?;
            inner.book.lock().change(|book| book.begin_switch(switch))?;
            let done = inner.put_in_force(&active.name, head);
            // What is in force counts, not what was answered.
            let in_force = inner.is_in_force(switch.to);
            if !in_force? {
                let undone = inner.undo_switch(switch);
                inner.resume_left(&active.name);
                undone?;
                done?;
                let message = format!("replace {name}: its new table did not come into force");
                return Err(Failed::new(FailureKind::Failed, message));
            }
            if let Err(error) = done {
                tracing::warn!(pool = inner.name, device = active.name, %error, "the new table is in force all the same");
                inner.resume_left(&active.name);
            }
            // What was read of the former device meanwhile is not what is there now.
            if let Err(error) = fadvise(&held, 0, None, Advice::DontNeed) {
                tracing::warn!(pool = inner.name, device = active.name, %error, "the cache of the former content stays");
            }
            drop(held);
        }
        inner.finish_switch(switch)
    }

    /// Decides about a volume that a dead process was replacing.
    pub(super) fn recover_switch(&self) -> Result<(), Failed> {
        let inner = &self.inner;
        let Some(switch) = inner.book.lock().contents().switch else { return Ok(()) };
        let (from, to) = (switch.from, switch.to);
        if !inner.book.lock().contents().knows(switch) {
            tracing::warn!(pool = inner.name, %from, %to, "a volume that was being replaced, or what replaces it, is gone");
            return inner.undo_switch(switch);
        }
        let forward = match (inner.is_in_force(to)?, inner.is_in_force(from)?) {
            (true, _) => true,
            (false, true) => false,
            (false, false) => inner.root_of(from)?.is_none_or(|root| root == switch.root),
        };
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
    /// Whether a device is active, but for the one by which a head is written.
    fn is_in_force(&self, device: DeviceId) -> Result<bool, MapperError> {
        let private = self.private_name(device);
        Ok(self.actives()?.iter().any(|active| active.line.device == device && active.name != private))
    }

    /// Refuses a device that others have open. Who only looks at it, as udev does, is given a moment.
    fn refuse_opened(&self, name: &str, by_us: i32) -> Result<(), Failed> {
        for _ in 0..LOOKS {
            if self.mapper.info(name)?.is_none_or(|info| info.open_count <= by_us) {
                return Ok(());
            }
            thread::sleep(BETWEEN_LOOKS);
        }
        let times = self.mapper.info(name)?.map_or(0, |info| info.open_count) - by_us;
        if times <= 0 { Ok(()) } else { Err(opened(name, &format!("({times} times)"))) }
    }

    /// Keeps others from mounting a device or claiming it in another way, until this is dropped.
    fn hold(&self, name: &str) -> Result<File, Failed> {
        let failed = |error: std::io::Error| match Errno::from_io_error(&error) {
            Some(Errno::BUSY) => opened(name, "by somebody who lets nobody else"),
            _ => Failed::new(FailureKind::Failed, format!("replace {name}: open it: {error}")),
        };
        let info = self.mapper.info(name)?.ok_or_else(|| stale(name))?;
        let path = mapper::node(info.number).map_err(failed)?;
        let flags = OFlags::EXCL.bits().cast_signed();
        File::options().read(true).custom_flags(flags).open(path).map_err(failed)
    }

    /// Replaces the table of a device, which we alone have open, by one with the device of a head.
    fn put_in_force(&self, name: &str, head: &Volume) -> Result<(), Failed> {
        let sectors = head.size_bytes / SECTOR_BYTES;
        let target = (0, sectors, "thin".to_owned(), format!("{} {}", self.found.number, head.device));
        self.mapper.load(name, target)?;
        self.refuse_opened(name, 1)?;
        Ok(self.mapper.resume(name)?)
    }

    /// Resumes a device that was not suspended before its table was to be replaced.
    fn resume_left(&self, name: &str) {
        let resumed = match self.mapper.info(name) {
            Ok(Some(info)) if info.suspended => self.mapper.resume(name),
            Ok(_) => Ok(()),
            Err(error) => Err(error),
        };
        if let Err(error) = resumed {
            tracing::error!(pool = self.name, device = name, %error, "the device may have been left suspended: dmsetup resume resumes it");
        }
    }

    /// Leaves the former device in force; a table that was loaded for it goes.
    fn undo_switch(&self, switch: Switch) -> Result<(), Failed> {
        for active in self.actives()?.iter().filter(|active| active.line.device == switch.from) {
            if self.mapper.info(&active.name)?.is_some_and(|info| info.has_inactive_table) {
                self.mapper.clear(&active.name)?;
            }
            self.resume_left(&active.name);
        }
        self.book.lock().change(|book| {
            book.end_switch(switch);
            Ok(())
        })
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
    fn root_of(self: &Arc<Self>, device: DeviceId) -> Result<Option<(u64, u32)>, Failed> {
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

fn opened(name: &str, how: &str) -> Failed {
    Failed::new(FailureKind::Refused, format!("replace {name}: it is mounted or open {how}"))
        .with_hint("unmount it and close whatever has it, or restore to a new volume: --to POOL/VOLUME")
}

/// The volume has the head's device, its own is trash.
fn replace(book: &mut Contents, switch: Switch) -> Result<Volume, Failed> {
    book.end_switch(switch);
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

    fn entry(device: u64, role: Role, size_bytes: u64) -> Entry {
        Entry {
            device: DeviceId::new(device).unwrap(),
            uuid: Uuid::new_v4(),
            size_bytes,
            created_at_ms: device,
            role,
            not_before: 7,
            born: None,
        }
    }

    /// A registry with a volume and a head, and the intent to replace the one by the other.
    fn book() -> (Contents, Entry, Entry, Switch) {
        let volume = entry(0, Role::Volume { name: "v".to_owned() }, 1 << 20);
        let head = entry(9_000_000, Role::Head, 2 << 20);
        let mut book: Contents = serde_json::from_str(
            r#"{"format":1,"pool":"00000000-0000-0000-0000-000000000000","devices":[],"bases":[],"msnap":null}"#,
        )
        .unwrap();
        book.put(volume.clone());
        book.put(head.clone());
        let switch = Switch { volume: volume.uuid, from: volume.device, to: head.device, root: (1, 2) };
        (book, volume, head, switch)
    }

    #[test]
    fn the_volume_keeps_its_identity_and_takes_the_device_of_the_head() {
        let (mut book, volume, head, switch) = book();
        book.begin_switch(switch).unwrap();
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

    #[test]
    fn there_is_one_intent_at_a_time_and_what_is_done_to_another_volume_leaves_it() {
        let (mut book, volume, head, switch) = book();
        let other = entry(1, Role::Volume { name: "w".to_owned() }, 1 << 20);
        let other_head = entry(9_000_001, Role::Head, 1 << 20);
        book.put(other.clone());
        book.put(other_head.clone());
        let another = Switch { volume: other.uuid, from: other.device, to: other_head.device, root: (3, 4) };
        book.begin_switch(switch).unwrap();
        assert_eq!(book.begin_switch(another).unwrap_err().exit_code(), 11);
        assert_eq!(book.switch, Some(switch));
        // One that is not active is replaced without an intent.
        replace(&mut book, another).unwrap();
        assert_eq!(book.switch, Some(switch));
        for device in [volume.device, head.device] {
            assert_eq!(book.refuse_switching(device).unwrap_err().exit_code(), 11);
        }
        book.refuse_switching(other_head.device).unwrap();
        book.end_switch(another);
        assert!(book.knows(switch));
        book.end_switch(switch);
        book.refuse_switching(head.device).unwrap();
        book.forget(head.device);
        assert!(!book.knows(switch));
    }
}
