//! The pool's status, and the line the kernel prints of it.

use std::fmt;

use crate::format::{DeviceId, MetadataBlock};

use super::{Pool, PoolError, Result};

/// The metadata low watermark is at most this many blocks.
pub(super) const MAX_LOW_WATERMARK: u64 = 1024;

/// What a pool can do, from everything to nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum PoolMode {
    /// Everything.
    Write,
    /// All but providing new data blocks.
    OutOfDataSpace,
    /// Reading, writing where no metadata change is needed, and freeing. The kernel prints it as `ro` and takes no message.
    OutOfMetadataSpace,
    /// Reading, and writing where no metadata change is needed.
    ReadOnly,
    /// Nothing.
    Fail,
}

impl PoolMode {
    /// The mode's name; unlike what the kernel prints it is different for each.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Write => "write",
            Self::OutOfDataSpace => "out_of_data_space",
            Self::OutOfMetadataSpace => "out_of_metadata_space",
            Self::ReadOnly => "read_only",
            Self::Fail => "fail",
        }
    }
}

/// As the status line has it.
impl fmt::Display for PoolMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Write => "rw",
            Self::OutOfDataSpace => "out_of_data_space",
            Self::OutOfMetadataSpace | Self::ReadOnly => "ro",
            Self::Fail => "Fail",
        })
    }
}

/// What becomes of discards.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DiscardMode {
    /// They are refused.
    Ignore,
    /// They unmap blocks.
    NoPassdown,
    /// They unmap blocks and give the space back of those that nothing shares.
    Passdown,
}

impl fmt::Display for DiscardMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ignore => "ignore_discard",
            Self::NoPassdown => "no_discard_passdown",
            Self::Passdown => "discard_passdown",
        })
    }
}

/// A pool's status. Its `Display` is what the kernel prints after `thin-pool`, each field but the last followed by a space.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PoolStatus {
    /// The transaction id.
    pub transaction_id: u64,
    /// Metadata blocks in use as the kernel counts: its reserve is part of it.
    pub metadata_used: u64,
    /// Metadata blocks.
    pub metadata_total: u64,
    /// Data blocks in use.
    pub data_used: u64,
    /// Data blocks.
    pub data_total: u64,
    /// The metadata snapshot's superblock.
    pub held_root: Option<MetadataBlock>,
    /// What the pool can do.
    pub mode: PoolMode,
    /// What becomes of discards. Not passed down either when the data device cannot discard.
    pub discard: DiscardMode,
    /// A write without a free data block fails now: the table says so, or others have waited too long.
    pub error_if_no_space: bool,
    /// The metadata need a check.
    pub needs_check: bool,
    /// Free metadata blocks at which an event is raised.
    pub metadata_low_watermark: u64,
}

impl fmt::Display for PoolStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.mode == PoolMode::Fail {
            return f.write_str("Fail");
        }
        write!(f, "{} {}/{} ", self.transaction_id, self.metadata_used, self.metadata_total)?;
        write!(f, "{}/{} ", self.data_used, self.data_total)?;
        match self.held_root {
            Some(block) => write!(f, "{block} ")?,
            None => f.write_str("- ")?,
        }
        let needs_check = if self.needs_check { "needs_check" } else { "-" };
        let no_space = if self.error_if_no_space { "error_if_no_space" } else { "queue_if_no_space" };
        write!(f, "{} {} {no_space} {needs_check} ", self.mode, self.discard)?;
        write!(f, "{} ", self.metadata_low_watermark)
    }
}

impl Pool {
    /// The status now, with what the open transaction has changed.
    #[must_use]
    pub fn status(&self) -> PoolStatus {
        let state = self.state.read();
        let metadata = &state.metadata;
        let superblock = metadata.superblock();
        PoolStatus {
            transaction_id: superblock.transaction_id,
            metadata_used: metadata.metadata_blocks() - metadata.metadata_free(),
            metadata_total: metadata.metadata_blocks(),
            data_used: metadata.data().nr_allocated(),
            data_total: metadata.data().nr_blocks(),
            held_root: superblock.held_root,
            mode: state.mode,
            discard: match state.table.features {
                features if features.ignore_discard => DiscardMode::Ignore,
                features if features.no_discard_passdown => DiscardMode::NoPassdown,
                _ if !self.data_device.can_discard() => DiscardMode::NoPassdown,
                _ => DiscardMode::Passdown,
            },
            error_if_no_space: state.errors_if_no_space(),
            needs_check: superblock.needs_check,
            metadata_low_watermark: state.metadata_low_watermark(),
        }
    }

    /// What the kernel prints after `thin` for a device: mapped sectors, and the highest mapped sector or `-`.
    ///
    /// # Errors
    /// [`PoolError::NoSuchDevice`], damaged metadata.
    pub fn device_status(&self, id: DeviceId) -> Result<String> {
        let state = self.state.read();
        let device = state.metadata.device(id)?.ok_or(PoolError::NoSuchDevice(id))?;
        let sectors = u64::from(self.block_size.sectors());
        let mapped = device.details.mapped_blocks.saturating_mul(sectors);
        Ok(match state.metadata.highest_mapped(&device)? {
            Some(block) => format!("{mapped} {}", (block.0.saturating_add(1)).saturating_mul(sectors) - 1),
            None => format!("{mapped} -"),
        })
    }
}
