use super::{BLOCK, Devices, id, read};
use crate::{BlockDevice, BlockSize, MemoryDevice, Operation, Pool, PoolError, PoolMode, VirtualBlock};
use std::sync::Arc;

#[test]
fn a_fresh_pool_has_the_kernel_s_layout_and_status() {
    let devices = Devices::new(4096, 4096);
    let pool = devices.format();
    // As the kernel showed for a pool of the same sizes.
    assert_eq!(
        pool.status().to_string(),
        "0 418/4096 0/4096 - rw discard_passdown error_if_no_space - 1024 "
    );
    let superblock = pool.superblock();
    assert_eq!(superblock.metadata_space_map.bitmap_root.0, 1);
    assert_eq!(superblock.metadata_space_map.ref_count_root.0, 2);
    assert_eq!(superblock.data_space_map.bitmap_root.0, 4);
    assert_eq!(superblock.data_space_map.ref_count_root.0, 5);
    assert_eq!((superblock.mapping_root.0, superblock.details_root.0), (6, 7));
    devices.check();
    assert!(matches!(
        Pool::format(devices.metadata.clone(), devices.data.clone(), pool.block_size()),
        Err(PoolError::NotBlank)
    ));
}

#[test]
fn what_is_written_is_read_after_reopening() {
    let devices = Devices::new(1024, 64);
    let pool = devices.format();
    pool.create_thin(id(0)).unwrap();
    pool.write(id(0), 100, b"hello").unwrap();
    pool.write(id(0), 5 * BLOCK - 3, b"across").unwrap();
    assert_eq!(read(&pool, id(0), 98, 9), b"\0\0hello\0\0");
    pool.commit().unwrap();
    devices.check();
    let pool = devices.open();
    assert_eq!(read(&pool, id(0), 5 * BLOCK - 4, 8), b"\0across\0");
    assert_eq!(read(&pool, id(0), 40 * BLOCK, 4), [0; 4]);
    assert_eq!(pool.device(id(0)).unwrap().unwrap().details.mapped_blocks, 3);
    assert_eq!(pool.device_status(id(0)).unwrap(), format!("384 {}", 6 * 128 - 1));
    assert_eq!(pool.status().data_used, 3);
}

#[test]
fn what_was_not_committed_is_gone_after_reopening() {
    let devices = Devices::new(1024, 64);
    let pool = devices.format();
    pool.create_thin(id(0)).unwrap();
    pool.commit().unwrap();
    pool.create_thin(id(1)).unwrap();
    pool.write(id(0), 0, &[1; 4096]).unwrap();
    let pool = devices.open();
    assert_eq!(pool.devices().unwrap().len(), 1);
    assert_eq!(read(&pool, id(0), 0, 4096), [0; 4096]);
    devices.check();
}

#[test]
fn snapshots_of_snapshots_keep_what_they_saw() {
    let devices = Devices::new(1024, 256);
    let pool = devices.format();
    pool.create_thin(id(0)).unwrap();
    for generation in 0..8_u8 {
        pool.write(id(u64::from(generation)), 3 * BLOCK, &[generation + 1; 3 * 65_536]).unwrap();
        pool.write(id(u64::from(generation)), 100 + u64::from(generation), &[generation + 1; 50]).unwrap();
        pool.create_snap(id(u64::from(generation) + 1), id(u64::from(generation))).unwrap();
        pool.commit().unwrap();
        devices.check();
    }
    for generation in 0..8_u8 {
        assert_eq!(read(&pool, id(u64::from(generation)), 4 * BLOCK, 4), [generation + 1; 4]);
    }
    pool.delete(id(3)).unwrap();
    pool.delete(id(0)).unwrap();
    pool.commit().unwrap();
    devices.check();
    assert_eq!(read(&pool, id(8), 4 * BLOCK, 4), [8; 4]);
    assert_eq!(read(&pool, id(2), 4 * BLOCK, 4), [3; 4]);
    for device in [1, 2, 4, 5, 6, 7, 8] {
        pool.delete(id(device)).unwrap();
    }
    pool.commit().unwrap();
    devices.check();
    assert_eq!(pool.status().data_used, 0);
    let used = pool.status().metadata_used;
    assert_eq!(used, Devices::new(1024, 256).format().status().metadata_used);
}

#[test]
fn the_first_write_after_a_snapshot_copies_and_the_second_does_not() {
    let devices = Devices::new(1024, 64);
    let pool = devices.format();
    pool.create_thin(id(0)).unwrap();
    pool.write(id(0), 0, &[1; 65_536]).unwrap();
    pool.create_snap(id(1), id(0)).unwrap();
    pool.write(id(0), 10, &[2; 10]).unwrap();
    assert_eq!(pool.status().data_used, 2);
    pool.write(id(0), 30, &[3; 10]).unwrap();
    assert_eq!(pool.status().data_used, 2);
    let mut expected = [1; 65_536];
    expected[10..20].fill(2);
    expected[30..40].fill(3);
    assert_eq!(read(&pool, id(0), 0, 65_536), expected);
    assert_eq!(read(&pool, id(1), 0, 65_536), [1; 65_536]);
}

#[test]
fn a_new_block_holds_nothing_of_its_former_owner() {
    let devices = Devices::new(1024, 2);
    let pool = devices.format();
    pool.create_thin(id(0)).unwrap();
    pool.write(id(0), 0, &[7; 2 * 65_536]).unwrap();
    pool.delete(id(0)).unwrap();
    pool.create_thin(id(1)).unwrap();
    pool.write(id(1), 1000, &[1]).unwrap();
    pool.write(id(1), BLOCK, &[1]).unwrap();
    assert_eq!(read(&pool, id(1), 0, 1000), [0; 1000]);
    assert_eq!(read(&pool, id(1), 1001, 65_535)[..64_535], [0; 64_535]);
    assert_eq!(read(&pool, id(1), BLOCK + 1, 65_535), [0; 65_535]);
}

#[test]
fn a_full_pool_refuses_writes_and_recovers_by_a_discard() {
    let devices = Devices::new(1024, 4);
    let pool = devices.format();
    pool.create_thin(id(0)).unwrap();
    pool.write(id(0), 0, &[1; 4 * 65_536]).unwrap();
    let full = pool.write(id(0), 4 * BLOCK, &[1; 65_536]);
    assert!(matches!(full, Err(PoolError::NoSpaceData { used: 4, total: 4 })));
    assert_eq!(pool.status().mode, PoolMode::OutOfDataSpace);
    pool.write(id(0), 0, &[2; 65_536]).unwrap();
    pool.discard(id(0), BLOCK, 2 * BLOCK).unwrap();
    pool.write(id(0), 4 * BLOCK, &[3; 2 * 65_536]).unwrap();
    pool.commit().unwrap();
    assert_eq!(pool.status().mode, PoolMode::Write);
    devices.check();
    assert_eq!(read(&pool, id(0), BLOCK, 4), [0; 4]);
    assert_eq!(read(&pool, id(0), 5 * BLOCK, 4), [3; 4]);
    devices.data.resize(8 * BLOCK).unwrap();
    pool.grow_data(8 * BLOCK).unwrap();
    pool.write(id(0), 6 * BLOCK, &[4; 4 * 65_536]).unwrap();
    pool.commit().unwrap();
    devices.check();
}

#[test]
fn discards_unmap_whole_blocks_and_give_back_only_what_nobody_shares() {
    let devices = Devices::new(1024, 64);
    let pool = devices.format();
    pool.create_thin(id(0)).unwrap();
    pool.write(id(0), 0, &[1; 8 * 65_536]).unwrap();
    pool.create_snap(id(1), id(0)).unwrap();
    pool.write(id(0), 0, &[2; 65_536]).unwrap();
    pool.commit().unwrap();
    let hole = |block: u64| {
        let found = pool.mapped_runs(id(0), VirtualBlock(0), VirtualBlock(100), 10).unwrap();
        println!("{found:?}");
        devices.data.is_hole(block * BLOCK, BLOCK)
    };
    pool.discard(id(0), 10, 2 * BLOCK).unwrap();
    assert_eq!(read(&pool, id(0), BLOCK, 4), [0; 4]);
    assert_eq!(read(&pool, id(0), 0, 4), [2; 4]);
    assert_eq!(read(&pool, id(1), BLOCK, 4), [1; 4]);
    pool.commit().unwrap();
    assert!(!hole(1), "the snapshot has it still");
    pool.discard(id(0), 0, BLOCK).unwrap();
    assert!(!hole(8), "not committed yet");
    pool.commit().unwrap();
    assert!(hole(8));
    pool.discard(id(0), 0, u64::MAX).unwrap();
    pool.discard(id(1), 0, 64 * BLOCK).unwrap();
    pool.commit().unwrap();
    devices.check();
    assert_eq!(pool.status().data_used, 0);
    assert!(devices.data.is_hole(0, 64 * BLOCK));
    assert_eq!(pool.device(id(1)).unwrap().unwrap().details.mapped_blocks, 0);
}

#[test]
fn runs_of_mappings_are_listed() {
    let devices = Devices::new(1024, 64);
    let pool = devices.format();
    pool.create_thin(id(0)).unwrap();
    pool.write(id(0), 2 * BLOCK, &[1; 3 * 65_536]).unwrap();
    pool.write(id(0), 9 * BLOCK, &[1; 1]).unwrap();
    let runs = pool.mapped_runs(id(0), VirtualBlock(3), VirtualBlock(100), 10).unwrap();
    let runs: Vec<_> = runs.iter().map(|run| (run.begin.0, run.length, run.data_begin.0)).collect();
    assert_eq!(runs, [(3, 2, 1), (9, 1, 3)]);
    assert_eq!(pool.mapped_runs(id(0), VirtualBlock(0), VirtualBlock(100), 1).unwrap().len(), 1);
    assert!(pool.mapped_runs(id(0), VirtualBlock(5), VirtualBlock(9), 10).unwrap().is_empty());
}

#[test]
fn messages_are_the_kernel_s() {
    let devices = Devices::new(1024, 64);
    let pool = devices.format();
    pool.message(&["create_thin", "0"]).unwrap();
    assert!(matches!(pool.message(&["create_thin", "0"]), Err(PoolError::DeviceExists(_))));
    pool.message(&["CREATE_THIN", "16777215"]).unwrap();
    assert!(matches!(pool.message(&["create_thin", "16777216"]), Err(PoolError::InvalidDeviceId(_))));
    pool.message(&["delete", "16777215"]).unwrap();
    assert!(matches!(pool.message(&["delete", "16777215"]), Err(PoolError::NoSuchDevice(_))));
    pool.message(&["create_snap", "1", "0"]).unwrap();
    assert!(matches!(pool.message(&["create_snap", "1", "0"]), Err(PoolError::DeviceExists(_))));
    assert!(matches!(pool.message(&["create_snap", "4", "99"]), Err(PoolError::NoSuchDevice(_))));
    for words in [
        &["create_snap", "x", "0"][..],
        &["bogus"],
        &[],
        &["delete"],
        &["delete", "++1"],
        &["create_thin", ""],
    ] {
        assert!(matches!(pool.message(words), Err(PoolError::InvalidMessage(_))), "{words:?}");
    }
    pool.message(&["set_transaction_id", "0", "1"]).unwrap();
    assert!(matches!(
        pool.message(&["set_transaction_id", "0", "2"]),
        Err(PoolError::WrongTransactionId { expected: 0, found: 1 })
    ));
    assert!(matches!(pool.message(&["release_metadata_snap"]), Err(PoolError::NoMetadataSnap)));
    pool.message(&["reserve_metadata_snap"]).unwrap();
    assert!(matches!(pool.message(&["reserve_metadata_snap"]), Err(PoolError::MetadataSnapHeld)));
    devices.check();
    let reopened = devices.open();
    assert_eq!(reopened.transaction_id(), 1);
    assert_eq!(reopened.devices().unwrap().len(), 2);
    reopened.message(&["release_metadata_snap"]).unwrap();
    devices.check();
}

#[test]
fn a_metadata_snapshot_stays_as_it_was_and_gives_everything_back() {
    let devices = Devices::new(1024, 512);
    let pool = devices.format();
    for device in 0..20 {
        pool.create_thin(id(device)).unwrap();
        pool.write(id(device), 0, &[1; 4 * 65_536]).unwrap();
    }
    pool.commit().unwrap();
    let used = (pool.status().metadata_used, pool.status().data_used);
    pool.reserve_metadata_snap().unwrap();
    let held = pool.status().held_root.unwrap();
    let copy = crate::format::Superblock::read(devices.metadata.as_ref(), held).unwrap();
    assert_eq!(copy.held_root, None);
    assert_eq!(copy.data_space_map, Default::default());
    assert_eq!(copy.metadata_space_map, Default::default());
    let bytes = |block: u64| {
        let mut bytes = [0; 4096];
        devices.metadata.read_at(block * 4096, &mut bytes).unwrap();
        bytes
    };
    let before = [held.0, copy.mapping_root.0, copy.details_root.0].map(bytes);
    for device in 0..20 {
        pool.write(id(device), BLOCK, &[2; 4 * 65_536]).unwrap();
        pool.create_snap(id(100 + device), id(device)).unwrap();
        pool.commit().unwrap();
        devices.check();
    }
    pool.discard(id(0), 0, 2 * BLOCK).unwrap();
    pool.delete(id(1)).unwrap();
    pool.commit().unwrap();
    devices.check();
    assert_eq!(before, [held.0, copy.mapping_root.0, copy.details_root.0].map(bytes));
    for device in (100..120).chain(2..20).chain([0]) {
        pool.delete(id(device)).unwrap();
    }
    pool.commit().unwrap();
    devices.check();
    assert_eq!(pool.status().data_used, 80);
    pool.release_metadata_snap().unwrap();
    devices.check();
    assert_eq!(pool.status().data_used, 0);
    assert!((pool.status().metadata_used, 0) < used);
}

#[test]
fn operations_that_belong_together_are_done_together_or_not_at_all() {
    let devices = Devices::new(1024, 64);
    let pool = devices.format();
    pool.create_thin(id(0)).unwrap();
    pool.write(id(0), 0, &[1; 65_536]).unwrap();
    let refused = pool.apply(&[
        Operation::CreateSnap { new: id(1), origin: id(0) },
        Operation::SetTransactionId { old: 7, new: 8 },
    ]);
    assert!(matches!(refused, Err(PoolError::WrongTransactionId { .. })));
    assert_eq!(pool.devices().unwrap().len(), 1);
    assert_eq!(read(&pool, id(0), 0, 4), [1; 4]);
    pool.apply(&[
        Operation::CreateSnap { new: id(1), origin: id(0) },
        Operation::CreateThin(id(2)),
        Operation::Delete(id(0)),
        Operation::SetTransactionId { old: 0, new: 8 },
    ])
    .unwrap();
    devices.check();
    let reopened = devices.open();
    assert_eq!(reopened.transaction_id(), 8);
    assert_eq!(reopened.devices().unwrap().iter().map(|device| device.id.get()).collect::<Vec<_>>(), [1, 2]);
    assert_eq!(read(&reopened, id(1), 0, 4), [1; 4]);
}

#[test]
fn a_commit_without_changes_writes_nothing() {
    let log = crate::FaultLog::new();
    let metadata = Arc::new(crate::FaultDevice::new(MemoryDevice::new(1 << 22), 0, log.clone()));
    let data = Arc::new(crate::FaultDevice::new(MemoryDevice::new(1 << 22), 1, log.clone()));
    let pool = Pool::format(metadata, data, BlockSize::from_bytes(BLOCK).unwrap()).unwrap();
    let before = log.len();
    pool.commit().unwrap();
    assert_eq!(log.len(), before);
    pool.create_thin(id(0)).unwrap();
    pool.write(id(0), 0, &[1; 65_536]).unwrap();
    pool.commit().unwrap();
    let before = log.len();
    pool.commit().unwrap();
    assert_eq!(log.len(), before);
    // In place: nothing but the data, and a flush of the data.
    pool.write(id(0), 0, &[2; 65_536]).unwrap();
    pool.commit().unwrap();
    let since: Vec<_> = log.events().split_off(before);
    assert!(matches!(
        since[..],
        [crate::IoEvent::Write { device: 1, .. }, crate::IoEvent::Flush { device: 1, .. }]
    ));
}

#[test]
fn a_snapshot_costs_the_same_however_deep_and_however_large_its_origin() {
    let log = crate::FaultLog::new();
    let metadata = Arc::new(crate::FaultDevice::new(MemoryDevice::new(4096 * 4096), 0, log.clone()));
    let data = Arc::new(MemoryDevice::new(3000 * BLOCK));
    let pool = Pool::format(metadata, data, BlockSize::from_bytes(BLOCK).unwrap()).unwrap();
    pool.create_thin(id(0)).unwrap();
    for block in 0..2000 {
        pool.write(id(0), block * BLOCK, &[1; 1]).unwrap();
    }
    let mut costs = Vec::new();
    for depth in 0..100 {
        pool.commit().unwrap();
        let before = log.len();
        pool.create_snap(id(depth + 1), id(depth)).unwrap();
        pool.commit().unwrap();
        let events = log.events().split_off(before);
        let bytes = events.iter().map(|event| match event {
            crate::IoEvent::Write { bytes, .. } => bytes.len() / 4096,
            _ => 0,
        });
        costs.push(bytes.sum::<usize>());
    }
    println!("{costs:?}");
    // Index, bitmap, upper tree, details, superblock; and the tree of large counts from the third snapshot on.
    assert!(costs.iter().all(|&cost| cost <= 8), "{costs:?}");
    assert_eq!(costs[10], costs[90]);
}

#[test]
fn thousands_of_devices_come_and_go() {
    let devices = Devices::new(2048, 64);
    let pool = devices.format();
    for device in 0..1500 {
        pool.create_thin(id(device)).unwrap();
        if device % 100 == 0 {
            pool.write(id(device), 0, &[1; 1]).unwrap();
            pool.commit().unwrap();
        }
    }
    pool.commit().unwrap();
    devices.check();
    assert_eq!(pool.devices().unwrap().len(), 1500);
    for device in (0..1500).rev() {
        pool.delete(id(device * 7 % 1500)).unwrap();
        if device % 500 == 0 {
            pool.commit().unwrap();
            devices.check();
        }
    }
    assert!(pool.devices().unwrap().is_empty());
}

#[test]
fn devices_that_are_too_small_or_not_a_pool_are_refused() {
    let block_size = BlockSize::from_bytes(BLOCK).unwrap();
    let device = |bytes| Arc::new(MemoryDevice::new(bytes));
    assert!(matches!(
        Pool::format(device(16 << 10), device(1 << 20), block_size),
        Err(PoolError::MetadataTooSmall { .. })
    ));
    assert!(matches!(
        Pool::format(device(1 << 20), device(65_535), block_size),
        Err(PoolError::NoDataBlock(_))
    ));
    assert!(Pool::open(device(1 << 20), device(1 << 20)).is_err());
    let devices = Devices::new(1024, 64);
    drop(devices.format());
    assert!(matches!(
        Pool::open(devices.metadata.clone(), device(63 * BLOCK)),
        Err(PoolError::DataTooSmall { expected: 64, found: 63 })
    ));
    devices.metadata.resize(512 * 4096).unwrap();
    assert!(Pool::open(devices.metadata.clone(), devices.data.clone()).is_err());
}

#[test]
fn blocks_larger_than_the_copy_buffer_are_copied_and_zeroed() {
    let block_size = BlockSize::from_bytes(3 << 20).unwrap();
    let metadata = Arc::new(MemoryDevice::new(1 << 22));
    let data = Arc::new(MemoryDevice::new(32 << 20));
    let pool = Pool::format(metadata.clone(), data, block_size).unwrap();
    pool.create_thin(id(0)).unwrap();
    pool.write(id(0), (3 << 20) - 5, &[1; 10]).unwrap();
    pool.create_snap(id(1), id(0)).unwrap();
    pool.write(id(1), 3 << 20, &[2; 2]).unwrap();
    assert_eq!(read(&pool, id(1), (3 << 20) - 6, 12), [0, 1, 1, 1, 1, 1, 2, 2, 1, 1, 1, 0]);
    assert_eq!(read(&pool, id(0), (3 << 20) - 6, 12), [0, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 0]);
    pool.commit().unwrap();
    super::thin_check(&metadata);
}
