//! What a pool can refuse or fail at.

use std::io;

use rustix::io::Errno;
use thiserror::Error;

use crate::format::{BlockSize, DeviceId, InvalidDeviceId, MetadataError, SuperblockProblem};

/// An operation that a pool refused or could not complete.
#[derive(Debug, Error)]
pub enum PoolError {
    /// No free data block is left, also not after a commit.
    #[error("the pool has no free data block: {used} of {total} are in use")]
    NoSpaceData {
        /// Data blocks in use.
        used: u64,
        /// Data blocks there are.
        total: u64,
    },
    /// No free metadata block is left beyond the reserve, also not after a commit.
    #[error("the pool has no free metadata block: {used} of {total} are in use or reserved")]
    NoSpaceMetadata {
        /// Metadata blocks in use, the reserve included.
        used: u64,
        /// Metadata blocks there are.
        total: u64,
    },
    /// A device of this id exists already.
    #[error("thin device {0} exists already")]
    DeviceExists(DeviceId),
    /// No device has this id.
    #[error("there is no thin device {0}")]
    NoSuchDevice(DeviceId),
    /// A number above the largest device id.
    #[error(transparent)]
    InvalidDeviceId(#[from] InvalidDeviceId),
    /// The snapshot clock has run out: 2^24 - 1 snapshots were taken in this pool.
    #[error("no more snapshots: the pool's snapshot time is at its end")]
    TimeExhausted,
    /// The transaction id is another one.
    #[error("the transaction id is {found}, not {expected}")]
    WrongTransactionId {
        /// The caller's.
        expected: u64,
        /// The pool's.
        found: u64,
    },
    /// A message of unknown verb, wrong number of arguments, or a number that is none.
    #[error("not a message of a thin pool: `{0}`")]
    InvalidMessage(String),
    /// A metadata snapshot is held already.
    #[error("a metadata snapshot is held already")]
    MetadataSnapHeld,
    /// No metadata snapshot is held.
    #[error("no metadata snapshot is held")]
    NoMetadataSnap,
    /// The pool does not write: its metadata failed or needs a check.
    #[error("the pool is read-only{}", if *.needs_check { " and its metadata needs a check" } else { "" })]
    ReadOnlyMode {
        /// Whether a check has to come first.
        needs_check: bool,
    },
    /// The pool is out of metadata space, and takes no message until its metadata device grows.
    #[error("the pool is out of metadata space and takes no messages")]
    OutOfMetadataMode,
    /// The device is open.
    #[error("thin device {0} is in use")]
    DeviceOpen(DeviceId),
    /// The pool was opened with `ignore_discard`.
    #[error("the pool ignores discards")]
    DiscardsIgnored,
    /// Whether discards are ignored does not change while a pool is open.
    #[error("whether a pool ignores discards cannot be changed while it is open")]
    DiscardsFixed,
    /// A word that is no table feature.
    #[error("`{0}` is no feature of a thin pool")]
    UnknownFeature(String),
    /// Not the low water mark and the features of a pool's table.
    #[error("`{0}` is not a low water mark and table features")]
    InvalidTable(String),
    /// An empty device cannot be made a pool when nothing may be written.
    #[error("a pool that is to be read only cannot be formatted")]
    ReadOnlyFormat,
    /// The external origin failed.
    #[error("cannot read {length} bytes at offset {offset} of the external origin: {source}")]
    Origin {
        /// First byte.
        offset: u64,
        /// Bytes.
        length: u64,
        /// Why.
        source: io::Error,
    },
    /// The metadata could not even be reloaded after a failure; the pool must be reopened.
    #[error("the pool has failed: its metadata could not be reloaded")]
    Failed,
    /// The metadata device holds something already.
    #[error("the metadata device is not empty: its first block is not all zero")]
    NotBlank,
    /// The metadata device cannot hold a pool.
    #[error("a metadata device of {bytes} bytes is too small, {needed} bytes are the least")]
    MetadataTooSmall {
        /// Its size.
        bytes: u64,
        /// The least size.
        needed: u64,
    },
    /// The data device is shorter than the space map says.
    #[error("the data device has room for {found} blocks, the pool has {expected}")]
    DataTooSmall {
        /// Blocks in the space map.
        expected: u64,
        /// Blocks that fit the device.
        found: u64,
    },
    /// A transfer beyond what 64-bit offsets and 40-bit block numbers reach.
    #[error("{length} bytes at offset {offset} are beyond the reach of a thin device")]
    OutOfRange {
        /// First byte.
        offset: u64,
        /// Bytes.
        length: u64,
    },
    /// The data device has no room for a single block.
    #[error("the data device has no room for one block of {} bytes", .0.bytes())]
    NoDataBlock(BlockSize),
    /// Damaged or unreadable metadata.
    #[error(transparent)]
    Metadata(#[from] MetadataError),
    /// The data device failed.
    #[error("cannot {action} {length} bytes at offset {offset} of the data device: {source}")]
    Io {
        /// `read`, `write`, `flush` or `discard`.
        action: &'static str,
        /// First byte on the data device.
        offset: u64,
        /// Bytes.
        length: u64,
        /// Why.
        source: io::Error,
    },
}

impl PoolError {
    /// The error number with which the kernel answers in the same case; `None` where it has no such case.
    #[must_use]
    pub fn errno(&self) -> Option<Errno> {
        Some(match self {
            Self::NoSpaceData { .. } | Self::NoSpaceMetadata { .. } => Errno::NOSPC,
            Self::DeviceExists(_) => Errno::EXIST,
            Self::NoSuchDevice(_) => Errno::NODATA,
            Self::DeviceOpen(_) | Self::MetadataSnapHeld => Errno::BUSY,
            Self::InvalidDeviceId(_)
            | Self::WrongTransactionId { .. }
            | Self::InvalidMessage(_)
            | Self::NoMetadataSnap
            | Self::DiscardsFixed
            | Self::UnknownFeature(_)
            | Self::InvalidTable(_)
            | Self::DataTooSmall { .. } => Errno::INVAL,
            Self::ReadOnlyMode { .. } | Self::OutOfMetadataMode | Self::DiscardsIgnored | Self::Failed => {
                Errno::OPNOTSUPP
            }
            Self::ReadOnlyFormat => Errno::PERM,
            Self::Metadata(MetadataError::BadSuperblock {
                problem: SuperblockProblem::TooLarge { .. },
                ..
            }) => Errno::INVAL,
            Self::Metadata(MetadataError::WrongLocation { .. }) => Errno::NOTBLK,
            Self::Metadata(MetadataError::Checksum { .. } | MetadataError::BadSuperblock { .. }) => {
                Errno::ILSEQ
            }
            Self::Metadata(_) | Self::Io { .. } | Self::Origin { .. } => Errno::IO,
            Self::TimeExhausted
            | Self::NotBlank
            | Self::MetadataTooSmall { .. }
            | Self::OutOfRange { .. }
            | Self::NoDataBlock(_) => return None,
        })
    }
}
