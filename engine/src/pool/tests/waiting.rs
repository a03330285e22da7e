//! What waits for what.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use parking_lot::{Condvar, Mutex};
use rand::Rng;
use rand::rngs::StdRng;

use super::{BLOCK, id, read, seeded};
use crate::format::{DataBlock, VirtualBlock};
use crate::{BlockDevice, BlockSize, MemoryDevice, Pool};

/// A device whose flushes stand still while its gate is closed.
struct Gated {
    inner: MemoryDevice,
    closed: Mutex<bool>,
    changed: Condvar,
    waiting: AtomicBool,
    flushes: AtomicUsize,
}

impl Gated {
    fn new(bytes: u64) -> Arc<Self> {
        Arc::new(Self {
            inner: MemoryDevice::new(bytes),
            closed: Mutex::new(false),
            changed: Condvar::new(),
            waiting: AtomicBool::new(false),
            flushes: AtomicUsize::new(0),
        })
    }

    fn set(&self, closed: bool) {
        *self.closed.lock() = closed;
        self.changed.notify_all();
    }
}

impl BlockDevice for Gated {
    fn size_bytes(&self) -> u64 {
        self.inner.size_bytes()
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        self.inner.read_at(offset, buf)
    }

    fn write_at(&self, offset: u64, buf: &[u8]) -> io::Result<()> {
        self.inner.write_at(offset, buf)
    }

    fn flush(&self) -> io::Result<()> {
        self.flushes.fetch_add(1, Ordering::SeqCst);
        let mut closed = self.closed.lock();
        while *closed {
            self.waiting.store(true, Ordering::SeqCst);
            self.changed.wait(&mut closed);
        }
        Ok(())
    }

    fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        self.inner.discard(offset, len)
    }

    fn resize(&self, size: u64) -> io::Result<()> {
        self.inner.resize(size)
    }
}

/// Runs `work` and fails when it does not end: what it waits for will not come.
fn must_end(work: impl FnOnce() + Send + 'static) {
    let (sender, receiver) = mpsc::channel();
    let thread = thread::spawn(move || {
        work();
        sender.send(()).unwrap();
    });
    let ended = receiver.recv_timeout(Duration::from_secs(60));
    assert!(ended.is_ok() || thread.is_finished(), "it waits for the commit");
    thread.join().unwrap();
}

#[test]
fn lookups_and_writes_in_place_do_not_wait_for_a_commit_s_flush() {
    let metadata = Gated::new(1024 * 4096);
    let data = Arc::new(MemoryDevice::new(64 * BLOCK));
    let pool = Pool::format(metadata.clone(), data, BlockSize::from_bytes(BLOCK).unwrap()).unwrap();
    let pool = Arc::new(pool);
    pool.create_thin(id(0)).unwrap();
    pool.write(id(0), 0, &[1; 2 * 65_536]).unwrap();
    pool.commit().unwrap();
    pool.create_thin(id(1)).unwrap();
    pool.write(id(1), 0, &[2; 65_536]).unwrap();
    metadata.set(true);
    let committing = thread::spawn({
        let pool = pool.clone();
        move || pool.commit().unwrap()
    });
    while !metadata.waiting.load(Ordering::SeqCst) {
        thread::yield_now();
    }
    must_end({
        let pool = pool.clone();
        move || {
            assert_eq!(read(&pool, id(0), 0, 4), [1; 4]);
            assert_eq!(read(&pool, id(1), 0, 4), [2; 4]);
            pool.write(id(0), BLOCK, &[3; 100]).unwrap();
            assert_eq!(read(&pool, id(0), BLOCK, 4), [3; 4]);
            assert_eq!(pool.devices().unwrap().len(), 2);
            assert_eq!(pool.status().data_used, 3);
            assert_eq!(pool.mapped_runs(id(0), VirtualBlock(0), VirtualBlock(9), 9).unwrap().len(), 1);
            assert_eq!(pool.device_status(id(1)).unwrap(), "128 127");
        }
    });
    assert!(!committing.is_finished());
    metadata.set(false);
    committing.join().unwrap();
    super::check_all(&metadata.inner, true);
}

#[test]
fn changes_beside_a_commit_are_in_the_next_one_and_harm_neither() {
    let mut rng = seeded();
    let metadata = Gated::new(1024 * 4096);
    let data = Arc::new(MemoryDevice::new(400 * BLOCK));
    let pool = Pool::format(metadata.clone(), data.clone(), BlockSize::from_bytes(BLOCK).unwrap()).unwrap();
    (0..4).for_each(|device| pool.create_thin(id(device)).unwrap());
    let change = |rng: &mut StdRng, round: u64| {
        for _ in 0..30 {
            let (device, block) = (id(rng.random_range(0..4)), rng.random_range(0..60));
            match rng.random_range(0..10) {
                0..=5 => pool.write(device, block * BLOCK, &[round as u8; 65_536]).unwrap(),
                6..=8 => pool.discard(device, block * BLOCK, 4 * BLOCK).unwrap(),
                _ => {
                    let snapshot = id(10 + rng.random_range(0..3));
                    let _ = pool.delete(snapshot);
                    pool.create_snap(snapshot, device).unwrap();
                }
            }
        }
    };
    let devices_of = |image: &Arc<MemoryDevice>| {
        super::check_all(image, true);
        Pool::open(image.clone(), data.clone()).unwrap().devices().unwrap()
    };
    for round in 0..12 {
        change(&mut rng, round);
        let (before, expected) = (devices_of(&Arc::new(metadata.inner.duplicate())), pool.devices().unwrap());
        metadata.waiting.store(false, Ordering::SeqCst);
        metadata.set(true);
        thread::scope(|scope| {
            let committing = scope.spawn(|| pool.commit().unwrap());
            while !metadata.waiting.load(Ordering::SeqCst) && !committing.is_finished() {
                thread::yield_now();
            }
            change(&mut rng, round);
            // Power fails before the superblock is written: the last commit is there.
            assert!(devices_of(&Arc::new(metadata.inner.duplicate())) == before);
            metadata.set(false);
        });
        // Right after: the sealed transaction, without what was changed beside it.
        let found = devices_of(&Arc::new(metadata.inner.duplicate()));
        let shape = |devices: &[crate::DeviceInfo]| {
            devices.iter().map(|device| (device.id, device.details)).collect::<Vec<_>>()
        };
        assert_eq!(shape(&found), shape(&expected), "round {round}");
        pool.commit().unwrap();
        let all = devices_of(&Arc::new(metadata.inner.duplicate()));
        assert_eq!(shape(&all), shape(&pool.devices().unwrap()));
    }
}

/// A device on which a flush takes its time.
struct Slow(Arc<Gated>);

impl BlockDevice for Slow {
    fn size_bytes(&self) -> u64 {
        self.0.size_bytes()
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        self.0.read_at(offset, buf)
    }

    fn write_at(&self, offset: u64, buf: &[u8]) -> io::Result<()> {
        self.0.write_at(offset, buf)
    }

    fn flush(&self) -> io::Result<()> {
        // A disk that takes its time: what is under test, not waited for.
        thread::sleep(Duration::from_millis(2));
        self.0.flush()
    }

    fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        self.0.discard(offset, len)
    }

    fn resize(&self, size: u64) -> io::Result<()> {
        self.0.resize(size)
    }
}

#[test]
fn writers_that_flush_together_share_commits() {
    const THREADS: u64 = 8;
    const ROUNDS: u64 = 25;
    let metadata = Gated::new(2048 * 4096);
    let data = Arc::new(MemoryDevice::new(2000 * BLOCK));
    let block_size = BlockSize::from_bytes(BLOCK).unwrap();
    let pool = Pool::format(Arc::new(Slow(metadata.clone())), data, block_size).unwrap();
    (0..THREADS).for_each(|device| pool.create_thin(id(device)).unwrap());
    pool.commit().unwrap();
    let before = metadata.flushes.load(Ordering::SeqCst);
    thread::scope(|scope| {
        for device in 0..THREADS {
            let pool = &pool;
            scope.spawn(move || {
                for round in 0..ROUNDS {
                    pool.write(id(device), round * BLOCK, &[device as u8 + 1; 4096]).unwrap();
                    pool.commit().unwrap();
                }
            });
        }
    });
    // Two flushes a commit.
    let commits = (metadata.flushes.load(Ordering::SeqCst) - before) as u64 / 2;
    assert!(commits < THREADS * ROUNDS / 2, "{commits} commits for {} flushes", THREADS * ROUNDS);
    super::check_all(&metadata.inner, true);
    for device in 0..THREADS {
        assert_eq!(read(&pool, id(device), (ROUNDS - 1) * BLOCK, 4), [device as u8 + 1; 4]);
    }
}

/// A pool with two devices: one of `blocks` blocks, and a snapshot of it that has its first quarter for itself.
fn large(blocks: u64) -> (Arc<MemoryDevice>, Pool) {
    let metadata = Arc::new(MemoryDevice::new(8192 * 4096));
    let data = Arc::new(MemoryDevice::new(2 * blocks * BLOCK));
    let pool = Pool::format(metadata.clone(), data, BlockSize::from_bytes(BLOCK).unwrap()).unwrap();
    pool.create_thin(id(0)).unwrap();
    let map = |device: u64, blocks: u64, from: u64| {
        for first in (0..blocks).step_by(1000) {
            let mut state = pool.changing();
            state
                .guarded(|metadata| {
                    (first..(first + 1000).min(blocks)).try_for_each(|block| {
                        metadata.insert_mapping(id(device), VirtualBlock(block), DataBlock(from + block))
                    })
                })
                .unwrap();
        }
        pool.commit().unwrap();
    };
    map(0, blocks, 0);
    pool.create_snap(id(1), id(0)).unwrap();
    map(1, blocks / 4, blocks);
    (metadata, pool)
}

#[test]
fn a_large_device_is_shed_in_steps_between_which_all_is_well() {
    const BLOCKS: u64 = 120_000;
    for first in [0, 1] {
        let (metadata, pool) = large(BLOCKS);
        super::check_all(&metadata, true);
        pool.shed(id(first)).unwrap();
        pool.commit().unwrap();
        super::check_all(&metadata, true);
        let left = pool.device(id(first)).unwrap().unwrap().details.mapped_blocks;
        // What the other shares is left.
        assert!(left < BLOCKS - BLOCKS / 20 && left > BLOCKS / 2, "{left}");
        assert_eq!(pool.device(id(1 - first)).unwrap().unwrap().details.mapped_blocks, BLOCKS);
        pool.delete(id(first)).unwrap();
        pool.commit().unwrap();
        super::check_all(&metadata, true);
        assert_eq!(pool.status().data_used, BLOCKS);
        // Nothing is shared now.
        pool.shed(id(1 - first)).unwrap();
        pool.commit().unwrap();
        super::check_all(&metadata, true);
        assert!(pool.device(id(1 - first)).unwrap().unwrap().details.mapped_blocks < 1 << 15);
        pool.delete(id(1 - first)).unwrap();
        pool.commit().unwrap();
        super::check_all(&metadata, true);
        assert_eq!(pool.status().data_used, 0);
    }
}

#[test]
fn others_go_on_while_a_large_device_is_deleted_or_discarded() {
    for discard in [false, true] {
        let (metadata, pool) = large(100_000);
        pool.create_thin(id(2)).unwrap();
        let over = AtomicBool::new(false);
        let turns = thread::scope(|scope| {
            let deleting = scope.spawn(|| {
                if discard {
                    pool.discard(id(0), 0, 100_000 * BLOCK).unwrap();
                }
                pool.message(&["delete", "0"]).unwrap();
                over.store(true, Ordering::SeqCst);
            });
            let mut turns = 0_u64;
            while !over.load(Ordering::SeqCst) {
                pool.write(id(2), turns % 50 * BLOCK, &[turns as u8; 512]).unwrap();
                turns += 1;
                thread::yield_now();
            }
            deleting.join().unwrap();
            turns
        });
        println!("{turns} writes beside the deletion");
        assert!(turns > 3, "{turns}");
        pool.commit().unwrap();
        super::check_all(&metadata, true);
        assert!(pool.device(id(0)).unwrap().is_none());
    }
}
