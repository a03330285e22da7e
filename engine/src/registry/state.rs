//! What the registry knows, and the changes that its journal is made of.

use std::collections::BTreeMap;

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
}

/// What a thin device is for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Role {
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
        /// The volume's identity.
        of: Uuid,
    },
}

impl Role {
    /// Whether it is removed when the process that made it is gone.
    pub(crate) fn is_transient(&self) -> bool {
        matches!(self, Self::Head | Self::Candidate { .. })
    }

    /// Whether it must never be written.
    pub(crate) fn is_read_only(&self) -> bool {
        matches!(self, Self::Snapshot { .. } | Self::Base { .. } | Self::Candidate { .. })
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
    /// The devices by id.
    pub(crate) devices: BTreeMap<DeviceId, Entry>,
    /// The bases by repository and volume.
    pub(crate) bases: BTreeMap<(Uuid, Uuid), Base>,
    /// The metadata snapshot that is ours, if any.
    pub(crate) msnap: Option<HeldSnapshot>,
}

impl State {
    /// That of a pool without devices.
    pub(crate) fn new(transaction_id: u64) -> Self {
        Self { transaction_id, next_device: 0, devices: BTreeMap::new(), bases: BTreeMap::new(), msnap: None }
    }

    /// Applies changes in their order.
    pub(crate) fn apply(&mut self, changes: &[Change]) {
        for change in changes {
            match change {
                Change::Put(entry) => {
                    self.note_id(entry.device);
                    self.devices.insert(entry.device, entry.clone());
                }
                Change::Remove(device) => {
                    self.devices.remove(device);
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

    /// Makes sure that an id is not given again.
    pub(crate) fn note_id(&mut self, device: DeviceId) {
        self.next_device = self.next_device.max(device.get().saturating_add(1));
    }

    /// The volume of this name.
    pub(crate) fn volume(&self, wanted: &str) -> Option<&Entry> {
        self.devices.values().find(|entry| matches!(&entry.role, Role::Volume { name } if name == wanted))
    }

    /// The volume of this identity.
    pub(crate) fn volume_by_uuid(&self, uuid: Uuid) -> Option<&Entry> {
        self.devices.values().find(|entry| entry.uuid == uuid && matches!(entry.role, Role::Volume { .. }))
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
        Self {
            transaction_id: stored.transaction_id,
            next_device: stored.next_device,
            devices: stored.devices.into_iter().map(|entry| (entry.device, entry)).collect(),
            bases: stored.bases.into_iter().map(|base| ((base.repository, base.volume), base)).collect(),
            msnap: stored.msnap,
        }
    }
}
