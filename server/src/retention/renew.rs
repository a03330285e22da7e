//! Writing manifests anew that are damaged or lost: the catalogue knows all that they say.

use thinbak_proto::Failed;
use uuid::Uuid;

use crate::{
    catalogue::{Entry, GenerationKey, Root, Selector},
    manifest::Manifest,
    repository::Repository,
};

/// Generations that are looked at in one step.
const PAGE: u32 = 1024;

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
