//! Reading everything back.
//!
//! 1. The map trees are walked: which records do the generations need, and are all of them there ([`Marker`]).
//! 2. The packs are read from front to back, and the id of every wanted record is recomputed ([`packs`]). What is
//!    damaged goes into quarantine.
//! 3. If anything is damaged or lost, the generations that need it are named ([`places`]).
//!
//! Memory follows the number of records by a bit each, and the number of damaged ones; the time of a run over
//! the whole repository follows the bytes on disk.

mod content;
mod ends;
mod known;
mod naming;
mod packs;
mod places;
#[cfg(test)]
mod tests;

use std::{
    collections::VecDeque,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use thinbak_proto::{ChunkId, Failed, FailureKind, v1};
use tokio::sync::mpsc;
use tonic::Status;
use uuid::Uuid;
use v1::verify_event::Event;

use crate::{
    ingest::{Geometry, tree_of},
    marking::Marker,
    metrics::Job,
    repository::{Pin, Repository, selector_of},
    store::{DamagedRecord, Kind, RecordMarks, StoreError},
};
pub(crate) use known::known;
use packs::{Report, Task};
pub(crate) use places::{Bad, Places};

/// Events that wait for the client.
const EVENTS: usize = 64;
const PROGRESS_EVERY: Duration = Duration::from_millis(250);
/// Damaged records that are followed up to the generations that need them.
const MAX_BAD: usize = 1 << 20;

/// What is to be verified.
pub(crate) struct Plan {
    /// By volume and ascending number.
    generations: Vec<v1::Generation>,
    /// Of their trees, which must not be collected meanwhile.
    _pins: Vec<Pin>,
    /// Every record of every pack.
    whole: bool,
    sample: f64,
    seed: u64,
    older_than_ms: u64,
    bytes_per_second: u64,
}

impl Plan {
    /// Looks up what a request names.
    pub(crate) async fn of(repository: &Repository, request: v1::VerifyRequest) -> Result<Self, Failed> {
        let usage = |message: String| Failed::new(FailureKind::Usage, message);
        let sample = match request.sample {
            0.0 => 1.0,
            sample if sample > 0.0 && sample <= 1.0 => sample,
            sample => {
                return Err(usage(format!("a sample of {sample}: a share above 0 and up to 1 is needed")));
            }
        };
        let whole = request.volume.is_none();
        if request.older_than_ms > 0 && !whole {
            return Err(usage(
                "when packs were verified is known for the repository, not for a volume".into(),
            ));
        }
        let entrance = repository.pins.enter().await;
        let generations = match (request.volume, request.selector) {
            (None, Some(_)) => return Err(usage("a generation is named, but not of which volume".into())),
            (None, None) => repository.catalogue.generations(None).await?,
            (Some(volume), None) => {
                let volume: Uuid = repository.volume(Some(volume)).await?;
                repository.catalogue.generations(Some(volume)).await?
            }
            (volume, selector) => {
                selector_of(selector)?;
                vec![repository.generation(volume, selector).await?.generation]
            }
        };
        let pins = generations.iter().map(|generation| Ok(entrance.pin(tree_of(generation)?)));
        let pins = pins.collect::<Result<_, Failed>>()?;
        let (older_than_ms, bytes_per_second) = (request.older_than_ms, request.bytes_per_second);
        let seed = repository.draw();
        Ok(Self { generations, _pins: pins, whole, sample, seed, older_than_ms, bytes_per_second })
    }

    /// The packs that are to be read, and how many are left out because they were verified lately.
    async fn packs(
        &self,
        repository: &Repository,
        marks: &RecordMarks,
    ) -> Result<(VecDeque<u32>, u64), Failed> {
        if !self.whole {
            return Ok((marks.packs().collect(), 0));
        }
        let store = repository.store.clone();
        let all = tokio::task::spawn_blocking(move || store.pack_numbers());
        let all = all.await.unwrap_or(Err(StoreError::Closed))?;
        if self.older_than_ms == 0 {
            return Ok((all.into(), 0));
        }
        let verified = repository.catalogue.verifications().await?;
        let before = repository.now_ms().saturating_sub(self.older_than_ms);
        let (due, recent): (VecDeque<u32>, VecDeque<u32>) =
            all.into_iter().partition(|pack| verified.get(pack).is_none_or(|at| *at <= before));
        Ok((due, recent.len() as u64))
    }
}

/// Runs a plan; the events end with the summary. Dropping the receiver ends the run.
pub(crate) fn start(
    repository: Arc<Repository>,
    plan: Plan,
) -> mpsc::Receiver<Result<v1::VerifyEvent, Status>> {
    let (sender, receiver) = mpsc::channel(EVENTS);
    tokio::spawn(async move {
        let mut run = Run::new(&repository, sender.clone());
        let outcome = tokio::select! {
            outcome = run.all(&plan) => outcome,
            () = stopped(&repository) => {
                Err(End::Failed(Failed::new(FailureKind::Busy, "verification was ended: the server is stopping")))
            }
            () = sender.closed() => Err(End::Gone),
        };
        run.ended.store(true, Ordering::Release);
        if let Err(error) = repository.keep_damage().await {
            tracing::error!(%error, "damage could not be noted in the catalogue");
        }
        repository.metrics.ended(Job::Verify, outcome.is_ok());
        match outcome {
            Ok(()) | Err(End::Gone) => {}
            Err(End::Failed(failed)) => {
                // A client that has gone needs no reason.
                let _ = sender.send(Err(failed.into())).await;
            }
        }
        drop(run);
        // Who sees the end of the answer may close the repository, and is the last to have it.
        drop(repository);
        drop(sender);
    });
    receiver
}

async fn stopped(repository: &Repository) {
    // An error means that the repository is gone, which ends the run as well.
    let _ = repository.stopping().wait_for(|stopping| *stopping).await;
}

/// Why a run ends early.
enum End {
    /// The client does not listen any more.
    Gone,
    Failed(Failed),
}

impl<E: Into<Failed>> From<E> for End {
    fn from(error: E) -> Self {
        Self::Failed(error.into())
    }
}

/// Counts, what was found, and the way to the client.
struct Run<'a> {
    repository: &'a Repository,
    sender: mpsc::Sender<Result<v1::VerifyEvent, Status>>,
    summary: v1::VerifySummary,
    bad: Bad,
    /// From packs; the walk over the trees has read some of them too.
    nodes_read: u64,
    total_bytes: u64,
    started: Instant,
    reported: Instant,
    /// Tells the reading threads to end.
    ended: Arc<AtomicBool>,
}

impl<'a> Run<'a> {
    fn new(repository: &'a Repository, sender: mpsc::Sender<Result<v1::VerifyEvent, Status>>) -> Self {
        let now = Instant::now();
        Self {
            repository,
            sender,
            summary: v1::VerifySummary::default(),
            bad: Bad::default(),
            nodes_read: 0,
            total_bytes: 0,
            started: now,
            reported: now,
            ended: Arc::default(),
        }
    }

    async fn all(&mut self, plan: &Plan) -> Result<(), End> {
        let store = &self.repository.store;
        let mut marker = Marker::for_verification(store.clone(), self.repository.chunk_bytes());
        let mut last = None;
        for generation in &plan.generations {
            let tree = tree_of(generation)?;
            if last != Some(tree) {
                marker.tree(tree).await?;
            }
            last = Some(tree);
        }
        self.bad.odd_chunks = marker.odd_chunks();
        self.summary.map_nodes_checked = marker.nodes_read();
        let (marks, lost) = marker.finish();
        self.read_packs(plan, marks).await?;
        self.summary.map_nodes_checked = self.summary.map_nodes_checked.max(self.nodes_read);
        self.bad.more |= lost.more;
        for (id, kind) in (lost.nodes.iter().map(|id| (*id.as_bytes(), Kind::MapNode)))
            .chain(lost.chunks.iter().map(|id| (*id.as_bytes(), Kind::Chunk)))
        {
            self.lost(id, kind).await?;
        }
        self.name_generations(plan).await?;
        self.progress().await?;
        self.summary.generations = plan.generations.len() as u64;
        let summary = &mut self.summary;
        summary.damaged += summary.damaged_records + summary.damaged_packs;
        summary.seconds = self.started.elapsed().as_secs_f64();
        let summary = *summary;
        self.send(Event::Summary(summary)).await
    }

    async fn read_packs(&mut self, plan: &Plan, marks: RecordMarks) -> Result<(), End> {
        let repository = self.repository;
        let (packs, skipped) = plan.packs(repository, &marks).await?;
        self.summary.packs_skipped = skipped;
        let share = packs.len() as f64 / (packs.len() as f64 + skipped as f64).max(1.0) * plan.sample;
        self.total_bytes = (repository.store.stats().pack_bytes as f64 * share) as u64;
        let mut reports = packs::read(Task {
            store: repository.store.clone(),
            wanted: (!plan.whole).then_some(marks),
            sample: plan.sample,
            seed: plan.seed,
            packs,
            bytes_per_second: plan.bytes_per_second,
            chunk_bytes: repository.chunk_bytes(),
            ended: Arc::clone(&self.ended),
        });
        while let Some(report) = reports.recv().await {
            self.report(plan, report).await?;
        }
        // Durable before it is told.
        repository.keep_damage().await?;
        Ok(())
    }

    async fn report(&mut self, plan: &Plan, report: Report) -> Result<(), End> {
        let store = &self.repository.store;
        match report {
            Report::Failed(error) => return Err(Failed::from(error).into()),
            Report::Pack { pack, reason } => {
                self.summary.damaged_packs += 1;
                self.send(Event::Pack(v1::VerifyPack { pack, reason })).await?;
            }
            Report::Record { damaged, pack_lost } => self.damaged(damaged, pack_lost).await?,
            Report::Sound(place) => self.summary.lifted_records += u64::from(store.lift_quarantine(place)),
            Report::Progress(progress) => {
                self.summary.chunks_checked += progress.chunks;
                self.nodes_read += progress.map_nodes;
                self.summary.chunks_skipped += progress.left_out;
                self.summary.bytes_checked += progress.plain_bytes;
                self.summary.stored_bytes += progress.stored_bytes;
                if self.reported.elapsed() >= PROGRESS_EVERY {
                    self.reported = Instant::now();
                    self.progress().await?;
                }
            }
            Report::Done { pack, sound } => {
                self.summary.packs_checked += 1;
                if sound && plan.whole {
                    self.repository.catalogue.set_verified(pack, self.repository.now_ms()).await?;
                }
            }
        }
        Ok(())
    }

    /// A record is damaged. If the same content is stored elsewhere too, nobody misses it.
    async fn damaged(&mut self, damaged: DamagedRecord, pack_lost: bool) -> Result<(), End> {
        let store = &self.repository.store;
        let (place, id, kind, reason) = (damaged.place, damaged.id, damaged.kind, damaged.reason.clone());
        if !pack_lost {
            store.quarantine(damaged);
        }
        if matches!(store.locate(vec![id]).await?.as_slice(), [Some(_)]) {
            store.heal_quarantine(place);
            return Ok(());
        }
        if store.indexed_at(vec![id]).await? == [None] && !pack_lost {
            // Of a pack that was collected while it was read.
            let number = place.pack;
            let again = store.clone();
            let current = tokio::task::spawn_blocking(move || again.audit_is_current(number)).await;
            if !current.unwrap_or(Err(StoreError::Closed))? {
                return Ok(());
            }
        }
        self.remember(id, &reason);
        self.summary.damaged_records += 1;
        self.send(Event::Record(v1::VerifyRecord {
            kind: kind_of(kind).into(),
            id: bytes::Bytes::copy_from_slice(&id),
            pack: Some(place.pack),
            offset_bytes: place.offset.into(),
            reason,
        }))
        .await
    }

    /// A record is needed that cannot be used, or that no pack has.
    async fn lost(&mut self, id: [u8; 32], kind: Kind) -> Result<(), End> {
        if self.bad.records.contains_key(&id) {
            return Ok(());
        }
        let reason = match self.repository.store.indexed_at(vec![id]).await?.as_slice() {
            [Some(_)] => "it is not what is expected where it is needed",
            _ => "it is not in the repository",
        };
        self.remember(id, reason);
        self.summary.damaged_records += 1;
        let (id, kind) = (bytes::Bytes::copy_from_slice(&id), kind_of(kind).into());
        let reason = reason.to_owned();
        self.send(Event::Record(v1::VerifyRecord { kind, id, pack: None, offset_bytes: 0, reason })).await
    }

    fn remember(&mut self, id: [u8; 32], reason: &str) {
        self.bad.more |= self.bad.records.len() >= MAX_BAD;
        if !self.bad.more {
            self.bad.records.insert(id, format!("{}: {reason}", ChunkId::from_bytes(id)).into());
        }
    }

    async fn progress(&mut self) -> Result<(), End> {
        let done_bytes = self.summary.stored_bytes;
        let total_bytes = self.total_bytes.max(done_bytes);
        self.send(Event::Progress(v1::VerifyProgress { done_bytes, total_bytes })).await
    }

    async fn send(&mut self, event: Event) -> Result<(), End> {
        let event = v1::VerifyEvent { event: Some(event) };
        self.sender.send(Ok(event)).await.map_err(|_| End::Gone)
    }
}

fn geometry_of(generation: &v1::Generation) -> Geometry {
    Geometry { chunk_bytes: generation.chunk_bytes, size_bytes: generation.size_bytes }
}

fn kind_of(kind: Kind) -> v1::RecordKind {
    match kind {
        Kind::Chunk => v1::RecordKind::Chunk,
        Kind::MapNode => v1::RecordKind::MapNode,
        Kind::Manifest => v1::RecordKind::Manifest,
        Kind::Tombstone => v1::RecordKind::Tombstone,
    }
}
