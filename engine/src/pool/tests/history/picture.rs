//! What a real pool holds.

use std::collections::{BTreeMap, HashMap};
use std::fmt::Debug;
use std::sync::Arc;

use super::super::BLOCK;
use super::stamps::{self, GRANULES};
use super::state::{Devices, State, Written};
use crate::{DeviceDetails, MetadataView, Pool, Roots, VirtualBlock};

#[derive(Debug)]
struct Found {
    details: DeviceDetails,
    /// Data block by virtual block.
    mappings: BTreeMap<u64, u64>,
}

/// The metadata of a pool as it tells them.
#[derive(Debug)]
pub(crate) struct Picture {
    transaction_id: u64,
    time: u32,
    data_blocks: u64,
    devices: BTreeMap<u64, Found>,
    held: Option<BTreeMap<u64, Found>>,
}

fn equal<T: PartialEq + Debug>(what: &str, found: &T, expected: &T) -> Result<(), String> {
    if found == expected { Ok(()) } else { Err(format!("{what}: {found:?} instead of {expected:?}")) }
}

impl Picture {
    pub(crate) fn take(pool: &Pool) -> Self {
        let mut devices = BTreeMap::new();
        for device in pool.devices().unwrap() {
            let runs =
                pool.mapped_runs(device.id, VirtualBlock(0), VirtualBlock(1 << 40), usize::MAX).unwrap();
            let mappings = runs
                .iter()
                .flat_map(|run| (0..run.length).map(|block| (run.begin.0 + block, run.data_begin.0 + block)));
            let found = Found { details: device.details, mappings: mappings.collect() };
            devices.insert(u64::from(device.id.get()), found);
        }
        Self {
            transaction_id: pool.transaction_id(),
            time: pool.superblock().time,
            data_blocks: pool.status().data_total,
            devices,
            held: pool.status().held_root.map(|_| Self::held(pool)),
        }
    }

    /// What another process would see in the metadata snapshot.
    fn held(pool: &Pool) -> BTreeMap<u64, Found> {
        let view = MetadataView::open(pool.metadata_device().clone(), Roots::MetadataSnap).unwrap();
        let mut devices = BTreeMap::new();
        for device in view.devices().unwrap() {
            let mappings = view.mappings(device.root, VirtualBlock(0)).map(Result::unwrap);
            let mappings = mappings.map(|mapping| (mapping.virtual_block.0, mapping.data_block.0)).collect();
            devices.insert(u64::from(device.id.get()), Found { details: device.details, mappings });
        }
        devices
    }

    /// Whether the metadata are those of a state; the data block of each of its cells.
    pub(crate) fn matches(&self, state: &State) -> Result<HashMap<u32, u64>, String> {
        equal("transaction id", &self.transaction_id, &state.transaction_id)?;
        equal("time", &self.time, &state.time)?;
        equal("data blocks", &self.data_blocks, &state.data_blocks)?;
        equal("metadata snapshot", &self.held.is_some(), &state.held.is_some())?;
        let mut places = HashMap::new();
        match_devices(&self.devices, &state.devices, &mut places)?;
        if let (Some(found), Some(expected)) = (&self.held, &state.held) {
            match_devices(found, expected, &mut places).map_err(|error| format!("held: {error}"))?;
        }
        let mut owners = HashMap::new();
        match places.iter().find_map(|(cell, place)| Some((place, *cell, owners.insert(*place, *cell)?))) {
            Some((place, one, other)) => {
                Err(format!("data block {place} is that of cells {one} and {other}"))
            }
            None => Ok(places),
        }
    }
}

fn match_devices(
    found: &BTreeMap<u64, Found>,
    expected: &Devices,
    places: &mut HashMap<u32, u64>,
) -> Result<(), String> {
    let ids = |ids: Vec<&u64>| ids.into_iter().copied().collect::<Vec<_>>();
    equal("devices", &ids(found.keys().collect()), &ids(expected.keys().collect()))?;
    for ((id, found), expected) in found.iter().zip(expected.values()) {
        let details = DeviceDetails {
            mapped_blocks: expected.cells.len() as u64,
            transaction_id: expected.transaction_id,
            creation_time: expected.creation_time,
            snapshotted_time: expected.snapshotted_time,
        };
        equal(&format!("device {id}"), &found.details, &details)?;
        if !found.mappings.keys().eq(expected.cells.keys()) {
            return Err(format!("device {id} maps {:?}", found.mappings.keys()));
        }
        for (cell, place) in expected.cells.values().zip(found.mappings.values()) {
            let known = *places.entry(cell.id).or_insert(*place);
            equal(&format!("place of cell {} of device {id}", cell.id), place, &known)?;
        }
    }
    Ok(())
}

/// What else than the state's own stamp a granule may hold: that of a write in one of these steps, or what it held in
/// another state.
pub(crate) struct Tolerance<'a> {
    pub(crate) writes: &'a [Written],
    pub(crate) steps: std::ops::RangeInclusive<usize>,
    pub(crate) other: Option<&'a [u32; GRANULES as usize]>,
}

impl Tolerance<'_> {
    fn allows(&self, granule: u64, stamp: u32) -> bool {
        let written = self.writes.iter().filter(|written| self.steps.contains(&written.step));
        let mut written = written.filter(|written| written.granules.contains(&granule));
        written.any(|written| written.stamp == stamp)
            || self.other.is_some_and(|other| other[granule as usize] == stamp)
    }
}

/// Reads a cell, through its device where a device maps it, and holds it against what it may hold. The stamps found.
pub(crate) fn check_cell(
    pool: &Pool,
    (device, block): (u64, u64),
    place: u64,
    expected: &[u32; GRANULES as usize],
    tolerance: &Tolerance<'_>,
    through_device: bool,
) -> Result<Arc<[u32; GRANULES as usize]>, String> {
    let mut bytes = vec![0xEE; BLOCK as usize];
    if through_device {
        pool.read(super::super::id(device), block * BLOCK, &mut bytes).map_err(|error| error.to_string())?;
    } else {
        pool.data_device().read_at(place * BLOCK, &mut bytes).map_err(|error| error.to_string())?;
    }
    let found = stamps::stamps(block, &bytes).map_err(|error| format!("device {device}, {error}"))?;
    for ((granule, found), expected) in (0..).zip(found).zip(expected) {
        if found != *expected && !tolerance.allows(granule, found) {
            return Err(format!(
                "device {device}, block {block} at {place}, granule {granule}: written by {found}, not {expected}; \
                 allowed: {:?} in {:?}",
                tolerance.writes, tolerance.steps
            ));
        }
    }
    Ok(Arc::new(found))
}
