//! Making a catalogue say what the packs say, where they say something later.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    iter,
};

use thinbak_proto::{Failed, NodeId};
use uuid::Uuid;

use super::{
    Damage, Damages,
    survey::{Facts, Found, Survey, is_of_all},
};
use crate::{
    catalogue::{Catalogue, Draft, Grave, RowState, VolumeRow},
    manifest::GIVEN_UP,
    store::{DamageReason, Kind, Store, StoreError},
};

/// Roots read at a time; a map node has about 4 KiB at most.
const ROOTS: u32 = 256;

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

/// Merges what the packs say into a catalogue, in one transaction.
pub(super) async fn merge(
    catalogue: &Catalogue,
    store: &Store,
    survey: &Survey,
    damages: &mut Damages,
) -> Result<Merged, Failed> {
    let mut draft = catalogue.draft().await?;
    let before = draft.volumes().await?;
    let volumes = merge_volumes(&before, survey);
    draft.set_volumes(&volumes).await?;
    let next_numbers: HashMap<Uuid, u64> =
        before.into_iter().map(|volume| (volume.uuid, volume.next_number)).collect();
    let mut merged = Merged { volumes: volumes.len() as u64, ..Merged::default() };
    let mut added = HashSet::new();
    for (&(volume, number), facts) in &survey.generations {
        let row = draft.state(volume, number).await?;
        let next_number = next_numbers.get(&volume).copied().unwrap_or_default();
        match decide(facts, row.as_ref(), number >= next_number) {
            Decision::Keep => {}
            Decision::Put(found, grave) => {
                draft.put(&found.generation, found.revision, found.manifest, grave).await?;
                if row.is_none() {
                    added.insert((volume, number));
                } else {
                    merged.changed += 1;
                }
            }
            Decision::Bury(grave) => {
                draft.bury(volume, number, grave).await?;
                merged.changed += 1;
            }
            Decision::Forget => {
                draft.remove(volume, number).await?;
                merged.collected += 1;
            }
        }
    }
    check_all(&mut draft, store, survey, damages, &mut merged, &mut added).await?;
    merged.added = added.len() as u64;
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

/// Looks for the content of every generation that the catalogue has now.
async fn check_all(
    draft: &mut Draft,
    store: &Store,
    survey: &Survey,
    damages: &mut Damages,
    merged: &mut Merged,
    added: &mut HashSet<(Uuid, u64)>,
) -> Result<(), Failed> {
    let packs_are_whole = damages.total == 0;
    let mut last = None;
    loop {
        let rows = draft.states_after(last, ROOTS).await?;
        let Some(end) = rows.last() else { return Ok(()) };
        last = Some((end.volume, end.number));
        let roots = read_roots(store, &rows).await?;
        for (row, root) in rows.iter().zip(roots) {
            let manifest =
                survey.generations.get(&(row.volume, row.number)).is_some_and(|facts| facts.found.is_some());
            let (verdict, damage) = judge(row, root, manifest, packs_are_whole);
            damage.into_iter().for_each(|damage| damages.add(damage));
            match (verdict, row.deleted_at_ms) {
                (Verdict::Keep, None) => merged.generations += 1,
                (Verdict::Keep, Some(_)) => merged.deleted += 1,
                (Verdict::Collected, _) => merged.collected += 1,
                (Verdict::Lost, _) => {}
            }
            if verdict != Verdict::Keep {
                draft.remove(row.volume, row.number).await?;
                added.remove(&(row.volume, row.number));
            }
        }
    }
}

/// Whether the root of a map is there.
enum Root {
    Whole,
    Missing,
    Unreadable(StoreError),
}

async fn read_roots(store: &Store, rows: &[RowState]) -> Result<Vec<Root>, Failed> {
    let ids: Vec<[u8; 32]> =
        rows.iter().map(|row| <[u8; 32]>::try_from(row.root.as_slice()).unwrap_or_default()).collect();
    let records = store.get_many(ids.clone()).await?;
    iter::zip(ids, records)
        .map(|(id, record)| match record {
            None => Ok(Root::Missing),
            Some(Err(error)) if is_of_all(&error) => Err(error.into()),
            Some(Err(error)) => Ok(Root::Unreadable(error)),
            Some(Ok(record))
                if record.kind == Kind::MapNode && NodeId::of(&record.stored).as_bytes() == &id =>
            {
                Ok(Root::Whole)
            }
            // Which pack it is does not matter: the content is not what the id names.
            Some(Ok(_)) => Ok(Root::Unreadable(StoreError::Damaged {
                pack: 0,
                offset: 0,
                reason: DamageReason::OtherRecord,
            })),
        })
        .collect()
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    Keep,
    /// It was deleted, and collected since.
    Collected,
    /// Its content is gone.
    Lost,
}

/// A generation without its root is nothing. One without its manifest was collected after the copy of the
/// catalogue was made, even if another generation has the same root; unless the manifest may have been in what is
/// damaged.
fn judge(row: &RowState, root: Root, manifest: bool, packs_are_whole: bool) -> (Verdict, Option<Damage>) {
    let (volume, number) = (row.volume_name.clone(), row.number);
    match (root, row.deleted_at_ms) {
        (Root::Missing, Some(_)) => (Verdict::Collected, None),
        (Root::Missing, None) if !manifest && packs_are_whole => (Verdict::Collected, None),
        (Root::Missing, None) => (Verdict::Lost, Some(Damage::RootMissing { volume, number })),
        (_, None) if !manifest && packs_are_whole => (Verdict::Collected, None),
        (Root::Unreadable(_), Some(_)) => (Verdict::Keep, None),
        (Root::Unreadable(reason), None) => {
            (Verdict::Keep, Some(Damage::RootUnreadable { volume, number, reason }))
        }
        (Root::Whole, None) if !manifest => (Verdict::Keep, Some(Damage::ManifestMissing { volume, number })),
        (Root::Whole, _) => (Verdict::Keep, None),
    }
}
