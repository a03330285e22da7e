//! Large devices are deleted while others go on.

use std::io;
use std::path::Path;
use std::sync::Arc;

use parking_lot::{Condvar, Mutex};
use uuid::Uuid;

use super::{BLOCK, block, first_byte, killed, names, pool};
use crate::block_device::{BlockDevice, MemoryDevice};
use crate::embedded::description::Description;
use crate::embedded::{EmbeddedError, EmbeddedPool, Kind};
use crate::format::BlockSize;
use crate::pool::Pool;
use crate::registry::{Change, Entry, FileLog, Registry, Role};

/// A data device that can hold its readers back.
struct Gate {
    inside: MemoryDevice,
    state: Mutex<(bool, usize)>,
    changed: Condvar,
}

impl Gate {
    fn close(&self) {
        self.state.lock().0 = true;
    }

    fn open(&self) {
        self.state.lock().0 = false;
        self.changed.notify_all();
    }

    fn wait_for_a_reader(&self) {
        let mut state = self.state.lock();
        while state.1 == 0 {
            self.changed.wait(&mut state);
        }
    }
}

impl BlockDevice for Gate {
    fn size_bytes(&self) -> u64 {
        self.inside.size_bytes()
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        let mut state = self.state.lock();
        // Only the first one is held back.
        if state.0 && state.1 == 0 {
            state.1 = 1;
            self.changed.notify_all();
            while state.0 {
                self.changed.wait(&mut state);
            }
        }
        drop(state);
        self.inside.read_at(offset, buf)
    }

    fn write_at(&self, offset: u64, buf: &[u8]) -> io::Result<()> {
        self.inside.write_at(offset, buf)
    }

    fn flush(&self) -> io::Result<()> {
        self.inside.flush()
    }

    fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        self.inside.discard(offset, len)
    }

    fn resize(&self, size: u64) -> io::Result<()> {
        self.inside.resize(size)
    }
}

/// A pool whose data go through a gate.
fn gated(dir: &Path) -> (Arc<EmbeddedPool>, Arc<Gate>) {
    let inside = MemoryDevice::new(64 * BLOCK);
    let gate = Arc::new(Gate { inside, state: Mutex::default(), changed: Condvar::new() });
    let metadata = Arc::new(MemoryDevice::new(2 << 20));
    let block_size = BlockSize::from_bytes(BLOCK).unwrap();
    let pool = Pool::format(metadata, gate.clone(), block_size).unwrap();
    let uuid = Uuid::from_u128(9);
    let journal = Registry::initial(uuid, 0).unwrap();
    let log = FileLog::create(dir, &journal).unwrap();
    let registry = Registry::load(Box::new(log), &journal, uuid).unwrap();
    let description = Description::new("p", uuid, block_size);
    (Arc::new(EmbeddedPool::assemble(description, dir, pool, registry, Vec::new()).unwrap()), gate)
}

#[test]
fn others_are_read_written_made_and_removed_while_a_large_volume_is_being_deleted() {
    let dir = tempfile::tempdir().unwrap();
    let (pool, gate) = gated(dir.path());
    let large = pool.create_volume("large", 8 * BLOCK).unwrap();
    for number in 0..8 {
        pool.write(&large, number * BLOCK, &block(1)).unwrap();
    }
    let other = pool.create_volume("other", 4 * BLOCK).unwrap();
    pool.write(&other, 0, &block(2)).unwrap();

    // A reader inside the volume keeps its deletion under way: it has begun, and cannot end.
    gate.close();
    let reader = {
        let (pool, large) = (pool.clone(), large.clone());
        std::thread::spawn(move || first_byte(&pool, &large, 0))
    };
    gate.wait_for_a_reader();
    let remover = {
        let pool = pool.clone();
        std::thread::spawn(move || pool.remove_volume("large").map(drop))
    };
    while !pool.volumes().iter().any(|volume| volume.kind == Kind::Trash) {
        std::thread::yield_now();
    }
    assert!(matches!(pool.volume("large"), Err(EmbeddedError::NoSuchVolume { .. })));
    assert!(matches!(pool.read(&large, 0, &mut [0]), Err(EmbeddedError::Stale { .. })));
    assert_eq!(first_byte(&pool, &other, 0), 2);
    pool.write(&other, BLOCK, &block(3)).unwrap();
    pool.flush().unwrap();
    pool.take_snapshots(&[("other", "s")]).unwrap();
    let again = pool.create_volume("large", 2 * BLOCK).unwrap();
    pool.write(&again, 0, &[4; 512]).unwrap();
    pool.remove_snapshot("other", "s").unwrap();
    assert!(pool.volumes().iter().any(|volume| volume.kind == Kind::Trash), "it ended too early");

    gate.open();
    assert_eq!(reader.join().unwrap(), 1);
    remover.join().unwrap().unwrap();
    assert_eq!(names(&pool), ["large", "other"]);
    assert_eq!(pool.pool().devices().unwrap().len(), 2);
    assert_eq!(pool.pool().status().data_used, 3);
}

#[test]
fn trash_of_a_dead_process_is_deleted_by_the_next_open() {
    let (dir, pool) = pool();
    let volume = pool.create_volume("v", 8 * BLOCK).unwrap();
    for number in 0..8 {
        pool.write(&volume, number * BLOCK, &block(1)).unwrap();
    }
    pool.inner
        .transact(|state| {
            let entry = state.volume("v").unwrap().clone();
            let changes = vec![Change::Put(Entry { role: Role::Trash, ..entry })];
            Ok((crate::registry::Plan { create: Vec::new(), changes }, ()))
        })
        .unwrap();
    assert_eq!(pool.pool().devices().unwrap().len(), 1);
    let copy = EmbeddedPool::open(&killed(&dir, &pool)).unwrap();
    assert!(copy.volumes().is_empty() && copy.pool().devices().unwrap().is_empty());
    assert_eq!(copy.pool().status().data_used, 0);
}
