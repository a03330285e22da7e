//! Making a catalogue say what the packs say, where they say something later.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    iter,
};

use thinbak_proto::Failed;
use uuid::Uuid;

use super::{
    Damages,
    check::Check,
    survey::{Facts, Found, Survey},
};
use crate::{
    catalogue::{Catalogue, Grave, RowState, VolumeRow},
    manifest::GIVEN_UP,
    store::Store,
};

/// What became of the catalogue, see [`Rebuilt`](super::Rebuilt).
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) struct Merged {
    pub(super) volumes: u64,
    pub(super) generations: u64,
    pub(super) deleted: u64,
    pub(super) added: u64,
    pub(super) changed: u64,
    pub(super) collected: u64,
}

/// Merges what the packs say into a catalogue, in one transaction. `now_ms` is when what was deleted, and is not known
/// to be by the catalogue, counts as deleted: a deletion may have died between tombstone and catalogue, and then nobody
/// knew that its grace had begun.
pub(super) async fn merge(
    catalogue: &Catalogue,
    store: &Store,
    survey: &Survey,
    damages: &mut Damages,
    now_ms: u64,
) -> Result<Merged, Failed> {
    let mut draft = catalogue.draft().await?;
    let before = draft.volumes().await?;
    let volumes = merge_volumes(&before, survey);
    draft.set_volumes(&volumes).await?;
    let next_numbers: HashMap<Uuid, u64> =
        before.into_iter().map(|volume| (volume.uuid, volume.next_number)).collect();
    let anew = |grave: Grave| Grave { deleted_at_ms: now_ms, ..grave };
    let mut merged = Merged { volumes: volumes.len() as u64, ..Merged::default() };
    let mut added = HashSet::new();
    for (&(volume, number), facts) in &survey.generations {
        let row = draft.state(volume, number).await?;
        let next_number = next_numbers.get(&volume).copied().unwrap_or_default();
        match decide(facts, row.as_ref(), number >= next_number) {
            Decision::Keep => {}
            Decision::Put(found, grave) => {
                draft.put(&found.generation, found.revision, found.manifest, grave.map(anew)).await?;
                if row.is_none() {
                    added.insert((volume, number));
                } else {
                    merged.changed += 1;
                }
            }
            Decision::Bury(grave) => {
                draft.bury(volume, number, anew(grave)).await?;
                merged.changed += 1;
            }
            Decision::Forget => {
                draft.remove(volume, number).await?;
                merged.collected += 1;
            }
        }
    }
    let newest = volumes.iter().map(|volume| (volume.uuid, volume.next_number.saturating_sub(1))).collect();
    let mut check = Check { draft: &mut draft, store, survey, newest, added, damages, collected: 0 };
    check.all().await?;
    merged.collected += check.collected;
    merged.added = check.added.len() as u64;
    (merged.generations, merged.deleted) = draft.counts().await?;
    draft.commit().await?;
    Ok(merged)
}

/// What is to be done with a generation.
#[derive(Debug, PartialEq)]
enum Decision<'a> {
    /// The catalogue knows as much, or more.
    Keep,
    Put(&'a Found, Option<Grave>),
    Bury(Grave),
    /// It was given up, and may be collected already.
    Forget,
}

/// `new`: the number had not been given when the catalogue was written. One that had, and is not in the
/// catalogue, was given up: it does not come back.
fn decide<'a>(facts: &'a Facts, row: Option<&RowState>, new: bool) -> Decision<'a> {
    let revision = row.map_or(0, |row| row.revision);
    let later = facts.grave.filter(|grave| grave.revision >= revision);
    match (row, &facts.found) {
        (None, Some(_)) if new && facts.ended().is_some_and(|grave| grave.deleted_at_ms == GIVEN_UP) => {
            Decision::Forget
        }
        (None, Some(found)) if new => Decision::Put(found, facts.ended()),
        (None, _) => Decision::Keep,
        (Some(_), Some(found)) if found.revision > revision && facts.ended().is_none() => {
            Decision::Put(found, None)
        }
        (Some(row), found) => match (later, found) {
            (Some(grave), _) if grave.deleted_at_ms == GIVEN_UP => Decision::Forget,
            (Some(grave), Some(found)) if found.revision > revision => Decision::Put(found, Some(grave)),
            (Some(grave), _) if row.deleted_at_ms.is_none() || grave.revision > revision => {
                Decision::Bury(grave)
            }
            _ => Decision::Keep,
        },
    }
}

/// All volumes as they are to be. Every generation that the catalogue does not know gave its volume its name when
/// it was committed, and took it from the volume that had it: this is done again in that order.
fn merge_volumes(before: &[VolumeRow], survey: &Survey) -> Vec<VolumeRow> {
    let mut volumes: BTreeMap<Uuid, VolumeRow> =
        before.iter().map(|volume| (volume.uuid, volume.clone())).collect();
    let known = |uuid: Uuid, number: u64| {
        volumes.get(&uuid).is_some_and(|volume: &VolumeRow| number < volume.next_number)
    };
    let mut commits: Vec<(u64, u64, Uuid, &str)> = survey
        .generations
        .iter()
        .filter(|((uuid, number), _)| !known(*uuid, *number))
        .filter_map(|((uuid, _), facts)| Some((uuid, facts.commit.as_ref()?)))
        .map(|(uuid, commit)| (commit.created_at_ms, commit.place, *uuid, commit.volume_name.as_str()))
        .collect();
    commits.sort_unstable();
    let mut names = Names::of(before);
    for (_, _, uuid, name) in commits {
        names.bind(uuid, name);
    }
    for &(uuid, number) in survey.generations.keys() {
        let volume =
            volumes.entry(uuid).or_insert_with(|| VolumeRow { uuid, name: String::new(), next_number: 1 });
        volume.next_number = volume.next_number.max(number.saturating_add(1));
    }
    for volume in volumes.values_mut() {
        volume.name = names.of_volume(volume.uuid);
    }
    volumes.into_values().collect()
}

/// Which volume has which name.
struct Names {
    owners: HashMap<String, Uuid>,
    names: HashMap<Uuid, String>,
}

impl Names {
    fn of(volumes: &[VolumeRow]) -> Self {
        let owners = volumes.iter().map(|volume| (volume.name.clone(), volume.uuid)).collect();
        let names = volumes.iter().map(|volume| (volume.uuid, volume.name.clone())).collect();
        Self { owners, names }
    }

    /// Gives a name as a commit does.
    fn bind(&mut self, uuid: Uuid, name: &str) {
        if self.owners.get(name) == Some(&uuid) {
            return;
        }
        if let Some(old) = self.names.remove(&uuid) {
            self.owners.remove(&old);
        }
        if let Some(owner) = self.owners.insert(name.to_owned(), uuid) {
            self.names.remove(&owner);
            self.give_free(owner, &format!("{name}.{owner}"));
        }
        self.names.insert(uuid, name.to_owned());
    }

    /// The volume's name. One of which no manifest is left is called by its uuid.
    fn of_volume(&mut self, uuid: Uuid) -> String {
        match self.names.get(&uuid) {
            Some(name) => name.clone(),
            None => self.give_free(uuid, &uuid.to_string()),
        }
    }

    fn give_free(&mut self, uuid: Uuid, name: &str) -> String {
        let candidates = iter::successors(Some(name.to_owned()), |name| Some(format!("{name}.{uuid}")));
        // There are fewer names than candidates.
        let free = candidates.take(self.owners.len() + 1).find(|name| !self.owners.contains_key(name));
        let name = free.unwrap_or_default();
        self.owners.insert(name.clone(), uuid);
        self.names.insert(uuid, name.clone());
        name
    }
}
