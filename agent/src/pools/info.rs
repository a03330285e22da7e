//! What is told of a pool.

use thinbak_engine::{
    BlockSize, PoolMode, PoolStatus,
    embedded::{EmbeddedPool, Kind},
    format::{BLOCK_BYTES, MAX_METADATA_BLOCKS, WARN_METADATA_BYTES},
};
use thinbak_proto::v1::PoolInfo;

use super::{PoolManager, settings};

/// Those that are open, for the agent's status.
pub(crate) fn open_pool_infos(manager: &PoolManager) -> Vec<PoolInfo> {
    let pools = manager.open_pools();
    let infos = pools
        .iter()
        .map(|pool| {
            pool.info().unwrap_or_else(|failed| PoolInfo {
                name: pool.name().to_owned(),
                error: failed.message,
                ..PoolInfo::default()
            })
        })
        .map(|info| manager.with_warnings(info));
    let mut infos: Vec<PoolInfo> = infos.collect();
    infos.sort_by(|left, right| left.name.cmp(&right.name));
    infos
}

/// Of a pool that the engine runs.
pub(super) fn embedded(pool: &EmbeddedPool) -> PoolInfo {
    let status = pool.pool().status();
    let table = pool.table();
    let sectors = status.data_total.saturating_mul(pool.pool().block_size().sectors().into());
    let volumes = pool.volumes();
    let count =
        |wanted: fn(&Kind) -> bool| volumes.iter().filter(|volume| wanted(&volume.kind)).count() as u64;
    let mut warnings = warnings(pool);
    warnings.extend(warnings_of(&status));
    PoolInfo {
        name: pool.name().to_owned(),
        kind: "dir".to_owned(),
        place: pool.dir().display().to_string(),
        uuid: pool.uuid().to_string(),
        volumes: count(|kind| matches!(kind, Kind::Volume)),
        snapshots: count(|kind| matches!(kind, Kind::Snapshot { .. } | Kind::Base { .. })),
        settings: Some(settings::to_wire(table, pool.pool().block_size())),
        events: pool.pool().events(),
        snapshot_clock: pool.pool().superblock().time.into(),
        table_line: table_line(pool, sectors),
        warnings,
        ..of_status(&status, sectors, pool.pool().block_size())
    }
}

/// What the status of any thin-pool target tells.
pub(super) fn of_status(status: &PoolStatus, sectors: u64, block_size: BlockSize) -> PoolInfo {
    PoolInfo {
        transaction_id: status.transaction_id,
        block_bytes: block_size.bytes(),
        metadata_used_blocks: status.metadata_used,
        metadata_total_blocks: status.metadata_total,
        data_used_blocks: status.data_used,
        data_total_blocks: status.data_total,
        held_root: status.held_root.map_or(0, |root| root.0),
        mode: status.mode.to_string().to_lowercase(),
        status_line: format!("0 {sectors} thin-pool {status}"),
        needs_check: status.needs_check,
        ..PoolInfo::default()
    }
}

/// What somebody should know of a pool with this status.
pub(super) fn warnings_of(status: &PoolStatus) -> Vec<String> {
    let mode = match status.mode {
        PoolMode::Fail => Some("the pool has failed"),
        PoolMode::OutOfDataSpace => Some("no data block is free"),
        PoolMode::OutOfMetadataSpace => Some("no metadata block is free"),
        PoolMode::Write | PoolMode::ReadOnly => None,
    };
    let check = status.needs_check.then_some("the metadata need a check: the pool is read-only");
    check.into_iter().chain(mode).map(str::to_owned).collect()
}

/// `0 SECTORS thin-pool METADATA DATA BLOCK LOW_WATER #FEATURES FEATURES`, as the kernel has it, but that the devices are
/// paths.
fn table_line(pool: &EmbeddedPool, sectors: u64) -> String {
    let (metadata, data) = (pool.metadata_path(), pool.data_path());
    let block = pool.pool().block_size().sectors();
    format!("0 {sectors} thin-pool {} {} {block} {}", metadata.display(), data.display(), pool.table())
}

/// What somebody should know of the pool.
fn warnings(pool: &EmbeddedPool) -> Vec<String> {
    let mut warnings = Vec::new();
    let metadata_bytes = pool.pool().metadata_device().size_bytes();
    if metadata_bytes > WARN_METADATA_BYTES {
        warnings.push(format!(
            "the metadata device has {metadata_bytes} bytes; no more than {} of them can be used",
            MAX_METADATA_BLOCKS * BLOCK_BYTES as u64
        ));
    }
    warnings
}
