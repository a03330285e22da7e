//! Reading packs back, in ascending order, on a few threads.
//!
//! The threads share a [`Planner`], which hands out stretches of packs of a few MiB in order, so that the disk is read
//! from front to back, and which keeps to the rate. Each thread reads its stretch and recomputes the ids in it; while it
//! computes, the next stretches are on their way. Memory: a stretch a thread, and the lists of the few packs in
//! work.

use std::{
    collections::{BTreeSet, HashMap, VecDeque},
    ops::Range,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use rand::{Rng as _, SeedableRng as _, rngs::StdRng};
use tokio::sync::mpsc;

use super::content::Checker;
use crate::store::{
    AuditEntry, DamagedRecord, Kind, PackAudit, RecordMarks, RecordPlace, Store, StoreError, StoredRecord,
    spans,
};

/// Packs whose own index is of no use: so many are looked up in one pass over the chunk index.
const UNTOLD_AT_A_TIME: usize = 64;
/// While it keeps to a rate, a thread looks this often whether it is to end.
const PATIENCE: Duration = Duration::from_millis(50);
/// Reports that wait to be told.
const REPORTS: usize = 256;

/// What is to be read back.
pub(super) struct Task {
    pub(super) store: Store,
    /// `None`: every record.
    pub(super) wanted: Option<RecordMarks>,
    /// Share of them, and what they are drawn with.
    pub(super) sample: f64,
    pub(super) seed: u64,
    /// In ascending order.
    pub(super) packs: VecDeque<u32>,
    /// 0: as fast as it goes.
    pub(super) bytes_per_second: u64,
    pub(super) chunk_bytes: u32,
    /// Set from outside when nobody is interested any more.
    pub(super) ended: Arc<AtomicBool>,
}

/// What was found, in no particular order but that a pack's end comes after its records.
#[derive(Debug)]
pub(super) enum Report {
    /// A pack is damaged outside its records, or as a whole.
    Pack { pack: u32, reason: String },
    /// A record is damaged. Not its place but its pack is, if that is known to be lost whenever the repository is opened;
    /// that another one lies there may not be.
    Record { damaged: DamagedRecord, pack_lost: bool },
    /// A record in quarantine reads well.
    Sound(RecordPlace),
    /// A stretch was read.
    Progress(Progress),
    /// A pack was read. `sound`: whole, and all of it is as it was written.
    Done { pack: u32, sound: bool },
    /// The run cannot go on.
    Failed(StoreError),
}

/// What was read in a stretch.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct Progress {
    pub(super) chunks: u64,
    pub(super) map_nodes: u64,
    /// Of the chunks that are good.
    pub(super) plain_bytes: u64,
    pub(super) stored_bytes: u64,
    /// Chunks that were not drawn.
    pub(super) left_out: u64,
}

/// Reads everything of a task. Reports end when all is read or the receiver is dropped.
pub(super) fn read(task: Task) -> mpsc::Receiver<Report> {
    let (reports, receiver) = mpsc::channel(REPORTS);
    tokio::task::spawn_blocking(move || {
        // Two more than processors, so that none idles while threads wait for the disk.
        let threads = thread::available_parallelism().map_or(1, usize::from) + 2;
        let planner = Planner::new(task, reports);
        let planner = &planner;
        thread::scope(|scope| {
            for _ in 0..threads {
                scope.spawn(move || planner.work());
            }
        });
    });
    receiver
}

/// Records of a pack that are read at once: which of its work.
type Stretch = (Arc<Work>, Range<usize>);

/// A pack in work.
struct Work {
    audit: PackAudit,
    entries: Vec<AuditEntry>,
    /// All its records are in `entries`.
    whole: bool,
    /// Stretches that are not read yet.
    left: AtomicUsize,
    sound: AtomicBool,
}

struct State {
    packs: VecDeque<u32>,
    random: StdRng,
    current: Option<(Arc<Work>, VecDeque<Range<usize>>)>,
    /// Packs that cannot tell what is in them.
    untold: VecDeque<PackAudit>,
    /// What the chunk index says of some of them.
    told: HashMap<u32, Vec<AuditEntry>>,
    started: Instant,
    given_bytes: u64,
}

struct Planner {
    store: Store,
    wanted: Option<RecordMarks>,
    sample: f64,
    bytes_per_second: u64,
    chunk_bytes: u32,
    ended: Arc<AtomicBool>,
    reports: mpsc::Sender<Report>,
    state: Mutex<State>,
}

impl Planner {
    fn new(task: Task, reports: mpsc::Sender<Report>) -> Self {
        let Task { store, wanted, sample, seed, packs, bytes_per_second, chunk_bytes, ended } = task;
        let state = State {
            packs,
            random: StdRng::seed_from_u64(seed),
            current: None,
            untold: VecDeque::new(),
            told: HashMap::new(),
            started: Instant::now(),
            given_bytes: 0,
        };
        Self {
            store,
            wanted,
            sample,
            bytes_per_second,
            chunk_bytes,
            ended,
            reports,
            state: Mutex::new(state),
        }
    }

    /// Tells of something; when nobody listens, all threads end.
    fn report(&self, report: Report) {
        if self.reports.blocking_send(report).is_err() {
            self.ended.store(true, Ordering::Release);
        }
    }

    fn has_ended(&self) -> bool {
        self.ended.load(Ordering::Acquire)
    }

    /// What each thread does.
    fn work(&self) {
        let mut checker = match Checker::new(self.chunk_bytes) {
            Ok(checker) => checker,
            Err(error) => {
                tracing::error!(%error, "cannot prepare to decompress");
                return self.fail(StoreError::Closed);
            }
        };
        while !self.has_ended() {
            match self.next() {
                Ok(Some((work, span))) => self.stretch(&work, span, &mut checker),
                Ok(None) => return,
                Err(error) => return self.fail(error),
            }
        }
    }

    fn fail(&self, error: StoreError) {
        self.report(Report::Failed(error));
        self.ended.store(true, Ordering::Release);
    }

    /// The next stretch to read.
    fn next(&self) -> Result<Option<Stretch>, StoreError> {
        let mut state = self.state.lock();
        loop {
            if self.has_ended() {
                return Ok(None);
            }
            if let Some((work, spans)) = &mut state.current {
                if let Some(span) = spans.pop_front() {
                    let work = Arc::clone(work);
                    let records = work.entries.get(span.clone()).unwrap_or_default();
                    let bytes = records.iter().map(|entry| entry.location.len()).sum::<u64>();
                    self.wait_for_turn(&mut state, bytes);
                    return Ok(Some((work, span)));
                }
                state.current = None;
            }
            if !self.open_next(&mut state)? {
                return Ok(None);
            }
        }
    }

    /// Keeps to the rate. The others wait for the lock meanwhile.
    fn wait_for_turn(&self, state: &mut State, bytes: u64) {
        if self.bytes_per_second > 0 {
            let due = Duration::from_secs_f64(state.given_bytes as f64 / self.bytes_per_second as f64);
            while let Some(early) = due.checked_sub(state.started.elapsed())
                && !early.is_zero()
                && !self.has_ended()
            {
                thread::sleep(early.min(PATIENCE));
            }
        }
        state.given_bytes = state.given_bytes.saturating_add(bytes);
    }

    /// Takes up the next pack. False if there is none.
    fn open_next(&self, state: &mut State) -> Result<bool, StoreError> {
        if let Some(number) = state.packs.pop_front() {
            // `None`: collected meanwhile.
            let Some(audit) = self.store.audit(number)? else { return Ok(true) };
            for problem in &audit.problems {
                if self.store.audit_is_current(number)? {
                    self.report(Report::Pack { pack: number, reason: problem.to_string() });
                }
            }
            match audit.entries {
                None => state.untold.push_back(audit),
                Some(_) => self.take_up(state, audit),
            }
            return Ok(true);
        }
        if state.told.is_empty() && !state.untold.is_empty() {
            let numbers: BTreeSet<u32> =
                state.untold.iter().take(UNTOLD_AT_A_TIME).map(|audit| audit.number).collect();
            let mut indexed = self.store.indexed(&numbers)?;
            state.told = numbers
                .into_iter()
                .map(|number| (number, indexed.remove(&number).unwrap_or_default()))
                .collect();
        }
        let Some(mut audit) = state.untold.pop_front() else { return Ok(false) };
        audit.entries = state.told.remove(&audit.number);
        self.take_up(state, audit);
        Ok(true)
    }

    fn take_up(&self, state: &mut State, mut audit: PackAudit) {
        let number = audit.number;
        let mut entries = audit.entries.take().unwrap_or_default();
        let all = entries.len();
        if let Some(wanted) = &self.wanted {
            entries.retain(|entry| wanted.contains(number, entry.location.ordinal));
        }
        let mut left_out = 0;
        if self.sample < 1.0 {
            entries.retain(|entry| {
                let drawn = state.random.random_bool(self.sample);
                left_out += u64::from(!drawn && entry.location.kind == Kind::Chunk);
                drawn
            });
        }
        if left_out > 0 {
            self.report(Report::Progress(Progress { left_out, ..Progress::default() }));
        }
        if let Some(error) = audit.unreadable() {
            let (reason, is_another) = (error.to_string(), matches!(error, StoreError::WrongPack { .. }));
            for entry in entries {
                let damaged = damaged(&entry, reason.clone());
                self.report(Report::Record { damaged, pack_lost: !is_another });
            }
            return self.report(Report::Done { pack: number, sound: false });
        }
        let spans: VecDeque<Range<usize>> = spans(&entries).into();
        if spans.is_empty() {
            return self.report(Report::Done { pack: number, sound: audit.sealed && all == 0 });
        }
        let sound = AtomicBool::new(audit.sealed);
        let (whole, left) = (entries.len() == all, AtomicUsize::new(spans.len()));
        state.current = Some((Arc::new(Work { audit, entries, whole, left, sound }), spans));
    }

    /// Reads and checks one stretch of a pack.
    fn stretch(&self, work: &Work, span: Range<usize>, checker: &mut Checker) {
        let records = work.entries.get(span).unwrap_or_default();
        let mut progress = Progress::default();
        for (entry, read) in records.iter().zip(work.audit.read(records)) {
            let location = &entry.location;
            progress.stored_bytes += location.len();
            progress.chunks += u64::from(location.kind == Kind::Chunk);
            progress.map_nodes += u64::from(location.kind == Kind::MapNode);
            let outcome = judge(read, checker)
                // A reading error, or a bit that flipped on the way, may not come again.
                .or_else(|_| judge(work.audit.read_again(entry), checker));
            match outcome {
                Ok(()) => {
                    if location.kind == Kind::Chunk {
                        progress.plain_bytes += u64::from(location.plain_len);
                    }
                    if self.store.is_quarantined(location) {
                        self.report(Report::Sound(location.place()));
                    }
                }
                Err(reason) => {
                    work.sound.store(false, Ordering::Release);
                    self.report(Report::Record { damaged: damaged(entry, reason), pack_lost: false });
                }
            }
            if self.wanted.is_none() && !work.audit.padding_is_zero(entry) {
                work.sound.store(false, Ordering::Release);
                let reason =
                    format!("the bytes that fill up the record at offset {} are not zero", location.offset);
                self.report(Report::Pack { pack: location.pack, reason });
            }
        }
        self.report(Report::Progress(progress));
        if work.left.fetch_sub(1, Ordering::AcqRel) == 1 {
            let sound = work.whole && work.sound.load(Ordering::Acquire);
            self.report(Report::Done { pack: work.audit.number, sound });
        }
    }
}

fn damaged(entry: &AuditEntry, reason: String) -> DamagedRecord {
    DamagedRecord { place: entry.location.place(), id: entry.id, kind: entry.location.kind, reason }
}

fn judge(read: Result<StoredRecord, StoreError>, checker: &mut Checker) -> Result<(), String> {
    let record = read.map_err(|error| error.to_string())?;
    checker.check(&record).map_err(|error| error.to_string())
}
