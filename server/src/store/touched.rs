//! Records that somebody relies on although no generation names them yet.
//!
//! A backup is told that a chunk is present, or stores one, and only its commit makes a generation that names it.
//! Until then the record must not be collected. So everything that is found for somebody, or stored, is entered
//! here, for as long as somebody has a [`Claim`] that is as old as the entry's epoch or older.
//!
//! A collection begins a new epoch, and claims all epochs that are kept: what a backup relied upon whose commit
//! comes too late for the collection to see stays until the collection has ended. An epoch without a claim of its
//! own is merged into the one before it, so there are never more sets than claims.

use std::{collections::BTreeMap, sync::Arc};

use parking_lot::{Mutex, RwLock, RwLockReadGuard, RwLockWriteGuard};

use super::{index::Location, marks::RecordMarks};

/// What is relied on; see the head of this file.
#[derive(Debug, Default)]
pub(crate) struct Touched {
    /// Read by those who look up and touch, written by the one who takes entries out of the index: between a
    /// look-up and its touch nothing is taken out.
    gate: RwLock<()>,
    epochs: Mutex<Epochs>,
}

#[derive(Debug, Default)]
struct Epochs {
    current: u64,
    kept: BTreeMap<u64, Epoch>,
}

#[derive(Debug, Default)]
struct Epoch {
    claims: usize,
    touched: RecordMarks,
}

/// While it lives, every record stays that was found or stored since it was made.
#[derive(Debug)]
pub(crate) struct Claim {
    touched: Arc<Touched>,
    epoch: u64,
}

impl Touched {
    /// Claims what is touched from now on.
    pub(super) fn claim(self: &Arc<Self>) -> Claim {
        let mut epochs = self.epochs.lock();
        let epoch = epochs.current;
        epochs.kept.entry(epoch).or_default().claims += 1;
        Claim { touched: Arc::clone(self), epoch }
    }

    /// Begins a new epoch, and claims it and all that are kept.
    pub(super) fn claim_all(self: &Arc<Self>) -> Claim {
        let mut epochs = self.epochs.lock();
        epochs.current += 1;
        let epoch = epochs.kept.first_key_value().map_or(epochs.current, |(first, _)| *first);
        epochs.kept.entry(epoch).or_default().claims += 1;
        Claim { touched: Arc::clone(self), epoch }
    }

    /// Held from before a look-up until its finds are touched.
    pub(super) fn looking(&self) -> RwLockReadGuard<'_, ()> {
        self.gate.read()
    }

    /// Held from before the last look at what is touched until nobody can find what is not; waits for those who
    /// are [`looking`](Self::looking).
    pub(super) fn retiring(&self) -> RwLockWriteGuard<'_, ()> {
        self.gate.write()
    }

    /// Enters records, if there is any claim.
    pub(super) fn insert<'a>(&self, locations: impl Iterator<Item = &'a Location>) {
        let mut epochs = self.epochs.lock();
        if epochs.kept.is_empty() {
            return;
        }
        let current = epochs.current;
        let epoch = epochs.kept.entry(current).or_default();
        for location in locations {
            epoch.touched.insert(location);
        }
    }

    /// Whether somebody relies on record `ordinal` of `pack`.
    pub(super) fn contains(&self, pack: u32, ordinal: u32) -> bool {
        self.epochs.lock().kept.values().any(|epoch| epoch.touched.contains(pack, ordinal))
    }

    /// Who relies on a record relies on it at its new place. The index says the new place already.
    pub(super) fn moved(&self, moves: &[(Location, Location)]) {
        // Those who have found the old place have touched it when this is granted.
        let _gate = self.gate.write();
        for epoch in self.epochs.lock().kept.values_mut() {
            for (old, new) in moves {
                if epoch.touched.contains(old.pack, old.ordinal) {
                    epoch.touched.insert(new);
                }
            }
        }
    }

    /// Adds everything that is relied on to `marks`.
    pub(super) fn add_to(&self, marks: &mut RecordMarks) {
        self.epochs.lock().kept.values().for_each(|epoch| marks.merge(&epoch.touched));
    }
}

impl Epochs {
    /// Drops what nobody claims, and merges what only older claims keep.
    fn settle(&mut self) {
        while let Some(first) = self.kept.first_entry()
            && first.get().claims == 0
        {
            first.remove();
        }
        let mut merged: BTreeMap<u64, Epoch> = BTreeMap::new();
        for (number, epoch) in std::mem::take(&mut self.kept) {
            match merged.last_entry() {
                Some(mut before) if epoch.claims == 0 => before.get_mut().touched.merge(&epoch.touched),
                _ => {
                    merged.insert(number, epoch);
                }
            }
        }
        self.kept = merged;
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        let mut epochs = self.touched.epochs.lock();
        if let Some(epoch) = epochs.kept.get_mut(&self.epoch) {
            epoch.claims -= 1;
        }
        epochs.settle();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Kind;

    fn at(ordinal: u32) -> Location {
        Location { pack: 1, offset: 64, ordinal, stored_len: 1, plain_len: 1, kind: Kind::Chunk }
    }

    fn kept(touched: &Touched) -> Vec<u32> {
        (0..10).filter(|ordinal| touched.contains(1, *ordinal)).collect()
    }

    #[test]
    fn without_a_claim_nothing_is_kept() {
        let touched = Arc::<Touched>::default();
        touched.insert([at(1)].iter());
        assert!(kept(&touched).is_empty());
        let claim = touched.claim();
        touched.insert([at(2)].iter());
        assert_eq!(kept(&touched), [2]);
        drop(claim);
        assert!(kept(&touched).is_empty());
    }

    #[test]
    fn an_epoch_is_kept_until_the_claims_of_it_and_of_earlier_ones_have_ended() {
        let touched = Arc::<Touched>::default();
        let old = touched.claim();
        touched.insert([at(1)].iter());
        drop(touched.claim_all());
        let young = touched.claim();
        touched.insert([at(2)].iter());
        drop(touched.claim_all());
        touched.insert([at(3)].iter());
        assert_eq!(kept(&touched), [1, 2, 3]);
        drop(old);
        assert_eq!(kept(&touched), [2, 3]);
        drop(young);
        assert!(kept(&touched).is_empty());
    }

    #[test]
    fn what_a_claim_kept_when_a_collection_began_stays_until_that_has_ended() {
        let touched = Arc::<Touched>::default();
        let session = touched.claim();
        touched.insert([at(1)].iter());
        let collection = touched.claim_all();
        touched.insert([at(2)].iter());
        drop(session);
        assert_eq!(kept(&touched), [1, 2]);
        drop(collection);
        assert!(kept(&touched).is_empty());
    }

    #[test]
    fn there_are_never_more_sets_than_claims() {
        let touched = Arc::<Touched>::default();
        let _session = touched.claim();
        for _ in 0..100 {
            drop(touched.claim_all());
            touched.insert([at(1)].iter());
        }
        drop(touched.claim_all());
        assert_eq!(touched.epochs.lock().kept.len(), 1);
    }

    #[test]
    fn who_relies_on_a_record_relies_on_it_where_it_is_moved_to() {
        let touched = Arc::<Touched>::default();
        let old = touched.claim();
        touched.insert([at(1)].iter());
        let _collection = touched.claim_all();
        let young = touched.claim();
        touched.moved(&[(at(1), at(5)), (at(2), at(6))]);
        assert_eq!(kept(&touched), [1, 5]);
        drop((old, young));
        let mut marks = RecordMarks::default();
        touched.add_to(&mut marks);
        assert_eq!(marks.count(1), 2);
    }
}
