//! What is written: every 256 bytes name the operation that wrote them, and where to.

use std::ops::Range;

use super::super::BLOCK;

/// The unit of the model: half a sector, so that there are writes of parts of sectors.
pub(crate) const GRANULE: u64 = 256;
/// Granules of a block.
pub(crate) const GRANULES: u64 = BLOCK / GRANULE;

fn word(granule: u64, stamp: u32) -> u64 {
    if stamp == 0 { 0 } else { u64::from(stamp) << 32 | granule }
}

/// The bytes of granules of a device, written by operation `stamp`. Stamp 0 is zeroes.
pub(crate) fn bytes(granules: Range<u64>, stamp: u32) -> Vec<u8> {
    let words = granules.flat_map(|granule| [word(granule, stamp); GRANULE as usize / 8]);
    words.flat_map(u64::to_le_bytes).collect()
}

/// The stamps of the granules of a block that was read as `bytes`.
pub(crate) fn stamps(block: u64, bytes: &[u8]) -> Result<[u32; GRANULES as usize], String> {
    let mut stamps = [0; GRANULES as usize];
    let (words, _) = bytes.as_chunks::<8>();
    for ((number, words), stamp) in (0..).zip(words.chunks_exact(GRANULE as usize / 8)).zip(&mut stamps) {
        let first = u64::from_le_bytes(words[0]);
        *stamp = (first >> 32) as u32;
        if words.iter().any(|other| *other != words[0]) || first != word(block * GRANULES + number, *stamp) {
            return Err(format!("block {block}, granule {number}: {first:#x} is not whole or not from here"));
        }
    }
    Ok(stamps)
}
