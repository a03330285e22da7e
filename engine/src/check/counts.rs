//! Small numbers for very many blocks, which several threads add to.

use std::{collections::HashMap, ops::Range};

use parking_lot::Mutex;

use super::raw::ENTRIES_PER_BITMAP;

/// Blocks of one chunk: those of one bitmap.
const CHUNK: usize = ENTRIES_PER_BITMAP as usize;
/// So many counts that do not fit into a byte are kept one by one.
const MAX_FEW: usize = CHUNK / 8;

/// Counts of 255 and more.
enum Large {
    Few(HashMap<u16, u32>),
    /// One for each block of the chunk.
    Many(Box<[u32]>),
}

/// The counts of the blocks of one bitmap: 16 KiB, with many large ones among them 80 KiB.
pub(super) struct Chunk {
    /// A byte per block, which ends at 255.
    small: Box<[u8; CHUNK]>,
    /// Of the blocks whose byte is 255.
    large: Large,
}

impl Chunk {
    fn new() -> Self {
        Self { small: Box::new([0; CHUNK]), large: Large::Few(HashMap::new()) }
    }

    fn add(&mut self, slots: Range<usize>) {
        let begin = slots.start;
        let Some(small) = self.small.get_mut(slots) else { return };
        let mut most = 0;
        for small in small.iter_mut() {
            *small = small.saturating_add(1);
            most = most.max(*small);
        }
        if most == u8::MAX {
            for (slot, _) in (begin..).zip(small).filter(|(_, small)| **small == u8::MAX) {
                let count = self.large.get(slot).map_or(u32::from(u8::MAX), |count| count.saturating_add(1));
                self.large.set(slot, count);
            }
        }
    }

    fn set(&mut self, slot: usize, count: u32) {
        let Some(small) = self.small.get_mut(slot) else { return };
        *small = u8::try_from(count).unwrap_or(u8::MAX);
        if *small == u8::MAX {
            self.large.set(slot, count);
        } else {
            self.large.remove(slot);
        }
    }

    pub(super) fn get(&self, slot: usize) -> u32 {
        match self.small.get(slot) {
            Some(&u8::MAX) => self.large.get(slot).unwrap_or(u32::from(u8::MAX)),
            Some(&small) => u32::from(small),
            None => 0,
        }
    }

    /// The counts, those of 255 and more as 255.
    pub(super) fn small(&self) -> &[u8] {
        self.small.as_slice()
    }
}

impl Large {
    fn get(&self, slot: usize) -> Option<u32> {
        match self {
            Self::Few(few) => few.get(&u16::try_from(slot).ok()?).copied(),
            Self::Many(many) => many.get(slot).copied().filter(|count| *count > 0),
        }
    }

    fn set(&mut self, slot: usize, count: u32) {
        if let Self::Few(few) = self
            && few.len() >= MAX_FEW
        {
            let of = |slot: usize| u16::try_from(slot).ok().and_then(|slot| few.get(&slot).copied());
            *self = Self::Many((0..CHUNK).map(|slot| of(slot).unwrap_or(0)).collect());
        }
        match (self, u16::try_from(slot)) {
            (Self::Few(few), Ok(slot)) => drop(few.insert(slot, count)),
            (Self::Many(many), _) if slot < CHUNK => {
                many.get_mut(slot).into_iter().for_each(|place| *place = count);
            }
            _ => {}
        }
    }

    fn remove(&mut self, slot: usize) {
        match (self, u16::try_from(slot)) {
            (Self::Few(few), Ok(slot)) => drop(few.remove(&slot)),
            (Self::Many(many), _) => many.get_mut(slot).into_iter().for_each(|place| *place = 0),
            _ => {}
        }
    }
}

/// A count per block of a span of blocks, zero at first; blocks outside of the span have none. A chunk takes no
/// memory before one of its blocks is counted.
pub(super) struct Counts {
    /// The bitmap that is responsible for the first block of the span.
    first_bitmap: u64,
    chunks: Vec<Mutex<Option<Chunk>>>,
}

impl Counts {
    /// For the blocks of these bitmaps.
    pub(super) fn new(bitmaps: Range<u64>) -> Self {
        let chunks = bitmaps.clone().map(|_| Mutex::new(None)).collect();
        Self { first_bitmap: bitmaps.start, chunks }
    }

    /// The counts of the blocks of a bitmap; none when all are zero.
    pub(super) fn with_chunk<R>(&self, bitmap: u64, look: impl FnOnce(Option<&Chunk>) -> R) -> R {
        match self.chunk(bitmap) {
            Some(chunk) => look(chunk.lock().as_ref()),
            None => look(None),
        }
    }

    fn chunk(&self, bitmap: u64) -> Option<&Mutex<Option<Chunk>>> {
        let index = bitmap.checked_sub(self.first_bitmap)?;
        self.chunks.get(usize::try_from(index).ok()?)
    }

    /// Counts each of `len` blocks from `first` once more.
    pub(super) fn add(&self, first: u64, len: u64) {
        let (mut first, mut len) = (first, len);
        while len > 0 {
            let slot = first % ENTRIES_PER_BITMAP;
            let part = len.min(ENTRIES_PER_BITMAP - slot);
            if let Some(chunk) = self.chunk(first / ENTRIES_PER_BITMAP) {
                let slots = slot_index(slot)..slot_index(slot + part);
                chunk.lock().get_or_insert_with(Chunk::new).add(slots);
            }
            first = first.saturating_add(part);
            len -= part;
        }
    }

    /// Records a block's count.
    pub(super) fn set(&self, block: u64, count: u32) {
        if let Some(chunk) = self.chunk(block / ENTRIES_PER_BITMAP) {
            let slot = slot_index(block % ENTRIES_PER_BITMAP);
            chunk.lock().get_or_insert_with(Chunk::new).set(slot, count);
        }
    }

    pub(super) fn get(&self, block: u64) -> u32 {
        let slot = slot_index(block % ENTRIES_PER_BITMAP);
        self.with_chunk(block / ENTRIES_PER_BITMAP, |chunk| chunk.map_or(0, |chunk| chunk.get(slot)))
    }
}

/// A slot is at most [`ENTRIES_PER_BITMAP`].
fn slot_index(slot: u64) -> usize {
    usize::try_from(slot).unwrap_or(CHUNK)
}

#[cfg(test)]
mod tests {
    use super::{Counts, ENTRIES_PER_BITMAP};

    #[test]
    fn counts_cross_the_byte_both_ways() {
        let counts = Counts::new(0..2);
        for _ in 0..300 {
            counts.add(5_000, 1);
        }
        assert_eq!(counts.get(5_000), 300);
        assert_eq!(counts.get(5_001), 0);
        for count in [254, 255, 256, 254] {
            counts.set(5_000, count);
            assert_eq!(counts.get(5_000), count);
        }
        counts.add(5_000, 1);
        assert_eq!(counts.get(5_000), 255);
    }

    #[test]
    fn many_large_counts_are_kept_as_few_are() {
        let counts = Counts::new(0..1);
        (0..300).for_each(|_| counts.add(0, ENTRIES_PER_BITMAP - 1));
        counts.set(7, 5);
        counts.set(9, 100_000);
        counts.add(8, 2);
        let found: Vec<_> = [0, 7, 8, 9, 10, 16_318, 16_319].map(|block| counts.get(block)).into();
        assert_eq!(found, [300, 5, 301, 100_001, 300, 300, 0]);
    }

    #[test]
    fn a_run_goes_on_in_the_next_chunk_and_ends_with_the_span() {
        let counts = Counts::new(3..5);
        let (begin, end) = (3 * ENTRIES_PER_BITMAP, 5 * ENTRIES_PER_BITMAP);
        counts.add(begin - 2, 4);
        counts.add(begin + ENTRIES_PER_BITMAP - 1, 2);
        counts.add(end - 1, 3);
        counts.add(u64::MAX, 5);
        let counted: Vec<_> = (0..6 * ENTRIES_PER_BITMAP).filter(|block| counts.get(*block) > 0).collect();
        let middle = begin + ENTRIES_PER_BITMAP;
        assert_eq!(counted, [begin, begin + 1, middle - 1, middle, end - 1]);
    }

    #[test]
    fn threads_lose_no_count() {
        let counts = Counts::new(0..1);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| (0..1_000).for_each(|first| counts.add(first % 7, 300)));
            }
        });
        assert_eq!(counts.get(6), 4_000);
        assert_eq!(counts.get(299), 4_000);
        assert_eq!(counts.get(306), 0);
    }
}
