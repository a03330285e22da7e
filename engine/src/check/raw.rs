//! Bytes of metadata blocks, decoded by the checker on its own: it must not share the mistakes of the code that
//! writes and reads pools.

use std::{io, ops::Deref};

use crate::BlockDevice;

/// Length of a metadata block in bytes.
pub(super) const BLOCK_LEN: usize = 4096;
/// A metadata device holds at most this many usable blocks: 255 bitmaps of 16,320 entries.
pub(super) const MAX_METADATA_BLOCKS: u64 = 255 * ENTRIES_PER_BITMAP;
/// A mapping has 40 bits for the data block.
pub(super) const MAX_DATA_BLOCKS: u64 = 1 << 40;
/// Counts in one bitmap block.
pub(super) const ENTRIES_PER_BITMAP: u64 = 16_320;
/// Length of the header of bitmap and index blocks.
pub(super) const BITMAP_HEADER_LEN: usize = 16;

const NODE_HEADER_LEN: usize = 32;
const KEY_LEN: usize = 8;
const INTERNAL: u32 = 1;
const LEAF: u32 = 2;

/// One metadata block.
pub(super) type Block = [u8; BLOCK_LEN];

/// What a block's checksum is mixed with, by kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Salt {
    Superblock,
    Node,
    Bitmap,
    Index,
}

impl Salt {
    const fn value(self) -> u32 {
        match self {
            Self::Superblock => 160_774,
            Self::Node => 121_107,
            Self::Bitmap => 240_779,
            Self::Index => 160_478,
        }
    }
}

/// Why a block is not what it has to be.
#[derive(Debug, thiserror::Error)]
pub(super) enum BlockFault {
    #[error("it cannot be read: {0}")]
    Unreadable(#[from] io::Error),
    #[error("its checksum is {found:#010x} where {expected:#010x} is due")]
    Checksum { expected: u32, found: u32 },
    #[error("it says that it is block {found}")]
    Location { found: u64 },
}

/// The u32 at `offset`; zero beyond the end.
pub(super) fn u32_at(bytes: &[u8], offset: usize) -> u32 {
    bytes.get(offset..).and_then(|rest| rest.first_chunk()).map_or(0, |chunk| u32::from_le_bytes(*chunk))
}

/// The u64 at `offset`; zero beyond the end.
pub(super) fn u64_at(bytes: &[u8], offset: usize) -> u64 {
    bytes.get(offset..).and_then(|rest| rest.first_chunk()).map_or(0, |chunk| u64::from_le_bytes(*chunk))
}

/// Reads block `number` and verifies its checksum and that it is where it says.
pub(super) fn read_block(
    device: &dyn BlockDevice,
    number: u64,
    salt: Salt,
) -> Result<Box<Block>, BlockFault> {
    let mut block = Box::new([0; BLOCK_LEN]);
    let offset = number.checked_mul(BLOCK_LEN as u64).ok_or_else(|| {
        io::Error::new(io::ErrorKind::UnexpectedEof, "the block number is beyond every device")
    })?;
    device.read_at(offset, block.as_mut_slice())?;
    verify(&block, number, salt)?;
    Ok(block)
}

/// Whether block `number` has its checksum and is where it says.
pub(super) fn verify(block: &Block, number: u64, salt: Salt) -> Result<(), BlockFault> {
    let found = u32_at(block, 0);
    let covered = block.get(4..).unwrap_or_default();
    let expected = !crc32c::crc32c(covered) ^ salt.value();
    if found != expected {
        return Err(BlockFault::Checksum { expected, found });
    }
    match u64_at(block, 8) {
        own if own == number => Ok(()),
        found => Err(BlockFault::Location { found }),
    }
}

/// Why a node is not well formed.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum NodeFault {
    #[error("node flags {0} are neither 1 (internal) nor 2 (leaf)")]
    Flags(u32),
    #[error("values of {found} bytes where {expected} are due")]
    ValueSize { expected: usize, found: u32 },
    #[error("room for {found} entries where {expected} is due")]
    MaxEntries { expected: usize, found: u32 },
    #[error("{found} entries where at most {max} fit")]
    TooMany { max: usize, found: u32 },
    #[error("an internal node without entries")]
    Empty,
    #[error("key {key} follows key {before}")]
    Order { before: u64, key: u64 },
}

/// Entries for which a node with values of this size has room.
pub(super) const fn max_entries(value_size: usize) -> usize {
    (BLOCK_LEN - NODE_HEADER_LEN) / (KEY_LEN + value_size) / 3 * 3
}

/// A well-formed node, in the bytes of its block.
pub(super) struct Node<B> {
    block: B,
    pub(super) internal: bool,
    /// How many keys and values it has.
    pub(super) len: usize,
    pub(super) max_entries: usize,
    value_size: usize,
}

impl<B: Deref<Target = Block>> Node<B> {
    /// Decodes a node of a tree whose leaves have values of `leaf_value_size` bytes.
    pub(super) fn decode(block: B, leaf_value_size: usize) -> Result<Self, NodeFault> {
        let bytes = block.as_slice();
        let internal = match u32_at(bytes, 4) {
            INTERNAL => true,
            LEAF => false,
            flags => return Err(NodeFault::Flags(flags)),
        };
        let value_size = if internal { 8 } else { leaf_value_size };
        let found = u32_at(bytes, 24);
        if usize::try_from(found) != Ok(value_size) {
            return Err(NodeFault::ValueSize { expected: value_size, found });
        }
        let max_entries = max_entries(value_size);
        let found = u32_at(bytes, 20);
        if usize::try_from(found) != Ok(max_entries) {
            return Err(NodeFault::MaxEntries { expected: max_entries, found });
        }
        let found = u32_at(bytes, 16);
        let len = match usize::try_from(found) {
            Ok(len) if len <= max_entries => len,
            _ => return Err(NodeFault::TooMany { max: max_entries, found }),
        };
        if internal && len == 0 {
            return Err(NodeFault::Empty);
        }
        let node = Self { block, internal, len, max_entries, value_size };
        let pairs = || node.keys().zip(node.keys().skip(1));
        // All are looked at, without a way out at each: that is what makes it fast.
        if pairs().fold(true, |ascending, (before, key)| ascending & (before < key)) {
            return Ok(node);
        }
        let wrong = pairs().find(|(before, key)| before >= key);
        let (before, key) = wrong.unwrap_or_default();
        Err(NodeFault::Order { before, key })
    }

    /// So many bytes from `begin` on, as words.
    fn words(&self, begin: usize, len: usize) -> &[[u8; 8]] {
        self.block.get(begin..begin + len).unwrap_or_default().as_chunks().0
    }

    fn values_begin(&self) -> usize {
        NODE_HEADER_LEN + self.max_entries * KEY_LEN
    }

    pub(super) fn keys(&self) -> impl DoubleEndedIterator<Item = u64> {
        self.words(NODE_HEADER_LEN, self.len * KEY_LEN).iter().map(|key| u64::from_le_bytes(*key))
    }

    /// First and last key; none of an empty leaf.
    pub(super) fn key_range(&self) -> Option<(u64, u64)> {
        self.keys().next().zip(self.keys().next_back())
    }

    /// The values of a node that has such of 8 bytes.
    pub(super) fn pointers(&self) -> impl Iterator<Item = u64> {
        self.words(self.values_begin(), self.len * 8).iter().map(|value| u64::from_le_bytes(*value))
    }

    /// Keys with their values, in order.
    pub(super) fn entries(&self) -> impl Iterator<Item = (u64, &[u8])> {
        let begin = self.values_begin();
        let values = self.block.get(begin..begin + self.len * self.value_size).unwrap_or_default();
        self.keys().zip(values.chunks_exact(self.value_size))
    }

    /// The children of an internal node: first key, last key, block. `last` is the last key of the node's own range.
    pub(super) fn children(&self, last: u64) -> impl Iterator<Item = (u64, u64, u64)> {
        let ends = self.keys().skip(1).map(|key| key.saturating_sub(1)).chain(std::iter::once(last));
        self.keys().zip(ends).zip(self.pointers()).map(|((first, end), block)| (first, end, block))
    }

    /// Whether a node that is no root has fewer entries than a third of its room.
    pub(super) fn under_full(&self) -> bool {
        self.len < self.max_entries / 3
    }
}
