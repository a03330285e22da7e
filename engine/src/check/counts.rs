//! Small numbers for very many blocks, in memory that follows what is used.

use std::collections::HashMap;

const CHUNK: u64 = 4096;

/// A count per block, zero at first. One byte per block in chunks that are made when first needed; the few
/// counts of 255 and more are kept apart.
#[derive(Default)]
pub(super) struct Counts {
    chunks: HashMap<u64, Box<[u8; CHUNK as usize]>>,
    large: HashMap<u64, u32>,
}

impl Counts {
    pub(super) fn get(&self, block: u64) -> u32 {
        let Some(chunk) = self.chunks.get(&(block / CHUNK)) else { return 0 };
        match usize::try_from(block % CHUNK).ok().and_then(|index| chunk.get(index)) {
            Some(&u8::MAX) => self.large.get(&block).copied().unwrap_or(u32::from(u8::MAX)),
            Some(&small) => u32::from(small),
            None => 0,
        }
    }

    pub(super) fn set(&mut self, block: u64, count: u32) {
        let chunk = self.chunks.entry(block / CHUNK).or_insert_with(|| Box::new([0; CHUNK as usize]));
        let Some(slot) = usize::try_from(block % CHUNK).ok().and_then(|index| chunk.get_mut(index)) else {
            return;
        };
        match u8::try_from(count) {
            Ok(small) if small != u8::MAX => {
                if *slot == u8::MAX {
                    self.large.remove(&block);
                }
                *slot = small;
            }
            _ => {
                *slot = u8::MAX;
                self.large.insert(block, count);
            }
        }
    }

    pub(super) fn increment(&mut self, block: u64) {
        self.set(block, self.get(block).saturating_add(1));
    }
}

#[cfg(test)]
mod tests {
    use super::Counts;

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
    }
}
