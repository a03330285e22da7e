//! What the space maps consist of: F6 and F12 of their indices, F11 of their trees of large counts.

use std::sync::Arc;

use super::{
    MAX_LISTED,
    checker::{Checker, Place, Role, Scope, Visit},
    raw::{BITMAP_HEADER_LEN, ENTRIES_PER_BITMAP, MAX_DATA_BLOCKS, Salt, read_block, u32_at, u64_at},
    superblock::SpaceMapRoot,
};

/// Slots of the metadata index.
const INDEX_SLOTS: u64 = 255;
const INDEX_ENTRY_LEN: usize = 16;

/// Where a bitmap is and what is said of it.
pub(super) struct IndexEntry {
    pub(super) ordinal: u64,
    pub(super) bitmap: u64,
    pub(super) free: u32,
    pub(super) none_free_before: u32,
}

impl IndexEntry {
    fn decode(ordinal: u64, bytes: &[u8]) -> Self {
        Self {
            ordinal,
            bitmap: u64_at(bytes, 0),
            free: u32_at(bytes, 8),
            none_free_before: u32_at(bytes, 12),
        }
    }

    /// The first block that the bitmap counts.
    pub(super) fn begin(&self) -> u64 {
        self.ordinal.saturating_mul(ENTRIES_PER_BITMAP)
    }

    /// The bitmap, and the blocks that it counts.
    pub(super) fn place(&self) -> Place {
        let first = self.begin();
        Place {
            block: self.bitmap,
            first,
            last: first.saturating_add(ENTRIES_PER_BITMAP - 1),
            is_root: false,
        }
    }
}

/// A space map whose trees were walked and whose bitmaps were not read yet.
pub(super) struct SpaceMap {
    pub(super) name: &'static str,
    /// Which invariant wrong counts break.
    pub(super) invariant: &'static str,
    pub(super) bitmap_role: Role,
    /// Of its tree of large counts.
    pub(super) count_role: Role,
    pub(super) root: SpaceMapRoot,
    /// Ascending.
    pub(super) entries: Vec<IndexEntry>,
    /// All of the index could be read.
    pub(super) index_complete: bool,
    /// All of the tree of large counts could be read.
    pub(super) large_complete: bool,
}

/// Both space maps.
pub(super) struct SpaceMaps {
    pub(super) data: SpaceMap,
    pub(super) metadata: SpaceMap,
}

impl Checker<'_> {
    /// Walks what the space maps consist of and counts it.
    pub(super) fn space_map_structures(&mut self) -> SpaceMaps {
        let root = self.superblock.data_map;
        let (entries, index_complete) = self.data_index(&root);
        let data = SpaceMap {
            name: "data",
            invariant: "F9",
            bitmap_role: Role::DataBitmap,
            count_role: Role::DataCountTree,
            root,
            entries,
            index_complete,
            large_complete: self.large_counts(&root, Role::DataCountTree),
        };
        let root = self.superblock.metadata_map;
        let (entries, index_complete) = self.metadata_index(&root);
        let metadata = SpaceMap {
            name: "metadata",
            invariant: "F10",
            bitmap_role: Role::MetadataBitmap,
            count_role: Role::MetadataCountTree,
            root,
            entries,
            index_complete,
            large_complete: self.large_counts(&root, Role::MetadataCountTree),
        };
        self.bitmaps(&data);
        self.bitmaps(&metadata);
        SpaceMaps { data, metadata }
    }

    fn bitmaps(&mut self, map: &SpaceMap) {
        let scope = Scope::new(map.bitmap_role, false);
        for entry in &map.entries {
            let place = entry.place();
            match self.visit(&place, scope) {
                Visit::First => {
                    if let Some(known) = self.table.entry(entry.bitmap) {
                        known.first = entry.ordinal;
                    }
                }
                Visit::Again => {
                    let what = format!("block {} is the bitmap of two ranges", entry.bitmap);
                    self.lost("F6", &place, scope, &what);
                }
                Visit::Wrong => {}
            }
        }
    }

    fn data_index(&mut self, root: &SpaceMapRoot) -> (Vec<IndexEntry>, bool) {
        let scope = Scope::new(Role::DataIndexTree, false);
        let due = root.blocks.min(MAX_DATA_BLOCKS).div_ceil(ENTRIES_PER_BITMAP);
        // Each bitmap takes a block.
        let most = usize::try_from(due.min(self.blocks)).unwrap_or(usize::MAX);
        let mut entries: Vec<IndexEntry> = Vec::new();
        let mut found = 0_u64;
        let complete = self.small_tree(root.bitmap_root, scope, &mut |ordinal, value, _| {
            found += 1;
            if ordinal < due && entries.len() < most {
                entries.push(IndexEntry::decode(ordinal, value));
            }
        });
        let dense = found == due && (0..due).eq(entries.iter().map(|entry| entry.ordinal));
        if complete && !dense {
            let what = format!("{found} entries are not those of the {due} bitmaps in order");
            self.lost("F12", &Place::root(root.bitmap_root), scope, &what);
        }
        (entries, complete && dense)
    }

    fn metadata_index(&mut self, root: &SpaceMapRoot) -> (Vec<IndexEntry>, bool) {
        let scope = Scope::new(Role::MetadataIndex, false);
        let place = Place::root(root.bitmap_root);
        if self.visit(&place, scope) != Visit::First {
            return (Vec::new(), false);
        }
        let block = match read_block(self.device, root.bitmap_root, Salt::Index) {
            Ok(block) => block,
            Err(fault) => {
                self.lost("F3", &place, scope, &format!("block {} is damaged: {fault}", place.block));
                return (Vec::new(), false);
            }
        };
        let used = root.blocks.div_ceil(ENTRIES_PER_BITMAP).min(INDEX_SLOTS);
        let (slots, _) = block.get(BITMAP_HEADER_LEN..).unwrap_or_default().as_chunks::<INDEX_ENTRY_LEN>();
        let mut entries = Vec::new();
        for (ordinal, slot) in (0..).zip(slots) {
            if ordinal < used {
                entries.push(IndexEntry::decode(ordinal, slot));
            } else if slot.iter().any(|byte| *byte != 0) {
                let what = format!("slot {ordinal} is used, only {used} are due");
                self.note("F12", true, &place, scope, &what);
            }
        }
        (entries, true)
    }

    fn large_counts(&mut self, root: &SpaceMapRoot, role: Role) -> bool {
        let scope = Scope::new(role, false);
        let place = Place::root(root.ref_count_root);
        let tally = Arc::clone(&self.tally);
        let (mut wrong, mut omitted) = (Vec::new(), 0_u64);
        // Sees what the scan did not take up, or did not find flawless.
        let complete = self.small_tree(root.ref_count_root, scope, &mut |block, value, _| {
            let count = u32_at(value, 0);
            match tally.record(role, block, count) {
                true => {}
                false if wrong.len() < MAX_LISTED => wrong.push((block, count)),
                false => omitted += 1,
            }
        });
        for (block, count) in wrong {
            let place = Place { first: block, last: block, ..place };
            let what = format!("count {count} of block {block} does not belong there");
            self.note("F11", true, &place, scope, &what);
        }
        self.report.fatal_omitted += omitted;
        complete
    }
}
