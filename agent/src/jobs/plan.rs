//! What a backup has to do for the volumes of one pool: the idle test, then the snapshots, then the walk.
//!
//! At most two metadata snapshots for all volumes together: the first, short one finds the volumes that
//! were not written since their base and need nothing; only the others are snapshotted, and the second
//! one is walked. It is released before any data is read. Blocking.

use std::{
    ops::Range,
    sync::Arc,
    time::{Duration, Instant},
};

use thinbak_engine::{Base, MetadataView, Point, Volume};
use thinbak_proto::{Failed, FailureKind};

use crate::{
    pools::{self, Candidate, ThinPool},
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
    /// What of the base's generation is damaged on the server and is to be sent again: ascending, in bytes.
    pub(super) damaged: Vec<Range<u64>>,
}

impl Due {
    /// Gives the base up.
    pub(super) fn give_up(&mut self, reason: String) {
        tracing::warn!(volume = self.name, reason, "the base is given up, content is compared");
        self.reason = reason;
        self.base = None;
        // All content is sent again that the server does not have.
        self.damaged.clear();
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

/// What the idle test found.
pub(super) struct Sorted {
    /// Not written since their base, and nothing of it is damaged.
    pub(super) unchanged: Vec<Due>,
    /// To be snapshotted.
    pub(super) changed: Vec<Due>,
    /// How long the metadata snapshot was held.
    pub(super) held: Duration,
}

/// Sorts the volumes by whether they were written since their base. A base that cannot be proven is
/// given up here, with the reason.
pub(super) fn idle_test(pool: &dyn ThinPool, dues: Vec<Due>) -> Result<Sorted, Failed> {
    let mut sorted = Sorted { unchanged: Vec::new(), changed: Vec::new(), held: Duration::ZERO };
    if dues.iter().all(|due| due.base.is_none()) {
        sorted.changed = dues;
        return Ok(sorted);
    }
    let since = Instant::now();
    let frozen = pool.reserve()?;
    let view = &frozen.view;
    for mut due in dues {
        prove(pool, view, &mut due);
        if is_idle(view, &due)? { sorted.unchanged.push(due) } else { sorted.changed.push(due) }
    }
    frozen.release()?;
    sorted.held = since.elapsed();
    Ok(sorted)
}

/// Gives up a base that is not what was recorded, or that reads something else than the volume where nothing is
/// mapped.
fn prove(pool: &dyn ThinPool, view: &MetadataView, due: &mut Due) {
    let Some(base) = &due.base else { return };
    if let Err(not_proven) = pool.prove(&base.point, view) {
        return due.give_up(not_proven);
    }
    let origin = pool.by_device(base.point.device_id).and_then(|snapshot| snapshot.origin);
    if origin != due.volume.origin {
        due.give_up("the volume has not the external origin that it had when its base was made".to_owned());
    }
}

/// Nothing was written since the base, and the server has all of it: both have the very same mapping tree, and the same size. Of a volume over an
/// external origin that says nothing: the origin may have changed.
fn is_idle(view: &MetadataView, due: &Due) -> Result<bool, Failed> {
    let base = due.base.as_ref().filter(|_| due.volume.origin.is_none() && due.damaged.is_empty());
    let Some(base) = base else { return Ok(false) };
    let device = view.device(due.volume.device).map_err(|error| pools::failed(error.into()))?;
    Ok(device.is_some_and(|device| device.root == base.point.root_block)
        && due.volume.size_bytes == base.point.size_bytes)
}

/// Snapshots all volumes at one moment, reserves, walks, releases. On failure the snapshots are gone.
pub(super) fn snapshot_and_walk(
    pool: &Arc<dyn ThinPool>,
    dues: Vec<Due>,
    chunk_bytes: u32,
) -> Result<(Vec<Transfer>, Duration), Failed> {
    let names: Vec<&str> = dues.iter().map(|due| due.volume.name.as_str()).collect();
    let taken = pool.take_candidates(&names)?.into_iter();
    let guarded = taken.map(|volume| Candidate::new(Arc::clone(pool), volume));
    walk(pool.as_ref(), dues, guarded.collect(), chunk_bytes)
}

fn walk(
    pool: &dyn ThinPool,
    dues: Vec<Due>,
    candidates: Vec<Candidate>,
    chunk_bytes: u32,
) -> Result<(Vec<Transfer>, Duration), Failed> {
    let since = Instant::now();
    let frozen = pool.reserve()?;
    let view = &frozen.view;
    let mut transfers = Vec::with_capacity(dues.len());
    for (mut due, candidate) in dues.into_iter().zip(candidates) {
        prove(pool, view, &mut due);
        let point = pool.point(candidate.volume(), view)?;
        let base = due
            .base
            .as_ref()
            .map(|base| source::Base { root: base.point.root_block, size_bytes: base.point.size_bytes });
        let target = source::Target {
            root: point.root_block,
            size_bytes: point.size_bytes,
            origin_bytes: candidate.volume().origin.as_ref().map_or(0, |origin| origin.size_bytes),
        };
        let changes = list_changes(view, base, target, u64::from(chunk_bytes));
        let changes = changes.map_err(|error| {
            Failed::new(FailureKind::Failed, format!("finding what changed in {}: {error}", due.name))
        })?;
        let changes =
            changes.with_ranges(&due.damaged, u64::from(chunk_bytes), point.size_bytes).map_err(|error| {
                Failed::new(
                    FailureKind::Failed,
                    format!("adding to the list of changes of {}: {error}", due.name),
                )
            })?;
        transfers.push(Transfer { due, candidate, point, changes });
    }
    frozen.release()?;
    Ok((transfers, since.elapsed()))
}

#[cfg(test)]
mod tests {
    use rand::{Rng as _, RngCore as _, SeedableRng as _, rngs::StdRng};
    use thinbak_engine::{BlockSize, CreateOptions, EmbeddedPool, Kind, PoolTable};
    use uuid::Uuid;

    use super::*;
    use crate::source::RunKind;

    fn pool(dir: &std::path::Path, block_bytes: u64) -> Arc<EmbeddedPool> {
        let options = CreateOptions {
            name: "p".to_owned(),
            data_bytes: 64 * block_bytes,
            block_size: BlockSize::from_bytes(block_bytes).unwrap(),
            metadata_bytes: None,
            devices: None,
            table: PoolTable::without_waiting(),
        };
        Arc::new(EmbeddedPool::create(dir, options).unwrap())
    }

    fn walked(
        pool: &Arc<EmbeddedPool>,
        dues: Vec<Due>,
        chunk_bytes: u32,
    ) -> Result<(Vec<Transfer>, Duration), Failed> {
        let pool: Arc<dyn ThinPool> = Arc::<EmbeddedPool>::clone(pool);
        snapshot_and_walk(&pool, dues, chunk_bytes)
    }

    fn due(volume: &Volume, base: Option<Base>) -> Due {
        Due {
            volume: volume.clone(),
            name: "h/p/v".to_owned(),
            base,
            reason: String::new(),
            damaged: Vec::new(),
        }
    }

    fn reads(pool: &EmbeddedPool, volume: &Volume) -> Vec<u8> {
        let mut bytes = vec![0; usize::try_from(volume.size_bytes).unwrap()];
        pool.read(volume, 0, &mut bytes).unwrap();
        bytes
    }

    fn scribble(pool: &EmbeddedPool, volume: &Volume, random: &mut StdRng) {
        for _ in 0..4 {
            let offset = random.random_range(0..volume.size_bytes);
            let len = random.random_range(1..=400_000).min(volume.size_bytes - offset);
            if random.random_bool(0.5) {
                pool.discard(volume, offset, len).unwrap();
            } else {
                let mut bytes = vec![0; usize::try_from(len).unwrap()];
                random.fill_bytes(&mut bytes);
                pool.write(volume, offset, &bytes).unwrap();
            }
        }
    }

    /// Every byte that reads otherwise than before is in a run, and what a run calls unmapped reads as zero.
    fn judge(changes: ChangeList, before: &[u8], after: &[u8], chunk_bytes: u32) {
        let mut untold = vec![true; after.len()];
        let mut next = 0;
        for run in changes.into_runs().unwrap() {
            let run = run.unwrap();
            assert!(run.offset >= next && run.offset.is_multiple_of(chunk_bytes.into()), "{run:?}");
            next = run.offset + run.len;
            assert!(next.is_multiple_of(chunk_bytes.into()) || next == after.len() as u64, "{run:?}");
            let place = usize::try_from(run.offset).unwrap()..usize::try_from(next).unwrap();
            untold[place.clone()].fill(false);
            if run.kind == RunKind::Unmapped {
                assert!(after[place].iter().all(|&byte| byte == 0), "{run:?}");
            }
        }
        let same = |at: usize| before.get(at).copied().unwrap_or(0) == after[at];
        let missed = untold.iter().enumerate().position(|(at, &untold)| untold && !same(at));
        assert_eq!(missed, None, "a change is not told");
    }

    #[test]
    fn whatever_reads_otherwise_over_an_origin_is_told_for_any_blocks_chunks_and_sizes() {
        let seed = std::env::var("THINBAK_SEED").ok().and_then(|seed| seed.parse().ok());
        let seed = seed.unwrap_or_else(|| rand::rng().random());
        println!("THINBAK_SEED={seed}");
        let mut random = StdRng::seed_from_u64(seed);
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("origin");
        for round in 0..40u64 {
            let block_bytes = [64 << 10, 192 << 10][random.random_range(0..2)];
            let chunk_bytes = [64 << 10, 128 << 10, 1 << 20][random.random_range(0..3)];
            let mut origin = vec![0; [777, 300_001, 5 << 20][random.random_range(0..3)]];
            random.fill_bytes(&mut origin);
            std::fs::write(&path, &origin).unwrap();
            let pool = pool(&dir.path().join(round.to_string()), block_bytes);
            let volume =
                pool.create_volume_over("v", random.random_range(1..12) * block_bytes, &path).unwrap();
            scribble(&pool, &volume, &mut random);
            let (mut transfers, _) = walked(&pool, vec![due(&volume, None)], chunk_bytes).unwrap();
            let Transfer { candidate, point, changes, .. } = transfers.pop().unwrap();
            let before = reads(&pool, &volume);
            judge(changes, &[], &before, chunk_bytes);
            let base =
                Base { repository: Uuid::nil(), volume: volume.uuid, generation: 1, root: [0; 32], point };
            candidate.keep(base.clone()).unwrap();

            scribble(&pool, &volume, &mut random);
            for _ in 0..3 {
                let at = random.random_range(0..origin.len());
                origin[at] ^= 1;
            }
            std::fs::write(&path, &origin).unwrap();
            let size = if random.random_bool(0.5) { volume.size_bytes } else { 6 * block_bytes };
            let volume = pool.resize_volume("v", size).unwrap();
            let sorted = idle_test(pool.as_ref(), vec![due(&volume, Some(base))]).unwrap();
            assert!(sorted.unchanged.is_empty(), "nobody knows whether the origin changed");
            let (mut transfers, _) = walked(&pool, sorted.changed, chunk_bytes).unwrap();
            let transfer = transfers.pop().unwrap();
            assert!(transfer.due.base.is_some(), "{}", transfer.due.reason);
            judge(transfer.changes, &before, &reads(&pool, &volume), chunk_bytes);
        }
    }

    /// A block that was unmapped, then one that was written, both before the origin's end: the gaps behind both were named at
    /// the first, and the second out of its place, which ended the backup.
    #[test]
    fn what_is_unmapped_over_an_origin_does_not_bring_later_gaps_forward() {
        const BLOCK: u64 = 64 << 10;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("origin");
        std::fs::write(&path, [7; 8 * BLOCK as usize]).unwrap();
        let pool = pool(&dir.path().join("p"), BLOCK);
        let volume = pool.create_volume_over("v", 8 * BLOCK, &path).unwrap();
        for block in [1, 5] {
            pool.write(&volume, block * BLOCK, &[1; BLOCK as usize]).unwrap();
        }
        let (mut transfers, _) = walked(&pool, vec![due(&volume, None)], 64 << 10).unwrap();
        let Transfer { candidate, point, .. } = transfers.pop().unwrap();
        let before = reads(&pool, &volume);
        let base = Base { repository: Uuid::nil(), volume: volume.uuid, generation: 1, root: [0; 32], point };
        candidate.keep(base.clone()).unwrap();
        pool.discard(&volume, BLOCK, BLOCK).unwrap();
        pool.write(&volume, 5 * BLOCK, &[2; BLOCK as usize]).unwrap();
        let (mut transfers, _) = walked(&pool, vec![due(&volume, Some(base))], 64 << 10).unwrap();
        let transfer = transfers.pop().unwrap();
        assert!(transfer.due.base.is_some(), "{}", transfer.due.reason);
        judge(transfer.changes, &before, &reads(&pool, &volume), 64 << 10);
    }

    #[test]
    fn a_snapshot_that_nobody_takes_over_is_removed() {
        let dir = tempfile::tempdir().unwrap();
        let pool = pool(&dir.path().join("p"), 64 << 10);
        let volume = pool.create_volume("v", 1 << 20).unwrap();
        pool.write(&volume, 0, &[1; 4096]).unwrap();
        let due = || due(&volume, None);
        let (transfers, _) = walked(&pool, vec![due()], 64 << 10).unwrap();
        assert_eq!(pool.volumes().len(), 2);
        drop(transfers);
        assert_eq!(pool.volumes().len(), 1);

        let (mut transfers, _) = walked(&pool, vec![due()], 64 << 10).unwrap();
        let Transfer { candidate, point, .. } = transfers.pop().unwrap();
        let repository = Uuid::new_v4();
        candidate
            .keep(Base { repository, volume: volume.uuid, generation: 1, root: [0; 32], point })
            .unwrap();
        assert!(pool.volumes().iter().any(|volume| matches!(volume.kind, Kind::Base { .. })));
    }
}
