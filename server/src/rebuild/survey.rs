//! Reading all manifests and tombstones.

use std::collections::BTreeMap;

use thinbak_proto::{ID_LEN, MAX_LEVELS, ManifestId, chunk_count, levels_for, v1};
use uuid::Uuid;

use super::{Damage, Damages};
use crate::{
    catalogue::Grave,
    manifest::{Manifest, ManifestError, Tombstone},
    repository::check_volume_name,
    store::{Kind, Store, StoreError, StoredRecord},
};

/// What the catalogue can hold.
const MAX_NUMBER: u64 = i64::MAX as u64;

/// A generation as the manifest says it that counts.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Found {
    pub(super) generation: v1::Generation,
    pub(super) revision: u64,
    pub(super) manifest: ManifestId,
}

/// What the first manifest of a generation says: later ones say what the volume is called by then.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Commit {
    revision: u64,
    pub(super) created_at_ms: u64,
    /// Place among all manifests, in the order in which they lie in the packs.
    pub(super) place: u64,
    /// The name that it gave its volume.
    pub(super) volume_name: String,
}

/// All that the packs say of one generation.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Facts {
    /// How it was committed.
    pub(super) commit: Option<Commit>,
    pub(super) found: Option<Found>,
    pub(super) grave: Option<Grave>,
}

impl Facts {
    /// The tombstone, if it ends what the manifest says.
    pub(super) fn ended(&self) -> Option<Grave> {
        let (found, grave) = (self.found.as_ref()?, self.grave?);
        (grave.revision >= found.revision).then_some(grave)
    }
}

/// What the packs say.
#[derive(Debug, Default)]
pub(super) struct Survey {
    pub(super) generations: BTreeMap<(Uuid, u64), Facts>,
    pub(super) manifests: u64,
    pub(super) tombstones: u64,
    pub(super) damages: Damages,
    pub(super) chunk_bytes: u32,
}

impl Survey {
    /// Reads the packs; blocks.
    pub(super) fn of(store: &Store, chunk_bytes: u32, damages: Damages) -> Result<Self, StoreError> {
        let mut survey = Self { chunk_bytes, damages, ..Self::default() };
        for record in store.records(Kind::Manifest)? {
            survey.manifests += 1;
            match record {
                Ok(record) => {
                    let outcome = survey.manifest(&record);
                    survey.judge("manifest", &record, outcome);
                }
                Err(error) => survey.unreadable(error)?,
            }
        }
        for record in store.records(Kind::Tombstone)? {
            survey.tombstones += 1;
            match record {
                Ok(record) => {
                    let outcome = survey.tombstone(&record);
                    survey.judge("tombstone", &record, outcome);
                }
                Err(error) => survey.unreadable(error)?,
            }
        }
        Ok(survey)
    }

    /// One pack that cannot be read is noted; what would go wrong with all of them ends this.
    fn unreadable(&mut self, error: StoreError) -> Result<(), StoreError> {
        if is_of_all(&error) {
            return Err(error);
        }
        self.damages.add(Damage::Unreadable(error));
        Ok(())
    }

    fn judge(&mut self, what: &'static str, record: &StoredRecord, outcome: Result<(), ManifestError>) {
        if let Err(reason) = outcome {
            self.damages.add(Damage::Record { what, id: ManifestId::from_bytes(record.id), reason });
        }
    }

    /// The highest revision counts, of equal ones the one that lies later in the packs: that of the commit that was seen,
    /// for the other died before, and nobody moves a dead one. The dates may say otherwise, when the clock was put back.
    fn manifest(&mut self, record: &StoredRecord) -> Result<(), ManifestError> {
        let (generation, revision) = Manifest::read(record)?;
        let volume = check(&generation, revision, self.chunk_bytes)?;
        let found = Found { revision, manifest: ManifestId::from_bytes(record.id), generation };
        let (created_at_ms, place) = (found.generation.created_at_ms, self.manifests);
        let facts = self.generations.entry((volume, found.generation.number)).or_default();
        // Of two commits the later one: the first died before it could be seen.
        if facts.commit.as_ref().is_none_or(|before| revision <= before.revision) {
            let volume_name = found.generation.volume_name.clone();
            facts.commit = Some(Commit { revision, created_at_ms, place, volume_name });
        }
        if facts.found.as_ref().is_none_or(|before| before.revision <= revision) {
            facts.found = Some(found);
        }
        Ok(())
    }

    /// The highest revision counts, of equal ones the later deletion: the catalogue was changed last for it.
    fn tombstone(&mut self, record: &StoredRecord) -> Result<(), ManifestError> {
        let Tombstone { volume_uuid, number, revision, deleted_at_ms, .. } = Tombstone::read(record)?;
        let volume = uuid_of(&volume_uuid)?;
        in_bounds("number", number, 1)?;
        in_bounds("revision", revision, 1)?;
        in_bounds("time", deleted_at_ms, 0)?;
        let tombstone = ManifestId::from_bytes(record.id);
        let grave = Grave { revision, deleted_at_ms, tombstone };
        let rank = |grave: &Grave| (grave.revision, grave.deleted_at_ms, *grave.tombstone.as_bytes());
        let facts = self.generations.entry((volume, number)).or_default();
        if facts.grave.as_ref().is_none_or(|before| rank(before) < rank(&grave)) {
            facts.grave = Some(grave);
        }
        Ok(())
    }
}

/// Whether an error is not of one pack.
pub(super) fn is_of_all(error: &StoreError) -> bool {
    matches!(
        error,
        StoreError::Index { .. }
            | StoreError::IndexEntry { .. }
            | StoreError::NoSpace { .. }
            | StoreError::Closed
    )
}

/// In the one spelling that the catalogue has.
fn uuid_of(text: &str) -> Result<Uuid, ManifestError> {
    let uuid = Uuid::parse_str(text).ok().filter(|uuid| !uuid.is_nil() && uuid.to_string() == text);
    uuid.ok_or(ManifestError::Field("volume uuid"))
}

fn in_bounds(field: &'static str, value: u64, least: u64) -> Result<(), ManifestError> {
    // One below the highest: the next number must exist as well.
    if (least..MAX_NUMBER).contains(&value) { Ok(()) } else { Err(ManifestError::Field(field)) }
}

/// That a manifest says what the catalogue can hold and the server could have written.
fn check(generation: &v1::Generation, revision: u64, chunk_bytes: u32) -> Result<Uuid, ManifestError> {
    let volume = uuid_of(&generation.volume_uuid)?;
    check_volume_name(&generation.volume_name).map_err(|_| ManifestError::Field("volume name"))?;
    in_bounds("number", generation.number, 1)?;
    in_bounds("revision", revision, 1)?;
    in_bounds("size", generation.size_bytes, 1)?;
    let amounts = [
        ("creation time", generation.created_at_ms),
        ("parent", generation.parent),
        ("mapped bytes", generation.mapped_bytes),
        ("changed bytes", generation.changed_bytes),
        ("new bytes", generation.new_bytes),
        ("stored bytes", generation.stored_bytes),
    ];
    amounts.iter().try_for_each(|(field, value)| in_bounds(field, *value, 0))?;
    if generation.chunk_bytes != chunk_bytes {
        return Err(ManifestError::Field("chunk size"));
    }
    let levels = levels_for(chunk_count(generation.size_bytes, chunk_bytes));
    if generation.levels != levels || levels > MAX_LEVELS {
        return Err(ManifestError::Field("height"));
    }
    if generation.root.len() != ID_LEN {
        return Err(ManifestError::Field("root"));
    }
    if !generation.group.is_empty() && Uuid::parse_str(&generation.group).is_err() {
        return Err(ManifestError::Field("group"));
    }
    Ok(volume)
}
