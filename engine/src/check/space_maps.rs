//! F9 to F13: the space maps, against what was counted.

use super::{
    Damage,
    checker::{Checker, Place, Role, Scope, Visit},
    counts::Counts,
    raw::{BITMAP_HEADER_LEN, ENTRIES_PER_BITMAP, MAX_DATA_BLOCKS, Salt, read_block, u32_at, u64_at},
    superblock::{SpaceMapRoot, Superblock},
};
use crate::MetadataBlock;

/// Slots of the metadata index.
const INDEX_SLOTS: u64 = 255;
const INDEX_ENTRY_LEN: usize = 16;
/// Counts from here on are in a tree.
const FIRST_LARGE_COUNT: u32 = 3;

/// Where a bitmap is and what is said of it.
struct IndexEntry {
    ordinal: u64,
    bitmap: u64,
    free: u32,
    none_free_before: u32,
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
}

/// A space map whose trees were walked and whose bitmaps were not read yet.
struct SpaceMap {
    name: &'static str,
    /// Which invariant wrong counts break.
    invariant: &'static str,
    bitmap_role: Role,
    root: SpaceMapRoot,
    entries: Vec<IndexEntry>,
    large: Counts,
    /// All of index and large counts could be read.
    complete: bool,
}

/// Both space maps.
pub(super) struct SpaceMaps {
    data: SpaceMap,
    metadata: SpaceMap,
}

/// Blocks in a row whose counts are wrong in the same way.
struct Mismatch {
    first: u64,
    last: u64,
    recorded: u32,
    counted: u32,
}

impl Checker<'_> {
    /// Walks what the space maps consist of and counts it.
    pub(super) fn space_map_structures(&mut self, superblock: &Superblock) -> SpaceMaps {
        let (entries, index_complete) = self.data_index(&superblock.data_map);
        let (large, large_complete) = self.large_counts(&superblock.data_map, Role::DataCountTree);
        let data = SpaceMap {
            name: "data",
            invariant: "F9",
            bitmap_role: Role::DataBitmap,
            root: superblock.data_map,
            entries,
            large,
            complete: index_complete && large_complete,
        };
        let (entries, index_complete) = self.metadata_index(&superblock.metadata_map);
        let (large, large_complete) = self.large_counts(&superblock.metadata_map, Role::MetadataCountTree);
        let metadata = SpaceMap {
            name: "metadata",
            invariant: "F10",
            bitmap_role: Role::MetadataBitmap,
            root: superblock.metadata_map,
            entries,
            large,
            complete: index_complete && large_complete,
        };
        let maps = SpaceMaps { data, metadata };
        for map in [&maps.data, &maps.metadata] {
            for entry in &map.entries {
                let place = entry.place();
                if self.visit(&place, Scope::new(map.bitmap_role, false)) == Visit::Again {
                    let what = format!("block {} is the bitmap of two ranges", entry.bitmap);
                    self.lost("F6", &place, Scope::new(map.bitmap_role, false), &what);
                }
            }
        }
        maps
    }

    /// Reads the bitmaps and compares them with what was counted.
    pub(super) fn compare(&mut self, maps: &SpaceMaps) {
        if self.incomplete {
            self.report.add(Damage {
                invariant: "F10",
                fatal: false,
                block: None,
                device: None,
                keys: None,
                description:
                    "the space maps were not compared with the trees, because some of these could not be read"
                        .to_owned(),
            });
        }
        for map in [&maps.metadata, &maps.data] {
            self.compare_map(map);
        }
    }

    fn data_index(&mut self, root: &SpaceMapRoot) -> (Vec<IndexEntry>, bool) {
        let scope = Scope::new(Role::DataIndexTree, false);
        let mut entries = Vec::new();
        let complete = self.small_tree(root.bitmap_root, scope, &mut |ordinal, value, _| {
            entries.push(IndexEntry::decode(ordinal, value));
        });
        let due = root.blocks.min(MAX_DATA_BLOCKS).div_ceil(ENTRIES_PER_BITMAP);
        let dense = (0..due).eq(entries.iter().map(|entry| entry.ordinal));
        if complete && !dense {
            let what = format!("{} entries are not those of the {due} bitmaps in order", entries.len());
            self.lost("F12", &Place::root(root.bitmap_root), scope, &what);
        }
        entries.retain(|entry| entry.ordinal < due);
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
                self.note(
                    "F12",
                    true,
                    &place,
                    scope,
                    &format!("slot {ordinal} is used, only {used} are due"),
                );
            }
        }
        (entries, true)
    }

    fn large_counts(&mut self, root: &SpaceMapRoot, role: Role) -> (Counts, bool) {
        let scope = Scope::new(role, false);
        let place = Place::root(root.ref_count_root);
        let mut large = Counts::default();
        let mut wrong = Vec::new();
        let complete = self.small_tree(root.ref_count_root, scope, &mut |block, value, _| {
            let count = u32_at(value, 0);
            if block >= root.blocks || count < FIRST_LARGE_COUNT {
                wrong.push((block, count));
            }
            if block < root.blocks {
                large.set(block, count);
            }
        });
        for (block, count) in wrong {
            let place = Place { first: block, last: block, ..place };
            self.note(
                "F11",
                true,
                &place,
                scope,
                &format!("count {count} of block {block} does not belong there"),
            );
        }
        (large, complete)
    }

    fn compare_map(&mut self, map: &SpaceMap) {
        let mut allocated = 0;
        let mut complete = map.complete;
        let mut pending = None;
        for entry in &map.entries {
            let place = entry.place();
            let scope = Scope::new(map.bitmap_role, false);
            if entry.bitmap >= self.blocks {
                complete = false;
                continue;
            }
            match read_block(self.device, entry.bitmap, Salt::Bitmap) {
                Ok(block) => {
                    let bits = block.get(BITMAP_HEADER_LEN..).unwrap_or_default();
                    allocated += self.compare_bitmap(map, entry, bits, &mut pending);
                }
                Err(fault) => {
                    complete = false;
                    self.lost("F3", &place, scope, &format!("block {} is damaged: {fault}", entry.bitmap));
                }
            }
        }
        self.mismatch(map, pending);
        if complete && allocated != map.root.allocated {
            let description = format!(
                "the {} space map says that {} blocks are allocated, {allocated} have a count",
                map.name, map.root.allocated
            );
            self.wrong("F12", None, None, description);
        }
    }

    /// Returns how many blocks of the bitmap have a count.
    fn compare_bitmap(
        &mut self,
        map: &SpaceMap,
        entry: &IndexEntry,
        bits: &[u8],
        pending: &mut Option<Mismatch>,
    ) -> u64 {
        let begin = entry.ordinal * ENTRIES_PER_BITMAP;
        let (mut valid_used, mut used, mut first_free) = (0, 0, None);
        let raws = bits.iter().flat_map(|byte| [byte & 3, byte >> 2 & 3, byte >> 4 & 3, byte >> 6]);
        for (block, raw) in (begin..).zip(raws) {
            used += u64::from(raw != 0);
            if block >= map.root.blocks {
                if raw != 0 {
                    let description =
                        format!("the {} space map counts block {block}, which is beyond its end", map.name);
                    self.wrong("F13", Some(entry.bitmap), Some((block, block)), description);
                }
                continue;
            }
            valid_used += u64::from(raw != 0);
            if raw == 0 && first_free.is_none() {
                first_free = Some(block - begin);
            }
            let recorded = self.recorded(map, entry, block, raw);
            self.compare_count(map, block, recorded, pending);
        }
        let free = [
            ENTRIES_PER_BITMAP - used,
            map.root.blocks.saturating_sub(begin).min(ENTRIES_PER_BITMAP) - valid_used,
        ];
        if !free.contains(&u64::from(entry.free)) {
            let description = format!(
                "the {} space map says that bitmap {} (block {}) has {} free entries, it has {}",
                map.name, entry.ordinal, entry.bitmap, entry.free, free[0]
            );
            self.wrong("F12", Some(entry.bitmap), None, description);
        }
        if let Some(first) = first_free.filter(|first| u64::from(entry.none_free_before) > *first) {
            let description = format!(
                "the {} space map says that bitmap {} (block {}) has nothing free before {}, but {first} is",
                map.name, entry.ordinal, entry.bitmap, entry.none_free_before
            );
            self.wrong("F12", Some(entry.bitmap), None, description);
        }
        valid_used
    }

    /// The count that the map has for a block. F11.
    fn recorded(&mut self, map: &SpaceMap, entry: &IndexEntry, block: u64, raw: u8) -> Option<u32> {
        let large = map.large.get(block);
        // The low-numbered bit of the two holds the high bit of the count.
        let recorded = match raw {
            0 => 0,
            1 => 2,
            2 => 1,
            _ if large != 0 => return Some(large),
            _ if !map.complete => return None,
            _ => {
                let description = format!(
                    "the {} space map's bits say that block {block} has a large count, its tree has none",
                    map.name
                );
                self.wrong("F11", Some(entry.bitmap), Some((block, block)), description);
                return None;
            }
        };
        if large != 0 {
            let description = format!(
                "the {} space map's bits give block {block} count {recorded}, its tree of large counts {large}",
                map.name
            );
            self.wrong("F11", Some(entry.bitmap), Some((block, block)), description);
        }
        Some(recorded)
    }

    fn compare_count(
        &mut self,
        map: &SpaceMap,
        block: u64,
        recorded: Option<u32>,
        pending: &mut Option<Mismatch>,
    ) {
        let Some(recorded) = recorded.filter(|_| !self.incomplete) else { return };
        let counts =
            if map.bitmap_role == Role::DataBitmap { &self.data_counts } else { &self.metadata_counts };
        let counted = counts.get(block);
        if counted == recorded {
            return;
        }
        if let Some(run) = pending
            && run.last.checked_add(1) == Some(block)
            && run.recorded == recorded
            && run.counted == counted
        {
            run.last = block;
            return;
        }
        let complete = pending.replace(Mismatch { first: block, last: block, recorded, counted });
        self.mismatch(map, complete);
    }

    fn mismatch(&mut self, map: &SpaceMap, run: Option<Mismatch>) {
        let Some(Mismatch { first, last, recorded, counted }) = run else { return };
        let blocks =
            if first == last { format!("block {first}") } else { format!("blocks {first} to {last}") };
        let leak = recorded == 1 && counted == 0;
        let description = if leak {
            format!("{} {blocks} leaked: count 1, and nothing refers to it", map.name)
        } else {
            format!("{} {blocks}: count {recorded} is recorded, {counted} references were found", map.name)
        };
        self.report.add(Damage {
            invariant: map.invariant,
            fatal: !leak,
            block: None,
            device: None,
            keys: Some((first, last)),
            description,
        });
    }

    fn wrong(
        &mut self,
        invariant: &'static str,
        block: Option<u64>,
        keys: Option<(u64, u64)>,
        description: String,
    ) {
        let block = block.map(MetadataBlock);
        self.report.add(Damage { invariant, fatal: true, block, device: None, keys, description });
    }
}

impl IndexEntry {
    /// The bitmap, and the blocks that it counts.
    fn place(&self) -> Place {
        let first = self.ordinal.saturating_mul(ENTRIES_PER_BITMAP);
        Place {
            block: self.bitmap,
            first,
            last: first.saturating_add(ENTRIES_PER_BITMAP - 1),
            is_root: false,
        }
    }
}
