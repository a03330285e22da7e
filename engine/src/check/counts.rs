//! Small numbers for very many blocks, in memory that follows what is used.

use std::collections::HashMap;

const CHUNK: u64 = 4096;
/// Chunks that are found by position; those beyond, of pools of more than 2^32 blocks, by name.
const NEAR_CHUNKS: u64 = 1 << 20;

type Chunk = Box<[u8; CHUNK as usize]>;

/// A count per block, zero at first. One byte per block in chunks that are made when first needed; the few
/// counts of 255 and more are kept apart.
#[derive(Default)]
pub(super) struct Counts {
    near: Vec<Option<Chunk>>,
    far: HashMap<u64, Chunk>,
    large: HashMap<u64, u32>,
}

impl Counts {
    pub(super) fn get(&self, block: u64) -> u32 {
        let number = block / CHUNK;
        let chunk = if number < NEAR_CHUNKS {
            usize::try_from(number).ok().and_then(|number| self.near.get(number)).and_then(Option::as_ref)
        } else {
            self.far.get(&number)
        };
        let Some(chunk) = chunk else { return 0 };
        match usize::try_from(block % CHUNK).ok().and_then(|index| chunk.get(index)) {
            Some(&u8::MAX) => self.large.get(&block).copied().unwrap_or(u32::from(u8::MAX)),
            Some(&small) => u32::from(small),
            None => 0,
        }
    }

    pub(super) fn set(&mut self, block: u64, count: u32) {
        let chunk = self.chunk(block / CHUNK);
        let slot = usize::try_from(block % CHUNK).ok();
        let Some(slot) = chunk.and_then(|chunk| chunk.get_mut(slot?)) else { return };
        let before = *slot;
        match u8::try_from(count) {
            Ok(small) if small != u8::MAX => {
                *slot = small;
                if before == u8::MAX {
                    self.large.remove(&block);
                }
            }
            _ => {
                *slot = u8::MAX;
                self.large.insert(block, count);
            }
        }
    }

    fn chunk(&mut self, number: u64) -> Option<&mut Chunk> {
        let empty = || Box::new([0; CHUNK as usize]);
        if number >= NEAR_CHUNKS {
            return Some(self.far.entry(number).or_insert_with(empty));
        }
        let number = usize::try_from(number).ok()?;
        if self.near.len() <= number {
            self.near.resize_with(number + 1, || None);
        }
        self.near.get_mut(number).map(|chunk| chunk.get_or_insert_with(empty))
    }

    pub(super) fn increment(&mut self, block: u64) {
        self.set(block, self.get(block).saturating_add(1));
    }
}

#[cfg(test)]
mod tests {
    use super::{CHUNK, Counts, NEAR_CHUNKS};

    #[test]
    fn counts_cross_the_byte_both_ways() {
        let mut counts = Counts::default();
        for _ in 0..300 {
            counts.increment(5_000);
        }
        assert_eq!(counts.get(5_000), 300);
        assert_eq!(counts.get(5_001), 0);
        counts.set(5_000, 254);
        assert_eq!(counts.get(5_000), 254);
        counts.increment(5_000);
        assert_eq!(counts.get(5_000), 255);
        assert_eq!(counts.get(u64::MAX), 0);
        for far in [CHUNK * NEAR_CHUNKS - 1, CHUNK * NEAR_CHUNKS, u64::MAX] {
            counts.increment(far);
            assert_eq!(counts.get(far), 1);
        }
        assert_eq!(counts.get(CHUNK * NEAR_CHUNKS + 1), 0);
    }
}
