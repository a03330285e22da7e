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
    pools::{Need, PoolManager, ThinPool, with_notes},
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
        let (engine, name, wanted) = (Arc::clone(&pool), target.volume.clone(), generation.clone());
        let guard = Arc::clone(manager);
        let (head, mut notes) = blocking(move || {
            engine.check_replaceable()?;
            let volume = engine.volume(&name)?;
            engine.check_closed(&volume)?;
            let (size, present) = (wanted.size_bytes, engine.mapped_bytes(&volume)?);
            let need = Need::of_restore(&[wanted], engine.block_bytes(), present);
            let notes = guard.admit(engine.as_ref(), &Need { passing: 1, ..need })?;
            let head = engine.create_head(size, Some(volume.device)).and_then(|head| {
                engine.forget_beyond(&head).inspect_err(|_| give_up(engine.as_ref(), &head))?;
                Ok(head)
            });
            Ok((head.map_err(|failed| with_notes(failed, &notes))?, notes))
        })
        .await?;
        let written = self.write_difference(generation, &pool, &head).await;
        let name = target.volume.clone();
        let (done, notes) = blocking(move || {
            let given_up = notes.clone();
            let done = written.and_then(|done| {
                let volume = pool.replace_volume(&name, &head)?;
                if pool.info().is_ok_and(|info| info.kind != "dir") {
                    notes.push(format!("{name} is device {} of the pool from now on", volume.device));
                }
                Ok((done, notes))
            });
            let done = done.inspect_err(|_| give_up(pool.as_ref(), &head));
            done.map_err(|failed| with_notes(failed, &given_up))
        })
        .await?;
        drop(lock);
        let mut summary = done.summary(generation, "in-place", format!("{}/{}", target.pool, target.volume));
        summary.notes.extend(notes);
        Ok(summary)
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
