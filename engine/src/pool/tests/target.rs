//! Features, modes and events, as the kernel's target has them.

use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use super::{BLOCK, Devices, id, read};
use crate::{
    BlockDevice, BlockSize, DiscardMode, Features, MemoryDevice, Pool, PoolError, PoolMode, PoolTable,
};

fn pool_with(devices: &Devices, table: PoolTable) -> Pool {
    let block_size = BlockSize::from_bytes(BLOCK).unwrap();
    Pool::format_with(devices.metadata.clone(), devices.data.clone(), block_size, table).unwrap()
}

fn features(names: &[&str]) -> PoolTable {
    PoolTable { features: Features::of_names(names.iter().copied()).unwrap(), ..PoolTable::default() }
}

#[test]
fn status_lines_show_what_discards_and_full_pools_do() {
    for (names, expected) in [
        (&[][..], "0 418/4096 0/4096 - rw discard_passdown queue_if_no_space - 1024 "),
        (&["no_discard_passdown"], "0 418/4096 0/4096 - rw no_discard_passdown queue_if_no_space - 1024 "),
        (
            &["ignore_discard", "error_if_no_space"],
            "0 418/4096 0/4096 - rw ignore_discard error_if_no_space - 1024 ",
        ),
        (&["skip_block_zeroing"], "0 418/4096 0/4096 - rw discard_passdown queue_if_no_space - 1024 "),
    ] {
        assert_eq!(pool_with(&Devices::new(4096, 4096), features(names)).status().to_string(), expected);
    }
    let devices = Devices::new(4096, 4096);
    drop(devices.format());
    let pool =
        Pool::open_with(devices.metadata.clone(), devices.data.clone(), features(&["read_only"])).unwrap();
    assert_eq!(
        pool.status().to_string(),
        "0 418/4096 0/4096 - ro discard_passdown queue_if_no_space - 1024 "
    );
    assert!(matches!(
        pool.message(&["create_thin", "0"]),
        Err(PoolError::ReadOnlyMode { needs_check: false })
    ));
    assert!(matches!(pool.message(&["bogus"]), Err(PoolError::ReadOnlyMode { .. })));
}

#[test]
fn an_empty_device_is_not_formatted_read_only() {
    let devices = Devices::new(1024, 64);
    let block_size = BlockSize::from_bytes(BLOCK).unwrap();
    let made = Pool::format_with(
        devices.metadata.clone(),
        devices.data.clone(),
        block_size,
        features(&["read_only"]),
    );
    assert!(matches!(made, Err(PoolError::ReadOnlyFormat)));
    assert!(devices.metadata.is_hole(0, devices.metadata.size_bytes()));
}

#[test]
fn a_write_to_a_full_pool_waits_for_a_discard() {
    let devices = Devices::new(1024, 4);
    let pool = pool_with(&devices, PoolTable::default());
    pool.create_thin(id(0)).unwrap();
    pool.write(id(0), 0, &[1; 4 * 65_536]).unwrap();
    thread::scope(|scope| {
        let waiting = scope.spawn(|| pool.write(id(0), 4 * BLOCK, &[2; 65_536]));
        // The mode changes when the write has found nothing.
        let seen = pool.wait_event(0, None);
        assert!(seen > 0);
        while pool.status().mode != PoolMode::OutOfDataSpace {
            thread::yield_now();
        }
        assert!(!pool.status().error_if_no_space);
        pool.discard(id(0), 0, BLOCK).unwrap();
        pool.commit().unwrap();
        waiting.join().unwrap().unwrap();
    });
    assert_eq!(read(&pool, id(0), 4 * BLOCK, 4), [2; 4]);
    assert_eq!(pool.status().mode, PoolMode::Write);
    pool.commit().unwrap();
    devices.check();
}

#[test]
fn a_write_to_a_full_pool_gives_up_after_the_timeout_and_later_ones_at_once() {
    let devices = Devices::new(1024, 2);
    let table = PoolTable { no_space_timeout: Duration::from_millis(50), ..PoolTable::default() };
    let pool = pool_with(&devices, table);
    pool.create_thin(id(0)).unwrap();
    pool.write(id(0), 0, &[1; 2 * 65_536]).unwrap();
    assert!(matches!(pool.write(id(0), 2 * BLOCK, &[1]), Err(PoolError::NoSpaceData { used: 2, total: 2 })));
    assert!(pool.status().error_if_no_space, "the status flips as the kernel's does");
    assert!(matches!(pool.write(id(0), 2 * BLOCK, &[1]), Err(PoolError::NoSpaceData { .. })));
    // Growing brings it back, and with it the queueing.
    devices.data.resize(4 * BLOCK).unwrap();
    pool.grow_data(4 * BLOCK).unwrap();
    assert_eq!(pool.status().mode, PoolMode::Write);
    assert!(!pool.status().error_if_no_space);
    pool.write(id(0), 2 * BLOCK, &[1]).unwrap();
    pool.commit().unwrap();
    devices.check();
}

#[test]
fn the_low_water_mark_is_an_event_once_until_the_table_is_loaded_again() {
    let devices = Devices::new(1024, 16);
    let table = PoolTable { low_water_blocks: 4, ..features(&["error_if_no_space"]) };
    let pool = pool_with(&devices, table);
    pool.create_thin(id(0)).unwrap();
    pool.write(id(0), 0, &[1; 12 * 65_536]).unwrap();
    assert_eq!(pool.events(), 0);
    pool.write(id(0), 12 * BLOCK, &[1; 1]).unwrap();
    assert_eq!(pool.events(), 1);
    pool.write(id(0), 13 * BLOCK, &[1; 1]).unwrap();
    assert_eq!(pool.events(), 1);
    pool.reload(table).unwrap();
    pool.write(id(0), 14 * BLOCK, &[1; 1]).unwrap();
    assert_eq!(pool.events(), 2);
    assert!(pool.write(id(0), 15 * BLOCK, &[1; 2 * 65_536]).is_err());
    assert_eq!(pool.events(), 3, "the change of the mode");
    assert_eq!(pool.wait_event(3, Some(Instant::now())), 3);
}

#[test]
fn discards_are_ignored_or_kept_from_the_data_device_on_request() {
    let devices = Devices::new(1024, 16);
    let pool = pool_with(&devices, features(&["no_discard_passdown"]));
    pool.create_thin(id(0)).unwrap();
    pool.write(id(0), 0, &[1; 2 * 65_536]).unwrap();
    pool.discard(id(0), 0, BLOCK).unwrap();
    pool.commit().unwrap();
    assert_eq!(pool.status().data_used, 1);
    assert!(!devices.data.is_hole(0, BLOCK), "unmapped and kept");
    assert_eq!(pool.status().discard, DiscardMode::NoPassdown);
    assert!(matches!(pool.reload(features(&["ignore_discard"])), Err(PoolError::DiscardsFixed)));
    drop(pool);
    let open = |table| Pool::open_with(devices.metadata.clone(), devices.data.clone(), table).unwrap();
    let pool = open(features(&["ignore_discard"]));
    assert!(matches!(pool.discard(id(0), BLOCK, BLOCK), Err(PoolError::DiscardsIgnored)));
    assert_eq!(read(&pool, id(0), BLOCK, 4), [1; 4]);
    drop(pool);
    let pool = open(PoolTable::default());
    pool.discard(id(0), BLOCK, BLOCK).unwrap();
    pool.commit().unwrap();
    assert!(devices.data.is_hole(BLOCK, BLOCK));
    devices.check();
}

#[test]
fn without_zeroing_a_new_block_keeps_what_the_device_had() {
    let devices = Devices::new(1024, 4);
    devices.data.write_at(0, &[9; 2 * 65_536]).unwrap();
    let pool = pool_with(&devices, features(&["skip_block_zeroing"]));
    pool.create_thin(id(0)).unwrap();
    pool.write(id(0), 100, &[1; 50]).unwrap();
    assert_eq!(read(&pool, id(0), 99, 52), [&[9][..], &[1; 50], &[9]].concat());
    // A copy is a copy all the same.
    pool.create_snap(id(1), id(0)).unwrap();
    pool.write(id(1), 0, &[2; 99]).unwrap();
    assert_eq!(read(&pool, id(1), 98, 4), [2, 9, 1, 1]);
}

#[test]
fn a_read_only_table_can_be_loaded_and_unloaded() {
    let devices = Devices::new(1024, 64);
    let pool = pool_with(&devices, PoolTable::default());
    pool.create_thin(id(0)).unwrap();
    pool.write(id(0), 0, &[1; 65_536]).unwrap();
    pool.reload(features(&["read_only"])).unwrap();
    devices.check();
    pool.write(id(0), 10, &[2; 10]).unwrap();
    assert!(matches!(pool.write(id(0), BLOCK, &[2]), Err(PoolError::ReadOnlyMode { needs_check: false })));
    assert!(matches!(pool.discard(id(0), 0, BLOCK), Err(PoolError::ReadOnlyMode { .. })));
    assert_eq!(read(&pool, id(0), 9, 3), [1, 2, 2]);
    pool.reload(PoolTable::default()).unwrap();
    pool.write(id(0), BLOCK, &[2]).unwrap();
    pool.commit().unwrap();
    devices.check();
}

#[test]
fn an_open_device_is_not_deleted() {
    let devices = Devices::new(1024, 64);
    let pool = devices.format();
    pool.create_thin(id(0)).unwrap();
    let (thin, again) =
        (pool.open_thin(id(0), 10 * BLOCK, None).unwrap(), pool.open_thin(id(0), BLOCK, None).unwrap());
    thin.write(0, &[1; 4096]).unwrap();
    assert_eq!(thin.status().unwrap(), "128 127");
    assert!(matches!(pool.message(&["delete", "0"]), Err(PoolError::DeviceOpen(_))));
    assert!(matches!(pool.apply(&[crate::Operation::Delete(id(0))]), Err(PoolError::DeviceOpen(_))));
    drop(thin);
    assert!(matches!(pool.delete(id(0)), Err(PoolError::DeviceOpen(_))));
    assert!(matches!(again.write(BLOCK - 1, &[1; 2]), Err(PoolError::OutOfRange { .. })));
    assert!(matches!(again.discard(0, BLOCK + 1), Err(PoolError::OutOfRange { .. })));
    drop(again);
    pool.message(&["delete", "0"]).unwrap();
    assert!(matches!(pool.open_thin(id(0), BLOCK, None), Err(PoolError::NoSuchDevice(_))));
    assert_eq!(pool.create_thin(id(0)).map_err(|error| error.errno()), Ok(()));
    assert!(pool.delete(id(0)).is_ok());
}

#[test]
fn metadata_grow_from_full_to_working() {
    let metadata = Arc::new(MemoryDevice::new(64 * 4096));
    let data = Arc::new(MemoryDevice::new(40_000 * BLOCK));
    let table = features(&["skip_block_zeroing"]);
    let block_size = BlockSize::from_bytes(BLOCK).unwrap();
    let pool = Pool::format_with(metadata.clone(), data.clone(), block_size, table).unwrap();
    pool.create_thin(id(0)).unwrap();
    let full =
        (0..40_000).map(|block| pool.write(id(0), block * 7 * BLOCK, &[1])).find(Result::is_err).unwrap();
    assert!(matches!(full, Err(PoolError::NoSpaceMetadata { .. })), "{full:?}");
    assert_eq!(pool.status().mode, PoolMode::OutOfMetadataSpace);
    assert!(pool.status().to_string().contains(" ro "));
    assert!(matches!(pool.message(&["create_thin", "1"]), Err(PoolError::OutOfMetadataMode)));
    assert_eq!(pool.message(&["create_thin", "1"]).unwrap_err().errno(), Some(rustix::io::Errno::OPNOTSUPP));
    let mapped = pool.device(id(0)).unwrap().unwrap().details.mapped_blocks;
    // Beyond a bitmap's 16,320 blocks, and then beyond the next.
    for blocks in [65, 16_300, 16_400, 50_000] {
        metadata.resize(blocks * 4096).unwrap();
        pool.reload(table).unwrap();
        assert_eq!(pool.status().metadata_total, blocks);
        super::check_all(&metadata, true);
    }
    assert_eq!(pool.status().mode, PoolMode::Write);
    for block in 0..2_000 {
        pool.write(id(0), (block * 7 + 1) * BLOCK, &[1]).unwrap();
    }
    pool.commit().unwrap();
    super::check_all(&metadata, true);
    let reopened = Pool::open(metadata.clone(), data).unwrap();
    assert_eq!(reopened.device(id(0)).unwrap().unwrap().details.mapped_blocks, mapped + 2_000);
    metadata.resize(50_001 * 4096).unwrap();
    reopened.grow_metadata().unwrap();
    assert_eq!(reopened.status().metadata_total, 50_001);
    super::check_all(&metadata, true);
}

#[test]
fn metadata_beyond_the_format_s_limit_stay_unused() {
    let most = crate::format::MAX_METADATA_BLOCKS;
    for bytes in [16 << 30, 17 << 30] {
        let metadata = Arc::new(MemoryDevice::new(bytes));
        let data = Arc::new(MemoryDevice::new(64 * BLOCK));
        let pool = Pool::format(metadata.clone(), data, BlockSize::from_bytes(BLOCK).unwrap()).unwrap();
        // As the kernel said of such devices.
        assert!(pool.status().to_string().starts_with("0 4359/4161600 0/64 "), "{}", pool.status());
        pool.create_thin(id(0)).unwrap();
        pool.write(id(0), 0, &[1]).unwrap();
        pool.reserve_metadata_snap().unwrap();
        pool.grow_metadata().unwrap();
        assert!(metadata.is_hole(most * 4096, bytes - most * 4096));
        let report = crate::check::check(metadata.clone(), None).unwrap();
        assert!(report.is_sound(), "{report:?}");
    }
}
