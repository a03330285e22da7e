//! What a backup has to do for the volumes of one pool: the idle test, then the snapshots, then the walk.
//!
//! At most two metadata snapshots for all volumes together: the first, short one finds the volumes that
//! were not written since their base and need nothing; only the others are snapshotted, and the second
//! one is walked. It is released before any data is read. Blocking.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

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

impl Due {
    /// Gives the base up.
    fn give_up(&mut self, reason: String) {
        tracing::warn!(volume = self.name, reason, "the base is given up, content is compared");
        self.reason = reason;
        self.base = None;
    }
}

/// A volume of which something has to be sent.
pub(super) struct Transfer {
    pub(super) due: Due,
    /// The private snapshot that is read.
    pub(super) candidate: Candidate,
    /// The snapshot as the server will record it.
    pub(super) point: Point,
    /// What the stream must name.
    pub(super) changes: ChangeList,
}

/// A private snapshot, removed when this is dropped unless it has become the base: also when the job that
/// it was taken for has ended before it could be handed over.
pub(super) struct Candidate {
    pool: Arc<EmbeddedPool>,
    volume: Volume,
    kept: bool,
}

impl Candidate {
    /// The device in the pool.
    pub(super) fn volume(&self) -> &Volume {
        &self.volume
    }

    /// Makes it the base of the volume's next backup. Blocking.
    pub(super) fn keep(mut self, base: Base) -> Result<(), Failed> {
        self.pool.keep_base(&self.volume, base).map_err(pools::failed)?;
        self.kept = true;
        Ok(())
    }
}

impl Drop for Candidate {
    fn drop(&mut self) {
        if self.kept {
            return;
        }
        // A failure is only logged: the next open of the pool removes what is left over.
        if let Err(error) = self.pool.drop_transient(&self.volume) {
            let device = self.volume.device;
            tracing::warn!(%device, %error, "a private snapshot is left until the pool is opened again");
        }
    }
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

/// Gives up a base that is not what was recorded, or that reads something else than the volume where nothing is
/// mapped.
fn prove(pool: &EmbeddedPool, view: &MetadataView, due: &mut Due) {
    let Some(base) = &due.base else { return };
    if let Err(not_proven) = pool.prove(&base.point, view) {
        return due.give_up(not_proven.to_string());
    }
    let origin = pool.by_device(base.point.device_id).and_then(|snapshot| snapshot.origin);
    if origin != due.volume.origin {
        due.give_up("the volume has not the external origin that it had when its base was made".to_owned());
    }
}

/// Nothing was written since the base: both have the very same mapping tree, and the same size. Of a volume over an
/// external origin that says nothing: the origin may have changed.
fn is_idle(view: &MetadataView, due: &Due) -> Result<bool, Failed> {
    let Some(base) = due.base.as_ref().filter(|_| due.volume.origin.is_none()) else { return Ok(false) };
    let device = view.device(due.volume.device).map_err(|error| pools::failed(error.into()))?;
    Ok(device.is_some_and(|device| device.root == base.point.root_block)
        && due.volume.size_bytes == base.point.size_bytes)
}

/// Snapshots all volumes at one moment, reserves, walks, releases. On failure the snapshots are gone.
pub(super) fn snapshot_and_walk(
    pool: &Arc<EmbeddedPool>,
    dues: Vec<Due>,
    chunk_bytes: u32,
) -> Result<(Vec<Transfer>, Duration), Failed> {
    let names: Vec<&str> = dues.iter().map(|due| due.volume.name.as_str()).collect();
    let taken = pool.take_candidates(&names).map_err(pools::failed)?.into_iter();
    let guarded = taken.map(|volume| Candidate { pool: Arc::clone(pool), volume, kept: false });
    walk(pool, dues, guarded.collect(), chunk_bytes)
}

fn walk(
    pool: &EmbeddedPool,
    dues: Vec<Due>,
    candidates: Vec<Candidate>,
    chunk_bytes: u32,
) -> Result<(Vec<Transfer>, Duration), Failed> {
    let msnap = pool.reserve_msnap().map_err(pools::failed)?;
    let since = Instant::now();
    let view = open_view(pool)?;
    let mut transfers = Vec::with_capacity(dues.len());
    for (mut due, candidate) in dues.into_iter().zip(candidates) {
        prove(pool, &view, &mut due);
        let point = pool.point(candidate.volume(), &view).map_err(pools::failed)?;
        let base = due
            .base
            .as_ref()
            .map(|base| source::Base { root: base.point.root_block, size_bytes: base.point.size_bytes });
        let target = source::Target {
            root: point.root_block,
            size_bytes: point.size_bytes,
            origin_bytes: candidate.volume().origin.as_ref().map_or(0, |origin| origin.size_bytes),
        };
        let changes = list_changes(&view, base, target, u64::from(chunk_bytes));
        let changes = changes.map_err(|error| {
            Failed::new(FailureKind::Failed, format!("finding what changed in {}: {error}", due.name))
        })?;
        transfers.push(Transfer { due, candidate, point, changes });
    }
    msnap.release().map_err(pools::failed)?;
    Ok((transfers, since.elapsed()))
}

#[cfg(test)]
mod tests {
    use thinbak_engine::{BlockSize, CreateOptions, Kind, PoolTable};
    use uuid::Uuid;

    use super::*;

    #[test]
    fn a_snapshot_that_nobody_takes_over_is_removed() {
        let dir = tempfile::tempdir().unwrap();
        let options = CreateOptions {
            name: "p".to_owned(),
            data_bytes: 16 << 20,
            block_size: BlockSize::from_bytes(64 << 10).unwrap(),
            metadata_bytes: None,
            devices: None,
            table: PoolTable::without_waiting(),
        };
        let pool = Arc::new(EmbeddedPool::create(&dir.path().join("p"), options).unwrap());
        let volume = pool.create_volume("v", 1 << 20).unwrap();
        pool.write(&volume, 0, &[1; 4096]).unwrap();
        let due =
            || Due { volume: volume.clone(), name: "h/p/v".to_owned(), base: None, reason: String::new() };
        let (transfers, _) = snapshot_and_walk(&pool, vec![due()], 64 << 10).unwrap();
        assert_eq!(pool.volumes().len(), 2);
        drop(transfers);
        assert_eq!(pool.volumes().len(), 1);

        let (mut transfers, _) = snapshot_and_walk(&pool, vec![due()], 64 << 10).unwrap();
        let Transfer { candidate, point, .. } = transfers.pop().unwrap();
        let repository = Uuid::new_v4();
        candidate
            .keep(Base { repository, volume: volume.uuid, generation: 1, root: [0; 32], point })
            .unwrap();
        assert!(pool.volumes().iter().any(|volume| matches!(volume.kind, Kind::Base { .. })));
    }
}
