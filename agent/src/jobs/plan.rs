//! What a backup has to do for the volumes of one pool: the idle test, then the snapshots, then the walk.
//!
//! At most two metadata snapshots for all volumes together: the first, short one finds the volumes that
//! were not written since their base and need nothing; only the others are snapshotted, and the second
//! one is walked. It is released before any data is read. Blocking.

use std::time::{Duration, Instant};

use thinbak_engine::{Base, EmbeddedPool, MetadataView, Point, Roots, Volume};
use thinbak_proto::{Failed, FailureKind};

use crate::{
    pools,
    source::{self, ChangeList, list_changes},
};

/// A volume that is due.
pub(super) struct Due {
    /// The volume in the pool.
    pub(super) volume: Volume,
    /// Its name on the server.
    pub(super) name: String,
    /// The snapshot that its last generation was made from, if the server still has that generation.
    pub(super) base: Option<Base>,
    /// Why there is no base although the server knows the volume; else empty.
    pub(super) reason: String,
}

/// A volume of which something has to be sent.
pub(super) struct Transfer {
    pub(super) due: Due,
    /// The private snapshot that is read.
    pub(super) candidate: Volume,
    /// The snapshot as the server will record it.
    pub(super) point: Point,
    /// What the stream must name.
    pub(super) changes: ChangeList,
}

/// What the idle test found.
pub(super) struct Sorted {
    /// Not written since their base.
    pub(super) unchanged: Vec<Due>,
    /// To be snapshotted.
    pub(super) changed: Vec<Due>,
    /// How long the metadata snapshot was held.
    pub(super) held: Duration,
}

/// Sorts the volumes by whether they were written since their base. A base that cannot be proven is
/// given up here, with the reason.
pub(super) fn idle_test(pool: &EmbeddedPool, dues: Vec<Due>) -> Result<Sorted, Failed> {
    let mut sorted = Sorted { unchanged: Vec::new(), changed: Vec::new(), held: Duration::ZERO };
    if dues.iter().all(|due| due.base.is_none()) {
        sorted.changed = dues;
        return Ok(sorted);
    }
    let msnap = pool.reserve_msnap().map_err(pools::failed)?;
    let since = Instant::now();
    let view = open_view(pool)?;
    for mut due in dues {
        prove(pool, &view, &mut due);
        if is_idle(&view, &due)? { sorted.unchanged.push(due) } else { sorted.changed.push(due) }
    }
    msnap.release().map_err(pools::failed)?;
    sorted.held = since.elapsed();
    Ok(sorted)
}

/// The live metadata beside us, through the metadata snapshot.
fn open_view(pool: &EmbeddedPool) -> Result<MetadataView, Failed> {
    MetadataView::open(pool.pool().metadata_device().clone(), Roots::MetadataSnap)
        .map_err(|error| pools::failed(error.into()))
}

/// Gives up a base that is not what was recorded.
fn prove(pool: &EmbeddedPool, view: &MetadataView, due: &mut Due) {
    let Some(base) = &due.base else { return };
    if let Err(not_proven) = pool.prove(&base.point, view) {
        tracing::warn!(volume = due.name, reason = %not_proven, "the base is given up, content is compared");
        due.reason = not_proven.to_string();
        due.base = None;
    }
}

/// Nothing was written since the base: both have the very same mapping tree, and the same size.
fn is_idle(view: &MetadataView, due: &Due) -> Result<bool, Failed> {
    let Some(base) = &due.base else { return Ok(false) };
    let device = view.device(due.volume.device).map_err(|error| pools::failed(error.into()))?;
    Ok(device.is_some_and(|device| device.root == base.point.root_block)
        && due.volume.size_bytes == base.point.size_bytes)
}

/// Snapshots all volumes at one moment, reserves, walks, releases. On failure the snapshots are gone.
pub(super) fn snapshot_and_walk(
    pool: &EmbeddedPool,
    dues: Vec<Due>,
    chunk_bytes: u32,
) -> Result<(Vec<Transfer>, Duration), Failed> {
    let names: Vec<&str> = dues.iter().map(|due| due.volume.name.as_str()).collect();
    let candidates = pool.take_candidates(&names).map_err(pools::failed)?;
    let walked = walk(pool, dues, &candidates, chunk_bytes);
    if walked.is_err() {
        for candidate in &candidates {
            drop_candidate(pool, candidate);
        }
    }
    walked
}

/// Removes a private snapshot that is of no use any more. A failure is only logged: the next open of the
/// pool removes what is left over.
pub(super) fn drop_candidate(pool: &EmbeddedPool, candidate: &Volume) {
    if let Err(error) = pool.drop_transient(candidate) {
        tracing::warn!(device = %candidate.device, %error, "a private snapshot is left until the pool is opened again");
    }
}

fn walk(
    pool: &EmbeddedPool,
    dues: Vec<Due>,
    candidates: &[Volume],
    chunk_bytes: u32,
) -> Result<(Vec<Transfer>, Duration), Failed> {
    let msnap = pool.reserve_msnap().map_err(pools::failed)?;
    let since = Instant::now();
    let view = open_view(pool)?;
    let mut transfers = Vec::with_capacity(dues.len());
    for (mut due, candidate) in dues.into_iter().zip(candidates) {
        prove(pool, &view, &mut due);
        let point = pool.point(candidate, &view).map_err(pools::failed)?;
        let base = due
            .base
            .as_ref()
            .map(|base| source::Base { root: base.point.root_block, size_bytes: base.point.size_bytes });
        let changes = list_changes(&view, base, point.root_block, point.size_bytes, u64::from(chunk_bytes));
        let changes = changes.map_err(|error| {
            Failed::new(FailureKind::Failed, format!("finding what changed in {}: {error}", due.name))
        })?;
        transfers.push(Transfer { due, candidate: candidate.clone(), point, changes });
    }
    msnap.release().map_err(pools::failed)?;
    Ok((transfers, since.elapsed()))
}
