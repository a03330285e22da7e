//! Records known to be damaged, by where they lie.
//!
//! A quarantined place counts as not stored: whoever has the content sends it, it is put into another pack, and
//! the index names that one. The set lives in memory; the catalogue keeps it, and is told of every
//! [`Change`]. A change that a crash loses costs nothing: the damage is found again when it is next read.

use std::{
    collections::{HashMap, hash_map::Entry},
    sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
};

use parking_lot::{Mutex, RwLock};
use tokio::sync::Notify;

use super::record::Kind;

/// Places that are kept; a repository with more of them has lost its disk, and further ones are only reported.
const MAX_PLACES: usize = 1 << 22;

/// Where a record lies: pack, and offset of the record's header in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct RecordPlace {
    pub(crate) pack: u32,
    pub(crate) offset: u32,
}

/// A record that cannot be read back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct DamagedRecord {
    pub(crate) place: RecordPlace,
    pub(crate) id: [u8; 32],
    pub(crate) kind: Kind,
    /// For people.
    pub(crate) reason: String,
}

/// A place that was known when the store was opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Quarantined {
    pub(crate) place: RecordPlace,
    pub(crate) healed: bool,
}

/// What the catalogue is to be told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Change {
    /// A record was found damaged.
    Found(DamagedRecord),
    /// Its content is stored again, elsewhere.
    Healed(RecordPlace),
    /// The record read well again.
    Lifted(RecordPlace),
}

/// The set, and the changes that the catalogue was not told of yet.
#[derive(Debug, Default)]
pub(super) struct Quarantine {
    /// Whether each place is healed.
    places: RwLock<HashMap<RecordPlace, bool>>,
    any: AtomicBool,
    unhealed: AtomicUsize,
    /// Places that were ever added.
    found: AtomicU64,
    changes: Mutex<Vec<Change>>,
    changed: Notify,
}

impl Quarantine {
    pub(super) fn new(known: &[Quarantined]) -> Self {
        let places: HashMap<_, _> = known.iter().map(|known| (known.place, known.healed)).collect();
        let unhealed = places.values().filter(|healed| !**healed).count();
        Self {
            any: AtomicBool::new(!places.is_empty()),
            unhealed: AtomicUsize::new(unhealed),
            places: RwLock::new(places),
            ..Self::default()
        }
    }

    pub(super) fn contains(&self, place: RecordPlace) -> bool {
        self.any.load(Ordering::Acquire) && self.places.read().contains_key(&place)
    }

    /// Places whose content is not stored elsewhere yet.
    pub(super) fn unhealed(&self) -> usize {
        self.unhealed.load(Ordering::Acquire)
    }

    /// How many places were found damaged since the store was opened.
    pub(super) fn found(&self) -> u64 {
        self.found.load(Ordering::Acquire)
    }

    /// Adds a place. False if it was there, or if there are too many.
    pub(super) fn add(&self, damaged: DamagedRecord) -> bool {
        let mut places = self.places.write();
        let full = places.len() >= MAX_PLACES;
        match places.entry(damaged.place) {
            Entry::Vacant(entry) if !full => entry.insert(false),
            _ => return false,
        };
        self.any.store(true, Ordering::Release);
        self.unhealed.fetch_add(1, Ordering::AcqRel);
        self.found.fetch_add(1, Ordering::AcqRel);
        self.tell(Change::Found(damaged));
        true
    }

    /// Notes that the content of a place is stored elsewhere.
    pub(super) fn heal(&self, place: RecordPlace) {
        if !self.any.load(Ordering::Acquire) {
            return;
        }
        if let Some(healed) = self.places.write().get_mut(&place).filter(|healed| !**healed) {
            *healed = true;
            self.unhealed.fetch_sub(1, Ordering::AcqRel);
            self.tell(Change::Healed(place));
        }
    }

    /// Takes a place out: its record reads well.
    pub(super) fn lift(&self, place: RecordPlace) -> bool {
        let Some(healed) = self.places.write().remove(&place) else { return false };
        if !healed {
            self.unhealed.fetch_sub(1, Ordering::AcqRel);
        }
        self.tell(Change::Lifted(place));
        true
    }

    /// Forgets the places of a pack that was removed. The catalogue drops its rows by itself.
    pub(super) fn forget_pack(&self, pack: u32) {
        self.places.write().retain(|place, healed| {
            let stays = place.pack != pack;
            if !stays && !*healed {
                self.unhealed.fetch_sub(1, Ordering::AcqRel);
            }
            stays
        });
    }

    /// Places that one pack has.
    pub(super) fn of_pack(&self, pack: u32) -> Vec<RecordPlace> {
        if !self.any.load(Ordering::Acquire) {
            return Vec::new();
        }
        self.places.read().keys().filter(|place| place.pack == pack).copied().collect()
    }

    // Told while the places are locked: so the changes of one place are in order.
    fn tell(&self, change: Change) {
        self.changes.lock().push(change);
        self.changed.notify_one();
    }

    /// What the catalogue was not told of yet, oldest first.
    pub(super) fn take_changes(&self) -> Vec<Change> {
        std::mem::take(&mut self.changes.lock())
    }

    /// Gives changes back that could not be written.
    pub(super) fn give_back(&self, mut changes: Vec<Change>) {
        let mut later = self.changes.lock();
        changes.append(&mut later);
        *later = changes;
    }

    /// Resolves when there are changes.
    pub(super) async fn changed(&self) {
        self.changed.notified().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn damaged(pack: u32, offset: u32) -> DamagedRecord {
        let place = RecordPlace { pack, offset };
        DamagedRecord { place, id: [7; 32], kind: Kind::Chunk, reason: "a test".into() }
    }

    #[test]
    fn a_place_is_unhealed_from_its_damage_to_its_healing_or_lifting() {
        let quarantine = Quarantine::new(&[]);
        let (one, other) = (damaged(1, 64), damaged(2, 64));
        assert!(!quarantine.contains(one.place));
        assert!(quarantine.add(one.clone()) && !quarantine.add(one.clone()) && quarantine.add(other.clone()));
        assert_eq!(quarantine.unhealed(), 2);
        quarantine.heal(one.place);
        quarantine.heal(one.place);
        assert!(quarantine.contains(one.place), "the place stays damaged");
        assert!(quarantine.lift(other.place) && !quarantine.lift(other.place));
        assert_eq!((quarantine.unhealed(), quarantine.contains(other.place)), (0, false));
        let (found, healed) = (Change::Found(one.clone()), Change::Healed(one.place));
        let rest = [Change::Found(other.clone()), healed, Change::Lifted(other.place)];
        let changes = quarantine.take_changes();
        assert_eq!((&changes[0], &changes[1..]), (&found, &rest[..]));
        quarantine.add(other.clone());
        quarantine.give_back(changes);
        assert_eq!(quarantine.take_changes().last(), Some(&Change::Found(other.clone())));
        quarantine.forget_pack(2);
        assert_eq!((quarantine.unhealed(), quarantine.of_pack(1)), (0, vec![one.place]));
    }
}
