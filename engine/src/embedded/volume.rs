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
        let generation_of =
            |repository, volume| state.bases.get(&(repository, volume)).map_or(0, |base| base.generation);
        let (name, kind) = entry.role.describe(entry.device, name_of, generation_of);
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

impl Role {
    /// The name and kind under which users see a device of this role. `name_of` a volume, by its identity; `generation_of`
    /// the base of a repository (the first) and a volume.
    pub fn describe(
        &self,
        device: DeviceId,
        name_of: impl Fn(Uuid) -> String,
        generation_of: impl Fn(Uuid, Uuid) -> u64,
    ) -> (String, Kind) {
        match self {
            Self::Volume { name } => (name.clone(), Kind::Volume),
            Self::Snapshot { of, name } => {
                let of = name_of(*of);
                (format!("{of}@{name}"), Kind::Snapshot { of })
            }
            Self::Base { of, repository } => {
                let generation = generation_of(*repository, *of);
                let of = name_of(*of);
                (format!("{of}@{}", base_name(*repository, generation)), Kind::Base { of })
            }
            Self::Head => (format!("#{device}"), Kind::Head),
            Self::Candidate { of } => {
                (format!("{}@thinbak-candidate-{device}", name_of(*of)), Kind::Candidate)
            }
            Self::Trash => (format!("#{device}"), Kind::Trash),
        }
    }
}
