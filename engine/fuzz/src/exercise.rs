//! What is done to an image that may hold anything.

use std::io::sink;
use std::sync::Arc;

use thinbak_engine::check::check;
use thinbak_engine::delta::{DeltaOptions, delta_json, delta_xml};
use thinbak_engine::dump::{dump_json, dump_xml};
use thinbak_engine::{
    BlockDevice, DeviceId, MemoryDevice, MetadataView, Operation, Pool, Roots, VirtualBlock,
};

use crate::edits::Input;

/// Operations taken from an input at most.
const MAX_OPERATIONS: usize = 40;
/// Larger blocks than this are not written: to zero a gibibyte takes its time, and is no hang.
const MAX_BLOCK_BYTES: u64 = 1 << 22;
/// Devices of an image that are read.
const MAX_DEVICES: usize = 4;

/// Everything that reads: the checker, and views of both kinds with all that is made of them.
pub fn read(device: &Arc<MemoryDevice>) {
    let device: Arc<dyn BlockDevice> = Arc::clone(device) as _;
    let report = check(Arc::clone(&device), Some(1 << 40)).expect("a device with a block");
    for damage in &report.damage {
        drop(damage.to_string());
    }
    for roots in [Roots::Live, Roots::MetadataSnap] {
        match MetadataView::open(Arc::clone(&device), roots) {
            Ok(view) => read_view(&view),
            Err(error) => drop(error.to_string()),
        }
    }
}

fn read_view(view: &MetadataView) {
    let devices = match view.devices() {
        Ok(devices) => devices,
        Err(error) => return drop(error.to_string()),
    };
    for device in devices.iter().take(MAX_DEVICES) {
        let mut last = None;
        for mapping in view.mappings(device.root, VirtualBlock(0)) {
            let Ok(mapping) = mapping else { break };
            assert!(last < Some(mapping.virtual_block), "mappings do not ascend");
            last = Some(mapping.virtual_block);
        }
        drop(view.root_checksum(device.root));
        drop(view.device(device.id));
        drop(dump_xml(view, Some(device.id), &mut sink()));
    }
    for pair in devices.windows(2).take(MAX_DEVICES) {
        let (left, right) = (&pair[0], &pair[1]);
        view.changes(Some(left.root), right.root).take_while(Result::is_ok).for_each(drop);
        view.delta(left.root, right.root).take_while(Result::is_ok).for_each(drop);
        view.differences(left.root, right.root).take_while(Result::is_ok).for_each(drop);
        for data_blocks in [false, true] {
            for changes_only in [false, true] {
                let options = DeltaOptions { data_blocks, changes_only };
                drop(delta_xml(view, left.id, right.id, options, &mut sink()));
                drop(delta_json(view, left.id, right.id, options, &mut sink()));
            }
        }
    }
    if devices.len() <= MAX_DEVICES {
        drop(dump_json(view, None, &mut sink()));
    }
}

/// Opens the image as a pool, and goes on as the rest of the input says: `[operation]*`.
pub fn operate(metadata: Arc<MemoryDevice>, input: &mut Input<'_>) {
    let data = Arc::new(MemoryDevice::new(1 << 40));
    let pool = match Pool::open(metadata, data) {
        Ok(pool) => pool,
        Err(error) => return drop(error.to_string()),
    };
    drop(pool.devices());
    if pool.block_size().bytes() > MAX_BLOCK_BYTES {
        return;
    }
    for _ in 0..MAX_OPERATIONS {
        if input.is_empty() {
            break;
        }
        if let Err(error) = operation(&pool, input) {
            drop(error.to_string());
        }
        drop(pool.status().to_string());
    }
    drop(pool.commit());
}

fn operation(pool: &Pool, input: &mut Input<'_>) -> Result<(), thinbak_engine::PoolError> {
    let what = input.byte();
    let device = DeviceId::new(u64::from(input.byte() % 16))?;
    let bytes = pool.block_size().bytes();
    // Not more than a megabyte is written at once, whatever the block size says.
    let small = |length: u64| usize::try_from(length.min(1 << 20)).unwrap_or(1 << 20);
    match what % 14 {
        0 => pool.create_thin(device),
        1 => pool.create_snap(device, DeviceId::new(u64::from(input.byte() % 16))?),
        2 => pool.delete(device),
        3..=5 => {
            let block = u64::from(input.u16() % 600);
            pool.write(device, block * bytes + u64::from(input.byte()), &[7; 100])
        }
        6 => pool.write(device, u64::from(input.byte()) * bytes, &vec![8; small(2 * bytes)]),
        7 => {
            let offset = u64::from(input.u16()) * bytes;
            pool.read(device, offset, &mut vec![0; small(3 * bytes)])
        }
        8 => {
            let block = u64::from(input.u16() % 600);
            pool.discard(device, block * bytes, (u64::from(input.u16()) + 1) * bytes)
        }
        9 => pool.commit(),
        10 => pool.reserve_metadata_snap(),
        11 => pool.release_metadata_snap(),
        12 => {
            drop(pool.device_status(device));
            let runs = pool.mapped_runs(device, VirtualBlock(0), VirtualBlock(input.u64()), 100);
            runs.map(|_| ())
        }
        _ => {
            let (old, new) = (pool.transaction_id(), input.u64());
            pool.apply(&[Operation::Delete(device), Operation::SetTransactionId { old, new }])
        }
    }
}
