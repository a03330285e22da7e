//! Failure of the Nth read, write, flush or discard of either device, for every N, once and from then on.
//!
//! The pool goes on rightly, or it is read-only or failed and says so. Nothing that was acknowledged is lost, not even when
//! the power fails as well.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::history::operation::{Mix, Op, fill};
use super::history::recording::{DATA, Look, METADATA, Recorder, Recording};
use super::history::state::State;
use super::{check_all, id, seeded};
use crate::{Fault, FaultLog, IoKind, MemoryDevice, Pool, PoolError, PoolMode, Remains};

/// Operations of a run in which something fails.
const STEPS: usize = 24;
/// Discards that are passed down are rare.
const MANY_STEPS: usize = 150;

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Outcome {
    NotOpened,
    WentOn,
    ReadOnly,
    Failed,
}

/// What all runs begin with: two devices that share two hundred blocks, in a tree of two levels.
fn beginning() -> ([MemoryDevice; 2], State) {
    let mut recorder = Recorder::format(512, 420);
    for op in fill(0, 0..260).chain([Op::CreateSnap { new: 1, origin: 0 }, Op::Commit]) {
        recorder.step(&op).unwrap();
    }
    (recorder.disks(), recorder.state().clone())
}

const MIX: Mix = Mix { devices: 6, blocks: 400, data_blocks: 480 };

fn run(begin: &([MemoryDevice; 2], State), fault: Fault, steps: usize, seed: u64) -> (Outcome, u64) {
    let mut rng = StdRng::seed_from_u64(seed);
    let log = FaultLog::new();
    log.inject(fault);
    let before = [METADATA, DATA].map(|number| begin.0[number].duplicate());
    let mut recorder = match Recorder::open_with(before, begin.1.clone(), log.clone()) {
        Ok(recorder) => recorder,
        Err(error) => {
            assert!(matches!(error, PoolError::Metadata(_)), "{error}");
            assert!(log.is_empty(), "a pool that could not be opened was written to");
            return (Outcome::NotOpened, log.strikes());
        }
    };
    let outcome = run_into_fault(&mut recorder, steps, &mut rng);
    log.heal();
    match outcome {
        Outcome::WentOn => goes_on(&mut recorder, &mut rng),
        Outcome::ReadOnly => refuses_changes(&recorder, &mut rng),
        Outcome::Failed => refuses_everything(&recorder),
        Outcome::NotOpened => {}
    }
    let strikes = log.strikes();
    survives_a_crash(&recorder.finish(), &mut rng);
    (outcome, strikes)
}

/// Goes on until the pool gives up, or long enough.
fn run_into_fault(recorder: &mut Recorder, steps: usize, rng: &mut StdRng) -> Outcome {
    let mut full = false;
    for _ in 0..steps {
        let op = if full { MIX.remedy(recorder.state(), rng) } else { MIX.random_op(recorder.state(), rng) };
        let done = recorder.step(&op);
        full = matches!(done, Err(PoolError::NoSpaceData { .. } | PoolError::NoSpaceMetadata { .. }));
        match recorder.pool.status().mode {
            PoolMode::Write | PoolMode::OutOfDataSpace => {}
            PoolMode::ReadOnly => return Outcome::ReadOnly,
            PoolMode::Fail => return Outcome::Failed,
            PoolMode::OutOfMetadataSpace => {}
        }
        if let Err(error) = done {
            let expected = full || matches!(error, PoolError::Io { .. } | PoolError::Metadata(_));
            assert!(expected, "{op:?}: {error:?}");
        }
    }
    Outcome::WentOn
}

/// The device works again, and so does the pool.
fn goes_on(recorder: &mut Recorder, rng: &mut StdRng) {
    recorder.verify_live(Look::Sample(10), rng).unwrap();
    let mut steps = 0;
    recorder.run(&MIX, rng, |_| {
        steps += 1;
        steps > 5
    });
    recorder.step(&Op::Commit).unwrap();
    recorder.verify_live(Look::Sample(10), rng).unwrap();
    check_all(recorder.devices[METADATA].inner(), rng.random_range(0..20) == 0);
}

fn refuses_changes(recorder: &Recorder, rng: &mut StdRng) {
    let pool = &recorder.pool;
    let is_refused = |done| matches!(done, Err(PoolError::ReadOnlyMode { .. }));
    assert!(is_refused(pool.commit()));
    assert!(is_refused(pool.create_thin(id(77))));
    assert!(is_refused(pool.set_transaction_id(pool.transaction_id(), 1)));
    assert!(is_refused(pool.reserve_metadata_snap()));
    let status = pool.status();
    let line = status.to_string();
    assert!(line.contains(" ro "), "{line}");
    assert_eq!(line.contains(" needs_check "), status.needs_check, "{line}");
    let state = recorder.verify_given_up(Look::Sample(10), rng).unwrap();
    if let Some(&device) = state.devices.keys().next() {
        assert!(is_refused(pool.delete(id(device))));
        // Nothing is mapped there: what is mapped may be written in place.
        assert!(is_refused(pool.write(id(device), (MIX.blocks + 1) * super::BLOCK, &[1])));
    }
}

fn refuses_everything(recorder: &Recorder) {
    let pool = &recorder.pool;
    assert_eq!(pool.status().to_string(), "Fail");
    assert!(matches!(pool.commit(), Err(PoolError::Failed)));
    assert!(matches!(pool.create_thin(id(77)), Err(PoolError::Failed)));
    assert!(matches!(pool.read(id(0), 0, &mut [0]), Err(PoolError::Failed)));
    assert!(matches!(pool.write(id(0), 0, &[0]), Err(PoolError::Failed)));
    assert!(matches!(pool.devices(), Err(PoolError::Failed)));
}

/// Opened again without a crash, and after a crash that took whatever no flush had covered.
fn survives_a_crash(recording: &Recording, rng: &mut StdRng) {
    let mut replay = recording.replay();
    while replay.advance().unwrap() {}
    let cut = replay.position();
    let seed = rng.random();
    for loss in 0..3 {
        let mut chance = StdRng::seed_from_u64(seed);
        let images = replay.crash(|_, _, events| match loss {
            0 => events.len(),
            1 => 0,
            _ => chance.random_range(0..=events.len()),
        });
        let [metadata, data]: [_; 2] = images.unwrap().try_into().unwrap();
        let metadata = Arc::new(metadata);
        check_all(&metadata, rng.random_range(0..60) == 0);
        let pool = Pool::open(metadata, Arc::new(data)).unwrap();
        let found = recording.verify(&pool, cut, Look::Sample(20), rng);
        found.unwrap_or_else(|error| panic!("loss {loss}: {error}"));
    }
}

/// All N for one kind of operation of one device.
fn each(kind: &'static [IoKind], device: usize, steps: usize) {
    let mut rng = seeded();
    let begin = beginning();
    let mut outcomes = BTreeMap::new();
    for count in [1, u64::MAX, 1] {
        let seed = rng.random();
        for after in 0.. {
            let all = [Remains::Nothing, Remains::Half, Remains::Everything];
            let remains = all[rng.random_range(0..3)];
            let error = if rng.random() { io::ErrorKind::Other } else { io::ErrorKind::StorageFull };
            let fault = Fault { device: Some(device), error, remains, ..Fault::new(kind, after, count) };
            println!("{fault:?}");
            let (outcome, strikes) = run(&begin, fault, steps, seed);
            if strikes == 0 {
                break;
            }
            *outcomes.entry(outcome).or_insert(0) += 1;
        }
    }
    println!("{kind:?} of device {device}: {outcomes:?}");
    let runs: usize = outcomes.values().sum();
    assert!(runs > 2, "nothing failed");
}

#[test]
fn every_read_of_metadata_may_fail() {
    each(&[IoKind::Read], METADATA, STEPS);
}

#[test]
fn every_read_of_data_may_fail() {
    each(&[IoKind::Read], DATA, STEPS);
}

#[test]
fn every_write_of_metadata_may_fail() {
    each(&[IoKind::Write], METADATA, STEPS);
}

#[test]
fn every_write_of_data_may_fail() {
    each(&[IoKind::Write], DATA, STEPS);
}

#[test]
fn every_flush_of_metadata_may_fail() {
    each(&[IoKind::Flush], METADATA, STEPS);
}

#[test]
fn every_flush_of_data_may_fail() {
    each(&[IoKind::Flush], DATA, STEPS);
}

#[test]
fn every_discard_of_data_may_fail() {
    each(&[IoKind::Discard], DATA, MANY_STEPS);
}
