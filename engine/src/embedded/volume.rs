//! Thin devices as a user of the pool sees them.

use uuid::Uuid;

use super::names::base_name;
use crate::format::DeviceId;
use crate::registry::{Entry, ExternalOrigin, Role, State};

/// A thin device of a pool, as it was when it was looked up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Volume {
    /// VOLUME, VOLUME@SNAP, or `#ID` for a device without a name.
    pub name: String,
    /// Its identity, kept when a volume's content is replaced. Nil for an unknown device.
    pub uuid: Uuid,
    /// Its id in the pool.
    pub device: DeviceId,
    /// Virtual size; 0 for an unknown device.
    pub size_bytes: u64,
    /// When it was made, unix time; 0 for an unknown device.
    pub created_at_ms: u64,
    /// What it is.
    pub kind: Kind,
    /// Whether writes are refused.
    pub read_only: bool,
    /// What is read where it maps nothing; zeroes without one.
    pub origin: Option<ExternalOrigin>,
}

/// What a thin device is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// A volume.
    Volume,
    /// A snapshot that a user asked for.
    Snapshot {
        /// The volume's name.
        of: String,
    },
    /// A snapshot that thinbak keeps as the base of the next backup.
    Base {
        /// The volume's name.
        of: String,
    },
    /// A private writable device of a running job.
    Head,
    /// A private read-only snapshot of a running job.
    Candidate,
    /// Deleted already; its space is being given back.
    Trash,
    /// In the pool, but not in the registry.
    Unknown,
}

impl Volume {
    /// The part of the name behind the `@`, if there is one.
    #[must_use]
    pub fn snapshot_name(&self) -> Option<&str> {
        self.name.split_once('@').map(|(_, snapshot)| snapshot)
    }

    /// A device that the registry does not know.
    pub(super) fn unknown(device: DeviceId) -> Self {
        Self {
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

    /// A device that the registry knows.
    pub(super) fn of(state: &State, entry: &Entry) -> Self {
        let name_of = |uuid: Uuid| match state.volume_by_uuid(uuid).map(|entry| &entry.role) {
            Some(Role::Volume { name }) => name.clone(),
            _ => String::new(),
        };
        let (name, kind) = match &entry.role {
            Role::Volume { name } => (name.clone(), Kind::Volume),
            Role::Snapshot { of, name } => {
                let of = name_of(*of);
                (format!("{of}@{name}"), Kind::Snapshot { of })
            }
            Role::Base { of, repository } => {
                let generation = state.bases.get(&(*repository, *of)).map_or(0, |base| base.generation);
                let of = name_of(*of);
                (format!("{of}@{}", base_name(*repository, generation)), Kind::Base { of })
            }
            Role::Head => (format!("#{}", entry.device), Kind::Head),
            Role::Trash => (format!("#{}", entry.device), Kind::Trash),
            Role::Candidate { of } => {
                (format!("{}@thinbak-candidate-{}", name_of(*of), entry.device), Kind::Candidate)
            }
        };
        Self {
            name,
            uuid: entry.uuid,
            device: entry.device,
            size_bytes: entry.size_bytes,
            created_at_ms: entry.created_at_ms,
            kind,
            read_only: entry.role.is_read_only(),
            origin: entry.origin.clone(),
        }
    }
}
