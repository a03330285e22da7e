//! Restore: generations, against what the target already has, to a pool volume or a file.

mod heads;
mod in_place;
mod new_volume;

use std::{path::PathBuf, sync::Arc, time::Instant};

use thinbak_proto::{
    Failed, FailureKind,
    v1::{Generation, JobSummary, RestoreJobRequest, restore_job_request::Target},
};

use super::events::{Events, blocking};
use crate::{
    pools::PoolManager,
    repository_client::{Held, RepositoryConnection, connect},
    sink::FileSink,
    source::{GenerationSource, SourceStats},
    stream::{Progress, Sink, Source as _, pump},
    volume::PoolVolume,
};

/// Restores to the target of the request.
pub(super) async fn run(
    manager: &Arc<PoolManager>,
    request: RestoreJobRequest,
    events: &Events,
) -> Result<(), Failed> {
    let address = request.repository.clone().unwrap_or_default();
    let connection = connect(&address).await?;
    let outcome = restore(manager, &connection, request, events).await;
    connection.close().await;
    for summary in outcome? {
        events.summary(summary).await;
    }
    Ok(())
}

async fn restore(
    manager: &Arc<PoolManager>,
    connection: &RepositoryConnection,
    request: RestoreJobRequest,
    events: &Events,
) -> Result<Vec<JobSummary>, Failed> {
    let RestoreJobRequest { volume, selectors, ranges, target, like, .. } = request;
    let held = connection.hold(volume.unwrap_or_default(), selectors, ranges).await?;
    let job = Restore { connection, held: &held, events };
    match target {
        None => Err(Failed::new(FailureKind::Usage, "a restore needs a target")),
        Some(Target::File(path)) => Ok(vec![job.to_file(PathBuf::from(path)).await?]),
        Some(Target::NewVolume(target)) => job.to_new_volume(manager, &target, &like).await,
        Some(Target::InPlace(target)) => Ok(vec![job.in_place(manager, &target).await?]),
    }
}

/// What the transfer of one generation did.
struct Done {
    changed_bytes: u64,
    stats: SourceStats,
    seconds: f64,
}

impl Done {
    fn summary(self, generation: &Generation, mode: &str, target: String) -> JobSummary {
        JobSummary {
            volume: generation.volume_name.clone(),
            generation: generation.number,
            mode: mode.to_owned(),
            target,
            volume_bytes: generation.size_bytes,
            mapped_bytes: self.stats.mapped_bytes,
            changed_bytes: self.changed_bytes,
            read_bytes: self.stats.compared_bytes,
            sent_bytes: self.stats.received_bytes,
            seconds: self.seconds,
            ..JobSummary::default()
        }
    }
}

struct Restore<'a> {
    connection: &'a RepositoryConnection,
    /// What is restored: the server keeps it meanwhile.
    held: &'a Held,
    events: &'a Events,
}

impl Restore<'_> {
    /// The generation, where there can be only one.
    fn only(&self) -> Result<&Generation, Failed> {
        match self.held.generations() {
            [generation] => Ok(generation),
            several => {
                let message =
                    format!("{} generations cannot be restored to one file or in place", several.len());
                Err(Failed::new(FailureKind::Usage, message)
                    .with_hint("name one of them, or restore all to a new volume: --to POOL/VOLUME"))
            }
        }
    }

    fn source(
        &self,
        base: Option<&Generation>,
        generation: &Generation,
        against: Option<PoolVolume>,
    ) -> Result<GenerationSource, Failed> {
        GenerationSource::new(self.connection.content(), base, generation, against)
    }

    /// Moves what a source names into a sink.
    async fn transfer(
        &self,
        generation: &Generation,
        mut source: GenerationSource,
        mut sink: impl Sink,
        progress: &Progress,
    ) -> Result<Done, Failed> {
        let since = Instant::now();
        let moved = self.held.during(pump(&mut source, &mut sink, progress));
        let changed_bytes = self.events.during(&label(generation), "transfer", progress, moved).await?;
        Ok(Done { changed_bytes, stats: source.stats(), seconds: since.elapsed().as_secs_f64() })
    }

    /// Reads back what a volume holds where `generation` differs from `base`, or all of it.
    async fn verify(
        &self,
        base: Option<&Generation>,
        generation: &Generation,
        volume: PoolVolume,
    ) -> Result<(), Failed> {
        let (label, progress) = (label(generation), Progress::default());
        let mut left = self.source(base, generation, Some(volume))?;
        let first = self.events.during(&label, "verify", &progress, self.held.during(left.next())).await?;
        match first.as_ref().and_then(|batch| batch.first()) {
            None => Ok(()),
            Some(extent) => Err(Failed::new(
                FailureKind::Failed,
                format!("what was written of {label} reads differently at byte {}", extent.offset),
            )),
        }
    }

    async fn to_file(&self, path: PathBuf) -> Result<JobSummary, Failed> {
        let generation = self.only()?;
        let (target, size) = (path.display().to_string(), generation.size_bytes);
        let source = self.source(None, generation, None)?;
        let sink = blocking(move || FileSink::create(&path, size)).await?;
        let progress = Progress::new(generation.mapped_bytes);
        let done = self.transfer(generation, source, sink, &progress).await?;
        Ok(done.summary(generation, "file", target))
    }
}

fn label(generation: &Generation) -> String {
    format!("{}:{}", generation.volume_name, generation.number)
}
