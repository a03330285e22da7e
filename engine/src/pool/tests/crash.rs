//! A crash at every write of a workload, with what no flush has followed lost, torn or reordered.

use std::collections::BTreeMap;
use std::sync::Arc;

use rand::Rng;
use rand::rngs::StdRng;

use super::{BLOCK, check_all, id, seeded};
use crate::{
    BlockSize, DeviceInfo, Fate, FaultDevice, FaultLog, IoEvent, MemoryDevice, Operation, Pool, VirtualBlock,
    crash_image,
};

const METADATA: usize = 0;
const DATA: usize = 1;

/// What a pool must have after a crash: its devices, and the first bytes of their mapped blocks.
#[derive(Clone, Debug, PartialEq)]
struct Picture {
    transaction_id: u64,
    held: bool,
    devices: Vec<DeviceInfo>,
    contents: BTreeMap<(u32, u64), (u64, u8)>,
}

fn picture(pool: &Pool) -> Picture {
    let devices = pool.devices().unwrap();
    let mut contents = BTreeMap::new();
    for device in &devices {
        let runs = pool.mapped_runs(device.id, VirtualBlock(0), VirtualBlock(1000), 1000).unwrap();
        for (run, block) in runs.iter().flat_map(|run| (0..run.length).map(move |block| (run, block))) {
            let mut byte = [0];
            pool.read(device.id, (run.begin.0 + block) * BLOCK + 500, &mut byte).unwrap();
            contents.insert((device.id.get(), run.begin.0 + block), (run.data_begin.0 + block, byte[0]));
        }
    }
    Picture {
        transaction_id: pool.transaction_id(),
        held: pool.status().held_root.is_some(),
        devices,
        contents,
    }
}

/// Some changes that end in a commit. New blocks only are written, so that the picture of a commit stays true after it.
fn transaction(pool: &Pool, number: u64, rng: &mut StdRng) {
    let new = id(number + 1);
    let origin = id(rng.random_range(0..=number));
    if pool.device(origin).unwrap().is_some() {
        pool.create_snap(new, origin).unwrap();
    } else {
        pool.create_thin(new).unwrap();
    }
    for _ in 0..6 {
        let first = rng.random_range(0..60);
        let length = rng.random_range(1..3 * BLOCK) as usize;
        pool.write(new, first * BLOCK, &vec![number as u8 + 1; length]).unwrap();
    }
    let first = rng.random_range(0..60);
    pool.discard(new, first * BLOCK, rng.random_range(0..20) * BLOCK).unwrap();
    match number % 5 {
        1 => pool.delete(id(rng.random_range(1..=number + 1))).unwrap_or(()),
        2 if pool.status().held_root.is_none() => pool.reserve_metadata_snap().unwrap(),
        4 if pool.status().held_root.is_some() => pool.release_metadata_snap().unwrap(),
        _ => {}
    }
    let id = pool.transaction_id();
    pool.apply(&[Operation::SetTransactionId { old: id, new: id + 1 }]).unwrap();
}

struct Workload {
    before: [MemoryDevice; 2],
    events: Vec<IoEvent>,
    /// What must be there from which event on.
    commits: Vec<(usize, Picture)>,
}

fn workload(rng: &mut StdRng, transactions: u64) -> Workload {
    let log = FaultLog::new();
    let before = [MemoryDevice::new(512 * 4096), MemoryDevice::new(400 * BLOCK)];
    let metadata = Arc::new(FaultDevice::new(before[METADATA].duplicate(), METADATA, log.clone()));
    let data = Arc::new(FaultDevice::new(before[DATA].duplicate(), DATA, log.clone()));
    let pool = Pool::format(metadata, data, BlockSize::from_bytes(BLOCK).unwrap()).unwrap();
    pool.create_thin(id(0)).unwrap();
    pool.commit().unwrap();
    let mut commits = vec![(log.len(), picture(&pool))];
    for number in 0..transactions {
        transaction(&pool, number, rng);
        commits.push((log.len(), picture(&pool)));
    }
    Workload { before, events: log.events(), commits }
}

fn fate(rng: &mut StdRng, cruelty: u32, event: &IoEvent) -> Fate {
    let length = match event {
        IoEvent::Write { bytes, .. } => bytes.len(),
        _ => 0,
    };
    match (cruelty, rng.random_range(0..4)) {
        (0, _) | (2, 0) => Fate::Lost,
        (1, _) | (2, 1) => Fate::Kept,
        _ => Fate::Torn(rng.random_range(0..=length / 512) * 512),
    }
}

#[test]
fn a_crash_at_any_write_leaves_a_whole_commit() {
    let mut rng = seeded();
    let work = workload(&mut rng, 12);
    let first = work.commits[0].0;
    for cut in first..=work.events.len() {
        for cruelty in 0..3 {
            let events = &work.events[..cut];
            let [metadata, data] = [METADATA, DATA].map(|device| {
                let image =
                    crash_image(&work.before[device], events, device, |event| fate(&mut rng, cruelty, event));
                Arc::new(image.unwrap())
            });
            check_all(&metadata, cut % 8 == 0 || cut == work.events.len());
            let pool = Pool::open(metadata.clone(), data.clone()).unwrap();
            let found = picture(&pool);
            let last = work.commits.iter().rposition(|(end, _)| *end <= cut).unwrap();
            // The commit under way may be there already, and the ones that a single step makes of its own.
            let exact = found == work.commits[last].1;
            let older = found.transaction_id < work.commits[last].1.transaction_id;
            assert!(!older, "cut {cut}: {} was acknowledged", work.commits[last].1.transaction_id);
            let newer = work.commits.get(last + 1).is_some_and(|(_, next)| found == *next);
            let between = found.transaction_id == work.commits[last].1.transaction_id;
            assert!(exact || newer || between, "cut {cut}");
            if exact || newer {
                go_on(&pool, &metadata);
            } else {
                // A commit that the pool made by itself: what the last one had is there, but for what was deleted since.
                let before = &work.commits[last].1;
                let kept = |device: &&DeviceInfo| found.devices.iter().any(|found| found.id == device.id);
                assert!(before.devices.iter().filter(kept).count() + 1 >= before.devices.len());
            }
        }
    }
}

/// A pool that came back is as good as any.
fn go_on(pool: &Pool, metadata: &Arc<MemoryDevice>) {
    let devices = pool.devices().unwrap();
    let last = devices.last().unwrap().id;
    pool.create_snap(id(1000), last).unwrap();
    pool.write(id(1000), 0, &[200; 2 * 65_536]).unwrap();
    pool.commit().unwrap();
    check_all(metadata, false);
}
