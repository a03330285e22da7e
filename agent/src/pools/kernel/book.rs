//! The registry of a device-mapper pool: names, sizes and identities of its devices, in a file of the state directory.
//!
//! The file is replaced as a whole (written beside, synced, renamed, the directory synced) before what it says is acted on.
//! The pool's transaction id is not ours and is never moved, so the file alone says what was begun:
//!
//! | what | is written before | and after | the next open |
//! |---|---|---|---|
//! | a new device | a transient entry under a random id that no device has | what it is for | deletes what is transient, if it is as young as the entry says |
//! | a removal | the entry becomes trash | the entry goes | deletes trash under ids that we drew, forgets other |
//! | a volume that is active and replaced | an intent, see [`switch`](super::switch) | the new device, the former is trash | does the rest, or forgets the intent |
//! | a metadata snapshot | an intent | root and checksum of the copy | releases what matches; an intent is reported, not guessed |
//! | its release | that it is being released | nothing is held | as an intent, if one is held |
//!
//! A device that others made has another id, or is older than the entry: it is left alone.

use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use thinbak_engine::{Base, DeviceId, Role, Volume};
use thinbak_proto::{Failed, FailureKind};
use uuid::Uuid;

use super::switch::Switch;

/// The version of the file that is written, and the newest that is understood.
const FORMAT: u32 = 1;

/// What the file holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Contents {
    format: u32,
    /// The pool's identity, made up when it was first opened.
    pub(super) pool: Uuid,
    pub(super) devices: Vec<Entry>,
    pub(super) bases: Vec<Base>,
    /// The metadata snapshot that is ours, if any.
    pub(super) msnap: Option<Msnap>,
    /// The volume that is being replaced, if one is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) switch: Option<Switch>,
}

#[derive(Deserialize)]
struct FormatOnly {
    format: u32,
}

/// A thin device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Entry {
    pub(super) device: DeviceId,
    pub(super) uuid: Uuid,
    pub(super) size_bytes: u64,
    pub(super) created_at_ms: u64,
    pub(super) role: Role,
    /// The pool's clock when it was made, at the least.
    pub(super) not_before: u32,
    /// Transaction id and clock at its creation, once they were seen.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) born: Option<(u64, u32)>,
}

/// The metadata snapshot, as far as it is ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Msnap {
    /// About to be reserved, or just reserved.
    Intended,
    /// Reserved: the metadata block and the checksum of the copied superblock.
    Held {
        /// Whether it is to outlive the process.
        keep: bool,
        root: u64,
        checksum: u32,
    },
    /// About to be released, or just released.
    Releasing,
}

impl Contents {
    pub(super) fn by_device(&self, device: DeviceId) -> Option<&Entry> {
        self.devices.iter().find(|entry| entry.device == device)
    }

    pub(super) fn by_identity(&self, uuid: Uuid) -> Option<&Entry> {
        self.devices.iter().find(|entry| entry.uuid == uuid)
    }

    pub(super) fn volume(&self, wanted: &str) -> Option<&Entry> {
        self.devices.iter().find(|entry| matches!(&entry.role, Role::Volume { name } if name == wanted))
    }

    pub(super) fn base(&self, repository: Uuid, volume: Uuid) -> Option<&Base> {
        self.bases.iter().find(|base| base.repository == repository && base.volume == volume)
    }

    /// Adds the entry, or replaces that of the same device.
    pub(super) fn put(&mut self, entry: Entry) {
        self.devices.retain(|present| present.device != entry.device);
        self.devices.push(entry);
        self.devices.sort_by_key(|entry| entry.device.get());
    }

    pub(super) fn put_base(&mut self, base: Base) {
        self.bases.retain(|present| (present.repository, present.volume) != (base.repository, base.volume));
        self.bases.push(base);
    }

    /// Forgets a device, and a base together with its record.
    pub(super) fn forget(&mut self, device: DeviceId) {
        self.devices.retain(|entry| entry.device != device);
        self.bases.retain(|base| base.point.device_id != device);
    }

    /// An entry as users of the pool see it.
    pub(super) fn to_volume(&self, entry: &Entry) -> Volume {
        let name_of = |uuid: Uuid| match self.by_identity(uuid).map(|entry| &entry.role) {
            Some(Role::Volume { name }) => name.clone(),
            _ => String::new(),
        };
        let generation_of =
            |repository, volume| self.base(repository, volume).map_or(0, |base| base.generation);
        let (name, kind) = entry.role.describe(entry.device, name_of, generation_of);
        Volume {
            name,
            uuid: entry.uuid,
            device: entry.device,
            size_bytes: entry.size_bytes,
            created_at_ms: entry.created_at_ms,
            kind,
            read_only: entry.role.is_read_only(),
            origin: None,
        }
    }
}

/// The file and what it says.
pub(super) struct Book {
    path: PathBuf,
    contents: Contents,
}

impl Book {
    /// Reads the file of a pool. One that is not there is that of a pool not seen before, and made with the first change.
    pub(super) fn open(path: PathBuf) -> Result<Self, Failed> {
        let contents = Self::read(&path)?.unwrap_or_else(|| Contents {
            format: FORMAT,
            pool: Uuid::new_v4(),
            devices: Vec::new(),
            bases: Vec::new(),
            msnap: None,
            switch: None,
        });
        Ok(Self { path, contents })
    }

    /// What the file of a pool says, if there is one.
    pub(super) fn read(path: &Path) -> Result<Option<Contents>, Failed> {
        let text = match fs::read(path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(io_failed("read", path, &error)),
        };
        let damaged = |error: serde_json::Error| {
            Failed::new(
                FailureKind::Damaged,
                format!("the registry {} of a pool is damaged: {error}", path.display()),
            )
            .with_hint(
                "without it the pool's devices have no names, and the next backups compare all content",
            )
        };
        let FormatOnly { format } = serde_json::from_slice(&text).map_err(damaged)?;
        if format > FORMAT {
            let message =
                format!("the registry {} of a pool has format {format}, newer than {FORMAT}", path.display());
            return Err(Failed::new(FailureKind::Failed, message).with_hint("use a newer thinbak"));
        }
        serde_json::from_slice(&text).map(Some).map_err(damaged)
    }

    pub(super) fn contents(&self) -> &Contents {
        &self.contents
    }

    /// Makes a change durable, or none. After a failure to write the file holds the old contents or the new ones: what is
    /// begun in it is transient in both.
    pub(super) fn change<T>(
        &mut self,
        change: impl FnOnce(&mut Contents) -> Result<T, Failed>,
    ) -> Result<T, Failed> {
        let mut contents = self.contents.clone();
        let result = change(&mut contents)?;
        if contents != self.contents || !self.path.exists() {
            self.replace(&contents).map_err(|error| io_failed("write", &self.path, &error))?;
            self.contents = contents;
        }
        Ok(result)
    }

    fn replace(&self, contents: &Contents) -> io::Result<()> {
        let folder = self.path.parent().unwrap_or(Path::new("/"));
        DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
        let new = self.path.with_extension("new");
        let mut text = serde_json::to_vec_pretty(contents)?;
        text.push(b'\n');
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&new)?;
        file.write_all(&text)?;
        file.sync_all()?;
        fs::rename(&new, &self.path)?;
        File::open(folder)?.sync_all()
    }
}

fn io_failed(attempt: &str, path: &Path, error: &io::Error) -> Failed {
    let kind = match error.kind() {
        io::ErrorKind::PermissionDenied => FailureKind::Denied,
        _ => FailureKind::Failed,
    };
    Failed::new(kind, format!("{attempt} the registry {} of a pool: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(device: u64, role: Role) -> Entry {
        Entry {
            device: DeviceId::new(device).unwrap(),
            uuid: Uuid::new_v4(),
            size_bytes: 1 << 20,
            created_at_ms: 1,
            role,
            not_before: 0,
            born: None,
        }
    }

    #[test]
    fn what_was_changed_is_read_back_and_a_failed_change_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("dm/pool.json");
        let mut book = Book::open(path.clone()).unwrap();
        let volume = entry(7, Role::Volume { name: "v".to_owned() });
        let base = entry(9, Role::Snapshot { of: volume.uuid, name: "s".to_owned() });
        book.change(|contents| {
            contents.put(base.clone());
            contents.put(volume.clone());
            Ok(())
        })
        .unwrap();
        let refused = book.change(|contents| {
            contents.forget(volume.device);
            Err::<(), _>(Failed::new(FailureKind::Refused, "no"))
        });
        assert!(refused.is_err());
        let read = Book::open(path).unwrap();
        assert_eq!(read.contents(), book.contents());
        assert_eq!(read.contents().volume("v"), Some(&volume));
        assert_eq!(read.contents().to_volume(&base).name, "v@s");
        assert!(read.contents().to_volume(&base).read_only);
    }

    #[test]
    fn a_damaged_or_newer_registry_is_an_error_not_an_empty_one() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pool.json");
        fs::write(&path, b"{\"format\":1").unwrap();
        assert_eq!(Book::read(&path).unwrap_err().exit_code(), 4);
        fs::write(&path, b"{\"format\":2,\"anything\":[]}").unwrap();
        assert!(Book::read(&path).unwrap_err().message.contains("newer"));
    }
}
