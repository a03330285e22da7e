//! In place: over an existing volume, only what differs.

use std::sync::Arc;

use thinbak_engine::Volume;
use thinbak_proto::{
    Failed,
    v1::{Generation, JobSummary, PoolVolume as VolumeRef},
};

use super::{
    super::events::blocking,
    Done, Restore,
    heads::{give_up, open},
};
use crate::{
    pools::{PoolManager, ThinPool},
    sink::VolumeSink,
    stream::Progress,
    volume::PoolVolume,
};

impl Restore<'_> {
    /// Writes a snapshot of the volume, only what differs, verifies it, and lets it take the volume's place. It stands for
    /// itself: a volume over an external origin has none afterwards.
    pub(super) async fn in_place(
        &self,
        manager: &Arc<PoolManager>,
        target: &VolumeRef,
    ) -> Result<JobSummary, Failed> {
        let generation = self.only()?;
        let pool = open(manager, &target.pool).await?;
        let lock = manager.lock_volume(pool.uuid(), &target.volume)?;
        let (engine, name, size) = (Arc::clone(&pool), target.volume.clone(), generation.size_bytes);
        let head = blocking(move || {
            engine.check_replaceable()?;
            let volume = engine.volume(&name)?;
            let head = engine.create_head(size, Some(volume.device))?;
            engine.forget_beyond(&head).inspect_err(|_| give_up(engine.as_ref(), &head))?;
            Ok(head)
        })
        .await?;
        let written = self.write_difference(generation, &pool, &head).await;
        let name = target.volume.clone();
        let done = blocking(move || {
            let done = written.and_then(|done| {
                pool.replace_volume(&name, &head)?;
                Ok(done)
            });
            done.inspect_err(|_| give_up(pool.as_ref(), &head))
        })
        .await?;
        drop(lock);
        Ok(done.summary(generation, "in-place", format!("{}/{}", target.pool, target.volume)))
    }

    async fn write_difference(
        &self,
        generation: &Generation,
        pool: &Arc<dyn ThinPool>,
        head: &Volume,
    ) -> Result<Done, Failed> {
        let (pool, head) = (Arc::clone(pool), head.clone());
        let volume = blocking(move || PoolVolume::open(pool, head)).await?;
        let source = self.source(None, generation, Some(volume.clone()))?;
        let sink = VolumeSink::dirty(volume.clone());
        let done = self.transfer(generation, source, sink, &Progress::default()).await?;
        self.verify(None, generation, volume).await?;
        Ok(done)
    }
}
