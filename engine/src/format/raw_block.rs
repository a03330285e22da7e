//! A metadata block as it was read: nothing is known about it yet.

use crate::block_device::BlockDevice;

use super::checksum::{BlockKind, checksum};
use super::error::MetadataError;
use super::units::MetadataBlock;
use super::{get_u32, get_u64, put};

/// Bytes of a metadata block.
pub const BLOCK_BYTES: usize = 4096;

/// The bytes of one metadata block.
pub type BlockBytes = [u8; BLOCK_BYTES];

/// A block that was read and not verified. Each kind's `verify` turns it into that kind.
#[derive(Debug)]
pub struct RawBlock {
    location: MetadataBlock,
    bytes: Box<BlockBytes>,
}

impl RawBlock {
    /// Reads one block.
    ///
    /// # Errors
    /// [`MetadataError::OutOfRange`] beyond the device, [`MetadataError::Io`] when the device fails.
    pub fn read(device: &dyn BlockDevice, location: MetadataBlock) -> Result<Self, MetadataError> {
        let blocks = device.size_bytes() / BLOCK_BYTES as u64;
        if location.0 >= blocks {
            return Err(MetadataError::OutOfRange { block: location, blocks });
        }
        let mut bytes = Box::new([0; BLOCK_BYTES]);
        device
            .read_at(location.0 * BLOCK_BYTES as u64, bytes.as_mut_slice())
            .map_err(|source| MetadataError::Io { action: "read", block: location, source })?;
        Ok(Self { location, bytes })
    }

    /// Wraps bytes that stand (or will stand) at `location`.
    #[must_use]
    pub fn new(location: MetadataBlock, bytes: Box<BlockBytes>) -> Self {
        Self { location, bytes }
    }

    /// Where the block was read.
    #[must_use]
    pub fn location(&self) -> MetadataBlock {
        self.location
    }

    /// The unverified bytes.
    #[must_use]
    pub fn bytes(&self) -> &BlockBytes {
        &self.bytes
    }

    /// Whether the checksum is that of a block of this kind.
    #[must_use]
    pub fn is_of(&self, kind: BlockKind) -> bool {
        checksum(&self.bytes, kind) == get_u32(self.bytes.as_slice(), 0)
    }

    /// The bytes, once checksum and own location are those of a block of this kind.
    ///
    /// # Errors
    /// [`MetadataError::Checksum`] or [`MetadataError::WrongLocation`].
    pub fn verify(self, kind: BlockKind) -> Result<Box<BlockBytes>, MetadataError> {
        let expected = checksum(&self.bytes, kind);
        let found = get_u32(self.bytes.as_slice(), 0);
        if expected != found {
            return Err(MetadataError::Checksum { block: self.location, kind, expected, found });
        }
        let own = get_u64(self.bytes.as_slice(), 8);
        if own != self.location.0 {
            return Err(MetadataError::WrongLocation { block: self.location, kind, found: own });
        }
        Ok(self.bytes)
    }
}

/// Writes location and checksum into a block that is complete otherwise.
pub(crate) fn seal(bytes: &mut BlockBytes, location: MetadataBlock, kind: BlockKind) {
    put(bytes, 8, &location.0.to_le_bytes());
    let sum = checksum(bytes, kind);
    put(bytes, 0, &sum.to_le_bytes());
}
