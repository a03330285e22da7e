//! What the registry knows, and the changes that its journal is made of.

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::point::Base;
use crate::format::{DeviceId, MetadataBlock};

/// A thin device that the registry knows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Entry {
    /// Its id in the pool.
    pub(crate) device: DeviceId,
    /// Random identity, never used again.
    pub(crate) uuid: Uuid,
    /// Virtual size. The pool's metadata does not hold it.
    pub(crate) size_bytes: u64,
    /// Unix time.
    pub(crate) created_at_ms: u64,
    /// What it is for.
    pub(crate) role: Role,
    /// What is read where it maps nothing; zeroes without one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) origin: Option<ExternalOrigin>,
}

/// A file or block device that a thin device was created over. It is read where the thin device maps nothing, and never
/// written.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExternalOrigin {
    /// Where it is; absolute.
    pub path: PathBuf,
    /// Its size in bytes when the thin device was created. No more of it is read: zeroes follow.
    pub size_bytes: u64,
}

/// What a thin device is for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// A volume under its name.
    Volume {
        /// Unique among the volumes.
        name: String,
    },
    /// A read-only snapshot that a user asked for.
    Snapshot {
        /// The volume's identity.
        of: Uuid,
        /// Unique among the snapshots of that volume.
        name: String,
    },
    /// The read-only snapshot that the next backup is compared with.
    Base {
        /// The volume's identity.
        of: Uuid,
        /// Where the backup went.
        repository: Uuid,
    },
    /// A private writable device of a running job.
    Head,
    /// A private read-only snapshot of a running job.
    Candidate {
        /// The volume's identity, or the head's.
        of: Uuid,
    },
    /// Deleted for everybody, but its mappings are still being given up.
    Trash,
}

impl Role {
    /// Whether it is removed when the process that made it is gone.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        matches!(self, Self::Head | Self::Candidate { .. } | Self::Trash)
    }

    /// Whether it must never be written.
    #[must_use]
    pub fn is_read_only(&self) -> bool {
        matches!(self, Self::Snapshot { .. } | Self::Base { .. } | Self::Candidate { .. } | Self::Trash)
    }
}

/// The metadata snapshot that thinbak reserved.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum HeldSnapshot {
    /// About to be reserved, or just reserved: the pool held none when this was recorded.
    Intended {
        /// Whether it is to outlive the process.
        keep: bool,
        /// The pool's transaction id.
        transaction_id: u64,
        /// The pool's clock.
        time: u32,
    },
    /// Reserved.
    Held {
        /// Whether it is to outlive the process.
        keep: bool,
        /// Where the copy of the superblock is.
        root: MetadataBlock,
        /// The copy's checksum.
        checksum: u32,
    },
}

/// One change of the registry.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Change {
    /// Adds the device, or replaces what was known of it.
    Put(Entry),
    /// Forgets the device; it is deleted in the pool.
    Remove(DeviceId),
    /// Records the base of its repository and volume in place of an older one.
    PutBase(Base),
    /// Forgets a base.
    RemoveBase {
        /// Where the backup went.
        repository: Uuid,
        /// The volume's identity.
        volume: Uuid,
    },
    /// Records what is known of the metadata snapshot.
    Msnap(Option<HeldSnapshot>),
}

/// Everything that the registry knows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct State {
    /// The pool's transaction id that this belongs to.
    pub(crate) transaction_id: u64,
    /// The least device id that was never given.
    pub(crate) next_device: u32,
    /// The devices by id. Changed by [`apply`](Self::apply) only, which keeps the index in step.
    pub(crate) devices: BTreeMap<DeviceId, Entry>,
    /// The bases by repository and volume.
    pub(crate) bases: BTreeMap<(Uuid, Uuid), Base>,
    /// The metadata snapshot that is ours, if any.
    pub(crate) msnap: Option<HeldSnapshot>,
    index: Index,
}

/// Where a device is found by what is known of it, so that no operation looks through all devices.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Index {
    /// Volumes by name.
    volumes: HashMap<String, DeviceId>,
    /// Devices by identity.
    identities: HashMap<Uuid, DeviceId>,
    /// Snapshots by the volume's identity, then by name.
    snapshots: HashMap<Uuid, HashMap<String, DeviceId>>,
    /// Snapshots of bases by volume and repository.
    bases: BTreeMap<(Uuid, Uuid), DeviceId>,
}

impl Index {
    fn insert(&mut self, entry: &Entry) {
        let device = entry.device;
        self.identities.insert(entry.uuid, device);
        match &entry.role {
            Role::Volume { name } => {
                self.volumes.insert(name.clone(), device);
            }
            Role::Snapshot { of, name } => {
                self.snapshots.entry(*of).or_default().insert(name.clone(), device);
            }
            Role::Base { of, repository } => {
                self.bases.insert((*of, *repository), device);
            }
            Role::Head | Role::Candidate { .. } | Role::Trash => {}
        }
    }

    /// Takes out what points to the entry; what has come to point elsewhere stays.
    fn remove(&mut self, entry: &Entry) {
        let device = entry.device;
        if self.identities.get(&entry.uuid) == Some(&device) {
            self.identities.remove(&entry.uuid);
        }
        match &entry.role {
            Role::Volume { name } if self.volumes.get(name) == Some(&device) => {
                self.volumes.remove(name);
            }
            Role::Snapshot { of, name } => {
                if let Some(snapshots) = self.snapshots.get_mut(of) {
                    if snapshots.get(name) == Some(&device) {
                        snapshots.remove(name);
                    }
                    if snapshots.is_empty() {
                        self.snapshots.remove(of);
                    }
                }
            }
            Role::Base { of, repository } if self.bases.get(&(*of, *repository)) == Some(&device) => {
                self.bases.remove(&(*of, *repository));
            }
            _ => {}
        }
    }
}

impl State {
    /// That of a pool without devices.
    pub(crate) fn new(transaction_id: u64) -> Self {
        Self {
            transaction_id,
            next_device: 0,
            devices: BTreeMap::new(),
            bases: BTreeMap::new(),
            msnap: None,
            index: Index::default(),
        }
    }

    /// Applies changes in their order.
    pub(crate) fn apply(&mut self, changes: &[Change]) {
        for change in changes {
            match change {
                Change::Put(entry) => self.put(entry.clone()),
                Change::Remove(device) => {
                    if let Some(former) = self.devices.remove(device) {
                        self.index.remove(&former);
                    }
                }
                Change::PutBase(base) => {
                    self.bases.insert((base.repository, base.volume), base.clone());
                }
                Change::RemoveBase { repository, volume } => {
                    self.bases.remove(&(*repository, *volume));
                }
                Change::Msnap(held) => self.msnap = *held,
            }
        }
    }

    fn put(&mut self, entry: Entry) {
        self.note_id(entry.device);
        if let Some(former) = self.devices.get(&entry.device) {
            self.index.remove(former);
        }
        self.index.insert(&entry);
        self.devices.insert(entry.device, entry);
    }

    /// Makes sure that an id is not given again.
    pub(crate) fn note_id(&mut self, device: DeviceId) {
        self.next_device = self.next_device.max(device.get().saturating_add(1));
    }

    /// The volume of this name.
    pub(crate) fn volume(&self, wanted: &str) -> Option<&Entry> {
        self.devices.get(self.index.volumes.get(wanted)?)
    }

    /// The device of this identity.
    pub(crate) fn by_identity(&self, uuid: Uuid) -> Option<&Entry> {
        self.devices.get(self.index.identities.get(&uuid)?)
    }

    /// The volume of this identity.
    pub(crate) fn volume_by_uuid(&self, uuid: Uuid) -> Option<&Entry> {
        self.by_identity(uuid).filter(|entry| matches!(entry.role, Role::Volume { .. }))
    }

    /// The snapshot of this name of the volume of this identity; bases apart.
    pub(crate) fn snapshot(&self, of: Uuid, name: &str) -> Option<&Entry> {
        self.devices.get(self.index.snapshots.get(&of)?.get(name)?)
    }

    /// How many snapshots the volume of this identity has, bases not counted.
    pub(crate) fn snapshot_count(&self, of: Uuid) -> usize {
        self.index.snapshots.get(&of).map_or(0, HashMap::len)
    }

    /// The snapshot of the base of a volume for a repository.
    pub(crate) fn base_snapshot(&self, of: Uuid, repository: Uuid) -> Option<&Entry> {
        self.devices.get(self.index.bases.get(&(of, repository))?)
    }

    /// The snapshots of all bases of a volume.
    pub(crate) fn base_snapshots(&self, of: Uuid) -> impl Iterator<Item = &Entry> {
        let found = self.index.bases.range((of, Uuid::nil())..=(of, Uuid::max()));
        found.filter_map(|(_, device)| self.devices.get(device))
    }
}

/// [`State`] as one line of the journal holds it.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct StoredState {
    transaction_id: u64,
    next_device: u32,
    devices: Vec<Entry>,
    bases: Vec<Base>,
    msnap: Option<HeldSnapshot>,
}

impl From<&State> for StoredState {
    fn from(state: &State) -> Self {
        Self {
            transaction_id: state.transaction_id,
            next_device: state.next_device,
            devices: state.devices.values().cloned().collect(),
            bases: state.bases.values().cloned().collect(),
            msnap: state.msnap,
        }
    }
}

impl From<StoredState> for State {
    fn from(stored: StoredState) -> Self {
        let mut state = Self::new(stored.transaction_id);
        stored.devices.into_iter().for_each(|entry| state.put(entry));
        state.next_device = state.next_device.max(stored.next_device);
        state.bases = stored.bases.into_iter().map(|base| ((base.repository, base.volume), base)).collect();
        state.msnap = stored.msnap;
        state
    }
}
