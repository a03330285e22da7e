//! Failing devices.

use std::sync::Arc;

use rand::Rng;

use super::{BLOCK, check_all, id, read, seeded};
use crate::{BlockSize, FaultDevice, FaultLog, MemoryDevice, Pool, PoolError, PoolMode};

struct Faulty {
    log: Arc<FaultLog>,
    metadata: Arc<FaultDevice<MemoryDevice>>,
    data: Arc<FaultDevice<MemoryDevice>>,
    pool: Pool,
}

fn faulty() -> Faulty {
    let (log, data_log) = (FaultLog::new(), FaultLog::new());
    let metadata = Arc::new(FaultDevice::new(MemoryDevice::new(1024 * 4096), 0, log.clone()));
    let data = Arc::new(FaultDevice::new(MemoryDevice::new(64 * BLOCK), 1, data_log));
    let pool = Pool::format(metadata.clone(), data.clone(), BlockSize::from_bytes(BLOCK).unwrap()).unwrap();
    pool.create_thin(id(0)).unwrap();
    pool.write(id(0), 0, &[1; 65_536]).unwrap();
    pool.commit().unwrap();
    Faulty { log, metadata, data, pool }
}

#[test]
fn a_failed_commit_gives_the_transaction_up_and_the_pool_is_read_only() {
    for after in 0..4 {
        let Faulty { log, metadata, pool, data } = faulty();
        pool.create_snap(id(1), id(0)).unwrap();
        pool.write(id(1), BLOCK, &[2; 65_536]).unwrap();
        log.fail(after, 1);
        assert!(pool.commit().is_err(), "after {after}");
        assert_eq!(pool.status().mode, PoolMode::ReadOnly);
        assert!(pool.status().needs_check);
        assert!(pool.status().to_string().contains(" ro "));
        assert!(matches!(pool.commit(), Err(PoolError::ReadOnlyMode { needs_check: true })));
        assert!(matches!(pool.create_thin(id(2)), Err(PoolError::ReadOnlyMode { .. })));
        assert!(matches!(pool.write(id(0), BLOCK, &[1]), Err(PoolError::ReadOnlyMode { .. })));
        assert!(matches!(pool.message(&["delete", "0"]), Err(PoolError::ReadOnlyMode { .. })));
        assert_eq!(read(&pool, id(0), 0, 4), [1; 4]);
        check_all(metadata.inner(), true);
        let reopened = Pool::open(metadata, data).unwrap();
        assert_eq!(reopened.status().mode, PoolMode::ReadOnly);
        assert_eq!(read(&reopened, id(0), 0, 4), [1; 4]);
    }
}

#[test]
fn a_failed_data_write_leaves_no_mapping_and_no_leak() {
    let data_log = FaultLog::new();
    let metadata = Arc::new(MemoryDevice::new(1024 * 4096));
    let data = Arc::new(FaultDevice::new(MemoryDevice::new(8 * BLOCK), 1, data_log.clone()));
    let pool = Pool::format(metadata.clone(), data, BlockSize::from_bytes(BLOCK).unwrap()).unwrap();
    pool.create_thin(id(0)).unwrap();
    for _ in 0..20 {
        data_log.fail(0, 1);
        assert!(matches!(pool.write(id(0), 0, &[1; 65_536]), Err(PoolError::Io { .. })));
    }
    assert_eq!(pool.status().data_used, 0);
    pool.write(id(0), 0, &[1; 8 * 65_536]).unwrap();
    // A flush that fails: what was mapped since the last commit may be gone.
    data_log.fail(0, 1);
    assert!(matches!(pool.commit(), Err(PoolError::Io { action: "flush", .. })));
    assert_eq!(pool.status().mode, PoolMode::ReadOnly);
    assert!(pool.device(id(0)).unwrap().is_none());
    check_all(&metadata, true);
}

#[test]
fn metadata_that_are_full_refuse_new_blocks_but_not_deletion() {
    let metadata = Arc::new(MemoryDevice::new(64 * 4096));
    let data = Arc::new(MemoryDevice::new(40_000 * BLOCK));
    let pool = Pool::format(metadata.clone(), data, BlockSize::from_bytes(BLOCK).unwrap()).unwrap();
    pool.create_thin(id(0)).unwrap();
    let mut refused = None;
    for block in 0..40_000 {
        if let Err(error) = pool.write(id(0), block * 7 * BLOCK, &[1]) {
            refused = Some(error);
            break;
        }
    }
    assert!(matches!(refused, Some(PoolError::NoSpaceMetadata { .. })), "{refused:?}");
    assert_eq!(pool.status().mode, PoolMode::OutOfMetadataSpace);
    pool.commit().unwrap();
    check_all(&metadata, true);
    pool.delete(id(0)).unwrap();
    pool.commit().unwrap();
    check_all(&metadata, true);
    pool.create_thin(id(1)).unwrap();
    pool.write(id(1), 0, &[1]).unwrap();
    pool.commit().unwrap();
}

#[test]
fn hostile_metadata_are_an_error_and_no_panic() {
    let mut rng = seeded();
    let Faulty { metadata, data, pool, .. } = faulty();
    for device in 1..30 {
        pool.create_snap(id(device), id(device - 1)).unwrap();
        pool.write(id(device), device * BLOCK, &[3; 65_536]).unwrap();
    }
    pool.reserve_metadata_snap().unwrap();
    let blocks = 60;
    for _ in 0..300 {
        let image = metadata.inner().duplicate();
        for _ in 0..rng.random_range(1..4) {
            spoil(&image, rng.random_range(0..blocks), &mut rng);
        }
        let Ok(pool) = Pool::open(Arc::new(image), data.clone()) else { continue };
        let _ = pool.devices();
        for device in 0..30 {
            let _ = pool.read(id(device), 0, &mut [0; 4096]);
            let _ = pool.write(id(device), device * BLOCK, &[3; 1]);
            let _ = pool.delete(id(device));
        }
        let _ = pool.release_metadata_snap();
        let _ = pool.commit();
    }
}

/// Changes some bytes of a block and gives it a right checksum, whatever kind it is.
fn spoil(image: &MemoryDevice, block: u64, rng: &mut impl Rng) {
    use crate::BlockDevice;
    use crate::format::{BlockKind, MetadataBlock, RawBlock, seal};
    let raw = RawBlock::read(image, MetadataBlock(block)).unwrap();
    let kinds = [BlockKind::Superblock, BlockKind::Node, BlockKind::Bitmap, BlockKind::Index];
    let Some(kind) = kinds.into_iter().find(|kind| raw.is_of(*kind)) else { return };
    let mut bytes = *raw.bytes();
    let region = [16..32, 32..80, 2048..2100, 300..400, 16..400][rng.random_range(0..5)].clone();
    for _ in 0..rng.random_range(1..3) {
        bytes[rng.random_range(region.clone())] = rng.random();
    }
    seal(&mut bytes, MetadataBlock(block), kind);
    image.write_at(block * 4096, &bytes).unwrap();
}
