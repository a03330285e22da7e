//! What leaves add up to: references to data blocks, and the counts that the space maps record in trees.

use std::{
    ops::{Deref, Range},
    sync::atomic::{AtomicU64, Ordering},
};

use super::{
    checker::Role,
    counts::Counts,
    raw::{Block, ENTRIES_PER_BITMAP, MAX_DATA_BLOCKS, MAX_METADATA_BLOCKS, Node, u32_at},
    superblock::Superblock,
};

/// Counts from here on are in a tree.
pub(super) const FIRST_LARGE_COUNT: u32 = 3;
const TIME_BITS: u32 = 24;

/// Mappings of a leaf that break F8.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) struct BadMappings {
    /// To data blocks that there are not.
    pub(super) beyond: u64,
    /// From later than the pool's time.
    pub(super) future: u64,
}

/// The sums, for a span of the data blocks. Several threads add to them.
pub(super) struct Tally {
    pub(super) data_blocks: u64,
    metadata_blocks: u64,
    pub(super) time: u32,
    /// The highest data block that was counted or recorded, in the span or not.
    highest: AtomicU64,
    /// References from mapping leaves.
    pub(super) data: Counts,
    /// What the data space map's tree of large counts records.
    pub(super) large_data: Counts,
    /// What the metadata space map's tree of large counts records, of all metadata blocks.
    pub(super) large_metadata: Counts,
}

impl Tally {
    /// Nothing yet, of the data blocks that these bitmaps count, of a pool with so many usable metadata blocks.
    pub(super) fn new(superblock: &Superblock, blocks: u64, bitmaps: Range<u64>) -> Self {
        let data_blocks = superblock.data_map.blocks;
        let metadata_blocks = superblock.metadata_map.blocks;
        // Each bitmap takes a metadata block. Where there cannot be enough, the index is found incomplete, and counts
        // are not compared.
        let end = data_blocks.min(MAX_DATA_BLOCKS).div_ceil(ENTRIES_PER_BITMAP).min(blocks);
        let data_bitmaps = bitmaps.start.min(end)..bitmaps.end.min(end);
        let metadata_bitmaps =
            0..metadata_blocks.min(MAX_METADATA_BLOCKS).div_ceil(ENTRIES_PER_BITMAP).min(blocks);
        Self {
            data_blocks,
            metadata_blocks,
            time: superblock.time,
            highest: AtomicU64::new(0),
            data: Counts::new(data_bitmaps.clone()),
            large_data: Counts::new(data_bitmaps),
            large_metadata: Counts::new(metadata_bitmaps),
        }
    }

    /// The highest data block that was counted or recorded, in the span or not.
    pub(super) fn highest(&self) -> u64 {
        self.highest.load(Ordering::Relaxed)
    }

    /// Looks for bad mappings in a mapping leaf and, if wanted, counts its references.
    pub(super) fn mapping_leaf<B: Deref<Target = Block>>(&self, leaf: &Node<B>, count: bool) -> BadMappings {
        let mut bad = BadMappings::default();
        let (mut first, mut len) = (0, 0);
        let mut highest = 0;
        for packed in leaf.pointers() {
            let (data_block, time) = (packed >> TIME_BITS, packed & ((1 << TIME_BITS) - 1));
            bad.future += u64::from(time > u64::from(self.time));
            if data_block >= self.data_blocks {
                bad.beyond += 1;
                continue;
            }
            highest = highest.max(data_block);
            if data_block == first + len {
                len += 1;
            } else {
                if count {
                    self.data.add(first, len);
                }
                (first, len) = (data_block, 1);
            }
        }
        if count {
            self.data.add(first, len);
            self.highest.fetch_max(highest, Ordering::Relaxed);
        }
        bad
    }

    /// What a space map's tree of large counts, which has this role, records.
    pub(super) fn large(&self, role: Role) -> &Counts {
        match role {
            Role::DataCountTree => &self.large_data,
            _ => &self.large_metadata,
        }
    }

    /// Takes up an entry of a tree of large counts; false when it does not belong there.
    pub(super) fn record(&self, role: Role, block: u64, count: u32) -> bool {
        let is_data = role == Role::DataCountTree;
        let is_there = block < if is_data { self.data_blocks } else { self.metadata_blocks };
        if is_there {
            self.large(role).set(block, count);
        }
        if is_there && is_data {
            self.highest.fetch_max(block, Ordering::Relaxed);
        }
        is_there && count >= FIRST_LARGE_COUNT
    }

    /// Takes up the entries of a leaf of large counts; false when one of them does not belong there.
    pub(super) fn count_leaf<B: Deref<Target = Block>>(&self, leaf: &Node<B>, role: Role) -> bool {
        let entries = leaf.entries().map(|(block, value)| self.record(role, block, u32_at(value, 0)));
        entries.fold(true, |all, one| all & one)
    }
}
