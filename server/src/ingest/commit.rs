//! Making a generation visible.

use std::collections::HashSet;

use thinbak_proto::{ChunkId, Failed, FailureKind, MapEntry, is_hidden, levels_for, v1};

use super::{
    batch::Geometry,
    session::{Backup, node_failed, put_nodes},
};
use crate::{
    manifest::Manifest,
    map_tree::{self, NodeSource, NodesAhead, Tree, TreeDiff},
    repository::Repository,
    retention,
    store::Store,
};

/// Newly referenced chunks that are looked up at a time.
const LOOK_UP: usize = 4096;
/// Missing chunks named in one answer at most.
const MAX_MISSING: usize = 4096;

/// How far a clock may be put back without generations seeming to be older than those before them.
const MAX_CLOCK_STEP_MS: u64 = 3_600_000;

pub(super) enum Outcome {
    /// And how many plain bytes took the place of damaged ones.
    Committed(Box<v1::Generation>, u64),
    /// Nothing was made visible: the map names these chunks, which are not stored.
    Incomplete(Vec<ChunkId>),
}

pub(super) async fn commit(repository: &Repository, backup: Backup) -> Result<Outcome, Failed> {
    let Backup {
        guard: _guard,
        pin: _pin,
        claim: _claim,
        begin,
        volume,
        geometry,
        parent,
        parent_tree,
        editor,
        mut totals,
        lacking,
        ..
    } = backup;
    let store = &repository.store;
    let damages = store.damages();
    let (root, fresh) = editor.finish().await.map_err(|error| node_failed(&error))?;
    totals.add(put_nodes(store, fresh).await?);
    if !lacking.is_empty() {
        return Ok(Outcome::Incomplete(lacking));
    }

    let tree = Tree { root, chunks: geometry.chunks() };
    let audit = audit(store, parent_tree, tree).await?;
    if !audit.missing.is_empty() {
        return Ok(Outcome::Incomplete(audit.missing));
    }
    // All that differs was looked up.
    if parent_tree.is_none_or(|parent| repository.sound.contains(parent, damages)) {
        repository.sound.add(tree, damages);
    }
    let parent_size = parent.as_ref().map_or(geometry.size_bytes, |parent| parent.size_bytes);
    check_ends(store, tree, geometry, parent_size).await?;

    let next = repository.catalogue.next(volume).await?;
    let generation = v1::Generation {
        volume_uuid: volume.to_string(),
        volume_name: begin.volume_name,
        number: next.number,
        created_at_ms: created_at(repository.now_ms(), next.last_created_at_ms),
        size_bytes: geometry.size_bytes,
        chunk_bytes: geometry.chunk_bytes,
        levels: levels_for(tree.chunks),
        root: root.to_bytes(),
        parent: begin.parent,
        point: begin.point,
        protected: false,
        group: begin.group,
        mapped_bytes: mapped_bytes(store, &audit, parent.as_ref(), tree, geometry).await?,
        changed_bytes: totals.changed_bytes,
        new_bytes: totals.new_bytes,
        stored_bytes: totals.stored_bytes,
    };
    let (manifest, record) = Manifest::new(&generation, 1).record();
    store.put(vec![record]).await?;
    repository.catalogue.add_generation(&generation, manifest, begin.adopt).await?;
    tracing::info!(
        volume = generation.volume_name,
        generation = generation.number,
        new_bytes = generation.new_bytes,
        "generation committed"
    );
    // The generation is there, come what may.
    if is_hidden(&generation.volume_name)
        && let Err(error) = retention::prune_hidden(repository, volume).await
    {
        tracing::warn!(%error, volume = generation.volume_name, "old generations were not deleted");
    }
    if store.any_damage()
        && let Err(error) = retention::renew_manifests(repository, Some(volume)).await
    {
        tracing::warn!(%error, "damaged manifests could not be written anew");
    }
    Ok(Outcome::Committed(Box::new(generation), totals.healed_bytes))
}

/// When a generation is said to be made: later than the one before it, also when the clock was put back a little.
/// One that a wrong clock dated far in the future does not draw those after it along.
fn created_at(now_ms: u64, last_ms: u64) -> u64 {
    match last_ms.saturating_sub(now_ms) {
        0..MAX_CLOCK_STEP_MS => now_ms.max(last_ms.saturating_add(1)),
        _ => now_ms,
    }
}

/// What the difference to the parent says.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Audit {
    pub(super) missing: Vec<ChunkId>,
    /// Chunks that are no holes, here and not in the parent, and the other way round.
    pub(super) mapped: u64,
    pub(super) unmapped: u64,
}

/// Looks up every chunk that the parent does not name at the same place.
async fn audit(store: &Store, parent: Option<Tree>, tree: Tree) -> Result<Audit, Failed> {
    let mut audit = Audit::default();
    let mut wanted = HashSet::new();
    let mut differences = TreeDiff::new(NodesAhead::new(store.clone()), parent, tree);
    while let Some(difference) = differences.next().await {
        let difference = difference.map_err(|error| {
            Failed::new(
                FailureKind::Damaged,
                format!("the map of the new generation cannot be read back: {error}"),
            )
        })?;
        if difference.old != MapEntry::Hole {
            audit.unmapped = audit.unmapped.saturating_add(difference.chunks);
        }
        if difference.new != MapEntry::Hole {
            audit.mapped = audit.mapped.saturating_add(difference.chunks);
        }
        wanted.extend(difference.new.chunk());
        if wanted.len() >= LOOK_UP {
            look_up(store, &mut wanted, &mut audit.missing).await?;
        }
    }
    look_up(store, &mut wanted, &mut audit.missing).await?;
    Ok(audit)
}

async fn look_up(
    store: &Store,
    wanted: &mut HashSet<ChunkId>,
    missing: &mut Vec<ChunkId>,
) -> Result<(), Failed> {
    let ids: Vec<ChunkId> = wanted.drain().collect();
    let found = store.contains(ids.iter().map(|id| *id.as_bytes()).collect()).await?;
    let room = MAX_MISSING.saturating_sub(missing.len());
    missing.extend(ids.into_iter().zip(found).filter(|(_, found)| !found).map(|(id, _)| id).take(room));
    Ok(())
}

/// Where parent and generation end, chunks may be short: their lengths must be those of this volume. A client
/// that keeps the parent's last chunk although the volume was resized in it would be caught here.
async fn check_ends(store: &Store, tree: Tree, geometry: Geometry, parent_size: u64) -> Result<(), Failed> {
    if parent_size == geometry.size_bytes {
        return Ok(());
    }
    let last_of = |size: u64| size.saturating_sub(1) / u64::from(geometry.chunk_bytes.max(1));
    for chunk in [last_of(parent_size), last_of(geometry.size_bytes)] {
        let Some(id) = look(store, tree, chunk).await?.chunk() else { continue };
        let record = store.get(*id.as_bytes()).await?;
        geometry.check_length(chunk, record.map_or(0, |record| record.plain_len), "kept")?;
    }
    Ok(())
}

async fn look<S: NodeSource>(source: &S, tree: Tree, chunk: u64) -> Result<MapEntry, Failed> {
    map_tree::entry_at(source, tree, chunk).await.map_err(|error| node_failed(&error))
}

/// Bytes of the chunks that are no holes: the parent's and the difference.
async fn mapped_bytes(
    store: &Store,
    audit: &Audit,
    parent: Option<&v1::Generation>,
    tree: Tree,
    geometry: Geometry,
) -> Result<u64, Failed> {
    let chunk_bytes = u64::from(geometry.chunk_bytes);
    let before = parent.map_or(0, |parent| parent.mapped_bytes.div_ceil(chunk_bytes));
    let chunks = before.saturating_add(audit.mapped).saturating_sub(audit.unmapped);
    let last = tree.chunks.saturating_sub(1);
    let short = match look(store, tree, last).await? {
        MapEntry::Hole => 0,
        MapEntry::Zero | MapEntry::Id(_) => chunk_bytes - geometry.bytes_of(last, 1),
    };
    Ok(chunks.saturating_mul(chunk_bytes).saturating_sub(short))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_ascend_over_small_steps_of_the_clock_and_do_not_follow_a_wrong_one() {
        assert_eq!(created_at(1000, 0), 1000);
        assert_eq!(created_at(1000, 1000), 1001);
        assert_eq!(created_at(1000, 1500), 1501);
        assert_eq!(created_at(1000, 1000 + MAX_CLOCK_STEP_MS), 1000);
        assert_eq!(created_at(1000, u64::MAX), 1000);
    }
}
