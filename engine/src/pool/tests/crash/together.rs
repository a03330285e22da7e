//! Crashes while many threads write and commit, each its own device: what a commit told one thread must hold, whoever
//! carried that commit out.
//!
//! The seed repeats what each thread does, not how the threads take turns.

use std::ops::Range;
use std::sync::Arc;
use std::thread;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::super::history::recording::{DATA, METADATA};
use super::super::history::stamps::{self, GRANULE, GRANULES};
use super::super::{BLOCK, check_all, id, seeded};
use super::Loss;
use crate::{BlockSize, CrashReplay, FaultDevice, FaultLog, MemoryDevice, Pool};

const THREADS: u64 = 4;
const BLOCKS: u64 = 6;
const ROUNDS: u32 = 40;

/// What one thread did and was told.
struct Diary {
    device: u64,
    /// Granules of the device that were written, or discarded; by number, from 1 on, which is the stamp of a write.
    changes: Vec<(Range<u64>, bool)>,
    /// Snapshots, with the number of the last change before each.
    snapshots: Vec<(u64, u32)>,
    /// Events when a commit had returned, and the changes and snapshots before it.
    commits: Vec<(usize, u32, usize)>,
    /// For each granule of the device the numbers of its changes, and what each left there.
    stamps: Vec<Vec<(u32, u32)>>,
}

impl Diary {
    fn keep(device: u64, pool: &Pool, log: &FaultLog, mut rng: StdRng) -> Self {
        let stamps = vec![Vec::new(); (BLOCKS * GRANULES) as usize];
        let mut diary = Self { device, changes: vec![], snapshots: vec![], commits: vec![], stamps };
        for number in 1..=ROUNDS {
            if rng.random_bool(0.15) {
                let first = rng.random_range(0..BLOCKS - 1);
                pool.discard(id(device), first * BLOCK, 2 * BLOCK).unwrap();
                diary.changes.push((first * GRANULES..(first + 2) * GRANULES, true));
            } else {
                let length = rng.random_range(1..2 * GRANULES);
                let first = rng.random_range(0..BLOCKS * GRANULES - length);
                let granules = first..first + length;
                let bytes = stamps::bytes(granules.clone(), number);
                pool.write(id(device), first * GRANULE, &bytes).unwrap();
                diary.changes.push((granules, false));
            }
            if rng.random_bool(0.2) {
                let snapshot = 1_000 * (device + 1) + u64::from(number);
                pool.create_snap(id(snapshot), id(device)).unwrap();
                diary.snapshots.push((snapshot, number));
            }
            if rng.random_bool(0.6) {
                pool.commit().unwrap();
                diary.commits.push((log.len(), number, diary.snapshots.len()));
            }
        }
        for (number, (granules, discarded)) in (1..).zip(&diary.changes) {
            let stamp = if *discarded { 0 } else { number };
            granules.clone().for_each(|granule| diary.stamps[granule as usize].push((number, stamp)));
        }
        diary
    }

    /// Holds what a crash at `cut` left against what this thread was told by then.
    fn check(&self, pool: &Pool, cut: usize) -> Result<(), String> {
        let told = self.commits.iter().rfind(|(events, ..)| *events <= cut);
        let (_, written, snapshots) = told.copied().unwrap_or((0, 0, 0));
        self.check_device(pool, self.device, written, u32::MAX)?;
        for (number, (snapshot, last)) in self.snapshots.iter().enumerate() {
            let exists = pool.device(id(*snapshot)).unwrap().is_some();
            if exists {
                self.check_device(pool, *snapshot, *last, *last)?;
            } else if number < snapshots {
                return Err(format!("snapshot {snapshot} was promised"));
            }
        }
        Ok(())
    }

    /// Every granule holds what the writes up to `least` left there, or a later one up to `most`.
    fn check_device(&self, pool: &Pool, device: u64, least: u32, most: u32) -> Result<(), String> {
        for block in 0..BLOCKS {
            let mut bytes = vec![0xEE; BLOCK as usize];
            pool.read(id(device), block * BLOCK, &mut bytes).map_err(|error| error.to_string())?;
            for (within, found) in (0..).zip(stamps::stamps(block, &bytes)?) {
                let stamps = &self.stamps[(block * GRANULES + within) as usize];
                let (old, new) = stamps.split_at(stamps.partition_point(|(number, _)| *number <= least));
                let old = old.last().map_or(0, |(_, stamp)| *stamp);
                let mut new = new.iter().filter(|(number, _)| *number <= most);
                if found != old && !new.any(|(_, stamp)| *stamp == found) {
                    return Err(format!(
                        "device {device}, block {block}, granule {within}: {found}, not {old} of {stamps:?}"
                    ));
                }
            }
        }
        Ok(())
    }
}

#[test]
fn what_a_shared_commit_told_each_thread_survives_a_crash() {
    let mut rng = seeded();
    let log = FaultLog::new();
    let before = [MemoryDevice::new(512 * 4096), MemoryDevice::new(1_200 * BLOCK)];
    let [metadata, data] = [METADATA, DATA]
        .map(|number| Arc::new(FaultDevice::new(before[number].duplicate(), number, log.clone())));
    let pool = Pool::format(metadata, data, BlockSize::from_bytes(BLOCK).unwrap()).unwrap();
    (0..THREADS).for_each(|device| pool.create_thin(id(device)).unwrap());
    pool.commit().unwrap();
    let begin = log.len();
    let diaries: Vec<_> = thread::scope(|scope| {
        let threads = (0..THREADS).map(|device| {
            let (pool, log, seed) = (&pool, &log, rng.random());
            scope.spawn(move || Diary::keep(device, pool, log, StdRng::seed_from_u64(seed)))
        });
        let threads: Vec<_> = threads.collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    let events = log.events();
    let mut replay = CrashReplay::new(&before, &events);
    let mut crashes = 0;
    loop {
        if replay.position() >= begin {
            for loss in [Loss::Everything, Loss::random(&mut rng)] {
                crashes += 1;
                let [metadata, data] = loss.images(&replay);
                check_all(&metadata, crashes % 50 == 0);
                let pool = Pool::open(metadata, data).unwrap();
                for diary in &diaries {
                    let checked = diary.check(&pool, replay.position());
                    checked.unwrap_or_else(|error| {
                        panic!("crash after {} events, {loss:?} lost: {error}", replay.position())
                    });
                }
            }
        }
        if !replay.advance().unwrap() {
            break;
        }
    }
    let commits: usize = diaries.iter().map(|diary| diary.commits.len()).sum();
    println!("{} events, {commits} commits were acknowledged, {crashes} crashes", events.len() - begin);
    assert!(commits > 20);
}
