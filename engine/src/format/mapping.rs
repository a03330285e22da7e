//! The value of a mapping tree's entry.

use super::get_u64;
use super::node::NodeValue;
use super::units::DataBlock;

/// The largest snapshot time that fits into a mapping.
pub const MAX_TIME: u32 = (1 << 24) - 1;

/// Where a virtual block's data is, and since when: 40 bits of data block above 24 bits of time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MappedBlock {
    /// The data block.
    pub data_block: DataBlock,
    /// The pool's snapshot time when the mapping was inserted.
    pub time: u32,
}

impl MappedBlock {
    /// From the stored word.
    #[must_use]
    pub const fn unpack(word: u64) -> Self {
        Self { data_block: DataBlock(word >> 24), time: (word & MAX_TIME as u64) as u32 }
    }

    /// The word to store.
    #[must_use]
    pub const fn pack(self) -> u64 {
        self.data_block.0 << 24 | (self.time & MAX_TIME) as u64
    }
}

impl NodeValue for MappedBlock {
    const SIZE: usize = 8;

    fn decode(bytes: &[u8]) -> Self {
        Self::unpack(get_u64(bytes, 0))
    }

    fn encode(&self, bytes: &mut [u8]) {
        super::put(bytes, 0, &self.pack().to_le_bytes());
    }
}
