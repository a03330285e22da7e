//! The counts of metadata blocks.
//!
//! This map counts its own blocks too. Changing a count may shadow a bitmap or a node of the tree of large counts, which
//! allocates one block and frees another, which changes counts. So changes are not carried out where they arise but
//! queued, and the outermost change works the queue off, one at a time; within one change nothing else touches a
//! bitmap. It ends, because each block of the map is shadowed once in a transaction. A reader adds the queue to what the
//! bitmaps say.

use std::collections::VecDeque;
use std::sync::Arc;

use crate::block_device::BlockDevice;
use crate::format::{
    Bitmap, BlockKind, ENTRIES_PER_BITMAP, IndexEntry, MAX_METADATA_BLOCKS, MetadataBlock, MetadataError,
    MetadataIndex, Node, RawBlock, RawCount, SpaceMapRoot, SuperblockProblem,
};

use super::btree::{self, Uncounted};
use super::store::Cached;
use super::{MetadataStore, Result};

const MAP: &str = "metadata";
/// A transaction that queues more than this has gone wrong.
const MAX_QUEUE: usize = 4096;

/// The map as one commit, or the open transaction, knows it.
#[derive(Clone, Debug)]
struct Version {
    root: SpaceMapRoot,
    index: MetadataIndex,
}

impl Default for Version {
    fn default() -> Self {
        Self { root: SpaceMapRoot::default(), index: MetadataIndex { entries: Vec::new() } }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Change {
    Inc(MetadataBlock),
    Dec(MetadataBlock),
}

/// Counts of the open transaction, of a sealed one, and of the last commit.
#[derive(Debug, Default)]
pub(super) struct MetadataSpaceMap {
    current: Version,
    sealed: Option<Version>,
    committed: Version,
    /// Where the next search for a free block begins.
    cursor: u64,
    /// Changes not yet in the bitmaps. The first is the one being carried out, when `busy`.
    queue: VecDeque<Change>,
    busy: bool,
    /// Blocks allocated in the open transaction; what was freed meanwhile cannot be used before the next commit.
    allocated: u64,
    /// Those of the sealed one.
    sealed_allocated: u64,
}

impl MetadataSpaceMap {
    pub(super) fn open(device: &dyn BlockDevice, root: &SpaceMapRoot) -> Result<Self> {
        let limit = MAX_METADATA_BLOCKS.min(device.size_bytes() / 4096);
        if root.nr_blocks > limit {
            let problem = SuperblockProblem::TooLarge { map: MAP, blocks: root.nr_blocks, limit };
            return Err(MetadataError::BadSuperblock { block: MetadataBlock(0), problem });
        }
        let index = MetadataIndex::verify(RawBlock::read(device, root.bitmap_root)?, root.nr_blocks)?;
        let version = Version { root: *root, index };
        Ok(Self { current: version.clone(), committed: version, ..Self::default() })
    }

    pub(super) fn root(&self) -> SpaceMapRoot {
        self.current.root
    }

    pub(super) fn nr_blocks(&self) -> u64 {
        self.current.root.nr_blocks
    }

    /// The open transaction becomes the sealed one.
    pub(super) fn seal(&mut self) {
        self.sealed = Some(self.current.clone());
        self.sealed_allocated = std::mem::take(&mut self.allocated);
    }

    /// The sealed transaction is the last commit.
    pub(super) fn committed(&mut self) {
        if let Some(sealed) = self.sealed.take() {
            self.committed = sealed;
        }
        self.sealed_allocated = 0;
    }

    fn pending(&self, block: MetadataBlock) -> i64 {
        let changes = self.queue.iter().map(|change| match change {
            Change::Inc(changed) if *changed == block => 1,
            Change::Dec(changed) if *changed == block => -1,
            _ => 0,
        });
        changes.sum()
    }
}

fn slot_of(block: u64) -> Result<usize> {
    usize::try_from(block / ENTRIES_PER_BITMAP)
        .map_err(|_| MetadataError::OutOfRange { block: MetadataBlock(block), blocks: MAX_METADATA_BLOCKS })
}

impl MetadataStore {
    /// Blocks of the metadata.
    pub(crate) fn nr_blocks(&self) -> u64 {
        self.map.nr_blocks()
    }

    /// Blocks that can still be allocated before the next commit.
    pub(crate) fn nr_free(&self) -> u64 {
        let committed = &self.map.committed.root;
        let taken = committed.nr_allocated + self.map.sealed_allocated + self.map.allocated;
        committed.nr_blocks.saturating_sub(taken)
    }

    /// How many pointers to a block there are.
    pub(crate) fn count(&self, block: MetadataBlock) -> Result<u32> {
        let stored = i64::from(self.stored_count(block)?);
        let count = if self.map.queue.is_empty() { stored } else { stored + self.map.pending(block) };
        u32::try_from(count).map_err(|_| MetadataError::WrongCount {
            map: MAP,
            block: block.0,
            expected: 1,
            found: 0,
        })
    }

    fn entry(&self, block: MetadataBlock) -> Result<IndexEntry> {
        let blocks = self.map.nr_blocks();
        let entry = self.map.current.index.entries.get(slot_of(block.0)?);
        entry.filter(|_| block.0 < blocks).copied().ok_or(MetadataError::OutOfRange { block, blocks })
    }

    /// The count in bitmap and overflow tree, without what is queued.
    fn stored_count(&self, block: MetadataBlock) -> Result<u32> {
        let bitmap = self.bitmap(self.entry(block)?.bitmap)?;
        match bitmap.get(block.0 % ENTRIES_PER_BITMAP) {
            RawCount::Exact(count) => Ok(count),
            RawCount::Many => {
                let found = btree::lookup::<u32>(self, self.map.current.root.ref_count_root, block.0)?;
                found.ok_or(MetadataError::MissingEntry { map: MAP, what: "block", number: block.0 })
            }
        }
    }

    /// One more pointer to a block.
    pub(crate) fn inc(&mut self, block: MetadataBlock) -> Result<()> {
        self.change(Change::Inc(block))
    }

    /// One pointer less. At zero the block is free, from the next commit on if the last one still has it.
    pub(crate) fn dec(&mut self, block: MetadataBlock) -> Result<()> {
        self.change(Change::Dec(block))
    }

    fn change(&mut self, change: Change) -> Result<()> {
        if self.map.queue.len() >= MAX_QUEUE {
            return Err(MetadataError::NoSpace {
                used: self.map.root().nr_allocated,
                total: self.nr_blocks(),
            });
        }
        self.map.queue.push_back(change);
        if self.map.busy {
            return Ok(());
        }
        self.map.busy = true;
        let outcome = self.work_off();
        self.map.busy = false;
        outcome
    }

    fn work_off(&mut self) -> Result<()> {
        // The change stays in the queue while it is carried out, so that nothing takes its block for free.
        while let Some(change) = self.map.queue.front().copied() {
            self.carry_out(change)?;
            self.map.queue.pop_front();
        }
        Ok(())
    }

    fn carry_out(&mut self, change: Change) -> Result<()> {
        let (Change::Inc(block) | Change::Dec(block)) = change;
        let slot = slot_of(block.0)?;
        let old = self.stored_count(block)?;
        let new = match change {
            Change::Inc(_) => {
                old.checked_add(1).ok_or(MetadataError::CountOverflow { map: MAP, block: block.0 })?
            }
            Change::Dec(_) => old.checked_sub(1).ok_or(MetadataError::WrongCount {
                map: MAP,
                block: block.0,
                expected: 1,
                found: 0,
            })?,
        };
        let tree = self.map.current.root.ref_count_root;
        self.map.current.root.ref_count_root = change_overflow(self, tree, block.0, old, new)?;
        let bitmap = self.shadow_bitmap(self.entry(block)?.bitmap)?;
        let within = block.0 % ENTRIES_PER_BITMAP;
        self.edit_bitmap(bitmap, |bitmap| bitmap.set(within, RawCount::from_count(new)))?;
        let current = &mut self.map.current;
        let entry =
            current.index.entries.get_mut(slot).ok_or(MetadataError::OutOfRange { block, blocks: 0 })?;
        entry.bitmap = bitmap;
        current.root.nr_allocated = account(entry, current.root.nr_allocated, within, old, new);
        if new == 0 {
            self.forget(block);
        }
        Ok(())
    }

    /// Takes a free block: its count is 1, and it belongs to the open transaction.
    pub(crate) fn allocate(&mut self) -> Result<MetadataBlock> {
        let (cursor, end) = (self.map.cursor, self.map.nr_blocks());
        let found = match self.find_free(cursor, end)? {
            Some(block) => block,
            None => self
                .find_free(0, cursor.min(end))?
                .ok_or(MetadataError::NoSpace { used: self.map.root().nr_allocated, total: end })?,
        };
        self.map.cursor = found.0 + 1;
        self.map.allocated += 1;
        self.mark_new(found);
        self.inc(found)?;
        Ok(found)
    }

    /// The bitmaps of a slot as the last commit and a sealed transaction have them, where they cover it.
    fn older_bitmaps(&self, slot: usize) -> Result<Vec<Arc<Bitmap>>> {
        let versions = [Some(&self.map.committed), self.map.sealed.as_ref()];
        let entries = versions.into_iter().flatten().filter_map(|version| version.index.entries.get(slot));
        entries.map(|entry| self.bitmap(entry.bitmap)).collect()
    }

    /// The first block in `begin..end` that is free now, was free at the last commit and in a sealed transaction, and is
    /// not about to be taken.
    fn find_free(&self, begin: u64, end: u64) -> Result<Option<MetadataBlock>> {
        let mut at = begin;
        while at < end {
            let slot = slot_of(at)?;
            let first = at - at % ENTRIES_PER_BITMAP;
            let next = first + ENTRIES_PER_BITMAP;
            let entry = self.entry(MetadataBlock(at))?;
            if entry.nr_free > 0 {
                let now = self.bitmap(entry.bitmap)?;
                let older = self.older_bitmaps(slot)?;
                let mut within = (at - first).max(u64::from(entry.none_free_before));
                while let Some(zero) = now.find_zero(within, end - first) {
                    let block = MetadataBlock(first + zero);
                    let was_free = older.iter().all(|old| old.get(zero) == RawCount::Exact(0));
                    if was_free && !self.map.queue.contains(&Change::Inc(block)) {
                        return Ok(Some(block));
                    }
                    within = zero + 1;
                }
            }
            at = next;
        }
        Ok(None)
    }

    /// Lays out the space map of an empty pool as the kernel does: superblock, index, tree of large counts, bitmaps.
    pub(super) fn format_map(&mut self, nr_blocks: u64) -> Result<()> {
        let bitmaps = nr_blocks.div_ceil(ENTRIES_PER_BITMAP);
        let taken = 3 + bitmaps;
        let mut index = MetadataIndex { entries: Vec::new() };
        for slot in 0..bitmaps {
            let mut bitmap = Bitmap::empty();
            let used = taken.saturating_sub(slot * ENTRIES_PER_BITMAP).min(ENTRIES_PER_BITMAP);
            (0..used).for_each(|entry| bitmap.set(entry, RawCount::Exact(1)));
            let block = MetadataBlock(3 + slot);
            self.mark_new(block);
            self.put(block, Cached::Bitmap(bitmap.into()))?;
            let nr_free = (ENTRIES_PER_BITMAP - used) as u32;
            index.entries.push(IndexEntry { bitmap: block, nr_free, none_free_before: used as u32 });
        }
        let (index_block, ref_count_root) = (MetadataBlock(1), MetadataBlock(2));
        self.mark_new(index_block);
        self.mark_new(ref_count_root);
        self.put_node(ref_count_root, Node::empty_leaf::<u32>())?;
        let root = SpaceMapRoot { nr_blocks, nr_allocated: taken, bitmap_root: index_block, ref_count_root };
        self.map.current = Version { root, index };
        self.map.committed.root.nr_blocks = nr_blocks;
        self.map.allocated = taken;
        self.map.cursor = taken;
        Ok(())
    }

    /// Covers more blocks, all of them free but those that the new bitmaps take. These lie in the new part, so that a map
    /// without a free block can grow. The caller commits before anything else is done.
    pub(crate) fn extend(&mut self, nr_blocks: u64) -> Result<()> {
        let old = self.nr_blocks();
        if nr_blocks > MAX_METADATA_BLOCKS {
            let block = MetadataBlock(nr_blocks);
            return Err(MetadataError::OutOfRange { block, blocks: MAX_METADATA_BLOCKS });
        }
        let slots = old.div_ceil(ENTRIES_PER_BITMAP)..nr_blocks.div_ceil(ENTRIES_PER_BITMAP);
        if old + slots.clone().count() as u64 > nr_blocks {
            return Err(MetadataError::NoSpace { used: old, total: nr_blocks });
        }
        self.map.current.root.nr_blocks = self.map.current.root.nr_blocks.max(nr_blocks);
        // Counted together, after all of them are there: what counting them takes must not be one of them.
        for (block, _) in (old..).map(MetadataBlock).zip(slots) {
            self.mark_new(block);
            self.put(block, Cached::Bitmap(Bitmap::empty().into()))?;
            let nr_free = ENTRIES_PER_BITMAP as u32;
            self.map.current.index.entries.push(IndexEntry { bitmap: block, nr_free, none_free_before: 0 });
            self.map.queue.push_back(Change::Inc(block));
            self.map.allocated += 1;
        }
        self.map.busy = true;
        let counted = self.work_off();
        self.map.busy = false;
        counted
    }

    /// Gives the index its block for this commit. This is the last change of counts before the blocks are written.
    pub(super) fn settle_map(&mut self) -> Result<()> {
        let old = self.map.current.root.bitmap_root;
        if !self.is_new(old) {
            self.map.current.root.bitmap_root = self.allocate()?;
            self.dec(old)?;
        }
        let index = self.map.current.index.encode();
        self.put(self.map.current.root.bitmap_root, Cached::Other(BlockKind::Index, index))
    }
}

/// Keeps the tree of counts of 3 and more in step with one change; the new root.
pub(super) fn change_overflow(
    store: &mut MetadataStore,
    root: MetadataBlock,
    block: u64,
    old: u32,
    new: u32,
) -> Result<MetadataBlock> {
    if new >= 3 {
        return Ok(btree::insert(store, &mut Uncounted, root, block, &new)?.0);
    }
    if old >= 3 {
        return Ok(btree::remove::<u32, _>(store, &mut Uncounted, root, block)?.0);
    }
    Ok(root)
}

/// Updates an index entry for one change of a count; the new number of allocated blocks.
pub(super) fn account(entry: &mut IndexEntry, nr_allocated: u64, within: u64, old: u32, new: u32) -> u64 {
    let within = within as u32;
    match (old, new) {
        (0, 1..) => {
            entry.nr_free = entry.nr_free.saturating_sub(1);
            if entry.none_free_before == within {
                entry.none_free_before = within + 1;
            }
            nr_allocated + 1
        }
        (1.., 0) => {
            entry.nr_free += 1;
            entry.none_free_before = entry.none_free_before.min(within);
            nr_allocated.saturating_sub(1)
        }
        _ => nr_allocated,
    }
}
