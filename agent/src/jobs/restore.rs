//! Restore: a generation, against what the target already has, to a pool volume or a file.

use std::{path::PathBuf, sync::Arc, time::Instant};

use thinbak_engine::{EmbeddedError, EmbeddedPool, VirtualBlock, Volume, embedded::check_volume_name};
use thinbak_proto::{
    Failed, FailureKind,
    v1::{
        Generation, GetGenerationRequest, JobSummary, PoolVolume as VolumeRef, RestoreJobRequest,
        restore_job_request::Target,
    },
};

use super::events::{Events, blocking};
use crate::{
    pools::{self, PoolManager},
    repository_client::{RepositoryConnection, connect},
    sink::{FileSink, VolumeSink},
    source::{GenerationSource, SourceStats},
    stream::{Progress, Source, pump},
    volume::{PoolVolume, write_zeros},
};

/// Restores one generation to the target of the request.
pub(super) async fn run(
    manager: &Arc<PoolManager>,
    request: RestoreJobRequest,
    events: &Events,
) -> Result<(), Failed> {
    let address = request.repository.clone().unwrap_or_default();
    let connection = connect(&address).await?;
    let outcome = restore(manager, &connection, request, events).await;
    connection.close().await;
    events.summary(outcome?).await;
    Ok(())
}

/// What one restore did.
struct Done {
    mode: &'static str,
    target: String,
    changed_bytes: u64,
    stats: SourceStats,
}

async fn restore(
    manager: &Arc<PoolManager>,
    connection: &RepositoryConnection,
    request: RestoreJobRequest,
    events: &Events,
) -> Result<JobSummary, Failed> {
    let started = Instant::now();
    let wanted = GetGenerationRequest { volume: request.volume, selector: request.selector };
    let generation = connection.repository().get_generation(wanted).await?.into_inner();
    let job = Restore { connection, generation: &generation, events };
    let done = match request.target {
        None => return Err(Failed::new(FailureKind::Usage, "a restore needs a target")),
        Some(Target::File(path)) => job.to_file(PathBuf::from(path)).await?,
        Some(Target::NewVolume(target)) => job.to_new_volume(manager, &target).await?,
        Some(Target::InPlace(target)) => job.in_place(manager, &target).await?,
    };
    Ok(JobSummary {
        volume: generation.volume_name.clone(),
        generation: generation.number,
        mode: done.mode.to_owned(),
        target: done.target,
        volume_bytes: generation.size_bytes,
        mapped_bytes: done.stats.mapped_bytes,
        changed_bytes: done.changed_bytes,
        read_bytes: done.stats.compared_bytes,
        sent_bytes: done.stats.received_bytes,
        seconds: started.elapsed().as_secs_f64(),
        ..JobSummary::default()
    })
}

struct Restore<'a> {
    connection: &'a RepositoryConnection,
    generation: &'a Generation,
    events: &'a Events,
}

impl Restore<'_> {
    fn source(&self, against: Option<PoolVolume>) -> Result<GenerationSource, Failed> {
        GenerationSource::new(self.connection.content(), None, self.generation, against)
    }

    fn label(&self) -> String {
        format!("{}:{}", self.generation.volume_name, self.generation.number)
    }

    async fn to_file(&self, path: PathBuf) -> Result<Done, Failed> {
        let (target, size) = (path.display().to_string(), self.generation.size_bytes);
        let mut sink = blocking(move || FileSink::create(&path, size)).await?;
        let mut source = self.source(None)?;
        let progress = Progress::new(self.generation.mapped_bytes);
        let moved = pump(&mut source, &mut sink, &progress);
        let changed_bytes = self.events.during(&self.label(), "transfer", &progress, moved).await?;
        Ok(Done { mode: "file", target, changed_bytes, stats: source.stats() })
    }

    async fn to_new_volume(&self, manager: &Arc<PoolManager>, target: &VolumeRef) -> Result<Done, Failed> {
        let pool = open(manager, &target.pool).await?;
        let lock = manager.lock_volume(pool.uuid(), &target.volume)?;
        let (engine, name, size) = (Arc::clone(&pool), target.volume.clone(), self.generation.size_bytes);
        let head = blocking(move || {
            check_new_name(&engine, &name)?;
            engine.create_head(size, None).map_err(pools::failed)
        })
        .await?;
        let written = self.write_new(&pool, &head).await;
        let name = target.volume.clone();
        let done =
            finish(&pool, &head, written, move |pool, head| pool.publish_head(head, &name, &[])).await?;
        drop(lock);
        Ok(Done { mode: "new-volume", target: format!("{}/{}", target.pool, target.volume), ..done })
    }

    async fn write_new(&self, pool: &Arc<EmbeddedPool>, head: &Volume) -> Result<Done, Failed> {
        let mut source = self.source(None)?;
        let mut sink = VolumeSink::clean(PoolVolume::new(Arc::clone(pool), head.clone()));
        let progress = Progress::new(self.generation.mapped_bytes);
        let moved = pump(&mut source, &mut sink, &progress);
        let changed_bytes = self.events.during(&self.label(), "transfer", &progress, moved).await?;
        Ok(Done { mode: "", target: String::new(), changed_bytes, stats: source.stats() })
    }

    /// Writes a snapshot of the volume, only what differs, verifies it, and lets it take the volume's place. It stands for
    /// itself: a volume over an external origin has none afterwards.
    async fn in_place(&self, manager: &Arc<PoolManager>, target: &VolumeRef) -> Result<Done, Failed> {
        let pool = open(manager, &target.pool).await?;
        let lock = manager.lock_volume(pool.uuid(), &target.volume)?;
        let (engine, name, size) = (Arc::clone(&pool), target.volume.clone(), self.generation.size_bytes);
        let head = blocking(move || {
            let volume = engine.volume(&name).map_err(pools::failed)?;
            let head = engine.create_head(size, Some(volume.device)).map_err(pools::failed)?;
            forget_beyond(&engine, &head).inspect_err(|_| drop_head(&engine, &head))?;
            Ok(head)
        })
        .await?;
        let written = self.write_difference(&pool, &head).await;
        let name = target.volume.clone();
        let done = finish(&pool, &head, written, move |pool, head| pool.replace_volume(&name, head)).await?;
        drop(lock);
        Ok(Done { mode: "in-place", target: format!("{}/{}", target.pool, target.volume), ..done })
    }

    async fn write_difference(&self, pool: &Arc<EmbeddedPool>, head: &Volume) -> Result<Done, Failed> {
        let volume = PoolVolume::new(Arc::clone(pool), head.clone());
        let mut source = self.source(Some(volume.clone()))?;
        let mut sink = VolumeSink::dirty(volume.clone());
        let progress = Progress::default();
        let moved = pump(&mut source, &mut sink, &progress);
        let changed_bytes = self.events.during(&self.label(), "transfer", &progress, moved).await?;
        let stats = source.stats();
        let mut left = self.source(Some(volume))?;
        let progress = Progress::default();
        let first = self.events.during(&self.label(), "verify", &progress, left.next()).await?;
        if let Some(extent) = first.as_ref().and_then(|batch| batch.first()) {
            return Err(Failed::new(
                FailureKind::Failed,
                format!("what was written of {} reads differently at byte {}", self.label(), extent.offset),
            ));
        }
        Ok(Done { mode: "", target: String::new(), changed_bytes, stats })
    }
}

/// Refuses a name that cannot be given, before anything is written.
fn check_new_name(pool: &EmbeddedPool, name: &str) -> Result<(), Failed> {
    check_volume_name(name).map_err(|error| Failed::new(FailureKind::Usage, format!("{name}: {error}")))?;
    match pool.volume(name) {
        Err(EmbeddedError::NoSuchVolume { .. }) => Ok(()),
        Err(error) => Err(pools::failed(error)),
        Ok(_) => {
            let failed = Failed::new(FailureKind::Refused, format!("{}/{name} already exists", pool.name()));
            Err(failed.with_hint("restore to another name, or in place with --in-place"))
        }
    }
}

/// Unmaps what a head has beyond its end from the volume that it is a snapshot of, or zeroes it where discards are
/// ignored: it would come back when the restored volume is grown.
fn forget_beyond(pool: &EmbeddedPool, head: &Volume) -> Result<(), Failed> {
    let failed = |source| {
        pools::failed(EmbeddedError::Pool {
            attempt: "what lies beyond the end could not be unmapped",
            source,
        })
    };
    let (engine, size) = (pool.pool(), head.size_bytes);
    let zero = |at, zeros: &[u8]| engine.write(head.device, at, zeros);
    let block = engine.block_size().bytes();
    let whole = size.next_multiple_of(block);
    if size < whole
        && !engine
            .mapped_runs(head.device, VirtualBlock(size / block), VirtualBlock(whole / block), 1)
            .map_err(failed)?
            .is_empty()
    {
        write_zeros(size, whole, zero).map_err(failed)?;
    }
    if !engine.table().features.ignore_discard {
        return engine.discard(head.device, whole, u64::MAX / 2).map_err(failed);
    }
    let mut next = VirtualBlock(whole / block);
    while let Some(run) =
        engine.mapped_runs(head.device, next, VirtualBlock(u64::MAX), 1).map_err(failed)?.first().copied()
    {
        next = VirtualBlock(run.begin.0 + run.length);
        write_zeros(run.begin.0 * block, next.0 * block, zero).map_err(failed)?;
    }
    Ok(())
}

/// Removes a head that is of no use any more. A failure is only logged: the next open of the pool removes it.
fn drop_head(pool: &EmbeddedPool, head: &Volume) {
    if let Err(error) = pool.drop_transient(head) {
        tracing::warn!(device = %head.device, %error, "a private head is left until the pool is opened again");
    }
}

async fn open(manager: &Arc<PoolManager>, spec: &str) -> Result<Arc<EmbeddedPool>, Failed> {
    let (manager, spec) = (Arc::clone(manager), spec.to_owned());
    blocking(move || manager.open(&spec)).await
}

/// Publishes a head that was written, or removes it if that failed.
async fn finish<T: Send + 'static>(
    pool: &Arc<EmbeddedPool>,
    head: &Volume,
    written: Result<Done, Failed>,
    publish: impl FnOnce(&EmbeddedPool, &Volume) -> Result<T, EmbeddedError> + Send + 'static,
) -> Result<Done, Failed> {
    let (pool, head) = (Arc::clone(pool), head.clone());
    blocking(move || {
        let published = written.and_then(|done| {
            publish(&pool, &head).map_err(pools::failed)?;
            Ok(done)
        });
        if published.is_err() {
            drop_head(&pool, &head);
        }
        published
    })
    .await
}
