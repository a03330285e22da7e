//! Checksums: the raw CRC-32C register over all of a block but the checksum itself, salted by the block's kind.

use std::fmt;

use super::raw_block::BlockBytes;

/// What a metadata block is. The kind is known from where a block is referenced and proven by its checksum's salt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum BlockKind {
    /// The superblock, or the copy of it that a metadata snapshot is.
    Superblock,
    /// A B-tree node.
    Node,
    /// A bitmap of a space map.
    Bitmap,
    /// The index of the metadata space map.
    Index,
}

impl BlockKind {
    /// The word that is mixed into the checksum.
    #[must_use]
    pub const fn salt(self) -> u32 {
        match self {
            Self::Superblock => 160_774,
            Self::Node => 121_107,
            Self::Bitmap => 240_779,
            Self::Index => 160_478,
        }
    }
}

impl fmt::Display for BlockKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Superblock => "superblock",
            Self::Node => "B-tree node",
            Self::Bitmap => "space map bitmap",
            Self::Index => "metadata index",
        })
    }
}

/// The checksum that a block of this kind must carry at offset 0.
#[must_use]
pub fn checksum(bytes: &BlockBytes, kind: BlockKind) -> u32 {
    let covered = bytes.split_at(4).1;
    !crc32c::crc32c(covered) ^ kind.salt()
}
