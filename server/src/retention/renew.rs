//! Writing manifests anew that are damaged or lost, or that say less than the catalogue: it knows all that they say.

use std::collections::HashMap;

use thinbak_proto::Failed;
use tokio::task::spawn_blocking;
use uuid::Uuid;

use crate::{
    catalogue::{Entry, GenerationKey, Root, Selector},
    manifest::{Manifest, next_revision, subject_of},
    repository::Repository,
    store::{Kind, StoreError},
};

/// Generations that are looked at in one step.
const PAGE: u32 = 1024;

/// Makes the packs say what the catalogue says of what is visible, as far as that succeeds.
pub(crate) async fn settle_manifests(repository: &Repository) {
    if let Err(error) = renew_manifests(repository, None).await {
        tracing::warn!(%error, "damaged manifests could not be written anew");
    }
    if let Err(error) = outlive_tombstones(repository).await {
        tracing::warn!(%error, "what failed deletions left behind could not be settled");
    }
}

/// Stores the manifests of visible generations, of one volume or of all, that the packs do not have or that are in
/// quarantine. Returns how many.
pub(crate) async fn renew_manifests(repository: &Repository, volume: Option<Uuid>) -> Result<u64, Failed> {
    let mut renewed = 0;
    let mut after = volume.map(|volume| GenerationKey { volume, number: 0 });
    loop {
        // Nothing is deleted or protected meanwhile.
        let _marking = repository.marking.lock().await;
        let _claim = repository.store.claim();
        let mut page = repository.catalogue.roots(u64::MAX, after, PAGE).await?;
        page.retain(|root| volume.is_none_or(|volume| volume == root.key.volume));
        let Some(last) = page.last() else { break };
        after = Some(last.key);
        let ids = page.iter().map(|root| *root.manifest.as_bytes()).collect();
        let found = repository.store.contains(ids).await?;
        for (root, _) in page.iter().zip(found).filter(|(_, found)| !found) {
            renewed += u64::from(renew(repository, root).await?);
        }
    }
    if renewed > 0 {
        tracing::info!(renewed, "manifests that were damaged or lost are written anew");
    }
    Ok(renewed)
}

async fn renew(repository: &Repository, root: &Root) -> Result<bool, Failed> {
    let catalogue = &repository.catalogue;
    let found = catalogue.generation(root.key.volume, Selector::Number(root.key.number)).await?;
    let Some(Entry { generation, revision }) = found else { return Ok(false) };
    let (manifest, record) = Manifest::new(&generation, revision).record();
    repository.store.put(vec![record]).await?;
    // It says something else than the one before only if the volume has another name since.
    if manifest != root.manifest {
        catalogue.set_protected(&generation, revision, manifest).await?;
    }
    Ok(true)
}

/// Stores new manifests of visible generations that a tombstone ends: their deletion failed between the two. It was
/// not confirmed, and a catalogue made from the packs years later must not take it for one whose grace period is over.
/// Returns how many.
async fn outlive_tombstones(repository: &Repository) -> Result<u64, Failed> {
    let store = repository.store.clone();
    let scan = move || {
        let mut highest: HashMap<GenerationKey, u64> = HashMap::new();
        for record in store.records(Kind::Tombstone)? {
            match record {
                Ok(record) => {
                    if let Some((key, revision)) = subject_of(&record) {
                        let known = highest.entry(key).or_default();
                        *known = revision.max(*known);
                    }
                }
                // One that nobody can read ends nothing.
                Err(error) if error.is_damage() => {}
                Err(error) => return Err(error),
            }
        }
        Ok(highest)
    };
    let mut renewed = 0;
    for (key, ended) in spawn_blocking(scan).await.unwrap_or(Err(StoreError::Closed))? {
        let _marking = repository.marking.lock().await;
        let _claim = repository.store.claim();
        let found = repository.catalogue.generation(key.volume, Selector::Number(key.number)).await?;
        let Some(Entry { generation, revision }) = found.filter(|entry| entry.revision <= ended) else {
            continue;
        };
        let revision = next_revision(revision.max(ended), repository.now_ms());
        let (manifest, record) = Manifest::new(&generation, revision).record();
        repository.store.put(vec![record]).await?;
        repository.catalogue.set_protected(&generation, revision, manifest).await?;
        tracing::info!(
            volume = generation.volume_name,
            generation = generation.number,
            "not deleted after all"
        );
        renewed += 1;
    }
    Ok(renewed)
}
