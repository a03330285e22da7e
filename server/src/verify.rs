//! Reading everything back: map trees are walked, chunks are decompressed and every id is recomputed.
//!
//! Generation after generation of a volume; what a generation shares with the one before it, at the same
//! place, was seen there and is skipped. So memory does not grow with the repository, and damage is reported
//! for the oldest generation that has it.

mod walk;

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use thinbak_proto::{Failed, FailureKind, v1};
use tokio::sync::mpsc;
use tonic::Status;
use uuid::Uuid;
use v1::verify_event::Event;

use crate::{
    catalogue::Entry,
    repository::{Repository, selector_of},
};
use walk::Walk;

/// Events that wait for the client.
const EVENTS: usize = 64;
const PROGRESS_EVERY: Duration = Duration::from_millis(250);

/// What is to be verified.
pub(crate) struct Plan {
    /// By volume and ascending number.
    generations: Vec<v1::Generation>,
    sample: f64,
    seed: u64,
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
        let generations = match (request.volume, request.selector) {
            (None, Some(_)) => return Err(usage("a generation is named, but not of which volume".into())),
            (None, None) => repository.catalogue.generations(None).await?,
            (Some(volume), None) => {
                let volume: Uuid = repository.volume(Some(volume)).await?;
                repository.catalogue.generations(Some(volume)).await?
            }
            (volume, selector) => {
                selector_of(selector)?;
                vec![repository.generation(volume, selector).await?]
            }
        };
        let generations = generations.into_iter().map(|Entry { generation, .. }| generation).collect();
        Ok(Self { generations, sample, seed: repository.draw() })
    }

    /// The most that has to be read: a volume's first generation whole, of the later ones what was sent.
    fn estimate(&self) -> u64 {
        let mut volume = "";
        let mut total = 0u64;
        for generation in &self.generations {
            let first = volume != generation.volume_uuid;
            volume = &generation.volume_uuid;
            let bytes = if first { u64::MAX } else { generation.changed_bytes };
            total = total.saturating_add(bytes.min(generation.mapped_bytes));
        }
        total
    }
}

/// Runs a plan; the events end with the summary. Dropping the receiver ends the run.
pub(crate) fn start(
    repository: Arc<Repository>,
    plan: Plan,
) -> mpsc::Receiver<Result<v1::VerifyEvent, Status>> {
    let (sender, receiver) = mpsc::channel(EVENTS);
    tokio::spawn(async move {
        let mut run = Run::new(&plan, sender);
        let outcome = tokio::select! {
            outcome = run.all(&repository, &plan) => outcome,
            () = stopped(&repository) => {
                Err(End::Failed(Failed::new(FailureKind::Busy, "verification was ended: the server is stopping")))
            }
        };
        match outcome {
            Ok(()) | Err(End::Gone) => {}
            Err(End::Failed(failed)) => {
                // A client that has gone needs no reason.
                let _ = run.sender.send(Err(failed.into())).await;
            }
        }
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

impl From<Failed> for End {
    fn from(failed: Failed) -> Self {
        Self::Failed(failed)
    }
}

/// Counts, and the way to the client.
struct Run {
    sender: mpsc::Sender<Result<v1::VerifyEvent, Status>>,
    summary: v1::VerifySummary,
    done_bytes: u64,
    total_bytes: u64,
    started: Instant,
    reported: Instant,
}

impl Run {
    fn new(plan: &Plan, sender: mpsc::Sender<Result<v1::VerifyEvent, Status>>) -> Self {
        let now = Instant::now();
        let (summary, total_bytes) = (v1::VerifySummary::default(), plan.estimate());
        Self { sender, summary, done_bytes: 0, total_bytes, started: now, reported: now }
    }

    async fn all(&mut self, repository: &Repository, plan: &Plan) -> Result<(), End> {
        let mut walk = Walk::new(repository, plan.sample, plan.seed);
        for generation in &plan.generations {
            walk.generation(generation, self).await?;
            self.summary.generations += 1;
        }
        self.total_bytes = self.done_bytes;
        self.progress().await?;
        self.summary.seconds = self.started.elapsed().as_secs_f64();
        self.send(Event::Summary(self.summary)).await
    }

    async fn advance(&mut self, bytes: u64) -> Result<(), End> {
        self.done_bytes = self.done_bytes.saturating_add(bytes);
        if self.reported.elapsed() >= PROGRESS_EVERY {
            self.reported = Instant::now();
            self.progress().await?;
        }
        Ok(())
    }

    async fn progress(&mut self) -> Result<(), End> {
        let total_bytes = self.total_bytes.max(self.done_bytes);
        self.send(Event::Progress(v1::VerifyProgress { done_bytes: self.done_bytes, total_bytes })).await
    }

    async fn damage(&mut self, damage: v1::VerifyDamage) -> Result<(), End> {
        self.summary.damaged += 1;
        tracing::warn!(
            volume = damage.volume_name,
            generation = damage.generation,
            offset = damage.offset_bytes,
            reason = damage.reason,
            "damage found"
        );
        self.send(Event::Damage(damage)).await
    }

    async fn send(&mut self, event: Event) -> Result<(), End> {
        let event = v1::VerifyEvent { event: Some(event) };
        self.sender.send(Ok(event)).await.map_err(|_| End::Gone)
    }
}
