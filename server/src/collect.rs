//! Collection: freeing what no generation needs any more, beside backups and restores.
//!
//! 1. **Roots.** Deleted generations whose grace period is over are given up, in a transaction. Then, while nobody may
//!    pin, delete or undelete: what the catalogue still names, what is pinned, which packs are sealed, and a claim of
//!    all that running backups rely on ([`roots`]).
//! 2. **Mark.** Everything that the roots need, one bit a record. A map node that cannot be read ends it, since
//!    what it names is not known. Chunks that are missing are only counted.
//! 3. **Plan.** Of each sealed pack, what is in use ([`plan`]). A dry run ends here.
//! 4. **Sweep.** Packs with nothing in use are removed first, which takes no space. Then those that are mostly dead, the
//!    emptiest first: what is in use is copied, and the pack is removed ([`sweep`]). In the end small packs, where there
//!    are many, are put together in the same way. Right before a pack goes, the store looks whether anybody relies on
//!    what was dead when it was marked.
//!
//! It may be killed anywhere: a record is copied before its pack goes, and the index never points to a pack that
//! is gone. What was begun is taken up by the next collection.

mod plan;
mod roots;
mod sweep;
#[cfg(test)]
pub(crate) mod tests;

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use futures::{FutureExt as _, future::BoxFuture};
use thinbak_proto::{Failed, FailureKind, v1};
use tokio::sync::mpsc;
use tonic::Status;
use v1::collect_event::Event;

use crate::{metrics::Job, repository::Repository, retention, store::StoreError};
use plan::Plan;
use roots::Roots;
use sweep::Sweep;

/// Events that wait for the client.
const EVENTS: usize = 64;
/// A pack is rewritten if at most this share of it is in use.
const THRESHOLD: f64 = 0.5;

/// What a collection may do.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Options {
    pub(crate) dry_run: bool,
    /// Packs of whose record bytes at most this share is in use are rewritten.
    pub(crate) threshold: f64,
    /// Most bytes in use that a pack to be rewritten may have: they are on the disk twice for a while.
    pub(crate) max_extra_space: u64,
    /// Most bytes that are copied in all.
    pub(crate) max_repack: u64,
    /// Most bytes that are copied in a second; 0: as many as can be.
    pub(crate) rate: u64,
    /// Deleted generations are kept for so long; `None`: for the repository's grace period.
    pub(crate) grace_ms: Option<u64>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            dry_run: false,
            threshold: THRESHOLD,
            max_extra_space: u64::MAX,
            max_repack: u64::MAX,
            rate: 0,
            grace_ms: None,
        }
    }
}

impl Options {
    /// The options in a request.
    pub(crate) fn of(request: &v1::CollectRequest) -> Result<Self, Failed> {
        let threshold = request.threshold.unwrap_or(THRESHOLD);
        if !(0.0..=1.0).contains(&threshold) {
            let message = format!("a threshold of {threshold}: a share from 0 to 1 is needed");
            return Err(Failed::new(FailureKind::Usage, message));
        }
        Ok(Self {
            dry_run: request.dry_run,
            threshold,
            max_extra_space: request.max_extra_space_bytes.unwrap_or(u64::MAX),
            max_repack: request.max_repack_bytes.unwrap_or(u64::MAX),
            rate: request.rate_bytes_per_second,
            grace_ms: request.grace_ms,
        })
    }
}

/// Why a collection ends early.
#[derive(Debug)]
pub(crate) enum End {
    /// Nobody listens any more.
    Gone,
    Failed(Failed),
}

impl From<Failed> for End {
    fn from(failed: Failed) -> Self {
        Self::Failed(failed)
    }
}

impl From<StoreError> for End {
    fn from(error: StoreError) -> Self {
        Self::Failed(error.into())
    }
}

/// Takes what a collection says. It goes on when the answer is there.
pub(crate) type Report<'a> = dyn FnMut(Event) -> BoxFuture<'static, Result<(), End>> + Send + 'a;

/// Collects, in a task of its own; the events end with the summary. Dropping the receiver ends it.
pub(crate) fn start(
    repository: Arc<Repository>,
    options: Options,
) -> mpsc::Receiver<Result<v1::CollectEvent, Status>> {
    let (sender, receiver) = mpsc::channel(EVENTS);
    tokio::spawn(async move {
        let events = sender.clone();
        let mut report = move |event: Event| {
            let events = events.clone();
            let event = v1::CollectEvent { event: Some(event) };
            async move { events.send(Ok(event)).await.map_err(|_| End::Gone) }.boxed()
        };
        let metrics = &repository.metrics;
        let outcome = tokio::select! {
            outcome = run(&repository, options, &mut report) => outcome.map(drop),
            () = stopped(&repository) => {
                Err(End::Failed(Failed::new(FailureKind::Busy, "collection was ended: the server is stopping")))
            }
        };
        metrics.ended(Job::Collect, outcome.is_ok());
        if let Err(End::Failed(failed)) = outcome {
            tracing::warn!(error = failed.message, "collection failed");
            // A client that has gone needs no reason.
            let _ = sender.send(Err(failed.into())).await;
        }
        // Who sees the end of the answer may close the repository, and is the last to have it.
        drop(repository);
        drop((report, sender));
    });
    receiver
}

async fn stopped(repository: &Repository) {
    // An error means that the repository is gone, which ends the run as well.
    let _ = repository.stopping().wait_for(|stopping| *stopping).await;
}

/// Collects. One at a time: else [`FailureKind::Busy`].
pub(crate) async fn run(
    repository: &Repository,
    options: Options,
    report: &mut Report<'_>,
) -> Result<v1::CollectSummary, End> {
    let started = Instant::now();
    let _alone = repository.collecting.try_lock().map_err(|_| {
        Failed::new(FailureKind::Busy, "a collection is running already")
            .with_hint("wait until it has ended; it need not be repeated")
    })?;
    // They might go with the last that reminds of them. A disk that is full does not keep the rest from being freed.
    if !options.dry_run {
        retention::settle_manifests(repository).await;
    }
    let leftovers = repository.store.settle().await?;
    let now_ms = repository.now_ms();
    let forgotten = match options.dry_run {
        true => 0,
        false => retention::forget_expired(repository, now_ms, options.grace_ms).await?,
    };
    // What is left is there to stay, also what expired since.
    let cutoff = if options.dry_run { roots::cutoff(repository, now_ms, options.grace_ms).await? } else { 0 };
    let roots = Roots::read(repository, cutoff, leftovers == 0).await?;
    let expired = forgotten + roots.expired.len() as u64;
    let mut marked = roots.mark(repository).await?;
    repository.store.mark_claimed(&mut marked.live);
    let plan = Plan::make(repository, &options, &roots, &marked).await?;
    let mut summary = v1::CollectSummary {
        expired_generations: expired,
        lost_chunks: marked.lost.chunks.len() as u64,
        ..v1::CollectSummary::default()
    };
    report(Event::Plan(v1::CollectPlan {
        expired_generations: expired,
        generations: roots.generations.len() as u64,
        lost_chunks: summary.lost_chunks,
        ..plan.totals
    }))
    .await?;
    if !options.dry_run {
        Sweep::new(repository, &marked, &options).run(&plan, &mut summary, report).await?;
    }
    summary.freed_bytes = signed(summary.removed_bytes).saturating_sub(signed(summary.moved_bytes));
    summary.seconds = started.elapsed().as_secs_f64();
    if !options.dry_run {
        repository.metrics.freed(u64::try_from(summary.freed_bytes).unwrap_or_default());
        let v1::CollectSummary { removed_packs, freed_bytes, moved_bytes, .. } = summary;
        tracing::info!(removed_packs, freed_bytes, moved_bytes, "collected");
    }
    report(Event::Summary(summary)).await?;
    Ok(summary)
}

fn signed(bytes: u64) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}

/// Holds a flow of bytes to a rate.
#[derive(Debug)]
struct Throttle {
    /// Bytes in a second; 0: no limit.
    rate: u64,
    begun: Instant,
    bytes: u64,
}

impl Throttle {
    fn new(rate: u64) -> Self {
        Self { rate, begun: Instant::now(), bytes: 0 }
    }

    /// How long to wait after so many more bytes.
    fn after(&mut self, bytes: u64) -> Duration {
        self.bytes = self.bytes.saturating_add(bytes);
        if self.rate == 0 {
            return Duration::ZERO;
        }
        let due = Duration::try_from_secs_f64(self.bytes as f64 / self.rate as f64).unwrap_or(Duration::MAX);
        due.saturating_sub(self.begun.elapsed())
    }
}
