//! A set of records, one bit each.

use std::collections::BTreeMap;

use super::index::Location;

const WORD_BITS: u32 = u64::BITS;

/// A set of records by where they lie: pack and ordinal. It takes an eighth of a byte for each record of the
/// packs that it names, so 6 MiB for 50 million.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct RecordMarks {
    packs: BTreeMap<u32, Vec<u64>>,
}

impl RecordMarks {
    /// Adds a record. False if it was there.
    pub(crate) fn insert(&mut self, location: &Location) -> bool {
        let words = self.packs.entry(location.pack).or_default();
        let (word, bit) = place(location.ordinal);
        if words.len() <= word {
            words.resize(word + 1, 0);
        }
        words.get_mut(word).is_some_and(|word| {
            let before = *word;
            *word |= bit;
            before != *word
        })
    }

    /// Whether record `ordinal` of `pack` is in the set.
    pub(crate) fn contains(&self, pack: u32, ordinal: u32) -> bool {
        let (word, bit) = place(ordinal);
        self.packs.get(&pack).and_then(|words| words.get(word)).is_some_and(|word| word & bit != 0)
    }

    /// How many records of `pack` are in the set.
    pub(crate) fn count(&self, pack: u32) -> u64 {
        self.packs.get(&pack).map_or(0, |words| words.iter().map(|word| u64::from(word.count_ones())).sum())
    }

    /// The packs of which there are records, in ascending order.
    pub(crate) fn packs(&self) -> impl Iterator<Item = u32> + '_ {
        self.packs.keys().copied()
    }

    /// Adds everything that `other` has.
    pub(crate) fn merge(&mut self, other: &Self) {
        for (pack, words) in &other.packs {
            let own = self.packs.entry(*pack).or_default();
            if own.len() < words.len() {
                own.resize(words.len(), 0);
            }
            own.iter_mut().zip(words).for_each(|(own, word)| *own |= word);
        }
    }
}

/// Word and bit of a record.
fn place(ordinal: u32) -> (usize, u64) {
    ((ordinal / WORD_BITS) as usize, 1 << (ordinal % WORD_BITS))
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use rand::{Rng as _, SeedableRng as _, rngs::StdRng};

    use super::*;
    use crate::store::Kind;

    fn location(pack: u32, ordinal: u32) -> Location {
        Location { pack, offset: 64, ordinal, stored_len: 1, plain_len: 1, kind: Kind::Chunk }
    }

    #[test]
    fn marks_are_a_set_of_pack_and_ordinal() {
        let mut random = StdRng::seed_from_u64(4);
        let mut sets = [HashSet::new(), HashSet::new()];
        let mut marks = [RecordMarks::default(), RecordMarks::default()];
        for (set, marks) in sets.iter_mut().zip(&mut marks) {
            for _ in 0..2000 {
                let (pack, ordinal) = (random.random_range(0..3), random.random_range(0..1000));
                assert_eq!(marks.insert(&location(pack, ordinal)), set.insert((pack, ordinal)));
            }
        }
        let [one, other] = &mut marks;
        one.merge(other);
        let all: HashSet<_> = sets.iter().flatten().copied().collect();
        for pack in 0..4 {
            let expected = all.iter().filter(|(of, _)| *of == pack).count() as u64;
            assert_eq!(one.count(pack), expected);
            assert!((0..1100).all(|ordinal| one.contains(pack, ordinal) == all.contains(&(pack, ordinal))));
        }
        assert_eq!(one.packs().collect::<Vec<_>>(), [0, 1, 2]);
    }
}
