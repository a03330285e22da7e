//! Bitmaps of space maps: two bits for each block.

use super::checksum::BlockKind;
use super::error::MetadataError;
use super::raw_block::{BLOCK_BYTES, BlockBytes, RawBlock};

/// Bytes before the entries: checksum, an unused word, own location.
const HEADER_BYTES: usize = 16;

/// Blocks that one bitmap covers.
pub const ENTRIES_PER_BITMAP: u64 = (BLOCK_BYTES - HEADER_BYTES) as u64 * 4;

/// A count as two bits can tell it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RawCount {
    /// 0, 1 or 2 references.
    Exact(u32),
    /// 3 or more; the number is in the overflow tree.
    Many,
}

impl RawCount {
    /// The two bits for a count.
    #[must_use]
    pub const fn from_count(count: u32) -> Self {
        if count < 3 { Self::Exact(count) } else { Self::Many }
    }

    /// The low-numbered bit holds the high bit of the count.
    const fn from_bits(bits: u8) -> Self {
        match bits & 3 {
            0 => Self::Exact(0),
            2 => Self::Exact(1),
            1 => Self::Exact(2),
            _ => Self::Many,
        }
    }

    const fn bits(self) -> u8 {
        match self {
            Self::Exact(0) => 0,
            Self::Exact(1) => 2,
            Self::Exact(2) => 1,
            Self::Exact(_) | Self::Many => 3,
        }
    }
}

/// A verified bitmap.
#[derive(Clone, Debug)]
pub struct Bitmap {
    bytes: Box<BlockBytes>,
}

impl Bitmap {
    /// A bitmap in which every count is zero.
    #[must_use]
    pub fn empty() -> Self {
        Self { bytes: Box::new([0; BLOCK_BYTES]) }
    }

    /// The bitmap in a block that was read.
    ///
    /// # Errors
    /// A wrong checksum or location.
    pub fn verify(raw: RawBlock) -> Result<Self, MetadataError> {
        Ok(Self { bytes: raw.verify(BlockKind::Bitmap)? })
    }

    /// The count of entry `entry`; beyond the last entry nothing is counted.
    #[must_use]
    pub fn get(&self, entry: u64) -> RawCount {
        get(&self.bytes, entry)
    }

    /// Changes an entry below [`ENTRIES_PER_BITMAP`].
    pub fn set(&mut self, entry: u64, count: RawCount) {
        set(&mut self.bytes, entry, count);
    }

    /// The first entry in `begin..end` with count zero.
    #[must_use]
    pub fn find_zero(&self, begin: u64, end: u64) -> Option<u64> {
        find_zero(&self.bytes, begin, end)
    }

    pub(crate) fn bytes_mut(&mut self) -> &mut BlockBytes {
        &mut self.bytes
    }

    /// The bytes, without checksum and location.
    #[must_use]
    pub fn bytes(&self) -> &BlockBytes {
        &self.bytes
    }
}

fn position(entry: u64) -> Option<(usize, u32)> {
    let byte = usize::try_from(entry / 4).ok()? + HEADER_BYTES;
    Some((byte, (entry % 4) as u32 * 2))
}

/// The count of an entry in the bytes of a bitmap.
fn get(bytes: &BlockBytes, entry: u64) -> RawCount {
    let bits = position(entry).and_then(|(byte, shift)| Some(bytes.get(byte)? >> shift));
    RawCount::from_bits(bits.unwrap_or(0))
}

/// Changes an entry in the bytes of a bitmap.
fn set(bytes: &mut BlockBytes, entry: u64, count: RawCount) {
    if let Some((byte, shift)) = position(entry)
        && let Some(byte) = bytes.get_mut(byte)
    {
        *byte = *byte & !(3 << shift) | count.bits() << shift;
    }
}

/// The first entry in `begin..end` with count zero.
fn find_zero(bytes: &BlockBytes, begin: u64, end: u64) -> Option<u64> {
    let end = end.min(ENTRIES_PER_BITMAP);
    let mut entry = begin;
    while entry < end {
        if entry.is_multiple_of(4) && entry + 4 <= end {
            let (byte, _) = position(entry)?;
            let byte = *bytes.get(byte)?;
            // A byte has a zero entry unless each of its four pairs has a bit.
            if (byte | byte >> 1) & 0x55 == 0x55 {
                entry += 4;
                continue;
            }
        }
        if get(bytes, entry) == RawCount::Exact(0) {
            return Some(entry);
        }
        entry += 1;
    }
    None
}
