//! The counts of data blocks.
//!
//! Bitmaps and trees of this map are ordinary metadata blocks, counted in the metadata space map. Index entries stand in a
//! tree; those in use are kept in memory and put back before a commit.

use std::collections::HashMap;
use std::sync::Arc;

use crate::format::{
    Bitmap, DataBlock, ENTRIES_PER_BITMAP, IndexEntry, MetadataBlock, MetadataError, RawCount, SpaceMapRoot,
};

use super::btree::{self, Uncounted};
use super::metadata_space_map::{account, change_overflow};
use super::{MetadataStore, RangeSet, Result};

const MAP: &str = "data";
/// Index entries kept in memory.
const INDEX_ENTRIES: usize = 1024;

/// The map as an older transaction has it.
struct Older {
    root: SpaceMapRoot,
    /// Bitmaps that were looked up.
    bitmaps: HashMap<u64, Option<MetadataBlock>>,
}

/// Counts of the open transaction, of a sealed one, and of the last commit.
pub(crate) struct DataSpaceMap {
    root: SpaceMapRoot,
    sealed: Option<Older>,
    committed: Older,
    /// Entries with whether they were changed.
    entries: HashMap<u64, (IndexEntry, bool)>,
    cursor: u64,
    /// Nothing was found, and nothing was freed that could be found, since.
    exhausted: bool,
    /// Free blocks that must not be allocated: their data is being written, or discarded.
    held: RangeSet,
    /// Blocks that lost their last reference in this transaction, when asked for.
    freed: Option<RangeSet>,
}

impl DataSpaceMap {
    pub(crate) fn open(root: SpaceMapRoot) -> Self {
        Self {
            root,
            sealed: None,
            committed: Older::new(root),
            entries: HashMap::new(),
            cursor: 0,
            exhausted: false,
            held: RangeSet::default(),
            freed: None,
        }
    }

    /// A map of no blocks.
    pub(crate) fn format(store: &mut MetadataStore) -> Result<Self> {
        let bitmap_root = btree::empty::<IndexEntry>(store)?;
        let ref_count_root = btree::empty::<u32>(store)?;
        let mut map = Self::open(SpaceMapRoot { nr_blocks: 0, nr_allocated: 0, bitmap_root, ref_count_root });
        map.committed = Older::new(SpaceMapRoot::default());
        Ok(map)
    }

    pub(crate) fn nr_blocks(&self) -> u64 {
        self.root.nr_blocks
    }

    pub(crate) fn nr_allocated(&self) -> u64 {
        self.root.nr_allocated
    }

    /// Covers more blocks, all of them free.
    pub(crate) fn extend(&mut self, store: &mut MetadataStore, nr_blocks: u64) -> Result<()> {
        let (from, to) =
            (self.root.nr_blocks.div_ceil(ENTRIES_PER_BITMAP), nr_blocks.div_ceil(ENTRIES_PER_BITMAP));
        for slot in from..to {
            let bitmap = store.add_bitmap(Bitmap::empty())?;
            let entry = IndexEntry { bitmap, nr_free: ENTRIES_PER_BITMAP as u32, none_free_before: 0 };
            self.set_entry(store, slot, entry)?;
        }
        self.root.nr_blocks = nr_blocks.max(self.root.nr_blocks);
        self.exhausted = false;
        Ok(())
    }

    /// From here on blocks that lose their last reference are remembered, until [`Self::take_freed`].
    pub(crate) fn watch_freed(&mut self) {
        self.freed = Some(RangeSet::default());
    }

    pub(crate) fn take_freed(&mut self) -> RangeSet {
        self.freed.take().unwrap_or_default()
    }

    fn entry(&self, store: &MetadataStore, slot: u64) -> Result<IndexEntry> {
        if let Some((entry, _)) = self.entries.get(&slot) {
            return Ok(*entry);
        }
        let entry = btree::lookup::<IndexEntry>(store, self.root.bitmap_root, slot)?;
        entry.ok_or(MetadataError::MissingEntry { map: MAP, what: "bitmap", number: slot })
    }

    fn set_entry(&mut self, store: &mut MetadataStore, slot: u64, entry: IndexEntry) -> Result<()> {
        if self.entries.len() >= INDEX_ENTRIES {
            self.put_entries_back(store)?;
            self.entries.clear();
        }
        self.entries.insert(slot, (entry, true));
        Ok(())
    }

    fn put_entries_back(&mut self, store: &mut MetadataStore) -> Result<()> {
        let mut changed: Vec<_> = self.entries.iter_mut().filter(|(_, (_, changed))| *changed).collect();
        changed.sort_unstable_by_key(|(slot, _)| **slot);
        for (slot, (entry, changed)) in changed {
            let root = self.root.bitmap_root;
            self.root.bitmap_root = btree::insert(store, &mut Uncounted, root, *slot, entry)?.0;
            *changed = false;
        }
        Ok(())
    }

    /// How many mapping leaves map a block.
    pub(crate) fn count(&self, store: &MetadataStore, block: DataBlock) -> Result<u32> {
        self.check(block)?;
        let entry = self.entry(store, block.0 / ENTRIES_PER_BITMAP)?;
        match store.bitmap(entry.bitmap)?.get(block.0 % ENTRIES_PER_BITMAP) {
            RawCount::Exact(count) => Ok(count),
            RawCount::Many => {
                let found = btree::lookup::<u32>(store, self.root.ref_count_root, block.0)?;
                found.ok_or(MetadataError::MissingEntry { map: MAP, what: "block", number: block.0 })
            }
        }
    }

    fn check(&self, block: DataBlock) -> Result<()> {
        if block.0 < self.root.nr_blocks {
            return Ok(());
        }
        Err(MetadataError::DataBlockOutOfRange { block: block.0, blocks: self.root.nr_blocks })
    }

    /// One more leaf maps the block.
    pub(crate) fn inc(&mut self, store: &mut MetadataStore, block: DataBlock) -> Result<()> {
        let old = self.count(store, block)?;
        let new = old.checked_add(1).ok_or(MetadataError::CountOverflow { map: MAP, block: block.0 })?;
        self.change(store, block, old, new)
    }

    /// One leaf less maps the block.
    pub(crate) fn dec(&mut self, store: &mut MetadataStore, block: DataBlock) -> Result<()> {
        let old = self.count(store, block)?;
        let missing = MetadataError::WrongCount { map: MAP, block: block.0, expected: 1, found: 0 };
        let new = old.checked_sub(1).ok_or(missing)?;
        self.change(store, block, old, new)?;
        if let (0, Some(freed)) = (new, &mut self.freed) {
            freed.insert(block.0, block.0 + 1);
        }
        Ok(())
    }

    fn change(&mut self, store: &mut MetadataStore, block: DataBlock, old: u32, new: u32) -> Result<()> {
        let (slot, within) = (block.0 / ENTRIES_PER_BITMAP, block.0 % ENTRIES_PER_BITMAP);
        self.root.ref_count_root = change_overflow(store, self.root.ref_count_root, block.0, old, new)?;
        let mut entry = self.entry(store, slot)?;
        let bitmap = store.shadow_bitmap(entry.bitmap)?;
        store.edit_bitmap(bitmap, |bitmap| bitmap.set(within, RawCount::from_count(new)))?;
        entry.bitmap = bitmap;
        self.root.nr_allocated = account(&mut entry, self.root.nr_allocated, within, old, new);
        self.set_entry(store, slot, entry)
    }

    /// Finds a block that is free now, was free at the last commit and is not held, and holds it. It is counted when it is
    /// mapped; until then nothing of it is in the metadata, so that a crash leaves no trace.
    pub(crate) fn find_free(&mut self, store: &MetadataStore) -> Result<Option<DataBlock>> {
        if self.exhausted || self.root.nr_allocated >= self.root.nr_blocks {
            return Ok(None);
        }
        let (cursor, end) = (self.cursor.min(self.root.nr_blocks), self.root.nr_blocks);
        let found = match self.search(store, cursor, end)? {
            Some(block) => Some(block),
            None => self.search(store, 0, cursor)?,
        };
        match found {
            Some(block) => {
                self.hold(block, block + 1);
                self.cursor = block + 1;
            }
            None => self.exhausted = true,
        }
        Ok(found.map(DataBlock))
    }

    fn search(&mut self, store: &MetadataStore, begin: u64, end: u64) -> Result<Option<u64>> {
        let mut at = begin;
        while at < end {
            let slot = at / ENTRIES_PER_BITMAP;
            let first = slot * ENTRIES_PER_BITMAP;
            let entry = self.entry(store, slot)?;
            if entry.nr_free > 0 {
                let now = store.bitmap(entry.bitmap)?;
                let older = self.older_bitmaps(store, slot)?;
                let mut within = (at - first).max(u64::from(entry.none_free_before));
                while let Some(zero) = now.find_zero(within, end - first) {
                    if let Some(held_until) = self.held.end_of(first + zero) {
                        within = held_until - first;
                    } else if older.iter().all(|old| old.get(zero) == RawCount::Exact(0)) {
                        return Ok(Some(first + zero));
                    } else {
                        within = zero + 1;
                    }
                }
            }
            at = first + ENTRIES_PER_BITMAP;
        }
        Ok(None)
    }

    fn older_bitmaps(&mut self, store: &MetadataStore, slot: u64) -> Result<Vec<Arc<Bitmap>>> {
        let mut bitmaps = Vec::with_capacity(2);
        for older in [Some(&mut self.committed), self.sealed.as_mut()].into_iter().flatten() {
            if let Some(block) = older.bitmap(store, slot)? {
                bitmaps.push(store.bitmap(block)?);
            }
        }
        Ok(bitmaps)
    }

    /// Keeps free blocks from being allocated.
    pub(crate) fn hold(&mut self, begin: u64, end: u64) {
        self.held.insert(begin, end);
    }

    /// Lets blocks be allocated again.
    pub(crate) fn release(&mut self, begin: u64, end: u64) {
        self.held.remove(begin, end);
        self.exhausted = false;
    }

    /// What is held, to carry it over an abort.
    pub(crate) fn take_held(&mut self) -> RangeSet {
        std::mem::take(&mut self.held)
    }

    pub(crate) fn restore_held(&mut self, held: RangeSet) {
        self.held = held;
    }

    /// Puts everything kept in memory into the trees; the root for the superblock.
    pub(crate) fn settle(&mut self, store: &mut MetadataStore) -> Result<SpaceMapRoot> {
        self.put_entries_back(store)?;
        Ok(self.root)
    }

    /// The open transaction, settled, becomes the sealed one.
    pub(crate) fn seal(&mut self) {
        self.sealed = Some(Older::new(self.root));
    }

    /// The sealed transaction is the last commit.
    pub(crate) fn committed(&mut self) {
        if let Some(sealed) = self.sealed.take() {
            self.committed = sealed;
        }
        self.exhausted = false;
    }
}

impl Older {
    fn new(root: SpaceMapRoot) -> Self {
        Self { root, bitmaps: HashMap::new() }
    }

    fn bitmap(&mut self, store: &MetadataStore, slot: u64) -> Result<Option<MetadataBlock>> {
        if self.root.nr_blocks == 0 {
            return Ok(None);
        }
        if let Some(known) = self.bitmaps.get(&slot) {
            return Ok(*known);
        }
        let entry = btree::lookup::<IndexEntry>(store, self.root.bitmap_root, slot)?;
        let bitmap = entry.map(|entry| entry.bitmap);
        if self.bitmaps.len() >= INDEX_ENTRIES {
            self.bitmaps.clear();
        }
        self.bitmaps.insert(slot, bitmap);
        Ok(bitmap)
    }
}
