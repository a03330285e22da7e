//! One pool and its model.

use std::sync::Arc;

use rand::Rng;
use rand::rngs::StdRng;
use rand::seq::IteratorRandom;

use super::super::{check_all, id};
use super::model::Model;
use super::tags::TagDevice;
use crate::format::{Node, Superblock};
use crate::{BlockSize, MemoryDevice, MetadataBlock, Pool, PoolError};

/// Operations between two comparisons of everything.
const INTERVAL: u64 = 4_000;
/// Operations of a flood or an ebb.
const TIDE: u64 = 25_000;

/// What happens most.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    /// Mappings come, and then go.
    Tides,
    /// Snapshots come and go.
    Snapshots,
    /// The newest is snapshotted, the oldest deleted.
    Chain,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Profile {
    pub(super) block_size: u64,
    /// Virtual blocks of a device.
    pub(super) blocks: u64,
    pub(super) data_blocks: u64,
    pub(super) metadata_blocks: u64,
    pub(super) devices: usize,
    /// Blocks written at once, at most.
    pub(super) run: u64,
    pub(super) way: Way,
}

pub(super) struct Life {
    profile: Profile,
    rng: StdRng,
    metadata: Arc<MemoryDevice>,
    data: Arc<TagDevice>,
    pool: Pool,
    model: Model,
    done: u64,
    next_id: u64,
    newest: u64,
    buffer: Vec<u8>,
    /// What was seen: mappings of one device, entries of the tree of large counts, snapshots in a row.
    most: (usize, usize, u64),
    refused: u64,
}

impl Life {
    pub(super) fn new(profile: Profile, rng: StdRng) -> Self {
        let metadata = Arc::new(MemoryDevice::new(profile.metadata_blocks * 4096));
        let data = TagDevice::new(profile.block_size, profile.data_blocks);
        let block_size = BlockSize::from_bytes(profile.block_size).unwrap();
        let pool = Pool::format(metadata.clone(), data.clone(), block_size).unwrap();
        let buffer = vec![0; ((profile.run - 1) * profile.block_size) as usize + 8];
        Self {
            profile,
            rng,
            metadata,
            data,
            pool,
            model: Model::default(),
            done: 0,
            next_id: 0,
            newest: 0,
            buffer,
            most: (0, 0, 0),
            refused: 0,
        }
    }

    pub(super) fn live(&mut self, operations: u64) {
        while self.done < operations {
            self.step();
            self.done += 1;
            if self.done.is_multiple_of(INTERVAL) {
                self.compare(self.done.is_multiple_of(INTERVAL * 8));
            }
        }
    }

    /// Everything is deleted; what was seen on the way.
    pub(super) fn end(&mut self) -> String {
        self.compare(true);
        if self.model.held.is_some() {
            self.pool.release_metadata_snap().unwrap();
        }
        self.model.devices.keys().for_each(|device| self.pool.delete(id(*device)).unwrap());
        self.pool.commit().unwrap();
        assert_eq!(self.pool.status().data_used, 0);
        assert_eq!(self.large_counts(), 0);
        check_all(&self.metadata, true);
        let (mappings, counts, depth) = self.most;
        match self.profile.way {
            Way::Tides => assert!(self.done < 50_000 || mappings > 20_000, "{mappings}"),
            Way::Snapshots => assert!(counts > 20, "{counts}"),
            Way::Chain => assert!(self.done < 50_000 || depth > 1_000, "{depth}"),
        }
        format!(
            "blocks of {}, {} operations, at most {mappings} mappings of a device, {counts} large counts, \
             {depth} snapshots in a row; {} refused",
            self.profile.block_size, self.done, self.refused
        )
    }

    fn compare(&mut self, thin_check: bool) {
        self.pool.commit().unwrap();
        self.model.compare(&self.pool);
        check_all(&self.metadata, thin_check);
        let mappings = self.model.devices.values().map(|device| device.mappings.len()).max();
        self.most.0 = self.most.0.max(mappings.unwrap_or(0));
        self.most.1 = self.most.1.max(self.large_counts());
    }

    /// Entries in the root of the tree of counts of 3 and more of data blocks.
    fn large_counts(&self) -> usize {
        let superblock = Superblock::read(self.metadata.as_ref(), MetadataBlock(0)).unwrap();
        let root = superblock.data_space_map.ref_count_root;
        let raw = crate::format::RawBlock::read(self.metadata.as_ref(), root).unwrap();
        Node::verify::<u32>(raw).unwrap().len()
    }

    fn flood(&self) -> bool {
        (self.done / TIDE).is_multiple_of(2)
    }

    fn step(&mut self) {
        let Some(&device) = self.model.devices.keys().choose(&mut self.rng) else {
            return self.create_thin();
        };
        let favourite = match self.profile.way {
            Way::Chain => Some(self.newest),
            Way::Tides => self.model.devices.keys().next().copied(),
            Way::Snapshots => None,
        };
        let favourite = favourite.filter(|favourite| self.model.devices.contains_key(favourite));
        let device = favourite.filter(|_| self.rng.random_bool(0.7)).unwrap_or(device);
        // Of a thousand: make, snapshot, delete, discard, read, commit, reserve or release, others.
        let weights: [u32; 8] = match self.profile.way {
            Way::Tides if self.flood() => [1, 2, 0, 5, 200, 10, 1, 2],
            Way::Tides => [1, 1, 2, 350, 200, 10, 1, 2],
            Way::Snapshots => [5, 80, 80, 100, 200, 40, 5, 2],
            Way::Chain => [1, 60, 60, 50, 300, 30, 3, 2],
        };
        let mut drawn = self.rng.random_range(0..1000);
        let chosen = weights.iter().position(|weight| {
            let is_it = drawn < *weight;
            drawn = drawn.saturating_sub(*weight);
            is_it
        });
        match chosen {
            Some(0) => self.create_thin(),
            Some(1) => self.create_snap(device),
            Some(2) => self.delete(device),
            Some(3) => self.discard(device),
            Some(4) => self.read(device),
            Some(5) => self.pool.commit().unwrap(),
            Some(6) => self.reserve_or_release(),
            Some(_) => self.reopen_or_count(),
            None => self.write(device),
        }
    }

    fn create_thin(&mut self) {
        if self.model.devices.len() < self.profile.devices {
            self.next_id += self.rng.random_range(1..50);
            self.pool.create_thin(id(self.next_id)).unwrap();
            self.model.create_thin(self.next_id);
        }
        let known = *self.model.devices.keys().next().unwrap();
        assert!(matches!(self.pool.create_thin(id(known)), Err(PoolError::DeviceExists(_))));
    }

    fn create_snap(&mut self, origin: u64) {
        if self.model.devices.len() >= self.profile.devices {
            return;
        }
        self.next_id += self.rng.random_range(1..50);
        match self.pool.create_snap(id(self.next_id), id(origin)) {
            Ok(()) => {
                self.model.create_snap(self.next_id, origin);
                if origin == self.newest {
                    self.most.2 += 1;
                }
                self.newest = self.next_id;
            }
            Err(error) => self.make_room(&error),
        }
    }

    fn delete(&mut self, device: u64) {
        let device = match self.profile.way {
            Way::Chain => *self.model.devices.keys().next().unwrap(),
            _ => device,
        };
        if self.profile.way == Way::Chain && self.model.devices.len() < self.profile.devices / 2 {
            return;
        }
        self.remove(device);
    }

    fn remove(&mut self, device: u64) {
        self.pool.delete(id(device)).unwrap();
        self.model.devices.remove(&device);
        assert!(matches!(self.pool.delete(id(device)), Err(PoolError::NoSuchDevice(_))));
        if device == self.newest {
            self.newest = self.model.devices.keys().next_back().copied().unwrap_or(0);
        }
    }

    fn write(&mut self, device: u64) {
        let size = self.profile.block_size as usize;
        let count = if self.rng.random() { 1 } else { self.rng.random_range(1..=self.profile.run) };
        let first = self.rng.random_range(0..=self.profile.blocks - count);
        let tag = self.rng.random_range(1..u64::MAX / 2);
        for block in 0..count {
            let at = block as usize * size;
            self.buffer[at..at + 8].copy_from_slice(&(tag + block).to_le_bytes());
        }
        let length = (count as usize - 1) * size + 8;
        match self.pool.write(id(device), first * size as u64, &self.buffer[..length]) {
            Ok(()) => (0..count).for_each(|block| self.model.write(device, first + block, tag + block)),
            Err(error) => {
                // Nothing of a batch is written that finds no room as a whole.
                (first..first + count).for_each(|block| self.read_block(device, block));
                self.make_room(&error);
            }
        }
    }

    fn make_room(&mut self, error: &PoolError) {
        let is_full = matches!(error, PoolError::NoSpaceData { .. } | PoolError::NoSpaceMetadata { .. });
        assert!(is_full, "{error}");
        self.refused += 1;
        let biggest = self.model.devices.iter().max_by_key(|(_, device)| device.mappings.len());
        let biggest = *biggest.unwrap().0;
        self.remove(biggest);
        if self.model.held.is_some() {
            self.reserve_or_release();
        }
    }

    fn discard(&mut self, device: u64) {
        let most = if self.profile.way == Way::Tides { 1_500 } else { 8 };
        let first = self.rng.random_range(0..self.profile.blocks);
        let blocks = first..(first + self.rng.random_range(1..most)).min(self.profile.blocks);
        let size = self.profile.block_size;
        self.pool.discard(id(device), blocks.start * size, (blocks.end - blocks.start) * size).unwrap();
        self.model.discard(device, blocks);
    }

    fn read(&mut self, device: u64) {
        let block = self.rng.random_range(0..self.profile.blocks);
        self.read_block(device, block);
        // What is mapped is rarely met by chance.
        let next = self.model.devices[&device].mappings.range(block..).next();
        if let Some((&block, _)) = next {
            self.read_block(device, block);
        }
    }

    fn read_block(&self, device: u64, block: u64) {
        let mut tag = [0xEE; 8];
        self.pool.read(id(device), block * self.profile.block_size, &mut tag).unwrap();
        let expected = self.model.tag(device, block);
        assert_eq!(u64::from_le_bytes(tag), expected, "device {device}, block {block}");
    }

    fn reserve_or_release(&mut self) {
        if self.model.held.take().is_some() {
            self.pool.release_metadata_snap().unwrap();
        } else {
            self.pool.reserve_metadata_snap().unwrap();
            self.model.held = Some(self.model.devices.clone());
        }
    }

    fn reopen_or_count(&mut self) {
        if self.rng.random_bool(0.2) {
            self.pool.commit().unwrap();
            self.pool = Pool::open(self.metadata.clone(), self.data.clone()).unwrap();
        } else {
            let next = self.model.transaction_id + self.rng.random_range(1..1000);
            self.pool.set_transaction_id(self.model.transaction_id, next).unwrap();
            self.model.transaction_id = next;
        }
    }
}
