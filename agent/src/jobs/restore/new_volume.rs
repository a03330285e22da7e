//! To a new volume: one generation, or several with what they share kept shared.
//!
//! All goes into one private head, in ascending order: the first generation whole, of each other one only where it
//! differs from the one before. Before the head goes on from a generation a private snapshot of it is taken. The head
//! becomes the volume and the snapshots its snapshots in one commit at the end. Whatever ends the restore before leaves
//! private devices, which are removed here or, if the process died, when the pool is opened the next time.

use std::{sync::Arc, time::Instant};

use thinbak_engine::Volume;
use thinbak_proto::{
    Failed,
    v1::{Generation, JobSummary, PoolVolume as VolumeRef},
};

use super::{
    super::events::blocking,
    Restore,
    heads::{check_new_name, give_up, open_for_volume},
};
use crate::{
    pools::{Need, PoolManager, ThinPool, with_notes},
    sink::VolumeSink,
    stream::Progress,
    volume::PoolVolume,
};

/// What is written, nobody else's business yet.
struct Draft {
    pool: Arc<dyn ThinPool>,
    /// Where the volume will be.
    place: String,
    head: Volume,
    /// Whether the head holds nothing yet.
    is_empty: bool,
    /// Snapshots of the head and what they will be called.
    moments: Vec<(Volume, String)>,
}

impl Restore<'_> {
    pub(super) async fn to_new_volume(
        &self,
        manager: &Arc<PoolManager>,
        target: &VolumeRef,
        like: &str,
    ) -> Result<Vec<JobSummary>, Failed> {
        let pool = open_for_volume(manager, &target.pool).await?;
        let lock = manager.lock_volume(pool.uuid(), &target.volume)?;
        let size = self.held.generations().first().map_or(0, |first| first.size_bytes);
        let (engine, name, guard) = (Arc::clone(&pool), target.volume.clone(), Arc::clone(manager));
        let (of, generations) = (like.to_owned(), self.held.generations().to_vec());
        let snapshots = self.held.generations().len().saturating_sub(1) as u64;
        let (head, notes) = blocking(move || {
            check_new_name(engine.as_ref(), &name)?;
            let like = if of.is_empty() { None } else { Some(engine.volume(&of)?) };
            let present =
                like.as_ref().map(|like| engine.mapped_bytes(like)).transpose()?.unwrap_or_default();
            let need = Need::of_restore(&generations, engine.block_bytes(), present);
            let passing = u64::from(like.is_some());
            let notes = guard.admit(engine.as_ref(), &Need { snapshots, passing, ..need })?;
            let head = begin(engine.as_ref(), size, like.as_ref());
            Ok((head.map_err(|failed| with_notes(failed, &notes))?, notes))
        })
        .await?;
        let place = format!("{}/{}", target.pool, target.volume);
        let is_empty = like.is_empty();
        let mut draft = Draft { pool, place, head, is_empty, moments: Vec::new() };
        let written = self.write_all(&mut draft).await;
        let name = target.volume.clone();
        let done = blocking(move || {
            let Draft { pool, head, moments, .. } = &draft;
            let published = written.and_then(|summaries| {
                pool.publish_head(head, &name, moments)?;
                Ok(summaries)
            });
            if published.is_err() {
                moments
                    .iter()
                    .map(|(moment, _)| moment)
                    .chain([head])
                    .for_each(|one| give_up(pool.as_ref(), one));
            }
            published
        })
        .await;
        drop(lock);
        let mut done = done.map_err(|failed| with_notes(failed, &notes))?;
        if let Some(first) = done.first_mut() {
            first.notes.extend(notes);
        }
        Ok(done)
    }

    /// One generation after the other.
    async fn write_all(&self, draft: &mut Draft) -> Result<Vec<JobSummary>, Failed> {
        let generations = self.held.generations();
        let mut summaries = Vec::with_capacity(generations.len());
        let mut base = None;
        for (generation, left) in generations.iter().zip((0..generations.len()).rev()) {
            let since = Instant::now();
            if let Some(base) = base {
                draft.go_on(base, generation).await?;
            }
            let (pool, head) = (Arc::clone(&draft.pool), draft.head.clone());
            let volume = blocking(move || PoolVolume::open(pool, head)).await?;
            // What the head has of another volume is compared by content: of that nothing else is proven.
            let against = (base.is_none() && !draft.is_empty).then(|| volume.clone());
            let source = self.source(base, generation, against)?;
            let sink = if base.is_none() && draft.is_empty { VolumeSink::clean } else { VolumeSink::dirty };
            let progress = Progress::new(expected_bytes(base, generation));
            let mut done = self.transfer(generation, source, sink(volume.clone()), &progress).await?;
            if generations.len() > 1 || !draft.is_empty {
                self.verify(base, generation, volume).await?;
            }
            if base.is_some() {
                // Only a part of the map was looked at.
                done.stats.mapped_bytes = generation.mapped_bytes;
            }
            done.seconds = since.elapsed().as_secs_f64();
            let target = match left {
                0 => draft.place.clone(),
                _ => format!("{}@{}", draft.place, moment_name(generation)),
            };
            summaries.push(done.summary(generation, "new-volume", target));
            base = Some(generation);
        }
        Ok(summaries)
    }
}

impl Draft {
    /// Keeps what the head holds, which is `base`, and gives it the size of the next generation.
    async fn go_on(&mut self, base: &Generation, next: &Generation) -> Result<(), Failed> {
        let (pool, mut head, size) = (Arc::clone(&self.pool), self.head.clone(), next.size_bytes);
        let (head, moment) = blocking(move || {
            let moment = pool.snapshot_head(&head)?;
            let changed = (|| {
                let shorter = size < head.size_bytes;
                if size != head.size_bytes {
                    head = pool.resize_head(&head, size)?;
                }
                if shorter { pool.forget_beyond(&head) } else { Ok(()) }
            })();
            changed.inspect_err(|_| give_up(pool.as_ref(), &moment))?;
            Ok((head, moment))
        })
        .await?;
        self.head = head;
        self.moments.push((moment, moment_name(base)));
        Ok(())
    }
}

/// A private head: empty, or with what another volume holds.
fn begin(pool: &dyn ThinPool, size: u64, like: Option<&Volume>) -> Result<Volume, Failed> {
    let head = pool.create_head(size, like.map(|like| like.device))?;
    if like.is_some() {
        pool.forget_beyond(&head).inspect_err(|_| give_up(pool, &head))?;
    }
    Ok(head)
}

/// What the snapshot of a generation is called that is not the newest of those restored together.
fn moment_name(generation: &Generation) -> String {
    format!("gen-{}", generation.number)
}

/// How much will be written, as far as the server said; 0 where it did not.
fn expected_bytes(base: Option<&Generation>, generation: &Generation) -> u64 {
    match base {
        None => generation.mapped_bytes,
        Some(base) if base.number == generation.parent => generation.changed_bytes,
        Some(_) => 0,
    }
}
