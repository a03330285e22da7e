//! External origins.

use std::sync::Arc;

use rand::Rng;

use super::{BLOCK, Devices, id, seeded};
use crate::{BlockDevice, BlockSize, MemoryDevice, Pool, PoolTable, Thin};

const SECTOR: u64 = 512;

fn origin_of(bytes: u64) -> (Arc<MemoryDevice>, Vec<u8>) {
    let content: Vec<u8> = (0..bytes).map(|at| (at / 1000 % 250) as u8 + 1).collect();
    (Arc::new(MemoryDevice::from_bytes(&content)), content)
}

fn read_all(thin: &Thin<'_>) -> Vec<u8> {
    let mut bytes = vec![0xEE; thin.size_bytes() as usize];
    thin.read(0, &mut bytes).unwrap();
    bytes
}

/// What a thin device over `origin` reads before anything is written.
fn view(origin: &[u8], size: u64) -> Vec<u8> {
    let mut bytes = origin.to_vec();
    bytes.resize(size as usize, 0);
    bytes
}

#[test]
fn a_device_over_an_origin_is_the_origin_where_nothing_was_written() {
    for (origin_bytes, size) in [
        (8 * BLOCK, 8 * BLOCK),
        (3 * BLOCK, 8 * BLOCK),
        (8 * BLOCK, 5 * BLOCK),
        (3 * BLOCK + 16 * SECTOR, 8 * BLOCK),
        (3 * BLOCK + 16 * SECTOR, 3 * BLOCK + 16 * SECTOR),
    ] {
        let devices = Devices::new(1024, 64);
        let pool = devices.format();
        let (origin, content) = origin_of(origin_bytes);
        pool.create_thin(id(0)).unwrap();
        let thin = pool.open_thin(id(0), size, Some(origin.clone())).unwrap();
        let mut expected = view(&content, size);
        assert!(read_all(&thin) == expected, "{origin_bytes} {size}");
        // A part of a block, a whole block, and across the origin's end.
        for (at, length) in [(4096, 4096), (BLOCK, BLOCK), (3 * BLOCK + 8000, 1000), (size - 100, 100)] {
            let length = length.min(size - at);
            thin.write(at, &vec![0xAB; length as usize]).unwrap();
            expected[at as usize..(at + length) as usize].fill(0xAB);
            assert!(read_all(&thin) == expected, "{origin_bytes} {size} {at}");
        }
        // A snapshot over the same origin, written on its own.
        pool.create_snap(id(1), id(0)).unwrap();
        let snap = pool.open_thin(id(1), size, Some(origin.clone())).unwrap();
        snap.write(2 * BLOCK + 5, &[0xCD; 10]).unwrap();
        assert!(read_all(&thin) == expected);
        let mut other = expected.clone();
        other[2 * BLOCK as usize + 5..][..10].fill(0xCD);
        assert!(read_all(&snap) == other);
        // What is discarded is the origin again.
        thin.discard(0, 2 * BLOCK).unwrap();
        expected[..2 * BLOCK as usize].copy_from_slice(&view(&content, size)[..2 * BLOCK as usize]);
        assert!(read_all(&thin) == expected);
        assert!(read_all(&snap) == other);
        let mut unchanged = vec![0; content.len()];
        origin.read_at(0, &mut unchanged).unwrap();
        assert!(unchanged == content, "the origin is never written");
        pool.commit().unwrap();
        devices.check();
    }
}

#[test]
fn without_zeroing_the_origin_is_copied_and_nothing_else() {
    let devices = Devices::new(1024, 8);
    devices.data.write_at(0, &vec![9; 8 * 65_536]).unwrap();
    let table: PoolTable = "0 1 skip_block_zeroing".parse().unwrap();
    let block_size = BlockSize::from_bytes(BLOCK).unwrap();
    let pool = Pool::format_with(devices.metadata.clone(), devices.data.clone(), block_size, table).unwrap();
    let (origin, content) = origin_of(BLOCK + 1024);
    pool.create_thin(id(0)).unwrap();
    let thin = pool.open_thin(id(0), 4 * BLOCK, Some(origin)).unwrap();
    thin.write(BLOCK, &[1; 512]).unwrap();
    let mut bytes = vec![0; 2048];
    thin.read(BLOCK, &mut bytes).unwrap();
    assert_eq!(bytes[..512], [1; 512]);
    assert_eq!(bytes[512..1024], content[BLOCK as usize + 512..]);
    assert_eq!(bytes[1024..], [9; 1024]);
}

#[test]
fn a_random_life_over_an_origin_is_that_of_a_plain_vector() {
    let mut rng = seeded();
    for round in 0..12 {
        let block_bytes = [BLOCK, 3 * BLOCK, 16 * BLOCK][round % 3];
        let metadata = Arc::new(MemoryDevice::new(1024 * 4096));
        let data = Arc::new(MemoryDevice::new(256 * block_bytes));
        let pool = Pool::format(metadata.clone(), data, BlockSize::from_bytes(block_bytes).unwrap()).unwrap();
        let (origin, content) = origin_of(rng.random_range(1..20 * block_bytes / SECTOR) * SECTOR);
        let size = rng.random_range(1..20 * block_bytes / SECTOR) * SECTOR;
        pool.create_thin(id(0)).unwrap();
        let thin = pool.open_thin(id(0), size, Some(origin)).unwrap();
        let plain = view(&content, size.max(content.len() as u64));
        let mut expected = plain[..size as usize].to_vec();
        for step in 0..40 {
            let at = rng.random_range(0..size);
            let length = rng.random_range(0..=(2 * block_bytes).min(size - at));
            let (from, to) = (at as usize, (at + length) as usize);
            if rng.random_bool(0.7) {
                let bytes = vec![step as u8; length as usize];
                thin.write(at, &bytes).unwrap();
                expected[from..to].copy_from_slice(&bytes);
            } else {
                thin.discard(at, length).unwrap();
                let whole = at.next_multiple_of(block_bytes)..(at + length) / block_bytes * block_bytes;
                if whole.start < whole.end {
                    let whole = whole.start as usize..whole.end as usize;
                    expected[whole.clone()].copy_from_slice(&plain[whole]);
                }
            }
            if step % 10 == 9 {
                pool.commit().unwrap();
            }
        }
        assert!(read_all(&thin) == expected, "round {round}");
        pool.commit().unwrap();
        super::check_all(&metadata, true);
    }
}
