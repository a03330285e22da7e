//! The dm-thin metadata format, version 2: what one 4 KiB block of the metadata device can be.
//!
//! All integers are little endian. Every block begins with a CRC-32C (salted by the block's kind), a word of flags and
//! its own location; [`RawBlock`] is a block that was read and not yet verified, and each kind's type is a block that was.
//!
//! | kind | type | found through |
//! |---|---|---|
//! | superblock | [`Superblock`] | block 0; the metadata snapshot's copy through `held_root` |
//! | B-tree node | [`Node`] | superblock roots, other nodes |
//! | space map bitmap | [`Bitmap`] | index entries |
//! | metadata index | [`MetadataIndex`] | the superblock's metadata space map root |

mod bitmap;
mod checksum;
mod device_details;
mod error;
mod index;
mod mapping;
mod node;
mod raw_block;
mod superblock;
mod units;

pub use self::bitmap::{Bitmap, ENTRIES_PER_BITMAP, RawCount};
pub use self::checksum::{BlockKind, checksum};
pub use self::device_details::{DeviceDetails, DeviceInfo};
pub use self::error::{MetadataError, NodeProblem, SuperblockProblem};
pub use self::index::{INDEX_SLOTS, IndexEntry, MAX_METADATA_BLOCKS, MetadataIndex, WARN_METADATA_BYTES};
pub use self::mapping::{MAX_TIME, MappedBlock};
pub use self::node::{Node, NodeValue, max_entries};
pub(crate) use self::raw_block::seal;
pub use self::raw_block::{BLOCK_BYTES, BlockBytes, RawBlock};
pub use self::superblock::{MAGIC, SpaceMapRoot, Superblock, VERSION};
pub use self::units::{
    BlockSize, DataBlock, DeviceId, InvalidBlockSize, InvalidDeviceId, MetadataBlock, SECTOR_BYTES,
    VirtualBlock,
};

/// The little-endian u32 at `offset`, zero beyond the end.
fn get_u32(bytes: &[u8], offset: usize) -> u32 {
    bytes.get(offset..).and_then(|tail| tail.first_chunk()).map_or(0, |chunk| u32::from_le_bytes(*chunk))
}

/// The little-endian u64 at `offset`, zero beyond the end.
fn get_u64(bytes: &[u8], offset: usize) -> u64 {
    bytes.get(offset..).and_then(|tail| tail.first_chunk()).map_or(0, |chunk| u64::from_le_bytes(*chunk))
}

/// Stores bytes at `offset`; `offset` is a constant of the layout, inside the block.
fn put(bytes: &mut [u8], offset: usize, value: &[u8]) {
    if let Some(target) = bytes.get_mut(offset..offset + value.len()) {
        target.copy_from_slice(value);
    }
}

#[cfg(test)]
mod tests;
