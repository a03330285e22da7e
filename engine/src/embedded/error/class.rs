//! What kind of failure it is, and the way out of it.

use super::EmbeddedError;
use crate::metadata_view::ViewError;
use crate::pool::PoolError;
use crate::registry::RegistryError;

/// What kind of failure it is, for programs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorClass {
    /// The request makes no sense.
    Usage,
    /// Stored data is damaged.
    Damaged,
    /// Refused for safety.
    Refused,
    /// No such pool, volume or snapshot.
    NotFound,
    /// Held by somebody else.
    Busy,
    /// Anything else.
    Failed,
}

impl EmbeddedError {
    /// What kind of failure it is.
    #[must_use]
    pub fn class(&self) -> ErrorClass {
        match self {
            Self::Busy { .. } | Self::MsnapHeld { .. } | Self::MsnapInUse { .. } => ErrorClass::Busy,
            Self::NoPool { .. }
            | Self::NoSuchVolume { .. }
            | Self::NoSuchSnapshot { .. }
            | Self::NoSuchBase { .. }
            | Self::Stale { .. }
            | Self::OriginMissing { .. }
            | Self::NoMsnap => ErrorClass::NotFound,
            Self::Missing { .. }
            | Self::Description { .. }
            | Self::OtherBlockSize { .. }
            | Self::Metadata(_) => ErrorClass::Damaged,
            Self::Pool { source, .. } | Self::Message { source } => of_pool(source),
            Self::Registry(error) => match error {
                RegistryError::Undecided | RegistryError::Io { .. } | RegistryError::NewerFormat { .. } => {
                    ErrorClass::Failed
                }
                _ => ErrorClass::Damaged,
            },
            Self::PoolExists { .. }
            | Self::NotEmpty { .. }
            | Self::MetadataNotBlank { .. }
            | Self::Exists { .. }
            | Self::HasSnapshots { .. }
            | Self::OtherBase { .. }
            | Self::BaseNotProven(_)
            | Self::ReadOnly { .. }
            | Self::ClockExhausted { .. }
            | Self::OtherMetadata { .. }
            | Self::DeviceMissing { .. }
            | Self::OriginShorter { .. }
            | Self::MessageRefused { .. } => ErrorClass::Refused,
            Self::DeviceSize { .. }
            | Self::SameDevice { .. }
            | Self::Size { .. }
            | Self::PoolShrink { .. }
            | Self::Name { .. }
            | Self::WrongKind { .. }
            | Self::OriginPath { .. }
            | Self::OutOfBounds { .. } => ErrorClass::Usage,
            Self::View(ViewError::NoMetadataSnapshot) => ErrorClass::NotFound,
            Self::View(_) => ErrorClass::Damaged,
            Self::NewerFormat { .. } | Self::IdsExhausted | Self::Origin { .. } | Self::Io { .. } => {
                ErrorClass::Failed
            }
        }
    }

    /// The way out, where there is one.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        Some(match self {
            Self::Size { next: Some(next), .. } => format!("{next} bytes would do"),
            Self::OtherMetadata { .. } | Self::DeviceMissing { .. } => {
                "put the pool's own metadata back: nothing was written".to_owned()
            }
            Self::OriginMissing { .. } | Self::OriginShorter { .. } => {
                "bring the origin back as it was; the other volumes of the pool are not concerned".to_owned()
            }
            Self::MessageRefused { .. } => {
                "thinbak volume create, snapshot and remove keep pool and registry in step".to_owned()
            }
            Self::Pool { source: PoolError::NoSpaceData { .. }, .. } => {
                "make room with: thinbak pool resize POOL --size SIZE".to_owned()
            }
            Self::Pool {
                source: PoolError::NoSpaceMetadata { .. } | PoolError::OutOfMetadataMode, ..
            } => "make room with: thinbak pool resize POOL --metadata-size SIZE".to_owned(),
            Self::Pool { source: PoolError::ReadOnlyMode { needs_check: false }, .. } => {
                "if it was made so: thinbak pool set POOL --permission rw".to_owned()
            }
            Self::HasSnapshots { .. } => "remove the snapshots first".to_owned(),
            Self::MetadataNotBlank { path } => {
                format!("if nothing on it is needed: dd if=/dev/zero of={} bs=4096 count=1", path.display())
            }
            Self::MsnapHeld { ours: false, .. } => {
                "if its owner is gone: thinbak msnap release --force".to_owned()
            }
            Self::Pool { source: PoolError::ReadOnlyMode { needs_check: true }, .. } => {
                "a write failed: see that the pool's files have room; it is checked when it is opened again"
                    .to_owned()
            }
            Self::MsnapHeld { ours: true, .. } => "let go of it with: thinbak msnap release".to_owned(),
            Self::NewerFormat { .. } | Self::Registry(RegistryError::NewerFormat { .. }) => {
                "use a newer thinbak".to_owned()
            }
            Self::Registry(RegistryError::Transaction { .. }) => {
                "pool and registry are not of one time: restore both from the same copy".to_owned()
            }
            _ => return None,
        })
    }
}

fn of_pool(error: &PoolError) -> ErrorClass {
    match error {
        PoolError::Metadata(_) | PoolError::DataTooSmall { .. } => ErrorClass::Damaged,
        PoolError::NoSuchDevice(_) | PoolError::NoMetadataSnap => ErrorClass::NotFound,
        PoolError::DeviceOpen(_) | PoolError::MetadataSnapHeld => ErrorClass::Busy,
        PoolError::DeviceExists(_)
        | PoolError::TimeExhausted
        | PoolError::DiscardsIgnored
        | PoolError::DiscardsFixed => ErrorClass::Refused,
        PoolError::InvalidMessage(_)
        | PoolError::InvalidDeviceId(_)
        | PoolError::UnknownFeature(_)
        | PoolError::InvalidTable(_)
        | PoolError::MetadataTooSmall { .. } => ErrorClass::Usage,
        _ => ErrorClass::Failed,
    }
}
