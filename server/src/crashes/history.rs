//! The history: what is done, in which order, on which machine.

use std::{fs, ops::Range, path::Path, sync::Arc};

use rand::{Rng as _, rngs::StdRng};
use tempfile::TempDir;
use thinbak_proto::{Failed, FailureKind, v1};
use v1::verify_event::Event;

use super::{
    crashed,
    model::{Fate, Model},
};
use crate::{
    Clock, Environment, InitOptions, Random, Repository, RepositoryError,
    ingest::tests::client::{Backup, CHUNK, Place, after, full, id, named, new, number, present},
    rebuild::rebuild_catalogue_in,
    store::{StoreError, memory_medium::MemoryMedium},
};

/// Of a volume: two levels of map nodes.
pub(super) const CHUNKS: u64 = 200;
pub(super) const A: usize = 0;
pub(super) const B: usize = 1;
/// Sends what was damaged once more.
pub(super) const HEALER: usize = 2;
/// What every record that is spoilt holds.
const SPOILT: u64 = 8;

/// One step of the history.
#[derive(Debug, Clone)]
pub(super) enum Step {
    /// A backup of a volume whose chunks in this range changed: each holds its number and this.
    BackUp(usize, Range<u64>, u64),
    /// All packs are complete: the next backup begins another.
    Seal,
    Delete(usize, u64),
    Undelete(usize, u64),
    /// All but the newest generation of a volume.
    Prune(usize),
    /// A bit of a stored chunk turns.
    Spoil,
    Verify,
    /// All of what may be damaged is compared and sent again.
    Heal,
    /// A backup begins and is told that chunks are present which only deleted generations have.
    Begin,
    /// It relies on that, and commits.
    Commit,
    Collect,
    Reopen,
    Rebuild,
}

use Step::{
    BackUp, Begin, Collect, Commit, Delete, Heal, Prune, Rebuild, Reopen, Seal, Spoil, Undelete, Verify,
};

pub(super) const SCRIPT: &[Step] = &[
    BackUp(A, 0..12, 0),
    // Of the same contents: nothing is stored twice.
    BackUp(B, 0..8, 4),
    Seal,
    BackUp(B, 100..104, 500),
    BackUp(A, 0..7, 1000),
    Seal,
    BackUp(A, 150..153, 2000),
    Prune(A),
    Delete(B, 1),
    Undelete(A, 2),
    Spoil,
    Verify,
    Begin,
    Collect,
    Commit,
    Heal,
    Collect,
    // Too late for the one; the other one's time has not come.
    Undelete(B, 1),
    Delete(A, 2),
    Reopen,
    Rebuild,
    BackUp(B, 20..23, 3000),
    Undelete(A, 2),
    Rebuild,
    Prune(A),
    Collect,
];

pub(super) struct World {
    dir: Option<TempDir>,
    place: Option<Place>,
    pub(super) medium: Arc<MemoryMedium>,
    pub(super) model: Model,
    begun: Option<Backup>,
}

impl World {
    pub(super) async fn new() -> Self {
        // Nothing here waits for a disk.
        let dir = tempfile::tempdir_in("/dev/shm").or_else(|_| TempDir::new()).unwrap();
        Repository::init(dir.path(), InitOptions { chunk_bytes: CHUNK as u32 }).await.unwrap();
        let mut world =
            Self { dir: Some(dir), place: None, medium: Arc::default(), model: Model::new(), begun: None };
        world.open().await.unwrap();
        world
    }

    fn environment(&self) -> Environment {
        Environment::new(Clock::system(), Random::new(|| 4)).with_packs_in(Arc::clone(&self.medium))
    }

    pub(super) fn place(&self) -> &Place {
        self.place.as_ref().unwrap()
    }

    pub(super) fn is_closed(&self) -> bool {
        self.place.is_none()
    }

    fn dir(&self) -> &Path {
        self.dir.as_ref().or(self.place.as_ref().map(|place| &place.dir)).unwrap().path()
    }

    pub(super) async fn open(&mut self) -> Result<(), RepositoryError> {
        loop {
            match Repository::open_in(self.dir(), self.environment()).await {
                // A thread of the process before has it for a moment more.
                Err(RepositoryError::Store(StoreError::IndexLocked { .. })) => tokio::task::yield_now().await,
                opened => {
                    let repository = opened?;
                    self.place = Some(Place { dir: self.dir.take().unwrap(), repository });
                    return Ok(());
                }
            }
        }
    }

    /// Closes the repository, or what of that succeeds.
    pub(super) async fn close(&mut self) {
        let Some(place) = &self.place else { return };
        place.repository.close().await;
        self.kill().await;
    }

    async fn kill(&mut self) {
        self.begun = None;
        let Some(Place { dir, repository }) = self.place.take() else { return };
        self.dir = Some(dir);
        repository.kill().await;
    }

    pub(super) async fn lose_power(&mut self, random: &mut StdRng) {
        self.kill().await;
        self.medium = crashed(&self.medium, random).await;
        if random.random_bool(0.4) {
            // Or a rebuild died before it was made.
            let _ = fs::remove_dir_all(self.dir().join("index"));
        }
    }

    /// Takes a step. An error is what a client would have been told.
    pub(super) async fn take(&mut self, step: &Step) -> Result<(), Failed> {
        if self.is_closed() {
            // A failed rebuild: somebody starts the server again.
            self.open().await?;
        }
        match step {
            BackUp(volume, range, content) => self.back_up(*volume, range.clone(), *content).await,
            Seal => self.place().repository.store.settle().await.map(drop).map_err(Failed::from),
            Delete(volume, number) => self.delete(*volume, *number).await,
            Undelete(volume, number) => self.undelete(*volume, *number).await,
            Prune(volume) => self.prune(*volume).await,
            Spoil => self.spoil().await,
            Verify => self.verify().await.map(drop),
            Heal => self.heal().await,
            Begin => self.begin().await,
            Commit => self.commit().await,
            Collect => self.collect().await,
            Reopen => {
                self.close().await;
                Ok(self.open().await?)
            }
            Rebuild => {
                self.close().await;
                rebuild_catalogue_in(self.dir(), &self.environment()).await?;
                Ok(self.open().await?)
            }
        }
    }

    /// The session of a volume's next backup, on the newest generation that is known to be there, if any.
    async fn session(&mut self, volume: usize) -> Result<Backup, Failed> {
        let volume = &self.model.volumes[volume];
        let mut begin = match &volume.base {
            Some(base) => after(&base.0, CHUNKS * CHUNK),
            None => full(volume.uuid, &volume.name, CHUNKS * CHUNK),
        };
        begin.point = Some(v1::Point { device_id: volume.attempts.len() as u64, ..Default::default() });
        self.place().begin(begin).await
    }

    async fn back_up(&mut self, volume: usize, range: Range<u64>, content: u64) -> Result<(), Failed> {
        let backup = self.session(volume).await?;
        self.send(volume, backup, range.map(|chunk| (chunk, chunk + content)).collect()).await
    }

    async fn send(
        &mut self,
        volume: usize,
        mut backup: Backup,
        chunks: Vec<(u64, u64)>,
    ) -> Result<(), Failed> {
        let attempt = self.model.volumes[volume].attempt(&chunks);
        // Not all at once: a part of it is on the disk when it fails.
        for chunks in chunks.chunks(4) {
            let missing = backup.missing(chunks.iter().map(|(_, content)| id(*content)).collect()).await?;
            let items = chunks.iter().zip(missing);
            let items = items.map(|((chunk, content), missing)| match missing {
                true => new(*chunk, *content),
                false => present(*chunk, *content),
            });
            backup.batch(items.collect()).await?;
        }
        let generation = backup.commit().await?;
        self.model.volumes[volume].committed(attempt, generation);
        Ok(())
    }

    async fn begin(&mut self) -> Result<(), Failed> {
        let mut backup = self.session(B).await?;
        // Of the deleted first generation of A only.
        backup.missing((0..4).map(id).collect()).await?;
        self.begun = Some(backup);
        Ok(())
    }

    async fn commit(&mut self) -> Result<(), Failed> {
        let Some(backup) = self.begun.take() else { return Ok(()) };
        self.send(B, backup, (0..4).map(|content| (content + 50, content)).collect()).await
    }

    async fn delete(&mut self, volume: usize, generation: u64) -> Result<(), Failed> {
        let volume = &mut self.model.volumes[volume];
        let Some(fate) = volume.fates.get_mut(&generation) else { return Ok(()) };
        let request =
            v1::DeleteGenerationRequest { volume: named(&volume.name), selector: number(generation) };
        let before = std::mem::replace(fate, Fate::Unsure);
        let place = self.place.as_ref().unwrap();
        place.generations().delete_generation(request).await.map_err(Failed::from).inspect_err(|failed| {
            if matches!(failed.kind, FailureKind::NotFound | FailureKind::Refused) {
                *fate = before;
            }
        })?;
        *fate = Fate::Deleted;
        Ok(())
    }

    async fn undelete(&mut self, volume: usize, generation: u64) -> Result<(), Failed> {
        let volume = &mut self.model.volumes[volume];
        let Some(fate) = volume.fates.get_mut(&generation).filter(|fate| **fate != Fate::Alive) else {
            return Ok(());
        };
        let request = v1::UndeleteGenerationRequest { volume: named(&volume.name), number: generation };
        let place = self.place.as_ref().unwrap();
        match place.generations().undelete_generation(request).await.map_err(Failed::from) {
            Ok(_) => *fate = Fate::Alive,
            // Collected, or it was never deleted.
            Err(failed) if matches!(failed.kind, FailureKind::NotFound | FailureKind::Refused) => {}
            Err(failed) => {
                *fate = Fate::Unsure;
                return Err(failed);
            }
        }
        Ok(())
    }

    async fn prune(&mut self, volume: usize) -> Result<(), Failed> {
        let volume = &mut self.model.volumes[volume];
        let policy = Some(v1::RetentionPolicy { last: 1, ..Default::default() });
        let request = v1::PruneRequest { volume: named(&volume.name), policy, ..Default::default() };
        // Which of them are gone if it fails nobody knows.
        let before: Vec<u64> = volume.numbers_of(Fate::Alive).collect();
        volume.fates.extend(before.iter().map(|number| (*number, Fate::Unsure)));
        let mut decided = Vec::new();
        let place = self.place.as_ref().unwrap();
        let mut events = place.generations().prune(request).await?.into_inner();
        while let Some(event) = events.message().await? {
            if let Some(v1::prune_event::Event::Decision(decision)) = event.event {
                let fate = if decision.remove { Fate::Deleted } else { Fate::Alive };
                volume.fates.insert(decision.number, fate);
                decided.push(decision.number);
            }
        }
        assert!(before.iter().all(|number| decided.contains(number)), "{before:?}, {decided:?}");
        Ok(())
    }

    /// Only what was synced: the disk lies about what it had promised to keep.
    async fn spoil(&mut self) -> Result<(), Failed> {
        let located = self.place().repository.store.locate(vec![*id(SPOILT).as_bytes()]).await?;
        if let [Some(location)] = *located {
            self.medium.flip(location.pack, location.offset as usize + 110);
            self.model.spoilt = true;
        }
        Ok(())
    }

    /// The damaged records, and the ranges of generations that need them.
    pub(super) async fn verify(&mut self) -> Result<Vec<Event>, Failed> {
        let request = v1::VerifyRequest::default();
        let mut events = self.place().generations().verify(request).await?.into_inner();
        let mut damaged = Vec::new();
        while let Some(event) = events.message().await? {
            // A header that power failed before its first sync is damaged, and costs nothing.
            let is_damage = |event: &Event| matches!(event, Event::Damage(_) | Event::Record(_));
            damaged.extend(event.event.filter(is_damage));
        }
        Ok(damaged)
    }

    pub(super) async fn heal(&mut self) -> Result<(), Failed> {
        self.back_up(HEALER, 0..12, 0).await
    }

    pub(super) async fn collect(&mut self) -> Result<(), Failed> {
        let request =
            v1::CollectRequest { threshold: Some(1.0), grace_ms: Some(0), ..v1::CollectRequest::default() };
        let mut events = self.place().generations().collect(request).await?.into_inner();
        while events.message().await?.is_some() {}
        Ok(())
    }
}
