//! A crash at every write, flush and discard of a workload, on both devices at once, and again during recovery.
//!
//! See [`together`] for many threads that share commits.
//!
//! `THINBAK_CRASH_WRITES=N` makes the workloads N writes long together (2,000 when it is not set), `THINBAK_SEED=N` repeats
//! a run:
//!
//! ```text
//! THINBAK_CRASH_WRITES=100000 cargo test --release -p thinbak-engine --lib pool::tests::crash
//! ```

mod together;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::history::operation::{Mix, Op, fill};
use super::history::recording::{DATA, Look, METADATA, Recorder, Recording};
use super::history::state::State;
use super::{check_all, seeded};
use crate::{CrashReplay, IoEvent, MemoryDevice, Pool};

/// What a crash takes of what is not durable.
#[derive(Clone, Copy, Debug)]
enum Loss {
    Everything,
    Nothing,
    /// All of one device only.
    AllOf(usize),
    /// Whole writes, at random.
    Writes(u64),
    /// Each sector holds any of its states.
    Sectors(u64),
}

impl Loss {
    fn random(rng: &mut StdRng) -> Self {
        match rng.random_range(0..8) {
            0 => Self::AllOf(METADATA),
            1 => Self::AllOf(DATA),
            2..=4 => Self::Writes(rng.random()),
            _ => Self::Sectors(rng.random()),
        }
    }

    fn images(self, replay: &CrashReplay<'_>) -> [Arc<MemoryDevice>; 2] {
        let images = match self {
            Self::Everything => replay.crash(|_, _, _| 0),
            Self::Nothing => replay.crash(|_, _, events| events.len()),
            Self::AllOf(lost) => {
                replay.crash(|device, _, events| if device == lost { 0 } else { events.len() })
            }
            Self::Writes(seed) => replay.crash(|_, _, events| {
                let is_kept = |event: &usize| StdRng::seed_from_u64(seed ^ *event as u64).random_bool(0.5);
                events.iter().rposition(is_kept).map_or(0, |last| last + 1)
            }),
            Self::Sectors(seed) => {
                let mut rng = StdRng::seed_from_u64(seed);
                replay.crash(|_, _, events| rng.random_range(0..=events.len()))
            }
        };
        let images: Vec<_> = images.unwrap().into_iter().map(Arc::new).collect();
        images.try_into().unwrap()
    }
}

/// How thoroughly crashes are looked into.
#[derive(Clone, Copy, Debug)]
struct Effort {
    look: Look,
    /// One in so many crashes is shown to `thin_check`.
    thin_check: u32,
    /// After one in so many crashes the recovery is recorded, and cut at random places.
    recovery: Option<(u32, usize)>,
}

fn crash(
    recording: &Recording,
    replay: &CrashReplay<'_>,
    loss: Loss,
    effort: Effort,
    rng: &mut StdRng,
) -> ([Arc<MemoryDevice>; 2], State) {
    let images = loss.images(replay);
    let context = |error| format!("crash after {} events, {loss:?} lost: {error}", replay.position());
    check_all(&images[METADATA], rng.random_range(0..effort.thin_check) == 0);
    let pool = Pool::open(images[METADATA].clone(), images[DATA].clone())
        .map_err(|error| context(error.to_string()))
        .unwrap();
    let state = recording.verify(&pool, replay.position(), effort.look, rng).map_err(context).unwrap();
    (images, state)
}

/// Opening the pool again and its next operations are cut as well.
fn crash_in_recovery(
    (images, state): ([Arc<MemoryDevice>; 2], State),
    mix: &Mix,
    cuts: usize,
    effort: Effort,
    rng: &mut StdRng,
) -> usize {
    let before = images.map(|image| image.duplicate());
    let mut recorder = Recorder::open(before, state);
    let mut steps = 0;
    recorder.run(mix, rng, |_| {
        steps += 1;
        steps > 12
    });
    recorder.step(&Op::Commit).unwrap();
    let recording = recorder.finish();
    let mut positions: Vec<_> = (0..cuts).map(|_| rng.random_range(0..=recording.events.len())).collect();
    positions.sort_unstable();
    let mut replay = recording.replay();
    for position in positions {
        while replay.position() < position {
            replay.advance().unwrap();
        }
        let loss = Loss::random(rng);
        crash(&recording, &replay, loss, Effort { recovery: None, ..effort }, rng);
    }
    cuts
}

/// Cuts a recording after every event of `cuts`; the number of crashes, and of those in recoveries.
fn crash_at_each(
    recording: &Recording,
    cuts: std::ops::RangeInclusive<usize>,
    mix: &Mix,
    effort: Effort,
    seed: u64,
) -> (usize, usize) {
    let mut replay = recording.replay();
    let mut crashes = (0, 0);
    loop {
        if cuts.contains(&replay.position()) {
            let mut rng = StdRng::seed_from_u64(seed ^ replay.position() as u64);
            let mut losses = vec![Loss::Everything];
            if replay.is_exposed(METADATA) || replay.is_exposed(DATA) {
                losses.extend([Loss::Nothing, Loss::random(&mut rng)]);
            }
            for loss in losses {
                // What goes on from here must be known to the last byte: a sample cannot tell two states apart that differ in
                // one block.
                let recovery = effort.recovery.filter(|(one_in, _)| rng.random_range(0..*one_in) == 0);
                let look = if recovery.is_some() { Look::Everything } else { effort.look };
                let found = crash(recording, &replay, loss, Effort { look, ..effort }, &mut rng);
                crashes.0 += 1;
                if let Some((_, cuts)) = recovery {
                    crashes.1 += crash_in_recovery(found, mix, cuts, effort, &mut rng);
                }
            }
        }
        if replay.position() >= *cuts.end() || !replay.advance().unwrap() {
            return crashes;
        }
    }
}

fn writes(events: &[IoEvent]) -> usize {
    events.iter().filter(|event| matches!(event, IoEvent::Write { .. })).count()
}

fn until_written(budget: usize) -> impl FnMut(&Recorder) -> bool {
    let (mut passed, mut written) = (0, 0);
    move |recorder| {
        let events = recorder.log.events_after(passed);
        passed += events.len();
        written += writes(&events);
        written >= budget
    }
}

/// How many writes all workloads have together.
fn budget() -> usize {
    let given = std::env::var("THINBAK_CRASH_WRITES").ok().and_then(|writes| writes.parse().ok());
    given.unwrap_or(2_000)
}

/// Crashes at every event of a recording, in as many threads as there are processors.
fn crash_everywhere(recording: &Recording, mix: &Mix, effort: Effort, seed: u64) {
    let begun = std::time::Instant::now();
    let threads = thread::available_parallelism().map_or(1, usize::from);
    let (begin, end) = (recording.begin(), recording.events.len());
    let part = (end - begin) / threads + 1;
    let (first, second) = (AtomicUsize::new(0), AtomicUsize::new(0));
    thread::scope(|scope| {
        for thread in 0..threads {
            let (first, second) = (&first, &second);
            scope.spawn(move || {
                let cuts = begin + thread * part..=(begin + (thread + 1) * part - 1).min(end);
                let crashes = crash_at_each(recording, cuts, mix, effort, seed);
                first.fetch_add(crashes.0, Ordering::Relaxed);
                second.fetch_add(crashes.1, Ordering::Relaxed);
            });
        }
    });
    println!(
        "{} events, {} writes: {} crashes, {} more in recoveries, {:?}",
        end - begin,
        writes(&recording.events),
        first.into_inner(),
        second.into_inner(),
        begun.elapsed()
    );
}

#[test]
fn a_crash_at_any_write_leaves_what_was_promised() {
    let mut rng = seeded();
    let mix = Mix::NARROW;
    let budget = budget() / 2;
    let mut recorder = Recorder::format(256, 90);
    recorder.run(&mix, &mut rng, until_written(budget));
    recorder.step(&Op::Commit).unwrap();
    let recording = recorder.finish();
    let effort = Effort { look: Look::Everything, thin_check: 16, recovery: Some((24, 10)) };
    crash_everywhere(&recording, &mix, effort, rng.random());
}

#[test]
fn a_crash_while_trees_are_split_and_merged_leaves_what_was_promised() {
    let mut rng = seeded();
    let mix = Mix::WIDE;
    let budget = budget() / 2;
    let mut filled = Recorder::format(512, 1_400);
    for op in fill(0, 0..600).chain([Op::CreateSnap { new: 1, origin: 0 }, Op::Commit]) {
        filled.step(&op).unwrap();
    }
    let mut recorder = Recorder::open(filled.disks(), filled.state().clone());
    recorder.run(&mix, &mut rng, until_written(budget));
    recorder.step(&Op::Commit).unwrap();
    let recording = recorder.finish();
    let effort = Effort { look: Look::Sample(20), thin_check: 16, recovery: Some((24, 10)) };
    crash_everywhere(&recording, &mix, effort, rng.random());
}
