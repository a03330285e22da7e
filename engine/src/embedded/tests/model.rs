//! Random operations beside a model of vectors, closed and opened again every now and then.

use std::collections::BTreeMap;
use std::sync::Arc;

use rand::Rng as _;
use rand::rngs::StdRng;

use super::power::Disks;
use super::{BLOCK, chance};
use crate::block_device::{Fate, FaultLog};
use crate::embedded::{EmbeddedError, EmbeddedPool, Volume};

const NAMES: [&str; 4] = ["a", "b", "c", "d"];
const SNAPSHOTS: [&str; 3] = ["r", "s", "t"];

/// Content past the end is kept, as in a pool.
#[derive(Debug, Clone, Default)]
struct Modelled {
    size: usize,
    content: Vec<u8>,
    snapshots: BTreeMap<&'static str, Vec<u8>>,
}

impl Modelled {
    fn visible(&self) -> Vec<u8> {
        let mut bytes = self.content.clone();
        bytes.resize(self.size, 0);
        bytes
    }

    fn write(&mut self, offset: usize, bytes: &[u8]) {
        let end = offset + bytes.len();
        if self.content.len() < end {
            self.content.resize(end, 0);
        }
        self.content[offset..end].copy_from_slice(bytes);
    }
}

struct World {
    chance: StdRng,
    disks: Disks,
    pool: EmbeddedPool,
    record: Arc<FaultLog>,
    model: BTreeMap<&'static str, Modelled>,
}

impl World {
    fn new() -> Self {
        let disks = Disks::format(1024);
        let (pool, record) = disks.open();
        Self { chance: chance(), disks, pool: pool.unwrap(), record, model: BTreeMap::new() }
    }

    fn name(&mut self) -> &'static str {
        NAMES[self.chance.random_range(0..NAMES.len())]
    }

    /// Where, and something to write there.
    fn piece(&mut self, size: usize) -> (usize, Vec<u8>) {
        let offset = self.chance.random_range(0..size);
        let length = self.chance.random_range(1..=(size - offset).min(3 * BLOCK as usize));
        (offset, vec![self.chance.random(); length])
    }

    fn step(&mut self) {
        let name = self.name();
        match self.chance.random_range(0..12) {
            0 => self.create(name),
            1..=4 => self.write(name),
            5 => self.discard(name),
            6 => self.snapshot(name),
            7 => self.remove_snapshot(name),
            8 => self.resize(name),
            9 => self.replace(name),
            10 => self.remove(name),
            _ => self.pool.flush().unwrap(),
        }
    }

    fn create(&mut self, name: &'static str) {
        let size = self.chance.random_range(1..20) * BLOCK;
        let created = self.pool.create_volume(name, size);
        if self.model.contains_key(name) {
            assert!(matches!(created, Err(EmbeddedError::Exists { .. })));
        } else {
            created.unwrap();
            self.model.insert(name, Modelled { size: size as usize, ..Modelled::default() });
        }
    }

    fn volume(&self, name: &str) -> Option<Volume> {
        let found = self.pool.volume(name);
        assert_eq!(found.is_ok(), self.model.contains_key(name));
        found.ok()
    }

    fn write(&mut self, name: &'static str) {
        let Some(volume) = self.volume(name) else { return };
        let (offset, bytes) = self.piece(volume.size_bytes as usize);
        self.pool.write(&volume, offset as u64, &bytes).unwrap();
        self.model.get_mut(name).unwrap().write(offset, &bytes);
    }

    fn discard(&mut self, name: &'static str) {
        let Some(volume) = self.volume(name) else { return };
        let (offset, bytes) = self.piece(volume.size_bytes as usize);
        self.pool.discard(&volume, offset as u64, bytes.len() as u64).unwrap();
        let block = BLOCK as usize;
        let (first, end) = (offset.div_ceil(block) * block, (offset + bytes.len()) / block * block);
        if first < end {
            self.model.get_mut(name).unwrap().write(first, &vec![0; end - first]);
        }
    }

    fn snapshot(&mut self, name: &'static str) {
        let other = self.name();
        let snapshot = SNAPSHOTS[self.chance.random_range(0..SNAPSHOTS.len())];
        let wanted: Vec<_> =
            if name == other { vec![(name, snapshot)] } else { vec![(name, snapshot), (other, snapshot)] };
        let taken = self.pool.take_snapshots(&wanted);
        let possible = |name| {
            self.model.get(name).is_some_and(|volume: &Modelled| !volume.snapshots.contains_key(snapshot))
        };
        assert_eq!(taken.is_ok(), wanted.iter().all(|(name, _)| possible(name)));
        if taken.is_ok() {
            for (name, _) in wanted {
                let volume = self.model.get_mut(name).unwrap();
                volume.snapshots.insert(snapshot, volume.visible());
            }
        }
    }

    fn remove_snapshot(&mut self, name: &'static str) {
        let snapshot = SNAPSHOTS[self.chance.random_range(0..SNAPSHOTS.len())];
        let removed =
            self.model.get_mut(name).is_some_and(|volume| volume.snapshots.remove(snapshot).is_some());
        assert_eq!(self.pool.remove_snapshot(name, snapshot).is_ok(), removed);
    }

    fn resize(&mut self, name: &'static str) {
        let size = self.chance.random_range(1..20) * BLOCK;
        let resized = self.pool.resize_volume(name, size).is_ok();
        assert_eq!(resized, self.model.contains_key(name));
        if let Some(volume) = self.model.get_mut(name) {
            volume.size = size as usize;
        }
    }

    fn replace(&mut self, name: &'static str) {
        let Some(volume) = self.volume(name) else { return };
        let like = self.chance.random_bool(0.7).then_some(volume.device);
        let head = self.pool.create_head(volume.size_bytes, like).unwrap();
        let (offset, bytes) = self.piece(volume.size_bytes as usize);
        self.pool.write(&head, offset as u64, &bytes).unwrap();
        if self.chance.random_bool(0.3) {
            self.pool.drop_transient(&head).unwrap();
            return;
        }
        self.pool.replace_volume(name, &head).unwrap();
        let modelled = self.model.get_mut(name).unwrap();
        if like.is_none() {
            modelled.content.clear();
        }
        modelled.write(offset, &bytes);
    }

    fn remove(&mut self, name: &'static str) {
        let possible = self.model.get(name).is_some_and(|volume| volume.snapshots.is_empty());
        assert_eq!(self.pool.remove_volume(name).is_ok(), possible);
        if possible {
            self.model.remove(name);
        }
    }

    fn read(&self, volume: &Volume) -> Vec<u8> {
        let mut bytes = vec![0; volume.size_bytes as usize];
        self.pool.read(volume, 0, &mut bytes).unwrap();
        bytes
    }

    /// Compares everything.
    fn compare(&self) {
        let mut devices = 0;
        for (name, modelled) in &self.model {
            let volume = self.pool.volume(name).unwrap();
            assert!(self.read(&volume) == modelled.visible(), "{name}");
            for (snapshot, content) in &modelled.snapshots {
                let found = self.pool.snapshot(name, snapshot).unwrap();
                assert!(self.read(&found) == *content, "{name}@{snapshot}");
            }
            devices += 1 + modelled.snapshots.len();
        }
        assert_eq!(self.pool.volumes().len(), devices);
        assert_eq!(self.pool.pool().devices().unwrap().len(), devices);
    }

    /// Closes the pool, by itself or by losing power after a flush, and opens it again.
    fn reopen(mut self) -> Self {
        self.pool.flush().unwrap();
        let fate = if self.chance.random_bool(0.5) { Fate::Kept } else { Fate::Lost };
        self.disks = self.disks.after(&self.record.events(), |_| fate);
        self.disks.check();
        let (pool, record) = self.disks.open();
        (self.pool, self.record) = (pool.unwrap(), record);
        self
    }
}

#[test]
fn any_operations_do_what_the_model_does() {
    let mut world = World::new();
    for _ in 0..12 {
        for _ in 0..40 {
            world.step();
        }
        world.compare();
        world = world.reopen();
        world.compare();
    }
    world.disks.thin_check();
}
