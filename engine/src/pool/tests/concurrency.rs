//! Many threads on one pool.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::{BLOCK, Devices, check_all, id, read, seeded};

#[test]
fn writers_of_one_block_lose_nothing_of_each_other() {
    let devices = Devices::new(1024, 600);
    let pool = devices.format();
    pool.create_thin(id(0)).unwrap();
    for round in 0..20_u64 {
        thread::scope(|scope| {
            for part in 0..8_u64 {
                let pool = &pool;
                scope.spawn(move || {
                    for block in 0..4 {
                        let at = (round % 5 * 4 + block) * BLOCK + part * 8192;
                        pool.write(id(0), at, &[(round * 8 + part) as u8 + 1; 8192]).unwrap();
                    }
                });
            }
        });
        for block in 0..4 {
            let bytes = read(&pool, id(0), (round % 5 * 4 + block) * BLOCK, 65_536);
            for part in 0..8_usize {
                let expected = (round * 8) as u8 + part as u8 + 1;
                assert!(bytes[part * 8192..][..8192].iter().all(|&byte| byte == expected), "round {round}");
            }
        }
        pool.create_snap(id(round + 1), id(0)).unwrap();
    }
    pool.commit().unwrap();
    check_all(&devices.metadata, true);
}

/// Each block of a device always holds one number only, the writer's; a snapshot too. Discards, commits, deletions and the reuse
/// of what they free go on beside.
#[test]
fn readers_never_see_a_foreign_block() {
    let seed: u64 = seeded().random();
    let devices = Devices::new(2048, 120);
    let pool = devices.format();
    (0..4).for_each(|device| pool.create_thin(id(device)).unwrap());
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let (pool, stop) = (&pool, &stop);
        for device in 0..4_u64 {
            scope.spawn(move || {
                let mut rng = StdRng::seed_from_u64(seed + device);
                for _ in 0..400 {
                    let block = rng.random_range(0..20) * BLOCK;
                    match rng.random_range(0..10) {
                        0..=5 => pool.write(id(device), block, &[device as u8 + 1; 65_536]).unwrap_or(()),
                        6..=8 => pool.discard(id(device), block, 3 * BLOCK).unwrap(),
                        _ => pool.commit().unwrap(),
                    }
                }
            });
            scope.spawn(move || {
                let mut rng = StdRng::seed_from_u64(seed + 10 + device);
                while !stop.load(Ordering::Acquire) {
                    let bytes = read(pool, id(device), rng.random_range(0..20) * BLOCK, 65_536);
                    let first = bytes[0];
                    assert!(first == 0 || first == device as u8 + 1, "device {device}: {first}");
                    assert!(bytes.iter().all(|&byte| byte == first), "device {device}");
                }
            });
        }
        let snapshots = scope.spawn(move || {
            for round in 0..40_u64 {
                let (snapshot, origin) = (10 + round % 3, round % 4);
                let _ = pool.delete(id(snapshot));
                pool.create_snap(id(snapshot), id(origin)).unwrap();
                let before = read(pool, id(snapshot), 0, 20 * 65_536);
                assert!(before.iter().all(|&byte| byte == 0 || byte == origin as u8 + 1));
                thread::yield_now();
                assert!(before == read(pool, id(snapshot), 0, 20 * 65_536), "a snapshot changed");
            }
            (10..13).for_each(|snapshot| drop(pool.delete(id(snapshot))));
        });
        snapshots.join().unwrap();
        stop.store(true, Ordering::Release);
    });
    pool.commit().unwrap();
    check_all(&devices.metadata, true);
    (0..4).for_each(|device| pool.delete(id(device)).unwrap());
    pool.commit().unwrap();
    assert_eq!(pool.status().data_used, 0);
    check_all(&devices.metadata, true);
}

/// A failed flush takes the writes of everybody, and is reported once: another thread's commit, which found nothing left to
/// flush, said that its write was durable.
#[test]
fn after_a_failed_flush_nobody_is_told_that_a_write_is_durable() {
    let log = crate::FaultLog::new();
    let metadata = std::sync::Arc::new(crate::MemoryDevice::new(1024 * 4096));
    let data = crate::FaultDevice::new(crate::MemoryDevice::new(64 * BLOCK), 1, log.clone());
    let block_size = crate::BlockSize::from_bytes(BLOCK).unwrap();
    let pool = crate::Pool::format(metadata.clone(), std::sync::Arc::new(data), block_size).unwrap();
    pool.create_thin(id(0)).unwrap();
    pool.write(id(0), 0, &[1; 2 * 65_536]).unwrap();
    pool.commit().unwrap();
    // Both write in place; the first one's commit fails.
    pool.write(id(0), 0, &[2; 512]).unwrap();
    pool.write(id(0), BLOCK, &[3; 512]).unwrap();
    log.inject(crate::Fault::new(&[crate::IoKind::Flush], 0, 1));
    assert!(matches!(pool.commit(), Err(crate::PoolError::Io { action: "flush", .. })));
    assert!(matches!(pool.commit(), Err(crate::PoolError::ReadOnlyMode { needs_check: true })));
    assert_eq!(read(&pool, id(0), BLOCK + 600, 4), [1; 4]);
    check_all(&metadata, true);
}
