//! F9 to F13: the bitmaps, against what was counted.
//!
//! The data space map's bitmaps are compared by several threads, as whole blocks; those that are not exactly as they
//! have to be are read again and compared count by count, in order. Data blocks are compared span by span, so that the
//! counts take a bounded amount of memory.

use std::{mem, sync::Arc};

use super::{
    Damage,
    agreement::agreement,
    checker::{Checker, Place, Role, Scope},
    raw::{BITMAP_HEADER_LEN, Block, ENTRIES_PER_BITMAP, Node, Salt, read_block, verify},
    space_maps::{IndexEntry, SpaceMap, SpaceMaps},
    sweep::sweep,
    table::{BlockSet, Known, Scanned},
    tally::Tally,
};
use crate::MetadataBlock;

/// Blocks in a row whose counts are wrong in the same way.
struct Mismatch {
    first: u64,
    last: u64,
    recorded: u32,
    counted: u32,
}

/// Of a space map, from bitmap to bitmap.
#[derive(Default)]
struct Progress {
    /// Blocks that have a count.
    allocated: u64,
    /// A bitmap could not be read.
    lost: bool,
    pending: Option<Mismatch>,
}

impl Checker<'_> {
    /// Reads the bitmaps and compares them with what was counted, `span_bitmaps` data bitmaps at a time.
    pub(super) fn compare(&mut self, maps: SpaceMaps, span_bitmaps: u64) {
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
        let mut progress = Progress::default();
        self.compare_entries(&maps.metadata, &maps.metadata.entries, &mut progress);
        self.compare_sums(&maps.metadata, progress);

        self.compare_data(maps.data, span_bitmaps);
    }

    fn compare_data(&mut self, mut map: SpaceMap, span_bitmaps: u64) {
        let entries = mem::take(&mut map.entries);
        let highest = self.tally.highest();
        let mut progress = Progress::default();
        let span_of = |entry: &IndexEntry| entry.ordinal / span_bitmaps;
        for entries in entries.chunk_by(|one, other| span_of(one) == span_of(other)) {
            let span = entries.first().map_or(0, span_of);
            if span > 0 {
                let bitmaps = span * span_bitmaps..(span + 1) * span_bitmaps;
                let is_used = bitmaps.start <= highest / ENTRIES_PER_BITMAP;
                self.tally = Arc::new(Tally::new(self.superblock, self.blocks, bitmaps));
                // There is a bound on the passes only if the index is right. If it is not, counts are not compared anyway.
                map.large_complete &= map.index_complete;
                if map.index_complete && is_used && !self.recount() {
                    progress.lost = true;
                    break;
                }
            }
            self.compare_whole(&map, entries);
            self.compare_entries(&map, entries, &mut progress);
        }
        self.compare_sums(&map, progress);
    }

    fn compare_sums(&mut self, map: &SpaceMap, progress: Progress) {
        let Progress { allocated, lost, pending } = progress;
        self.mismatch(map, pending);
        if map.index_complete && map.large_complete && !lost && allocated != map.root.allocated {
            let description = format!(
                "the {} space map says that {} blocks are allocated, {allocated} have a count",
                map.name, map.root.allocated
            );
            self.wrong("F12", None, None, description);
        }
    }

    /// Counts a further span of data blocks: all leaves are read again. False when one cannot be read any more.
    fn recount(&mut self) -> bool {
        let tally = Arc::clone(&self.tally);
        let (nodes, done) = (BlockSet::new(self.blocks), BlockSet::new(self.blocks));
        self.table.with_roles(&[Role::MappingTree, Role::DataCountTree], &nodes);
        sweep(self.device, &mut self.table, &nodes, &|number, block: &Block, known: &mut Known| {
            let Some(role) = known.role else { return };
            let Ok(()) = verify(block, number, Salt::Node) else { return };
            let Ok(node) = Node::decode(block, role.value_size()) else { return };
            match role {
                _ if node.internal => {}
                Role::MappingTree => drop(tally.mapping_leaf(&node, true)),
                _ => drop(tally.count_leaf(&node, role)),
            }
            done.insert(number);
        });
        let lost = nodes.first_not_in(&done).filter(|_| !self.incomplete);
        if let Some(block) = lost {
            let scope = Scope::new(self.table.get(block).role.unwrap_or(Role::MappingTree), false);
            let what = format!("block {block} could be read before, and cannot any more");
            self.lost("F3", &Place::root(block), scope, &what);
        }
        lost.is_none()
    }

    /// Compares bitmaps as a whole, and notes those that are right and how many blocks they count.
    fn compare_whole(&mut self, map: &SpaceMap, entries: &[IndexEntry]) {
        let wanted = BlockSet::new(self.blocks);
        for entry in entries {
            let known = self.table.get(entry.bitmap);
            if known.role == Some(map.bitmap_role) && known.first == entry.ordinal {
                wanted.insert(entry.bitmap);
            }
        }
        let tally = Arc::clone(&self.tally);
        let counted = !self.incomplete;
        sweep(self.device, &mut self.table, &wanted, &|number, block: &Block, known: &mut Known| {
            let found = entries.binary_search_by_key(&known.first, |entry| entry.ordinal);
            let Some(entry) = found.ok().and_then(|index| entries.get(index)) else { return };
            // A bitmap that ends within is compared count by count.
            let is_full = entry.begin().saturating_add(ENTRIES_PER_BITMAP) <= map.root.blocks;
            if !is_full || verify(block, number, Salt::Bitmap).is_err() {
                return;
            }
            let bits = block.get(BITMAP_HEADER_LEN..).unwrap_or_default();
            let used = tally.large_data.with_chunk(entry.ordinal, |large| {
                let large = map.large_complete.then_some(large);
                if counted {
                    tally.data.with_chunk(entry.ordinal, |counts| agreement(bits, Some(counts), large))
                } else {
                    agreement(bits, None, large)
                }
            });
            if let Some(used) = used.filter(|used| entry.fits(*used)) {
                known.scanned = Scanned::Clean;
                known.scanned_as = Some(map.bitmap_role);
                known.entries = used.blocks;
            }
        });
    }

    /// Compares bitmaps count by count, unless they were found right as a whole.
    fn compare_entries(&mut self, map: &SpaceMap, entries: &[IndexEntry], progress: &mut Progress) {
        for entry in entries {
            if entry.bitmap >= self.blocks {
                progress.lost = true;
                continue;
            }
            let known = self.table.get(entry.bitmap);
            let is_right = known.scanned == Scanned::Clean && known.scanned_as == Some(map.bitmap_role);
            if is_right && known.first == entry.ordinal {
                progress.allocated += u64::from(known.entries);
                continue;
            }
            match read_block(self.device, entry.bitmap, Salt::Bitmap) {
                Ok(block) => {
                    let bits = block.get(BITMAP_HEADER_LEN..).unwrap_or_default();
                    progress.allocated += self.compare_bitmap(map, entry, bits, &mut progress.pending);
                }
                Err(fault) => {
                    progress.lost = true;
                    let scope = Scope::new(map.bitmap_role, false);
                    let what = format!("block {} is damaged: {fault}", entry.bitmap);
                    self.lost("F3", &entry.place(), scope, &what);
                }
            }
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
        let begin = entry.begin();
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
        // The low-numbered bit of the two holds the high bit of the count.
        let recorded = match raw {
            0 => Some(0),
            1 => Some(2),
            2 => Some(1),
            _ => None,
        };
        if !map.large_complete {
            return recorded;
        }
        match (recorded, self.tally.large(map.count_role).get(block)) {
            (recorded, 0) if recorded.is_some() => recorded,
            (None, 0) => {
                let description = format!(
                    "the {} space map's bits say that block {block} has a large count, its tree has none",
                    map.name
                );
                self.wrong("F11", Some(entry.bitmap), Some((block, block)), description);
                None
            }
            (None, large) => Some(large),
            (Some(recorded), large) => {
                let description = format!(
                    "the {} space map's bits give block {block} count {recorded}, its tree of large counts {large}",
                    map.name
                );
                self.wrong("F11", Some(entry.bitmap), Some((block, block)), description);
                Some(recorded)
            }
        }
    }

    fn compare_count(
        &mut self,
        map: &SpaceMap,
        block: u64,
        recorded: Option<u32>,
        pending: &mut Option<Mismatch>,
    ) {
        let Some(recorded) = recorded.filter(|_| !self.incomplete) else { return };
        let counted = match map.bitmap_role {
            Role::DataBitmap => self.tally.data.get(block),
            _ => self.table.get(block).references,
        };
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
