//! Leaves read in the order of the disk, ahead of a walk that wants them in the order of their keys.
//!
//! In a pool that has been used for long, neighbours by key lie far from each other, and a walk costs one small random read
//! for each leaf. Where a walk wants many leaves of such a pool, it is faster to find out first which these are (internal
//! nodes are one in a hundred), then to read them from the first block to the last, in large reads, and to keep
//! them packed until the walk comes to them. What does not fit into the cache is left to the walk.

use super::{blocks::BlockReader, leaf_cache::LeafCache, read_ahead::Scratch};
use crate::MetadataBlock;

/// Leaves that a walk must want.
const MANY: usize = 8192;
/// Of so many leaves one must lie far from the one before it.
const ONE_APART_IN: usize = 3;
/// Blocks between neighbours that are still near.
const NEAR_BLOCKS: u64 = 8;
/// Leaves read at a time.
const BATCH: usize = 1024;

/// The leaves that a walk will want.
#[derive(Debug)]
pub(super) struct Wanted {
    /// A bit for each block that there is.
    bits: Vec<u64>,
    count: usize,
    /// How often the walk goes to another place.
    apart: usize,
}

impl Wanted {
    /// None, on a device of so many blocks.
    pub(super) fn new(blocks: u64) -> Self {
        Self { bits: vec![0; blocks.div_ceil(64) as usize], count: 0, apart: 0 }
    }

    /// Counts a leaf that the walk comes to on one side after `before`. One that cannot be is left to the walk.
    pub(super) fn add(&mut self, block: MetadataBlock, before: Option<MetadataBlock>) {
        let bit = 1 << (block.0 % 64);
        let word = usize::try_from(block.0 / 64).ok().and_then(|word| self.bits.get_mut(word));
        if let Some(word) = word.filter(|word| **word & bit == 0) {
            *word |= bit;
            self.count += 1;
            self.apart += usize::from(before.is_none_or(|before| before.0.abs_diff(block.0) > NEAR_BLOCKS));
        }
    }

    /// Whether reading them in the order of the disk is worth it.
    pub(super) fn are_many_and_scattered(&self) -> bool {
        self.count >= MANY && self.apart >= self.count / ONE_APART_IN
    }

    fn blocks(&self) -> impl Iterator<Item = MetadataBlock> + '_ {
        (0..).step_by(64).zip(&self.bits).flat_map(|(first, word)| {
            (0..64).filter(move |bit| word >> bit & 1 == 1).map(move |bit| MetadataBlock(first + bit))
        })
    }

    /// Reads them into the cache, until that is full. What cannot be read is left to the walk, which tells of it.
    pub(super) fn read_into(&self, cache: &LeafCache, reader: &BlockReader) {
        let mut scratch = Scratch::default();
        let mut blocks = self.blocks().filter(|block| !cache.has(*block));
        let mut begin = || {
            let batch: Vec<MetadataBlock> = blocks.by_ref().take(BATCH).collect();
            (!batch.is_empty()).then(|| reader.begin(batch).ok()).flatten()
        };
        let mut next = begin();
        while let Some(batch) = next {
            next = if cache.is_full() { None } else { begin() };
            for (block, packed) in reader.finish(&batch, &mut scratch).leaves() {
                cache.insert(block, &packed);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{MANY, MetadataBlock, Wanted};

    fn wanted(blocks: impl Iterator<Item = u64>) -> Wanted {
        let mut wanted = Wanted::new(1 << 17);
        let mut before = None;
        for block in blocks.map(MetadataBlock) {
            wanted.add(block, before);
            before = Some(block);
        }
        wanted
    }

    #[test]
    fn many_scattered_leaves_are_told_from_few_and_from_ordered_ones() {
        let many = MANY as u64;
        assert!(!wanted(1..many * 2).are_many_and_scattered());
        assert!(!wanted((1..many * 2).rev()).are_many_and_scattered());
        assert!(!wanted((1..many).map(|number| number * 7919 % 65537)).are_many_and_scattered());
        assert!(wanted((1..=many).map(|number| number * 7919 % 65537)).are_many_and_scattered());
    }

    #[test]
    fn blocks_come_in_the_order_of_the_disk_each_once() {
        let blocks: Vec<u64> =
            wanted([700, 3, 64, 63, 3, 0].into_iter()).blocks().map(|block| block.0).collect();
        assert_eq!(blocks, [0, 3, 63, 64, 700]);
    }
}
