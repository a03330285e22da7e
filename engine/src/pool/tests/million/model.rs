//! Maps of maps.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use crate::{MetadataView, Pool, Roots, VirtualBlock};

/// A data block, by the number of its allocation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Mapping {
    pub(super) cell: usize,
    /// The snapshot clock when it was mapped.
    time: u32,
}

#[derive(Clone, Debug, Default)]
pub(super) struct Device {
    pub(super) mappings: Arc<BTreeMap<u64, Mapping>>,
    snapshotted_time: u32,
}

#[derive(Debug, Default)]
pub(super) struct Model {
    pub(super) devices: BTreeMap<u64, Device>,
    pub(super) held: Option<BTreeMap<u64, Device>>,
    pub(super) transaction_id: u64,
    /// What each cell holds.
    pub(super) tags: Vec<u64>,
    time: u32,
}

impl Model {
    pub(super) fn create_thin(&mut self, id: u64) {
        self.devices.insert(id, Device { snapshotted_time: self.time, ..Device::default() });
    }

    pub(super) fn create_snap(&mut self, new: u64, origin: u64) {
        self.time += 1;
        let origin = self.devices.get_mut(&origin).unwrap();
        origin.snapshotted_time = self.time;
        let snapshot = origin.clone();
        self.devices.insert(new, snapshot);
    }

    pub(super) fn write(&mut self, id: u64, block: u64, tag: u64) {
        let device = self.devices.get_mut(&id).unwrap();
        match device.mappings.get(&block) {
            Some(mapping) if mapping.time >= device.snapshotted_time => self.tags[mapping.cell] = tag,
            _ => {
                let mapping = Mapping { cell: self.tags.len(), time: self.time };
                Arc::make_mut(&mut device.mappings).insert(block, mapping);
                self.tags.push(tag);
            }
        }
    }

    pub(super) fn discard(&mut self, id: u64, blocks: std::ops::Range<u64>) {
        let mappings = Arc::make_mut(&mut self.devices.get_mut(&id).unwrap().mappings);
        let gone: Vec<_> = mappings.range(blocks).map(|(block, _)| *block).collect();
        for block in gone {
            mappings.remove(&block);
        }
    }

    pub(super) fn tag(&self, id: u64, block: u64) -> u64 {
        self.devices[&id].mappings.get(&block).map_or(0, |mapping| self.tags[mapping.cell])
    }

    fn all_devices(&self) -> impl Iterator<Item = &Device> {
        self.devices.values().chain(self.held.iter().flat_map(BTreeMap::values))
    }

    /// Data blocks in use.
    pub(super) fn cells(&self) -> u64 {
        let mut seen = HashSet::new();
        let mut cells = HashSet::new();
        for device in self.all_devices().filter(|device| seen.insert(Arc::as_ptr(&device.mappings))) {
            cells.extend(device.mappings.values().map(|mapping| mapping.cell));
        }
        cells.len() as u64
    }

    /// Holds everything that the pool says of its metadata against this.
    pub(super) fn compare(&self, pool: &Pool) {
        let found = pool.devices().unwrap();
        let ids: Vec<_> = found.iter().map(|device| u64::from(device.id.get())).collect();
        assert!(ids.iter().eq(self.devices.keys()), "{ids:?}");
        assert_eq!(pool.transaction_id(), self.transaction_id);
        assert_eq!(pool.status().held_root.is_some(), self.held.is_some());
        assert_eq!(pool.status().data_used, self.cells());
        let mut places = Places::default();
        for (found, device) in found.iter().zip(self.devices.values()) {
            assert_eq!(found.details.mapped_blocks, device.mappings.len() as u64, "device {}", found.id);
            assert_eq!(found.details.snapshotted_time, device.snapshotted_time, "device {}", found.id);
            let runs =
                pool.mapped_runs(found.id, VirtualBlock(0), VirtualBlock(1 << 40), usize::MAX).unwrap();
            let mappings = runs
                .iter()
                .flat_map(|run| (0..run.length).map(|block| (run.begin.0 + block, run.data_begin.0 + block)));
            places.compare(mappings, device);
        }
        if let Some(held) = &self.held {
            let view = MetadataView::open(pool.metadata_device().clone(), Roots::MetadataSnap).unwrap();
            let found = view.devices().unwrap();
            assert_eq!(found.len(), held.len());
            for (found, (id, device)) in found.iter().zip(held) {
                assert_eq!(u64::from(found.id.get()), *id);
                let mappings = view.mappings(found.root, VirtualBlock(0)).map(Result::unwrap);
                places.compare(mappings.map(|found| (found.virtual_block.0, found.data_block.0)), device);
            }
        }
    }
}

/// Which data block each cell is, and the other way round.
#[derive(Default)]
struct Places {
    of_cell: HashMap<usize, u64>,
    of_block: HashMap<u64, usize>,
}

impl Places {
    fn compare(&mut self, mut found: impl Iterator<Item = (u64, u64)>, device: &Device) {
        for (block, mapping) in device.mappings.iter() {
            let (found, place) = found.next().expect("a mapping");
            assert_eq!(found, *block);
            assert_eq!(*self.of_cell.entry(mapping.cell).or_insert(place), place, "block {block}");
            assert_eq!(*self.of_block.entry(place).or_insert(mapping.cell), mapping.cell, "block {block}");
        }
        assert_eq!(found.next(), None);
    }
}
