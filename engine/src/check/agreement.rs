//! Whether a bitmap as a whole is what the counts say.

use super::{counts::Chunk, raw::ENTRIES_PER_BITMAP, space_maps::IndexEntry, tally::FIRST_LARGE_COUNT};

/// What a bitmap says of its blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Used {
    /// Blocks with a count.
    pub(super) blocks: u32,
    /// The first block without one.
    pub(super) first_free: Option<u32>,
}

/// Blocks in eight bytes of a bitmap.
const WORD_BLOCKS: usize = 32;
/// The first of the two bits of each of them.
const FIRST_BITS: u64 = 0x5555_5555_5555_5555;

/// What a full bitmap says, if it is exactly what the counts and the recorded large counts of its blocks demand. The
/// counts are not compared where there are none (the outer `None`), nor are large counts; the inner `None` stands for a
/// count of zero for all blocks.
pub(super) fn agreement(
    bits: &[u8],
    counts: Option<Option<&Chunk>>,
    large: Option<Option<&Chunk>>,
) -> Option<Used> {
    let counts_agree = match counts {
        None => true,
        Some(None) => words(bits).fold(0, |any, word| any | word) == 0,
        Some(Some(counts)) => {
            let (small, _) = counts.small().as_chunks();
            bits.iter().zip(small).fold(true, |agree, (byte, four)| agree & (*byte == coded(*four)))
        }
    };
    let large_agree = match (counts.flatten(), large) {
        (_, None) => true,
        // The bits agree with the counts already.
        (Some(counts), Some(Some(large))) => {
            let pairs = || counts.small().iter().zip(large.small());
            pairs().fold(true, |agree, (count, large)| agree & (in_tree(*count) == *large))
                && (0..)
                    .zip(pairs())
                    .all(|(slot, (count, _))| *count < u8::MAX || counts.get(slot) == large.get(slot))
        }
        (_, Some(large)) => large_where_bits_say(bits, large),
    };
    (counts_agree && large_agree).then(|| used(bits))
}

/// The bits of four blocks with these counts.
fn coded(counts: [u8; 4]) -> u8 {
    let codes = u32::from_le_bytes(counts.map(|count| count.min(3)));
    let swapped = (codes >> 1 & 0x0101_0101) | (codes & 0x0101_0101) << 1;
    let [byte, ..] = (swapped | swapped >> 6 | swapped >> 12 | swapped >> 18).to_le_bytes();
    byte
}

/// The count that the tree has of a block.
fn in_tree(count: u8) -> u8 {
    if u32::from(count) < FIRST_LARGE_COUNT { 0 } else { count }
}

fn large_where_bits_say(bits: &[u8], large: Option<&Chunk>) -> bool {
    let Some(large) = large else {
        return words(bits).fold(0, |any, word| any | word & word >> 1 & FIRST_BITS) == 0;
    };
    let (small, _) = large.small().as_chunks::<4>();
    bits.iter().zip(small).all(|(byte, four)| {
        (0..).step_by(2).zip(four).all(|(shift, large)| (byte >> shift & 3 == 3) == (*large != 0))
    })
}

fn words(bits: &[u8]) -> impl Iterator<Item = u64> {
    bits.as_chunks().0.iter().map(|word| u64::from_le_bytes(*word))
}

fn used(bits: &[u8]) -> Used {
    // A one for each block that has a count.
    let any = || words(bits).map(|word| (word | word >> 1) & FIRST_BITS);
    let blocks = any().map(u64::count_ones).sum();
    let first_free = (0_u32..).step_by(WORD_BLOCKS).zip(any()).find(|(_, any)| *any != FIRST_BITS);
    let first_free = first_free.map(|(first, any)| first + (!any & FIRST_BITS).trailing_zeros() / 2);
    Used { blocks, first_free }
}

impl IndexEntry {
    /// Whether the entry says the same of a full bitmap.
    pub(super) fn fits(&self, used: Used) -> bool {
        u64::from(self.free) + u64::from(used.blocks) == ENTRIES_PER_BITMAP
            && used.first_free.is_none_or(|first| self.none_free_before <= first)
    }
}

#[cfg(test)]
mod tests {
    use super::{Used, agreement, coded};
    use crate::check::{
        counts::Counts,
        raw::{BITMAP_HEADER_LEN, BLOCK_LEN},
    };

    /// Compares bits with the counts of some blocks.
    fn agrees(bits: &[u8], counted: &[(u64, u32)], recorded: &[(u64, u32)]) -> Option<Used> {
        let (counts, large) = (Counts::new(0..1), Counts::new(0..1));
        counted.iter().for_each(|(block, count)| counts.set(*block, *count));
        recorded.iter().for_each(|(block, count)| large.set(*block, *count));
        counts.with_chunk(0, |counts| large.with_chunk(0, |large| agreement(bits, Some(counts), Some(large))))
    }

    #[test]
    fn four_counts_are_coded_as_the_kernel_does() {
        assert_eq!(coded([2, 2, 2, 0]), 0x15);
        assert_eq!(coded([1, 0, 0, 0]), 0x02);
        assert_eq!(coded([3, 1, 0, 255]), 0b11_00_10_11);
    }

    #[test]
    fn only_exactly_the_counts_agree() {
        let mut bits = vec![0; BLOCK_LEN - BITMAP_HEADER_LEN];
        let empty = Some(Used { blocks: 0, first_free: Some(0) });
        assert_eq!(agrees(&bits, &[], &[]), empty);
        assert_eq!(agrees(&bits, &[(16_319, 1)], &[]), None);
        bits[0] = coded([1, 3, 2, 1]);
        bits[1] = coded([255, 0, 0, 0]);
        let counted = [(0, 1), (1, 3), (2, 2), (3, 1), (4, 1_000)];
        let right = Some(Used { blocks: 5, first_free: Some(5) });
        assert_eq!(agrees(&bits, &counted, &[(1, 3), (4, 1_000)]), right);
        for recorded in [
            &[][..],
            &[(1, 3)],
            &[(4, 1_000)],
            &[(1, 3), (4, 999)],
            &[(1, 4), (4, 1_000)],
            &[(1, 3), (4, 1_000), (9, 3)],
        ] {
            assert_eq!(agrees(&bits, &counted, recorded), None, "{recorded:?}");
        }
        assert_eq!(agrees(&bits, &[], &[]), None);
        bits.fill(coded([1; 4]));
        let all: Vec<_> = (0..16_320).map(|block| (block, 1)).collect();
        assert_eq!(agrees(&bits, &all, &[]), Some(Used { blocks: 16_320, first_free: None }));
        bits[4_079] = coded([1, 1, 1, 2]);
        assert_eq!(agrees(&bits, &all, &[]), None);
    }

    #[test]
    fn without_counts_the_tree_must_be_where_the_bits_say() {
        let mut bits = vec![0; BLOCK_LEN - BITMAP_HEADER_LEN];
        bits[0] = coded([1, 3, 2, 1]);
        let right = Some(Used { blocks: 4, first_free: Some(4) });
        assert_eq!(agreement(&bits, None, None), right);
        assert_eq!(agreement(&bits, None, Some(None)), None);
        let large = Counts::new(0..1);
        large.set(1, 9);
        large.with_chunk(0, |large| assert_eq!(agreement(&bits, None, Some(large)), right));
        large.set(7, 9);
        large.with_chunk(0, |large| assert_eq!(agreement(&bits, None, Some(large)), None));
    }
}
