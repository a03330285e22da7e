//! Whether what generations need is in the packs.
//!
//! First their roots, then all trees: marking them reads each map node once, and takes a bit of memory a record. Only
//! if something cannot be had each generation is asked, by its difference to the one before.
//!
//! A generation that lacks something is kept and named, for the rest of it may be all that is left of it. Left out is
//! one without a root, and one that nobody ever saw: the commit died between manifest and catalogue, and a collection
//! took a part of what no generation needed. That is told by this: the number was the last one of its volume (it was
//! given again to every later commit), the manifest is the first one, and nothing else lacks anything, nor has any pack
//! come to harm.

use std::{
    collections::{HashMap, HashSet},
    iter,
};

use thinbak_proto::{Failed, NodeId, chunk_count, v1};
use uuid::Uuid;

use super::{
    Damage, Damages,
    survey::{Survey, is_of_all},
};
use crate::{
    catalogue::{Draft, RowState},
    map_tree::Tree,
    marking::Marker,
    store::{DamageReason, Kind, Store, StoreError},
    verify::{Bad, Places},
};

/// Rows and roots read at a time; a map node has about 4 KiB at most.
const ROWS: u32 = 256;

type Key = (Uuid, u64);

/// What became of the roots.
#[derive(Default)]
struct Roots {
    /// They are there and cannot be read.
    unreadable: HashSet<Key>,
    /// One is missing, and its generation is none that nobody ever saw.
    any_lost: bool,
}

/// The draft that is checked, and what is known of its generations.
pub(super) struct Check<'a> {
    pub(super) draft: &'a mut Draft,
    pub(super) store: &'a Store,
    pub(super) survey: &'a Survey,
    /// The highest number that each volume has given.
    pub(super) newest: HashMap<Uuid, u64>,
    /// Generations that were not in the draft before.
    pub(super) added: HashSet<Key>,
    pub(super) damages: &'a mut Damages,
    /// Generations left out because they were deleted and collected.
    pub(super) collected: u64,
}

impl Check<'_> {
    /// Names all that is not as it should be, and takes what cannot stay out of the draft.
    pub(super) async fn all(&mut self) -> Result<(), Failed> {
        let packs_are_whole = self.damages.total == 0;
        let roots = self.roots(packs_are_whole).await?;
        self.content(packs_are_whole && !roots.any_lost, &roots.unreadable).await
    }

    async fn leave_out(&mut self, row: &RowState) -> Result<(), Failed> {
        self.added.remove(&key_of(row));
        Ok(self.draft.remove(row.volume, row.number).await?)
    }

    /// Looks for the root of every generation.
    async fn roots(&mut self, packs_are_whole: bool) -> Result<Roots, Failed> {
        let mut found = Roots::default();
        let mut last = None;
        loop {
            let rows = self.draft.states_after(last, ROWS).await?;
            let Some(end) = rows.last() else { return Ok(found) };
            last = Some(key_of(end));
            let roots = read_roots(self.store, &rows).await?;
            for (row, root) in rows.iter().zip(roots) {
                if matches!(root, Root::Unreadable(_)) {
                    found.unreadable.insert(key_of(row));
                }
                let facts = self.survey.generations.get(&key_of(row));
                let manifest = facts.is_some_and(|facts| facts.found.is_some());
                let (verdict, damage) = judge(row, root, manifest, packs_are_whole);
                damage.into_iter().for_each(|damage| self.damages.add(damage));
                self.collected += u64::from(verdict == Verdict::Collected);
                found.any_lost |= verdict == Verdict::Lost && !self.may_be_unborn(row);
                if verdict != Verdict::Keep {
                    self.leave_out(row).await?;
                }
            }
        }
    }

    /// Looks for all that the trees name. `nothing_else`: so far all that is missing may be of commits that died. What
    /// is `named` already is not named again.
    async fn content(&mut self, nothing_else: bool, named: &HashSet<Key>) -> Result<(), Failed> {
        let Some((bad, any_unreadable)) = self.mark().await? else { return Ok(()) };
        let mut places = Places::new(self.store, &bad);
        let mut lacking = Vec::new();
        let mut last = None;
        loop {
            let rows = self.draft.states_after(last, ROWS).await?;
            let Some(end) = rows.last() else { break };
            last = Some(key_of(end));
            for row in rows {
                let found = places.generation(&generation_of(&row)).await?;
                if !found.is_empty() && !named.contains(&key_of(&row)) {
                    lacking.push((row, found.iter().map(|place| place.chunks).sum()));
                }
            }
        }
        let only_unborn =
            nothing_else && !any_unreadable && lacking.iter().all(|(row, _)| self.may_be_unborn(row));
        for (row, chunks) in lacking {
            if only_unborn {
                self.leave_out(&row).await?;
            }
            let (volume, number) = (row.volume_name, row.number);
            self.damages.add(match only_unborn {
                true => Damage::Unborn { volume, number, chunks },
                false => Damage::Incomplete { volume, number, chunks },
            });
        }
        Ok(())
    }

    /// Marks all trees. Returns what is missing, if anything is, and whether there is something that is not missing
    /// and yet cannot be read.
    async fn mark(&mut self) -> Result<Option<(Bad, bool)>, Failed> {
        let mut marker = Marker::for_verification(self.store.clone(), self.survey.chunk_bytes);
        let mut any_unreadable = false;
        let mut last = None;
        loop {
            let rows = self.draft.states_after(last, ROWS).await?;
            let Some(end) = rows.last() else { break };
            last = Some(key_of(end));
            for row in &rows {
                let root = NodeId::from_bytes(root_of(row));
                let chunks = chunk_count(row.size_bytes, row.chunk_bytes);
                match marker.tree(Tree { root, chunks }).await {
                    Err(error) if is_of_all(&error) => return Err(error.into()),
                    // A disk that fails to read a node: what is named below may not be all.
                    Err(_) => any_unreadable = true,
                    Ok(()) => {}
                }
            }
        }
        let odd_chunks = marker.odd_chunks();
        let (_, lost) = marker.finish();
        if lost.is_empty() && !any_unreadable {
            return Ok(None);
        }
        let nodes = lost.nodes.iter().map(|id| *id.as_bytes()).collect();
        any_unreadable |= self.store.indexed_at(nodes).await?.iter().any(Option::is_some);
        let reason = |id| (id, "it is in no pack".into());
        let records = lost.chunks.iter().map(|id| reason(*id.as_bytes())).collect();
        Ok(Some((Bad { records, odd_chunks, more: lost.more }, any_unreadable)))
    }

    /// Whether the commit may have died before anybody saw its generation.
    fn may_be_unborn(&self, row: &RowState) -> bool {
        row.revision == 1
            && row.deleted_at_ms.is_none()
            && self.newest.get(&row.volume) == Some(&row.number)
            && self.added.contains(&key_of(row))
    }
}

fn key_of(row: &RowState) -> Key {
    (row.volume, row.number)
}

fn root_of(row: &RowState) -> [u8; 32] {
    <[u8; 32]>::try_from(row.root.as_slice()).unwrap_or_default()
}

/// As much of a generation as it takes to find its content.
fn generation_of(row: &RowState) -> v1::Generation {
    v1::Generation {
        volume_uuid: row.volume.to_string(),
        number: row.number,
        root: row.root.clone().into(),
        size_bytes: row.size_bytes,
        chunk_bytes: row.chunk_bytes,
        ..v1::Generation::default()
    }
}

/// Whether the root of a map is there.
enum Root {
    Whole,
    Missing,
    Unreadable(StoreError),
}

async fn read_roots(store: &Store, rows: &[RowState]) -> Result<Vec<Root>, Failed> {
    let ids: Vec<[u8; 32]> = rows.iter().map(root_of).collect();
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
