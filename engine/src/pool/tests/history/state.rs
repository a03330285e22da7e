//! What a pool holds.

use std::collections::{BTreeMap, HashMap};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use super::operation::Op;
use super::stamps::GRANULES;

type Stamps = Arc<[u32; GRANULES as usize]>;

/// A data block as the model sees it: whoever maps the same cell must be mapped to the same data block.
#[derive(Clone, Debug)]
pub(crate) struct Cell {
    pub(crate) id: u32,
    /// The snapshot clock when it was mapped.
    pub(crate) time: u32,
    pub(crate) stamps: Stamps,
}

#[derive(Clone, Debug, Default)]
pub(crate) struct Device {
    pub(crate) cells: BTreeMap<u64, Cell>,
    pub(crate) transaction_id: u64,
    pub(crate) creation_time: u32,
    pub(crate) snapshotted_time: u32,
}

pub(crate) type Devices = BTreeMap<u64, Arc<Device>>;

/// All that is in a pool.
#[derive(Clone, Debug)]
pub(crate) struct State {
    pub(crate) devices: Devices,
    pub(crate) transaction_id: u64,
    pub(crate) time: u32,
    /// What the metadata snapshot shows.
    pub(crate) held: Option<Devices>,
    pub(crate) data_blocks: u64,
}

/// One write to a cell.
#[derive(Clone, Debug)]
pub(crate) struct Written {
    pub(crate) step: usize,
    /// Granules of the block.
    pub(crate) granules: Range<u64>,
    pub(crate) stamp: u32,
}

/// All writes by cell, oldest first.
pub(crate) type Writes = HashMap<u32, Vec<Written>>;

/// A number that was never given before.
pub(crate) fn fresh() -> u32 {
    static NEXT: AtomicU32 = AtomicU32::new(1);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

impl State {
    pub(crate) fn new(data_blocks: u64) -> Self {
        Self { devices: Devices::new(), transaction_id: 0, time: 0, held: None, data_blocks }
    }

    /// All cells, those of the metadata snapshot included, with where they are.
    pub(crate) fn cells(&self) -> impl Iterator<Item = (u64, u64, &Cell)> {
        let devices = self.devices.iter().chain(self.held.iter().flatten());
        devices.flat_map(|(id, device)| device.cells.iter().map(|(block, cell)| (*id, *block, cell)))
    }

    /// Puts what was found in place of what was expected.
    pub(crate) fn resolve(&mut self, found: &HashMap<u32, Stamps>) {
        for device in self.devices.values_mut().chain(self.held.iter_mut().flat_map(BTreeMap::values_mut)) {
            for cell in Arc::make_mut(device).cells.values_mut() {
                if let Some(stamps) = found.get(&cell.id) {
                    cell.stamps = stamps.clone();
                }
            }
        }
    }

    /// An operation that was carried out.
    pub(crate) fn apply(&mut self, op: &Op, step: usize, stamp: u32, writes: &mut Writes) {
        match op {
            Op::CreateThin(id) => {
                let device = Device {
                    cells: BTreeMap::new(),
                    transaction_id: self.transaction_id,
                    creation_time: self.time,
                    snapshotted_time: self.time,
                };
                self.devices.insert(*id, Arc::new(device));
            }
            Op::CreateSnap { new, origin } => {
                self.time += 1;
                let origin = Arc::make_mut(self.devices.get_mut(origin).unwrap());
                origin.snapshotted_time = self.time;
                let snapshot = Device {
                    cells: origin.cells.clone(),
                    transaction_id: self.transaction_id,
                    creation_time: self.time,
                    snapshotted_time: self.time,
                };
                self.devices.insert(*new, Arc::new(snapshot));
            }
            Op::Delete(id) => drop(self.devices.remove(id)),
            Op::Write { device, granules } => self.write(*device, granules, step, stamp, writes),
            Op::Discard { device, granules } => {
                let blocks = granules.start.div_ceil(GRANULES)..granules.end / GRANULES;
                let device = Arc::make_mut(self.devices.get_mut(device).unwrap());
                device.cells.retain(|block, _| !blocks.contains(block));
            }
            Op::SetTransactionId(id) => self.transaction_id = *id,
            Op::Apply(ops) => ops.iter().for_each(|op| self.apply(op, step, stamp, writes)),
            Op::Reserve => self.held = Some(self.devices.clone()),
            Op::Release => self.held = None,
            Op::Grow(blocks) => self.data_blocks = *blocks,
            Op::Commit | Op::Read { .. } => {}
        }
    }

    fn write(&mut self, id: u64, granules: &Range<u64>, step: usize, stamp: u32, writes: &mut Writes) {
        let time = self.time;
        let mut held = self.held.as_mut().and_then(|held| held.get_mut(&id));
        let device = Arc::make_mut(self.devices.get_mut(&id).unwrap());
        for (block, within) in blocks(granules) {
            let old = device.cells.get(&block);
            let in_place = old.filter(|cell| cell.time >= device.snapshotted_time);
            let (id, time) = in_place.map_or_else(|| (fresh(), time), |cell| (cell.id, cell.time));
            let mut stamps = old.map_or([0; GRANULES as usize], |cell| *cell.stamps);
            stamps[within.start as usize..within.end as usize].fill(stamp);
            let cell = Cell { id, time, stamps: Arc::new(stamps) };
            // A metadata snapshot keeps mappings, not data: it shows what is written in place.
            if let Some(held) =
                held.as_mut().filter(|held| held.cells.get(&block).is_some_and(|held| held.id == id))
            {
                Arc::make_mut(held).cells.insert(block, cell.clone());
            }
            device.cells.insert(block, cell);
            writes.entry(id).or_default().push(Written { step, granules: within, stamp });
        }
    }

    /// A write that was refused or failed: it may have come to some of the blocks that the device has for itself.
    pub(crate) fn apply_failed(&self, op: &Op, step: usize, stamp: u32, writes: &mut Writes) {
        let Op::Write { device, granules } = op else { return };
        let Some(device) = self.devices.get(device) else { return };
        for (block, granules) in blocks(granules) {
            if let Some(cell) = device.cells.get(&block) {
                writes.entry(cell.id).or_default().push(Written { step, granules, stamp });
            }
        }
    }
}

/// The blocks of a range of granules, with the granules of each.
fn blocks(granules: &Range<u64>) -> impl Iterator<Item = (u64, Range<u64>)> {
    let (start, end) = (granules.start, granules.end);
    (start / GRANULES..end.div_ceil(GRANULES)).map(move |block| {
        let first = block * GRANULES;
        (block, start.max(first) - first..end.min(first + GRANULES) - first)
    })
}
