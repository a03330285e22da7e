//! What is known of each metadata block: 32 bytes a block, in regions that are made when first needed.

use std::{
    iter,
    sync::atomic::{AtomicU64, Ordering},
};

use super::checker::Role;

/// Neighbouring blocks that are read together: a megabyte.
pub(super) const REGION_BLOCKS: usize = 256;
const WORD_BITS: usize = 64;
const REGION_WORDS: usize = REGION_BLOCKS / WORD_BITS;

/// What the scan says of a leaf or a bitmap.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) enum Scanned {
    /// Nothing: it was not read, is no leaf, or is damaged. It has to be looked at.
    #[default]
    No,
    /// Its references or counts are taken up; there is something to report of it, so it has to be looked at.
    Odd,
    /// Its references or counts are taken up, and by itself it is flawless.
    Clean,
}

/// What is known of one metadata block.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Known {
    /// Of a node, the first key in or under it, if there are entries. Of a bitmap, its ordinal.
    pub(super) first: u64,
    /// The last key in or under it, if there are entries.
    pub(super) last: u64,
    /// Entries of a leaf, entries of the leaves under an internal node, blocks with a count in a bitmap.
    pub(super) entries: u32,
    /// References that were found.
    pub(super) references: u32,
    pub(super) scanned: Scanned,
    /// What the scan took it for.
    pub(super) scanned_as: Option<Role>,
    /// What it is, once a reference was followed to it.
    pub(super) role: Option<Role>,
    /// Levels of the mapping tree under and including it, once those were all found right.
    pub(super) levels: u8,
}

const _: () = assert!(size_of::<Known>() == 32);

/// A region's blocks.
pub(super) type Region = [Known; REGION_BLOCKS];

/// All metadata blocks that may be referred to.
pub(super) struct Table {
    regions: Vec<Option<Box<Region>>>,
}

impl Table {
    pub(super) fn new(blocks: u64) -> Self {
        let regions = usize::try_from(blocks).unwrap_or(usize::MAX).div_ceil(REGION_BLOCKS);
        Self { regions: iter::repeat_with(|| None).take(regions).collect() }
    }

    pub(super) fn get(&self, block: u64) -> Known {
        let (region, index) = position(block);
        let region = self.regions.get(region).and_then(Option::as_ref);
        region.and_then(|region| region.get(index)).copied().unwrap_or_default()
    }

    /// To change; none beyond the end.
    pub(super) fn entry(&mut self, block: u64) -> Option<&mut Known> {
        let (region, index) = position(block);
        made(self.regions.get_mut(region)?).get_mut(index)
    }

    /// Every region with its first block.
    pub(super) fn regions(&mut self) -> impl Iterator<Item = (u64, &mut Option<Box<Region>>)> {
        (0..).step_by(REGION_BLOCKS).zip(&mut self.regions)
    }

    /// Blocks with one of these roles.
    pub(super) fn with_roles(&self, roles: &[Role], found: &BlockSet) {
        for (first, region) in (0..).step_by(REGION_BLOCKS).zip(&self.regions) {
            for (block, known) in (first..).zip(region.iter().flat_map(|region| region.iter())) {
                if known.role.is_some_and(|role| roles.contains(&role)) {
                    found.insert(block);
                }
            }
        }
    }
}

/// A region, made if it is not there.
pub(super) fn made(region: &mut Option<Box<Region>>) -> &mut Region {
    region.get_or_insert_with(|| Box::new([Known::default(); REGION_BLOCKS]))
}

fn position(block: u64) -> (usize, usize) {
    let block = usize::try_from(block).unwrap_or(usize::MAX);
    (block / REGION_BLOCKS, block % REGION_BLOCKS)
}

/// Some of the metadata blocks; one bit a block.
pub(super) struct BlockSet {
    words: Vec<AtomicU64>,
}

impl BlockSet {
    pub(super) fn new(blocks: u64) -> Self {
        let regions = usize::try_from(blocks).unwrap_or(usize::MAX).div_ceil(REGION_BLOCKS);
        Self { words: iter::repeat_with(AtomicU64::default).take(regions * REGION_WORDS).collect() }
    }

    /// Whether the block was not in the set. A block beyond the end never is.
    pub(super) fn insert(&self, block: u64) -> bool {
        let (word, bit) = (block / WORD_BITS as u64, 1 << (block % WORD_BITS as u64));
        let word = usize::try_from(word).ok().and_then(|word| self.words.get(word));
        word.is_some_and(|word| word.fetch_or(bit, Ordering::Relaxed) & bit == 0)
    }

    pub(super) fn clear(&mut self) {
        for word in &mut self.words {
            *word.get_mut() = 0;
        }
    }

    pub(super) fn len(&self) -> usize {
        self.words.iter().map(|word| word.load(Ordering::Relaxed).count_ones() as usize).sum()
    }

    /// The first block that is here and not in another set.
    pub(super) fn first_not_in(&self, other: &Self) -> Option<u64> {
        let words = self.words.iter().zip(&other.words);
        let mut missing =
            words.map(|(here, there)| here.load(Ordering::Relaxed) & !there.load(Ordering::Relaxed));
        let (index, word) = (0_u64..).zip(&mut missing).find(|(_, word)| *word != 0)?;
        Some(index * WORD_BITS as u64 + u64::from(word.trailing_zeros()))
    }

    /// Which blocks of each region are in the set, by their index in the region.
    pub(super) fn regions(&self) -> impl Iterator<Item = impl Iterator<Item = usize> + use<>> {
        let (regions, _) = self.words.as_chunks::<REGION_WORDS>();
        regions.iter().map(|words| {
            let words = words.each_ref().map(|word| word.load(Ordering::Relaxed));
            (0..)
                .step_by(WORD_BITS)
                .zip(words)
                .flat_map(|(begin, word)| Bits(word).map(move |bit| begin + bit))
        })
    }
}

/// The positions of the bits that are set.
struct Bits(u64);

impl Iterator for Bits {
    type Item = usize;

    fn next(&mut self) -> Option<usize> {
        let bit = self.0.trailing_zeros();
        self.0 &= self.0.checked_sub(1)?;
        Some(bit as usize)
    }
}
