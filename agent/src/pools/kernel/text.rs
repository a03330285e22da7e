//! Tables and status lines as the kernel prints them.

use devicemapper::Device;
use thinbak_engine::{BlockSize, DeviceId, DiscardMode, MetadataBlock, PoolMode, PoolStatus, PoolTable};

/// The table of a thin-pool target.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct PoolLine {
    pub(super) metadata: Device,
    pub(super) data: Device,
    pub(super) block_size: BlockSize,
    pub(super) table: PoolTable,
}

impl PoolLine {
    /// `METADATA DATA BLOCK_SECTORS LOW_WATER [#FEATURES FEATURES]`
    pub(super) fn parse(line: &str) -> Option<Self> {
        let mut words = line.trim().splitn(4, ' ');
        let metadata = words.next()?.parse().ok()?;
        let data = words.next()?.parse().ok()?;
        let block_size = BlockSize::from_sectors(words.next()?.parse().ok()?).ok()?;
        let table = words.next()?.parse().ok()?;
        Some(Self { metadata, data, block_size, table })
    }
}

/// The table of a thin target.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct ThinLine {
    pub(super) pool: Device,
    pub(super) device: DeviceId,
    pub(super) has_origin: bool,
}

impl ThinLine {
    /// `POOL ID [ORIGIN]`
    pub(super) fn parse(line: &str) -> Option<Self> {
        let mut words = line.split_whitespace();
        let pool = words.next()?.parse().ok()?;
        let device = DeviceId::new(words.next()?.parse().ok()?).ok()?;
        Some(Self { pool, device, has_origin: words.next().is_some() })
    }
}

/// The status of a thin-pool target: what comes after its type. `Error`, of a target that cannot read its own metadata, is
/// none.
pub(super) fn parse_status(line: &str) -> Option<PoolStatus> {
    let mut words = line.split_whitespace();
    let first = words.next()?;
    if first == "Fail" {
        return Some(PoolStatus {
            transaction_id: 0,
            metadata_used: 0,
            metadata_total: 0,
            data_used: 0,
            data_total: 0,
            held_root: None,
            mode: PoolMode::Fail,
            discard: DiscardMode::Ignore,
            error_if_no_space: true,
            needs_check: false,
            metadata_low_watermark: 0,
        });
    }
    let mut of_total = || -> Option<(u64, u64)> {
        let (used, total) = words.next()?.split_once('/')?;
        Some((used.parse().ok()?, total.parse().ok()?))
    };
    let ((metadata_used, metadata_total), (data_used, data_total)) = (of_total()?, of_total()?);
    let held_root = match words.next()? {
        "-" => None,
        root => Some(MetadataBlock::new(root.parse().ok()?)),
    };
    let mode = match words.next()? {
        "rw" => PoolMode::Write,
        "ro" => PoolMode::ReadOnly,
        "out_of_data_space" => PoolMode::OutOfDataSpace,
        _ => return None,
    };
    let discard = match words.next()? {
        "ignore_discard" => DiscardMode::Ignore,
        "no_discard_passdown" => DiscardMode::NoPassdown,
        "discard_passdown" => DiscardMode::Passdown,
        _ => return None,
    };
    let error_if_no_space = match words.next()? {
        "error_if_no_space" => true,
        "queue_if_no_space" => false,
        _ => return None,
    };
    // Kernels before 4.9 and 5.1 print neither of the last two.
    let needs_check = words.next() == Some("needs_check");
    let metadata_low_watermark = words.next().and_then(|word| word.parse().ok()).unwrap_or_default();
    Some(PoolStatus {
        transaction_id: first.parse().ok()?,
        metadata_used,
        metadata_total,
        data_used,
        data_total,
        held_root,
        mode,
        discard,
        error_if_no_space,
        needs_check,
        metadata_low_watermark,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn status_lines_of_the_kernel_are_read_as_they_are_printed() {
        for line in [
            "1 422/4096 135/4096 92 rw discard_passdown queue_if_no_space - 1024 ",
            "0 418/4096 0/4096 - rw no_discard_passdown error_if_no_space - 1024 ",
            "0 421/4096 256/256 - out_of_data_space discard_passdown error_if_no_space - 1024 ",
            "1 423/4096 139/4096 - ro ignore_discard queue_if_no_space needs_check 1024 ",
        ] {
            assert_eq!(parse_status(line).unwrap().to_string(), line);
        }
        assert_eq!(parse_status("Fail").unwrap().mode, PoolMode::Fail);
    }

    #[test]
    fn what_is_no_status_line_is_none() {
        for line in ["", "Error", "1", "1 2 3/4 - rw", "1 2/3 4/5 x rw discard_passdown queue_if_no_space -"]
        {
            assert!(parse_status(line).is_none(), "{line}");
        }
    }

    #[test]
    fn tables_of_pools_and_thins_are_read() {
        let pool = PoolLine::parse("254:0 254:16 128 32 1 skip_block_zeroing ").unwrap();
        assert_eq!((pool.metadata.to_string(), pool.data.to_string()), ("254:0".into(), "254:16".into()));
        assert_eq!(pool.block_size.bytes(), 64 << 10);
        assert!(pool.table.features.skip_block_zeroing && pool.table.low_water_blocks == 32);
        assert!(PoolLine::parse("253:0 253:1 128 0 0 ").is_some());
        assert!(PoolLine::parse("254:0 2048").is_none());
        let thin = ThinLine::parse("253:2 16777214 7:0").unwrap();
        assert_eq!((thin.device.get(), thin.has_origin), (16_777_214, true));
        assert!(!ThinLine::parse("253:2 1").unwrap().has_origin);
        assert!(ThinLine::parse("253:2 16777216").is_none());
    }
}
