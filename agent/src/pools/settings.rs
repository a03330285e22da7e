//! How a pool behaves: settings as they travel, and as the engine's table has them.

use std::time::Duration;

use thinbak_engine::{BlockSize, Features, PoolTable};
use thinbak_proto::{
    Failed, FailureKind,
    v1::{PoolDiscards, PoolInfo, PoolSettings, SetPoolRequest},
};

use super::{PoolManager, failure::while_doing, info};

/// Changes what is given, live. Whether discards are ignored changes by opening the pool again, which nothing else may use
/// then.
pub(super) fn set(manager: &PoolManager, request: &SetPoolRequest) -> Result<PoolInfo, Failed> {
    let attempt = || format!("set pool {}", request.pool);
    let settings = request.settings.unwrap_or_default();
    if settings == PoolSettings::default() {
        return Err(Failed::new(FailureKind::Usage, format!("{}: nothing to set is given", attempt())));
    }
    let pool = manager.open_embedded(&request.pool, "set")?;
    let table = changed(pool.table(), settings, pool.pool().block_size());
    let pool = if table.features.ignore_discard == pool.table().features.ignore_discard {
        pool.set_table(table).map_err(while_doing(attempt))?;
        pool
    } else {
        let dir = pool.dir().to_owned();
        drop(pool);
        manager.reopen(&request.pool, &dir, table)?
    };
    Ok(info::embedded(&pool))
}

/// The table of a new pool.
pub(super) fn table(settings: PoolSettings, block_size: BlockSize) -> PoolTable {
    changed(PoolTable::without_waiting(), settings, block_size)
}

fn changed(table: PoolTable, settings: PoolSettings, block_size: BlockSize) -> PoolTable {
    let discards = settings.discards.map(|_| settings.discards());
    let now = table.features;
    PoolTable {
        low_water_blocks: settings
            .low_water_bytes
            .map_or(table.low_water_blocks, |bytes| bytes.div_ceil(block_size.bytes())),
        features: Features {
            skip_block_zeroing: settings.zero.map_or(now.skip_block_zeroing, |zero| !zero),
            ignore_discard: discards.map_or(now.ignore_discard, |discards| discards == PoolDiscards::Ignore),
            no_discard_passdown: discards
                .map_or(now.no_discard_passdown, |discards| discards == PoolDiscards::Nopassdown),
            read_only: settings.read_only.unwrap_or(now.read_only),
            error_if_no_space: settings.error_when_full.unwrap_or(now.error_if_no_space),
        },
        no_space_timeout: settings
            .no_space_timeout_seconds
            .map_or(table.no_space_timeout, Duration::from_secs),
    }
}

/// A table as settings, all of them given.
pub(super) fn to_wire(table: PoolTable, block_size: BlockSize) -> PoolSettings {
    let features = table.features;
    let discards = match features {
        Features { ignore_discard: true, .. } => PoolDiscards::Ignore,
        Features { no_discard_passdown: true, .. } => PoolDiscards::Nopassdown,
        _ => PoolDiscards::Passdown,
    };
    PoolSettings {
        zero: Some(!features.skip_block_zeroing),
        discards: Some(discards.into()),
        error_when_full: Some(features.error_if_no_space),
        low_water_bytes: Some(table.low_water_blocks.saturating_mul(block_size.bytes())),
        no_space_timeout_seconds: Some(table.no_space_timeout.as_secs()),
        read_only: Some(features.read_only),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_and_tables_say_the_same() {
        let block_size = BlockSize::from_bytes(64 << 10).unwrap();
        for text in
            ["0 0", "3 1 skip_block_zeroing", "0 2 ignore_discard read_only", "9 1 no_discard_passdown"]
        {
            let wanted = PoolTable { no_space_timeout: Duration::from_secs(5), ..text.parse().unwrap() };
            assert_eq!(table(to_wire(wanted, block_size), block_size), wanted, "{text}");
        }
    }

    #[test]
    fn what_is_not_given_stays() {
        let block_size = BlockSize::from_bytes(64 << 10).unwrap();
        let before: PoolTable = "7 2 skip_block_zeroing no_discard_passdown".parse().unwrap();
        assert_eq!(changed(before, PoolSettings::default(), block_size), before);
        let one = PoolSettings { low_water_bytes: Some(1), ..PoolSettings::default() };
        assert_eq!(changed(before, one, block_size), PoolTable { low_water_blocks: 1, ..before });
    }
}
