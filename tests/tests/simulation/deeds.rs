//! What an agent asks for beside backups and restores: deleting, pruning, undoing that, protecting, and reading what it
//! deletes at the same time.

use std::sync::Arc;

use futures::{FutureExt as _, stream};
use rand::Rng as _;
use thinbak_proto::{
    ChunkId, Failed, FailureKind,
    v1::{
        BackupBatch, BackupCommit, BackupRequest, DeleteGenerationRequest, HoldRequest, MapItem,
        ProtectGenerationRequest, PruneRequest, RetentionPolicy, UndeleteGenerationRequest,
        backup_request::Message as Asked, backup_response::Message as Answer, map_item::Entry,
        prune_event::Event,
    },
};

use super::{Agent, Clients, Heard, named};
use crate::{checker::collect, volume::Slot};

impl Agent {
    /// Any generation that the agent heard of; the server refuses the newest and the protected.
    pub(super) async fn delete(&mut self, which: usize) -> Result<(), Failed> {
        let clients = Clients(self.channel.clone());
        let Some(number) = self.any_generation(which) else { return Ok(()) };
        let volume = &mut self.volumes[which];
        volume.last_deleted = Some(number);
        let (name, selector) = named(volume, number);
        let deleted =
            clients.repository().delete_generation(DeleteGenerationRequest { volume: name, selector }).await;
        match deleted.map_err(Failed::from) {
            Ok(_) => volume.deletions.insert(number, Heard::Done),
            // Told that it was not done.
            Err(failed) if failed.kind == FailureKind::Refused => return Ok(()),
            Err(failed) => {
                volume.deletions.entry(number).or_insert(Heard::Nothing);
                return Err(failed);
            }
        };
        Ok(())
    }

    pub(super) async fn protect(&mut self, which: usize) -> Result<(), Failed> {
        let Some(number) = self.any_generation(which) else { return Ok(()) };
        let protected = self.random.random_bool(0.5);
        let (volume, selector) = named(&self.volumes[which], number);
        let request = ProtectGenerationRequest { volume, selector, protected };
        Clients(self.channel.clone()).repository().protect_generation(request).await?;
        Ok(())
    }

    /// All but some of the newest. What is removed is told one by one.
    pub(super) async fn prune(&mut self, which: usize) -> Result<(), Failed> {
        let policy = Some(RetentionPolicy { last: self.random.random_range(1..4), ..Default::default() });
        let volume = &mut self.volumes[which];
        if volume.heard().next().is_none() {
            return Ok(());
        }
        self.done.prunes += 1;
        let (name, _) = named(volume, 0);
        let request = PruneRequest { volume: name, policy, ..PruneRequest::default() };
        let mut removed = Vec::new();
        let pruned = async {
            let mut events = Clients(self.channel.clone()).repository().prune(request).await?.into_inner();
            while let Some(event) = events.message().await? {
                if let Some(Event::Decision(decision)) = event.event
                    && decision.remove
                {
                    removed.push(decision.number);
                }
            }
            Ok::<_, Failed>(())
        };
        let pruned = pruned.await;
        if pruned.is_err() {
            // Any of them may be gone by now.
            let heard: Vec<u64> = volume.heard().map(|(number, _)| number).collect();
            for number in heard {
                volume.deletions.entry(number).or_insert(Heard::Nothing);
            }
        }
        volume.deletions.extend(removed.into_iter().map(|number| (number, Heard::Done)));
        pruned
    }

    /// Wants something back that it deleted, or that may be deleted.
    pub(super) async fn undelete(&mut self, which: usize) -> Result<(), Failed> {
        let volume = &mut self.volumes[which];
        let deleted: Vec<u64> = volume.deletions.keys().copied().collect();
        let any = deleted.get(self.random.random_range(0..deleted.len().max(1))).copied();
        // Of the others most are collected.
        let lately =
            volume.last_deleted.filter(|last| deleted.contains(last) && self.random.random_bool(0.8));
        let Some(number) = lately.or(any) else { return Ok(()) };
        let (name, _) = named(volume, number);
        let request = UndeleteGenerationRequest { volume: name, number };
        let undeleted = Clients(self.channel.clone()).repository().undelete_generation(request).await;
        match undeleted.map_err(Failed::from) {
            Ok(_) => {
                self.done.undeletions += 1;
                volume.deletions.remove(&number);
                Ok(())
            }
            // It is collected, or it was not deleted after all: nothing was done.
            Err(failed) if failed.kind == FailureKind::Refused => Ok(()),
            Err(failed) => {
                volume.deletions.insert(number, Heard::Nothing);
                Err(failed)
            }
        }
    }

    /// Backs up without asking what is there, as if it remembered. What is committed is as good as any other.
    pub(super) async fn presume(&mut self, which: usize) -> Result<(), Failed> {
        let clients = Clients(self.channel.clone());
        let Self { random, volumes, .. } = self;
        let volume = &mut volumes[which];
        volume.image.change(random);
        let image = Arc::new(volume.image.clone());
        let (identity, begin) = volume.begin(&image, None);
        let items = (0..image.slots.len()).map(|chunk| MapItem {
            chunk: chunk as u64,
            entry: Some(match (image.slots[chunk], image.bytes(chunk)) {
                (Slot::Data(_), Some(bytes)) => Entry::Present(ChunkId::of(&bytes).to_bytes()),
                (Slot::Zero, _) => Entry::Zero(1),
                _ => Entry::Hole(1),
            }),
        });
        let asked = [
            Asked::Begin(begin),
            Asked::Batch(BackupBatch { items: items.collect() }),
            Asked::Commit(BackupCommit {}),
        ];
        let asked = stream::iter(asked.map(|message| BackupRequest { message: Some(message) }));
        let mut answers = clients.ingest().backup(asked).await?.into_inner();
        loop {
            match answers.message().await.map_err(Failed::from) {
                Ok(Some(answer)) => match answer.message {
                    Some(Answer::Committed(generation)) => volume.committed(&identity, generation, &image),
                    Some(Answer::Incomplete(_)) => self.done.refused += 1,
                    _ => {}
                },
                Ok(None) => return Ok(()),
                // It says which one the repository does not have.
                Err(failed) if failed.kind == FailureKind::Usage && failed.message.contains("as present") => {
                    self.done.refused += 1;
                    return Ok(());
                }
                Err(failed) => return Err(failed),
            }
        }
    }

    /// Holds a generation, deletes it, has everything collected that can be, and still reads it.
    pub(super) async fn hold(&mut self, which: usize) -> Result<(), Failed> {
        let Some(number) = self.any_generation(which) else { return Ok(()) };
        let clients = Clients(self.channel.clone());
        let volume = &mut self.volumes[which];
        let (name, selector) = named(volume, number);
        let request =
            HoldRequest { volume: name.clone(), selectors: selector.into_iter().collect(), ranges: vec![] };
        let mut events = clients.content().hold(request).await?.into_inner();
        let held = events.message().await?.unwrap_or_default().held;
        let Some(generation) = held.first() else { return Ok(()) };
        let image = volume.image_of(generation).map_err(|why| Failed::new(FailureKind::Damaged, why))?;
        let request = DeleteGenerationRequest { volume: name, selector };
        match clients.repository().delete_generation(request).await.map_err(Failed::from) {
            Ok(_) => volume.deletions.insert(number, Heard::Done),
            Err(failed) if failed.kind == FailureKind::Refused => return Ok(()),
            Err(failed) => {
                volume.deletions.entry(number).or_insert(Heard::Nothing);
                return Err(failed);
            }
        };
        match collect(&clients, false, Some(0)).await {
            // The other one frees as much.
            Err(failed) if failed.kind == FailureKind::Busy => {}
            collected => drop(collected?),
        }
        let compared = clients.compare(generation, &image).await;
        if events.message().now_or_never().is_some() {
            // Nobody promised anything any more.
            return Err(Failed::new(FailureKind::NotFound, "connection reset: the hold was cut"));
        }
        match compared? {
            None => self.done.held += 1,
            Some(why) => return Err(Failed::new(FailureKind::Damaged, why)),
        }
        Ok(())
    }
}
