//! Full disks: no data block left, no metadata block left, no space left under the files.

use std::collections::HashSet;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::Mutex;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::history::operation::{Mix, Op};
use super::history::recording::{Look, METADATA, Recorder};
use super::{BLOCK, check_all, id, read, seeded};
use crate::{BlockDevice, BlockSize, MemoryDevice, Pool, PoolError, PoolMode};

/// A sparse file on a file system without much space.
struct SparseFile {
    bytes: MemoryDevice,
    pages: Mutex<HashSet<u64>>,
    most: AtomicUsize,
}

impl SparseFile {
    fn new(size: u64, most: usize) -> Arc<Self> {
        let bytes = MemoryDevice::new(size);
        Arc::new(Self { bytes, pages: Mutex::default(), most: AtomicUsize::new(most) })
    }
}

impl BlockDevice for SparseFile {
    fn size_bytes(&self) -> u64 {
        self.bytes.size_bytes()
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        self.bytes.read_at(offset, buf)
    }

    fn write_at(&self, offset: u64, buf: &[u8]) -> io::Result<()> {
        let mut pages = self.pages.lock();
        for page in offset / 4096..(offset + buf.len() as u64).div_ceil(4096) {
            if !pages.contains(&page) && pages.len() >= self.most.load(Ordering::Relaxed) {
                // What fitted has been written.
                let fitted = (page * 4096).saturating_sub(offset) as usize;
                self.bytes.write_at(offset, &buf[..fitted.min(buf.len())])?;
                return Err(io::ErrorKind::StorageFull.into());
            }
            pages.insert(page);
        }
        self.bytes.write_at(offset, buf)
    }

    fn flush(&self) -> io::Result<()> {
        self.bytes.flush()
    }

    fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        let whole = offset.div_ceil(4096)..(offset + len) / 4096;
        self.pages.lock().retain(|page| !whole.contains(page));
        self.bytes.discard(offset, len)
    }

    fn resize(&self, size: u64) -> io::Result<()> {
        self.bytes.resize(size)
    }
}

fn is_storage_full(done: &Result<(), PoolError>) -> bool {
    matches!(done, Err(PoolError::Io { source, .. }) if source.kind() == io::ErrorKind::StorageFull)
}

#[test]
fn a_full_file_system_under_the_data_refuses_new_blocks_only() {
    let metadata = Arc::new(MemoryDevice::new(256 * 4096));
    let data = SparseFile::new(64 * BLOCK, 10 * 16 + 7);
    let pool = Pool::format(metadata.clone(), data.clone(), BlockSize::from_bytes(BLOCK).unwrap()).unwrap();
    pool.create_thin(id(0)).unwrap();
    pool.write(id(0), 0, &[1; 8 * 65_536]).unwrap();
    pool.commit().unwrap();
    let new = pool.write(id(0), 8 * BLOCK, &[2; 4 * 65_536]);
    assert!(is_storage_full(&new), "{new:?}");
    assert_eq!(pool.status().mode, PoolMode::Write);
    // What is there can be written, snapshots be taken; the pool still has data blocks to give.
    pool.write(id(0), BLOCK, &[3; 65_536]).unwrap();
    pool.create_snap(id(1), id(0)).unwrap();
    let copies = pool.write(id(1), 0, &[4; 4 * 65_536]);
    assert!(is_storage_full(&copies), "{copies:?}");
    pool.commit().unwrap();
    assert_eq!(pool.status().data_used, 8, "what was not written is not mapped");
    check_all(&metadata, true);
    assert_eq!(read(&pool, id(1), 0, 65_536), [1; 65_536]);
    assert_eq!(read(&pool, id(1), BLOCK, 65_536), [3; 65_536]);
    assert_eq!(read(&pool, id(0), 8 * BLOCK, 65_536), [0; 65_536]);
    // Discards make room in the file system too.
    pool.delete(id(1)).unwrap();
    pool.discard(id(0), 4 * BLOCK, 4 * BLOCK).unwrap();
    pool.commit().unwrap();
    pool.write(id(0), 8 * BLOCK, &[5; 2 * 65_536]).unwrap();
    pool.commit().unwrap();
    check_all(&metadata, true);
    let reopened = Pool::open(metadata, data).unwrap();
    assert_eq!(read(&reopened, id(0), 9 * BLOCK, 65_536), [5; 65_536]);
    assert_eq!(read(&reopened, id(0), 3 * BLOCK, 65_536), [1; 65_536]);
}

#[test]
fn a_full_file_system_under_the_metadata_stops_the_pool_at_its_last_commit() {
    let metadata = SparseFile::new(256 * 4096, 24);
    let data = Arc::new(MemoryDevice::new(64 * BLOCK));
    let pool = Pool::format(metadata.clone(), data.clone(), BlockSize::from_bytes(BLOCK).unwrap()).unwrap();
    let (mut devices, mut refused) = (0, None);
    while refused.is_none() && devices < 100 {
        let next = pool.create_thin(id(devices)).and_then(|()| pool.write(id(devices), 0, &[1]));
        refused = next.and_then(|()| pool.commit()).err();
        devices += u64::from(refused.is_none());
    }
    assert!(devices > 0);
    let refused = refused.unwrap();
    assert!(matches!(&refused, PoolError::Metadata(_)), "{refused}");
    assert!(refused.to_string().contains("write"), "{refused}");
    assert_eq!(pool.status().mode, PoolMode::ReadOnly);
    let found = |pool: &Pool| pool.devices().unwrap().len() as u64;
    assert_eq!(found(&pool), devices);
    check_all(&metadata.bytes, true);
    metadata.most.store(1000, Ordering::Relaxed);
    let reopened = Pool::open(metadata, data).unwrap();
    assert_eq!(found(&reopened), devices);
    assert_eq!(read(&reopened, id(devices - 1), 0, 2), [1, 0]);
}

/// Random operations in pools whose metadata and data are always short. What is refused for want of space changes nothing;
/// after deletions there is room again.
#[test]
fn pools_that_are_always_full_lose_nothing() {
    let mut rng = seeded();
    let mut all = [0, 0];
    for (metadata_blocks, data_blocks) in [(32, 60), (40, 60), (64, 500), (72, 500), (160, 30)] {
        let mut recorder = Recorder::format(metadata_blocks, data_blocks);
        let mix = Mix { devices: 20, blocks: 400, data_blocks };
        let mut refusals = [0, 0];
        let mut full = 0;
        for step in 0..500 {
            let mut chance = StdRng::seed_from_u64(rng.random());
            let op = match full {
                0 => mix.random_op(recorder.state(), &mut chance),
                1 => Op::Commit,
                _ => mix.remedy(recorder.state(), &mut chance),
            };
            match recorder.step(&op) {
                Ok(()) => full = 0,
                Err(PoolError::NoSpaceData { .. }) => (full, refusals[0]) = (full + 1, refusals[0] + 1),
                Err(PoolError::NoSpaceMetadata { .. }) => (full, refusals[1]) = (full + 1, refusals[1] + 1),
                Err(error) => panic!("{metadata_blocks} metadata blocks, {op:?}: {error}"),
            }
            assert!(full < 20, "{metadata_blocks} metadata blocks: no way out");
            if step % 20 == 0 {
                recorder.verify_live(Look::Sample(4), &mut rng).unwrap();
                recorder.step(&Op::Commit).unwrap();
                check_all(recorder.devices[METADATA].inner(), step % 100 == 0);
            }
        }
        println!("{metadata_blocks} metadata blocks, {data_blocks} data blocks: refused {refusals:?}");
        (all[0], all[1]) = (all[0] + refusals[0], all[1] + refusals[1]);
    }
    assert!(all[0] > 20 && all[1] > 20, "never full: {all:?}");
}
