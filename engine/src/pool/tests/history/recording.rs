//! A pool, its model, and everything that was done to the two.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::operation::{Mix, Op};
use super::picture::{Picture, Tolerance, check_cell};
use super::state::{State, Writes, fresh};
use crate::{
    BlockDevice, BlockSize, CrashReplay, FaultDevice, FaultLog, IoEvent, MemoryDevice, Pool, PoolError,
    PoolMode,
};

pub(crate) const METADATA: usize = 0;
pub(crate) const DATA: usize = 1;

/// What is done to a pool is recorded here, step by step.
pub(crate) struct Recorder {
    pub(crate) pool: Pool,
    pub(crate) log: Arc<FaultLog>,
    pub(crate) devices: [Arc<FaultDevice<MemoryDevice>>; 2],
    before: [MemoryDevice; 2],
    steps: Steps,
}

/// The states that a pool was in.
#[derive(Clone)]
struct Steps {
    /// After each step, with how many events had been recorded by then. The first is what everything began with.
    states: Vec<(State, usize)>,
    /// Steps whose states were acknowledged.
    acknowledged: Vec<usize>,
    writes: Writes,
    /// After a failed flush of the data: the last step before it that was acknowledged. What was written since may be lost
    /// for good.
    floor: Option<usize>,
}

/// A finished recording.
pub(crate) struct Recording {
    pub(crate) before: [MemoryDevice; 2],
    pub(crate) events: Vec<IoEvent>,
    steps: Steps,
}

/// How much of the data is looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Look {
    Everything,
    /// What was written lately, and one in so many of the other blocks.
    Sample(u32),
}

impl Recorder {
    pub(crate) fn format(metadata_blocks: u64, data_blocks: u64) -> Self {
        let devices =
            [MemoryDevice::new(metadata_blocks * 4096), MemoryDevice::new(data_blocks * super::super::BLOCK)];
        let block_size = BlockSize::from_bytes(super::super::BLOCK).unwrap();
        let log = FaultLog::new();
        let recorded = [METADATA, DATA]
            .map(|number| Arc::new(FaultDevice::new(devices[number].duplicate(), number, log.clone())));
        let pool = Pool::format(recorded[METADATA].clone(), recorded[DATA].clone(), block_size).unwrap();
        Self::new(pool, log, recorded, devices, State::new(data_blocks))
    }

    /// Goes on with a pool that is in a known state.
    pub(crate) fn open(before: [MemoryDevice; 2], state: State) -> Self {
        Self::open_with(before, state, FaultLog::new()).unwrap()
    }

    /// The same, with faults from the start.
    pub(crate) fn open_with(
        before: [MemoryDevice; 2],
        state: State,
        log: Arc<FaultLog>,
    ) -> Result<Self, PoolError> {
        let recorded = [METADATA, DATA]
            .map(|number| Arc::new(FaultDevice::new(before[number].duplicate(), number, log.clone())));
        let pool = Pool::open(recorded[METADATA].clone(), recorded[DATA].clone())?;
        Ok(Self::new(pool, log, recorded, before, state))
    }

    fn new(
        pool: Pool,
        log: Arc<FaultLog>,
        devices: [Arc<FaultDevice<MemoryDevice>>; 2],
        before: [MemoryDevice; 2],
        state: State,
    ) -> Self {
        let steps = Steps {
            states: vec![(state, log.len())],
            acknowledged: vec![0],
            writes: Writes::new(),
            floor: None,
        };
        Self { pool, log, devices, before, steps }
    }

    pub(crate) fn state(&self) -> &State {
        &self.steps.states.last().unwrap().0
    }

    /// One step. What the pool refuses or fails at leaves the state as it was, but for blocks that were being written in
    /// place.
    pub(crate) fn step(&mut self, op: &Op) -> Result<(), PoolError> {
        let (step, stamp, passed) = (self.steps.states.len(), fresh(), self.log.len());
        let mut state = self.state().clone();
        if let Op::Grow(blocks) = op {
            // Not the pool's work, and so its faults are not the pool's either: a failed flush would be told to others.
            self.log.pause(true);
            self.devices[DATA].resize(blocks * super::super::BLOCK).unwrap();
            self.devices[DATA].flush().unwrap();
            self.log.pause(false);
        }
        let done = op.perform(&self.pool, &state, stamp);
        match done {
            Ok(()) => state.apply(op, step, stamp, &mut self.steps.writes),
            Err(_) => self.settle(op, &mut state, step, stamp),
        }
        let is_lost =
            |event: &IoEvent| matches!(event, IoEvent::FailedFlush { device, .. } if *device == DATA);
        if self.log.events_after(passed).iter().any(is_lost) {
            self.steps.floor = self.steps.floor.or(self.steps.acknowledged.last().copied());
        }
        self.steps.states.push((state, self.log.len()));
        if done.is_ok() && op.acknowledges() {
            self.steps.acknowledged.push(step);
        }
        done
    }

    /// After a failure: it is seen, not assumed, how far a write has come, and whether the pool has the change after all.
    fn settle(&mut self, op: &Op, state: &mut State, step: usize, stamp: u32) {
        state.apply_failed(op, step, stamp, &mut self.steps.writes);
        let mut changed = state.clone();
        changed.apply(op, step, stamp, &mut Writes::new());
        if !matches!(self.pool.status().mode, PoolMode::Write | PoolMode::OutOfDataSpace) {
            // It is at an earlier state by now and stays there; or at this one, when only the report of it failed.
            self.steps.states.push((changed, self.log.len()));
            return;
        }
        self.log.pause(true);
        let picture = Picture::take(&self.pool);
        match (picture.matches(state), picture.matches(&changed)) {
            (Ok(places), _) => {
                let since = step.saturating_sub(1);
                let mut steps = Steps { floor: None, ..self.steps.clone() };
                steps.states.push((state.clone(), self.log.len()));
                // Nothing but this write may differ.
                let look = Look::Sample(50);
                let mut rng = StdRng::seed_from_u64(u64::from(stamp));
                let found = steps.check_data(&self.pool, &places, since..=step, look, &mut rng);
                *state = found.unwrap_or_else(|error| panic!("after the failed {op:?}: {error}"));
            }
            (Err(_), Ok(_)) => *state = changed,
            (Err(one), Err(other)) => panic!("after the failed {op:?}: {one}; {other}"),
        }
        self.log.pause(false);
    }

    /// Holds the pool as it is against the model.
    pub(crate) fn verify_live(&self, look: Look, rng: &mut StdRng) -> Result<(), String> {
        let last = self.steps.states.len() - 1;
        let places = Picture::take(&self.pool).matches(self.state())?;
        let exact = Steps { floor: None, ..self.steps.clone() };
        exact.check_data(&self.pool, &places, last..=last, look, rng).map(|_| ())
    }

    /// Holds the pool against all states that it may have gone back to.
    pub(crate) fn verify_given_up(&self, look: Look, rng: &mut StdRng) -> Result<State, String> {
        self.steps.verify(&self.pool, self.log.len(), look, rng)
    }

    /// Random operations, until `enough` says so.
    pub(crate) fn run(&mut self, mix: &Mix, rng: &mut StdRng, mut enough: impl FnMut(&Self) -> bool) {
        let mut full = false;
        while !enough(self) {
            let state = self.state();
            let op = if full { mix.remedy(state, rng) } else { mix.random_op(state, rng) };
            full = match self.step(&op) {
                Ok(()) => false,
                Err(PoolError::NoSpaceData { .. } | PoolError::NoSpaceMetadata { .. }) => true,
                Err(error) => panic!("{op:?}: {error}"),
            };
        }
    }

    /// Ends the recording; only what happens from here on is of interest to the next one.
    pub(crate) fn finish(self) -> Recording {
        Recording { before: self.before, events: self.log.events(), steps: self.steps }
    }

    /// The devices as they are now.
    pub(crate) fn disks(&self) -> [MemoryDevice; 2] {
        [METADATA, DATA].map(|number| self.devices[number].inner().duplicate())
    }
}

impl Recording {
    pub(crate) fn replay(&self) -> CrashReplay<'_> {
        CrashReplay::new(&self.before, &self.events)
    }

    /// Number of events of the first state.
    pub(crate) fn begin(&self) -> usize {
        self.steps.states[0].1
    }

    /// Holds a pool that was opened after a crash at `cut` against what was promised then. The state that it is in.
    pub(crate) fn verify(
        &self,
        pool: &Pool,
        cut: usize,
        look: Look,
        rng: &mut StdRng,
    ) -> Result<State, String> {
        self.steps.verify(pool, cut, look, rng)
    }
}

impl Steps {
    fn verify(&self, pool: &Pool, cut: usize, look: Look, rng: &mut StdRng) -> Result<State, String> {
        let picture = Picture::take(pool);
        let event_of = |step: usize| self.states[step].1;
        let acknowledged = self.acknowledged.iter().rfind(|step| event_of(**step) <= cut);
        let acknowledged = *acknowledged.ok_or("nothing was acknowledged")?;
        // The step under way is the first one that was not at its end.
        let ended = self.states.partition_point(|(_, event)| *event <= cut);
        let last = ended.min(self.states.len() - 1);
        let mut errors = Vec::new();
        for step in acknowledged..=last {
            let checked = picture.matches(&self.states[step].0);
            match checked.and_then(|places| self.check_data(pool, &places, step..=last, look, rng)) {
                Ok(state) => return Ok(state),
                Err(error) => errors.push(format!("step {step}: {error}")),
            }
        }
        errors.dedup();
        Err(format!("none of the states {acknowledged} to {last}:\n{}", errors.join("\n")))
    }

    /// The data of the state of the first of `steps`, or what the later ones wrote in place.
    fn check_data(
        &self,
        pool: &Pool,
        places: &HashMap<u32, u64>,
        steps: std::ops::RangeInclusive<usize>,
        look: Look,
        rng: &mut StdRng,
    ) -> Result<State, String> {
        let mut state = self.states[*steps.start()].0.clone();
        let since = self.floor.map_or(steps.start() + 1, |floor| floor + 1);
        let floor = self.floor.map(|floor| &self.states[floor].0);
        let floor: HashMap<_, _> =
            floor.iter().flat_map(|state| state.cells()).map(|(.., cell)| (cell.id, &cell.stamps)).collect();
        let mut seen = HashSet::new();
        let mut found = HashMap::new();
        let mut unseen = state.cells().filter(|(.., cell)| seen.insert(cell.id)).collect::<Vec<_>>();
        // Small trees come first anyway; the order makes the draws of a sample the same for a seed.
        unseen.sort_unstable_by_key(|(device, block, _)| (*device, *block));
        for (device, block, cell) in unseen {
            let writes = self.writes.get(&cell.id).map_or(&[][..], Vec::as_slice);
            let tolerance = Tolerance {
                writes,
                steps: since..=*steps.end(),
                other: floor.get(&cell.id).map(|stamps| stamps.as_ref()),
            };
            let recent = writes.last().is_some_and(|written| written.step + 20 > *steps.start());
            if let Look::Sample(one_in) = look
                && !recent
                && rng.random_range(0..one_in) > 0
            {
                continue;
            }
            let live = state.devices.get(&device).and_then(|device| device.cells.get(&block));
            let live = live.is_some_and(|live| live.id == cell.id);
            let stamps = check_cell(pool, (device, block), places[&cell.id], &cell.stamps, &tolerance, live)?;
            found.insert(cell.id, stamps);
        }
        state.resolve(&found);
        Ok(state)
    }
}
