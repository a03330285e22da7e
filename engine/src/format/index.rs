//! Index entries, and the index block of the metadata space map.

use super::bitmap::ENTRIES_PER_BITMAP;
use super::checksum::BlockKind;
use super::error::MetadataError;
use super::node::NodeValue;
use super::raw_block::{BLOCK_BYTES, BlockBytes, RawBlock};
use super::units::MetadataBlock;
use super::{get_u32, get_u64, put};

/// Index entries of the metadata space map.
pub const INDEX_SLOTS: usize = 255;

/// The largest metadata: 255 bitmaps, 15.875 GiB.
pub const MAX_METADATA_BLOCKS: u64 = INDEX_SLOTS as u64 * ENTRIES_PER_BITMAP;

/// Above this size of a metadata device the kernel warns that the excess is not used. What it uses ends below that.
pub const WARN_METADATA_BYTES: u64 = 16 << 30;

const HEADER_BYTES: usize = 16;

/// Where a bitmap is, and what is known about it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct IndexEntry {
    /// The bitmap's block.
    pub bitmap: MetadataBlock,
    /// Entries with count zero, counted over all slots of the bitmap, also those beyond the device.
    pub nr_free: u32,
    /// No entry below this one has count zero.
    pub none_free_before: u32,
}

impl NodeValue for IndexEntry {
    const SIZE: usize = 16;

    fn decode(bytes: &[u8]) -> Self {
        Self {
            bitmap: MetadataBlock(get_u64(bytes, 0)),
            nr_free: get_u32(bytes, 8),
            none_free_before: get_u32(bytes, 12),
        }
    }

    fn encode(&self, bytes: &mut [u8]) {
        put(bytes, 0, &self.bitmap.0.to_le_bytes());
        put(bytes, 8, &self.nr_free.to_le_bytes());
        put(bytes, 12, &self.none_free_before.to_le_bytes());
    }
}

/// The index of the metadata space map: one block, no tree, so that a change of it never needs a tree's allocations.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MetadataIndex {
    /// One entry for each bitmap, 255 at most.
    pub entries: Vec<IndexEntry>,
}

impl MetadataIndex {
    /// The index in a block that was read, with the entries for `nr_blocks` blocks.
    ///
    /// # Errors
    /// A wrong checksum or location; more blocks than an index has room for.
    pub fn verify(raw: RawBlock, nr_blocks: u64) -> Result<Self, MetadataError> {
        let block = raw.location();
        if nr_blocks > MAX_METADATA_BLOCKS {
            return Err(MetadataError::OutOfRange { block, blocks: MAX_METADATA_BLOCKS });
        }
        let bytes = raw.verify(BlockKind::Index)?;
        let used = usize::try_from(nr_blocks.div_ceil(ENTRIES_PER_BITMAP)).unwrap_or(INDEX_SLOTS);
        let slots = bytes.get(HEADER_BYTES..).unwrap_or_default().as_chunks::<16>().0;
        Ok(Self { entries: slots.iter().take(used).map(|slot| IndexEntry::decode(slot)).collect() })
    }

    /// The block, without checksum and location.
    #[must_use]
    pub fn encode(&self) -> Box<BlockBytes> {
        let mut bytes = Box::new([0; BLOCK_BYTES]);
        let slots = bytes.get_mut(HEADER_BYTES..).unwrap_or_default().as_chunks_mut::<16>().0;
        for (slot, entry) in slots.iter_mut().zip(&self.entries) {
            entry.encode(slot);
        }
        bytes
    }
}
