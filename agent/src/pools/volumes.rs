//! Volumes and snapshots of a pool.

use std::path::Path;

use thinbak_engine::embedded::{Kind, Volume};
use thinbak_proto::{
    Failed, FailureKind,
    v1::{
        CreateVolumeRequest, ExternalOrigin, RemoveVolumeRequest, ResizeVolumeRequest,
        SnapshotVolumesRequest, VolumeInfo, VolumeKind,
    },
};

use super::{Need, PoolManager, ThinPool, failure::during};

pub(super) fn create(manager: &PoolManager, request: &CreateVolumeRequest) -> Result<VolumeInfo, Failed> {
    let pool = manager.open_for_volume(&request.pool)?;
    let attempt = || format!("create volume {}/{}", request.pool, request.volume);
    let origin = Some(request.external_origin.as_str()).filter(|origin| !origin.is_empty()).map(Path::new);
    let made = pool.create_volume(&request.volume, request.size_bytes, origin);
    info(pool.as_ref(), &made.map_err(during(attempt))?)
}

pub(super) fn snapshot(
    manager: &PoolManager,
    request: &SnapshotVolumesRequest,
) -> Result<Vec<VolumeInfo>, Failed> {
    let Some(first) = request.snapshots.first() else {
        return Err(Failed::new(FailureKind::Usage, "no snapshot is named"));
    };
    let pool = manager.open(&first.pool)?;
    for other in &request.snapshots {
        if other.pool != first.pool && manager.open(&other.pool)?.uuid() != pool.uuid() {
            return Err(Failed::new(
                FailureKind::Usage,
                format!(
                    "snapshots of the pools {} and {} cannot be of one moment: name one pool per call",
                    first.pool, other.pool
                ),
            ));
        }
    }
    let names: Vec<(&str, &str)> = request
        .snapshots
        .iter()
        .map(|snapshot| (snapshot.volume.as_str(), snapshot.snapshot.as_str()))
        .collect();
    let need = Need { snapshots: names.len() as u64, ..Need::default() };
    let attempt = || format!("snapshot in pool {}", first.pool);
    manager.admit(pool.as_ref(), &need).map_err(during(attempt))?;
    let taken = pool.take_snapshots(&names).map_err(during(attempt))?;
    taken.iter().map(|volume| info(pool.as_ref(), volume)).collect()
}

/// Volumes each with its snapshots; private devices of running jobs are left out.
pub(super) fn list(manager: &PoolManager, spec: &str) -> Result<Vec<VolumeInfo>, Failed> {
    let pool = manager.open(spec)?;
    let (mut volumes, mut tags) = (pool.list()?, pool.tags());
    volumes.sort_by(|(left, _), (right, _)| order(left).cmp(&order(right)));
    let shown = volumes.iter().map(|(volume, mapped_bytes)| {
        let tags = tags.remove(&volume.device).unwrap_or_default();
        VolumeInfo { tags, ..to_wire(volume, *mapped_bytes) }
    });
    Ok(shown.collect())
}

fn order(volume: &Volume) -> (bool, &str, u64, u32) {
    let name = volume.name.split('@').next().unwrap_or_default();
    let unknown = matches!(volume.kind, Kind::Unknown);
    let created = if matches!(volume.kind, Kind::Volume) { 0 } else { volume.created_at_ms.max(1) };
    (unknown, name, created, volume.device.get())
}

pub(super) fn resize(manager: &PoolManager, request: &ResizeVolumeRequest) -> Result<VolumeInfo, Failed> {
    let pool = manager.open(&request.pool)?;
    let _lock = manager.lock_volume(pool.uuid(), &request.volume)?;
    let attempt = || format!("resize volume {}/{}", request.pool, request.volume);
    let volume = pool.resize_volume(&request.volume, request.size_bytes).map_err(during(attempt))?;
    info(pool.as_ref(), &volume)
}

/// Tells what it removed.
pub(super) fn remove(manager: &PoolManager, request: &RemoveVolumeRequest) -> Result<VolumeInfo, Failed> {
    let pool = manager.open(&request.pool)?;
    let _lock = manager.lock_volume(pool.uuid(), &request.volume)?;
    let (volume, snapshot) = (request.volume.as_str(), request.snapshot.as_str());
    let (present, attempt) = if snapshot.is_empty() {
        (pool.volume(volume), format!("remove volume {}/{volume}", request.pool))
    } else {
        (pool.snapshot(volume, snapshot), format!("remove snapshot {}/{volume}@{snapshot}", request.pool))
    };
    let present = present.map_err(during(|| attempt.clone()))?;
    let removed = info(pool.as_ref(), &present)?;
    let outcome =
        if snapshot.is_empty() { pool.remove_volume(volume) } else { pool.remove_snapshot(volume, snapshot) };
    outcome.map_err(during(|| attempt))?;
    Ok(removed)
}

pub(super) fn info(pool: &dyn ThinPool, volume: &Volume) -> Result<VolumeInfo, Failed> {
    Ok(to_wire(volume, pool.mapped_bytes(volume)?))
}

fn to_wire(volume: &Volume, mapped_bytes: u64) -> VolumeInfo {
    let kind = match volume.kind {
        Kind::Snapshot { .. } => VolumeKind::Snapshot,
        Kind::Base { .. } => VolumeKind::Base,
        Kind::Unknown => VolumeKind::Unknown,
        Kind::Volume | Kind::Head | Kind::Candidate | Kind::Trash => VolumeKind::Volume,
    };
    VolumeInfo {
        name: volume.name.clone(),
        kind: kind.into(),
        uuid: volume.uuid.to_string(),
        device_id: volume.device.get().into(),
        size_bytes: volume.size_bytes,
        mapped_bytes,
        created_at_ms: volume.created_at_ms,
        tags: Vec::new(),
        read_only: volume.read_only,
        origin: volume.origin.as_ref().map(|origin| ExternalOrigin {
            path: origin.path.display().to_string(),
            size_bytes: origin.size_bytes,
        }),
    }
}
