use std::collections::{BTreeMap, HashSet};

use rand::Rng;
use rand::rngs::StdRng;

use super::{BLOCK, Devices, id, seeded};
use crate::{Pool, PoolError};

/// What a device holds: a byte for each written block.
type Contents = BTreeMap<u64, u8>;

/// The pool as anyone would write it who need not care about space or crashes.
#[derive(Clone, Debug, Default)]
struct Model {
    devices: BTreeMap<u64, Contents>,
    transaction_id: u64,
    held: bool,
}

const DEVICES: u64 = 12;
const BLOCKS: u64 = 700;

struct Run {
    devices: Devices,
    pool: Pool,
    now: Model,
    committed: Model,
    /// What was written since the last commit: such writes may have been in place.
    written: HashSet<(u64, u64, u8)>,
}

impl Run {
    fn new() -> Self {
        let devices = Devices::new(2048, 3000);
        let pool = devices.format();
        Self { devices, pool, now: Model::default(), committed: Model::default(), written: HashSet::new() }
    }

    fn note_commit(&mut self) {
        self.committed = self.now.clone();
        self.written.clear();
    }

    fn verify(&self, rng: &mut StdRng) {
        let found: Vec<_> = self.pool.devices().unwrap();
        assert_eq!(
            found.iter().map(|device| u64::from(device.id.get())).collect::<Vec<_>>(),
            self.now.devices.keys().copied().collect::<Vec<_>>()
        );
        assert_eq!(self.pool.transaction_id(), self.now.transaction_id);
        assert_eq!(self.pool.status().held_root.is_some(), self.now.held);
        for device in found {
            let contents = &self.now.devices[&u64::from(device.id.get())];
            assert_eq!(device.details.mapped_blocks, contents.len() as u64, "device {}", device.id);
            for _ in 0..4 {
                let block = rng.random_range(0..BLOCKS);
                let mut bytes = [9; 16];
                self.pool.read(device.id, block * BLOCK + BLOCK - 16, &mut bytes).unwrap();
                let expected = contents.get(&block).copied().unwrap_or(0);
                assert_eq!(bytes, [expected; 16], "device {} block {block}", device.id);
            }
        }
    }

    fn verify_everything(&self) {
        for (device, contents) in &self.now.devices {
            for block in 0..BLOCKS {
                let mut bytes = [9; 2];
                self.pool.read(id(*device), block * BLOCK + 77, &mut bytes).unwrap();
                let expected = contents.get(&block).copied().unwrap_or(0);
                assert_eq!(bytes, [expected; 2], "device {device} block {block}");
            }
        }
    }

    fn step(&mut self, rng: &mut StdRng) {
        let device = rng.random_range(0..DEVICES);
        let exists = self.now.devices.contains_key(&device);
        let first = rng.random_range(0..BLOCKS);
        let count = if rng.random_bool(0.1) { rng.random_range(1..=300) } else { rng.random_range(1..=4) };
        let last = (first + count).min(BLOCKS);
        match rng.random_range(0..100) {
            0..=7 => {
                let done = self.pool.create_thin(id(device));
                assert_eq!(exists, matches!(done, Err(PoolError::DeviceExists(_))));
                self.now.devices.entry(device).or_default();
            }
            8..=19 => {
                let new = rng.random_range(0..DEVICES);
                let done = self.pool.create_snap(id(new), id(device));
                match (self.now.devices.contains_key(&new), self.now.devices.get(&device).cloned()) {
                    (true, _) => assert!(matches!(done, Err(PoolError::DeviceExists(_)))),
                    (false, None) => assert!(matches!(done, Err(PoolError::NoSuchDevice(_)))),
                    (false, Some(contents)) => {
                        done.unwrap();
                        self.now.devices.insert(new, contents);
                    }
                }
            }
            20..=24 => {
                let done = self.pool.delete(id(device));
                assert_eq!(exists, done.is_ok(), "{done:?}");
                self.now.devices.remove(&device);
            }
            25..=64 => self.write(device, first..last, rng.random_range(1..=255)),
            65..=79 => {
                let done = self.pool.discard(id(device), first * BLOCK, (last - first) * BLOCK);
                assert_eq!(exists, done.is_ok(), "{done:?}");
                if let Some(contents) = self.now.devices.get_mut(&device) {
                    contents.retain(|block, _| !(first..last).contains(block));
                }
            }
            80..=89 => {
                self.pool.commit().unwrap();
                self.note_commit();
            }
            90..=91 => {
                let (old, new) =
                    (self.now.transaction_id, self.now.transaction_id + rng.random_range(1..1 << 40));
                self.pool.set_transaction_id(old, new).unwrap();
                self.now.transaction_id = new;
            }
            92..=94 => self.reserve_or_release(),
            95..=96 => self.verify(rng),
            _ => self.reopen(),
        }
    }

    fn write(&mut self, device: u64, blocks: std::ops::Range<u64>, value: u8) {
        let bytes = vec![value; ((blocks.end - blocks.start) * BLOCK) as usize];
        let before = self.pool.status();
        let done = self.pool.write(id(device), blocks.start * BLOCK, &bytes);
        match (self.now.devices.get_mut(&device), done) {
            (None, done) => assert!(matches!(done, Err(PoolError::NoSuchDevice(_)))),
            (Some(contents), Ok(())) => {
                self.written.extend(blocks.clone().map(|block| (device, block, value)));
                contents.extend(blocks.map(|block| (block, value)));
            }
            (Some(_), Err(PoolError::NoSpaceData { .. })) => {
                // What of it was written is not told; make room and begin anew from the last commit.
                assert!(before.data_used + 300 > before.data_total, "{before}");
                self.reopen();
                if let Some((&device, _)) = self.now.devices.last_key_value() {
                    self.pool.delete(id(device)).unwrap();
                    self.now.devices.remove(&device);
                }
            }
            (Some(_), Err(error)) => panic!("{error}"),
        }
    }

    fn reserve_or_release(&mut self) {
        if self.now.held {
            self.pool.release_metadata_snap().unwrap();
        } else {
            self.pool.reserve_metadata_snap().unwrap();
        }
        self.now.held = !self.now.held;
        self.note_commit();
        self.devices.check();
    }

    /// The process dies. What the pool committed by itself is allowed to be there.
    fn reopen(&mut self) {
        if self.pool.status().data_used > 2500 {
            self.pool.commit().unwrap();
            self.note_commit();
        }
        let auto = !same(&self.devices.open(), &self.committed);
        if auto {
            self.pool.commit().unwrap();
            self.note_commit();
        }
        self.pool = self.devices.open();
        self.devices.check();
        self.now = self.committed.clone();
        // In-place writes that no commit followed are there all the same: only mappings are rolled back.
        for (device, contents) in &mut self.now.devices {
            for (block, value) in contents.iter_mut() {
                let mut byte = [0];
                self.pool.read(id(*device), block * BLOCK, &mut byte).unwrap();
                let in_place = self.written.contains(&(*device, *block, byte[0]));
                assert!(
                    byte[0] == *value || in_place,
                    "device {device} block {block}: {byte:?}, not {value}"
                );
                *value = byte[0];
            }
        }
        self.note_commit();
    }
}

/// Whether a pool that was just opened maps what the model says.
fn same(pool: &Pool, model: &Model) -> bool {
    let found = pool.devices().unwrap();
    found.len() == model.devices.len()
        && found.iter().all(|device| {
            let contents = model.devices.get(&u64::from(device.id.get()));
            contents.is_some_and(|contents| contents.len() as u64 == device.details.mapped_blocks)
        })
}

#[test]
fn a_random_life_of_a_pool_is_that_of_the_model() {
    let mut rng = seeded();
    let mut run = Run::new();
    for step in 0..1500 {
        run.step(&mut rng);
        if step % 100 == 0 {
            run.pool.commit().unwrap();
            run.note_commit();
            run.devices.check();
        }
    }
    run.verify(&mut rng);
    run.verify_everything();
    run.pool.commit().unwrap();
    run.devices.check();
    if run.now.held {
        run.pool.release_metadata_snap().unwrap();
    }
    for device in run.now.devices.keys() {
        run.pool.delete(id(*device)).unwrap();
    }
    run.pool.commit().unwrap();
    run.devices.check();
    assert_eq!(run.pool.status().data_used, 0);
}
