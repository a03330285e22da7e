//! Keeping store and catalogue of one mind about what is damaged.

use std::sync::Weak;

use super::Repository;
use crate::{
    catalogue::{CatalogueError, QuarantineEntry},
    store::{Store, StoreError},
};

impl Repository {
    /// Writes what the store found out about damage into the catalogue. What cannot be written comes again.
    pub(crate) async fn keep_damage(&self) -> Result<(), CatalogueError> {
        let _turn = self.quarantine_writer.lock().await;
        let changes = self.store.quarantine_changes();
        if changes.is_empty() {
            return Ok(());
        }
        let kept = self.catalogue.keep_changes(&changes, self.now_ms()).await;
        if kept.is_err() {
            self.store.give_back_changes(changes);
        }
        kept
    }

    /// Forgets all damage of packs that were removed, and when they were verified. Call after the files are gone
    /// from the index, so that no new damage of them is found.
    pub(crate) async fn forget_packs(&self, packs: &[u32]) -> Result<(), CatalogueError> {
        self.keep_damage().await?;
        let _turn = self.quarantine_writer.lock().await;
        packs.iter().for_each(|pack| self.store.forget_quarantine(*pack));
        self.catalogue.forget_packs(packs).await
    }
}

/// Notes as healed what a crash kept the catalogue from noting.
pub(super) async fn settle(store: &Store, known: &[QuarantineEntry]) -> Result<(), StoreError> {
    let unhealed: Vec<&QuarantineEntry> = known.iter().filter(|entry| !entry.place.healed).collect();
    let located = store.locate(unhealed.iter().map(|entry| entry.id).collect()).await?;
    for (entry, location) in unhealed.into_iter().zip(located) {
        if location.is_some_and(|location| location.place() != entry.place.place) {
            store.heal_quarantine(entry.place.place);
        }
    }
    Ok(())
}

/// Tells the catalogue of damage as it is found, until the repository is closed or gone.
pub(super) async fn keep_while_open(repository: Weak<Repository>) {
    loop {
        let Some((store, mut stopping)) =
            repository.upgrade().map(|open| (open.store.clone(), open.stopping()))
        else {
            return;
        };
        tokio::select! {
            () = store.quarantine_changed() => {}
            // An error means that the repository is gone.
            _ = stopping.wait_for(|stopping| *stopping) => return,
        }
        drop(store);
        let Some(repository) = repository.upgrade() else { return };
        if let Err(error) = repository.keep_damage().await {
            tracing::error!(%error, "damage could not be noted in the catalogue; it will be with the next");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        InitOptions,
        store::{DamagedRecord, Kind, RecordPlace},
    };

    #[tokio::test]
    async fn what_is_in_quarantine_is_there_when_the_repository_is_opened_again() {
        let dir = tempfile::tempdir().unwrap();
        Repository::init(dir.path(), InitOptions::default()).await.unwrap();
        let open = || async { Repository::open(dir.path()).await.unwrap() };
        let places = [1, 2, 3].map(|pack| RecordPlace { pack, offset: 64 });
        let repository = open().await;
        for place in places {
            let reason = "a test".to_owned();
            repository.store.quarantine(DamagedRecord { place, id: [1; 32], kind: Kind::Chunk, reason });
        }
        repository.store.heal_quarantine(places[1]);
        repository.store.lift_quarantine(places[2]);
        repository.close().await;
        drop(repository);

        let repository = open().await;
        assert!(repository.store.any_damage());
        let known = repository.catalogue.quarantined().await.unwrap();
        assert_eq!(known.iter().map(|entry| entry.place.healed).collect::<Vec<_>>(), [false, true]);
        assert_eq!(repository.catalogue.unhealed().await.unwrap().records, 1);
        repository.catalogue.set_verified(1, 17).await.unwrap();
        repository.store.lift_quarantine(places[0]);
        repository.catalogue.forget_packs(&[1, 2]).await.unwrap();
        assert!(!repository.store.any_damage());
        assert!(repository.catalogue.quarantined().await.unwrap().is_empty());
        assert!(repository.catalogue.verifications().await.unwrap().is_empty());
        repository.close().await;
    }

    /// The content was stored anew, and the process died before the catalogue knew.
    #[tokio::test]
    async fn what_was_healed_before_a_crash_is_noted_when_the_repository_is_opened_again() {
        use crate::store::{Change, NewRecord};
        let dir = tempfile::tempdir().unwrap();
        Repository::init(dir.path(), InitOptions::default()).await.unwrap();
        let stored = bytes::Bytes::from_static(b"content");
        let record =
            NewRecord { kind: Kind::Chunk, id: [9; 32], codec: 0, plain_len: 7, stored, stored_hash: None };
        let repository = Repository::open(dir.path()).await.unwrap();
        repository.store.put(vec![record.clone()]).await.unwrap();
        let place = repository.store.locate(vec![record.id]).await.unwrap()[0].unwrap().place();
        let damaged = DamagedRecord { place, id: record.id, kind: record.kind, reason: "a test".to_owned() };
        repository.store.quarantine(damaged.clone());
        repository.store.put(vec![record.clone()]).await.unwrap();
        repository.keep_damage().await.unwrap();
        repository.catalogue.keep_changes(&[Change::Lifted(place), Change::Found(damaged)], 5).await.unwrap();
        repository.close().await;
        drop(repository);

        let repository = Repository::open(dir.path()).await.unwrap();
        assert!(!repository.store.any_damage());
        assert!(repository.store.get(record.id).await.unwrap().is_some());
        repository.keep_damage().await.unwrap();
        assert_eq!(repository.catalogue.unhealed().await.unwrap().records, 0);
        repository.close().await;
    }
}
