//! Deleting, undeleting and forgetting; and protecting from it.

use thinbak_proto::{Failed, FailureKind, v1};

use crate::{
    catalogue::{Deletion, Entry, GenerationKey, Root, Selector},
    manifest::{GIVEN_UP, Manifest, Tombstone, next_revision},
    repository::Repository,
};

/// Generations that are deleted or forgotten in one step: one append to a pack and one transaction.
pub(crate) const STEP: usize = 64;

/// Why a generation cannot be deleted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kept {
    /// It is gone already.
    Gone,
    Protected,
    /// A volume always keeps its newest generation.
    Newest,
}

/// What [`delete`] did with each generation, in the order of the keys.
pub(crate) type Outcomes = Vec<(GenerationKey, Result<v1::Generation, Kept>)>;

/// Deletes generations, at most [`STEP`] of them: the tombstones first, then what is visible. After a crash in
/// between the generations are still there, and may be deleted again.
pub(crate) async fn delete(
    repository: &Repository,
    keys: &[GenerationKey],
    now_ms: u64,
) -> Result<Outcomes, Failed> {
    let _marking = repository.marking.lock().await;
    let _claim = repository.store.claim();
    let mut outcomes = Vec::with_capacity(keys.len());
    let (mut deletions, mut records) = (Vec::new(), Vec::new());
    for key in keys {
        let outcome = match deletable(repository, *key).await? {
            Err(kept) => Err(kept),
            Ok(Entry { generation, revision }) => {
                let revision = next_revision(revision, now_ms);
                let (tombstone, record) = Tombstone::new(*key, revision, now_ms).record();
                deletions.push(Deletion { key: *key, revision, tombstone });
                records.push(record);
                Ok(generation)
            }
        };
        outcomes.push((*key, outcome));
    }
    if deletions.is_empty() {
        return Ok(outcomes);
    }
    repository.store.put(records).await?;
    let marked = repository.catalogue.mark_deleted(&deletions, now_ms).await?;
    if marked.len() != deletions.len() {
        // Nothing else deletes or protects while `marking` is held, and a newest generation is never unmade.
        let message = "generations were changed while they were deleted";
        return Err(Failed::new(FailureKind::Busy, message).with_hint("try again"));
    }
    for generation in outcomes.iter().filter_map(|(_, outcome)| outcome.as_ref().ok()) {
        tracing::info!(volume = generation.volume_name, generation = generation.number, "generation deleted");
    }
    Ok(outcomes)
}

async fn deletable(repository: &Repository, key: GenerationKey) -> Result<Result<Entry, Kept>, Failed> {
    let catalogue = &repository.catalogue;
    let Some(entry) = catalogue.generation(key.volume, Selector::Number(key.number)).await? else {
        return Ok(Err(Kept::Gone));
    };
    if entry.generation.protected {
        return Ok(Err(Kept::Protected));
    }
    let newest = catalogue.newest(key.volume).await?;
    Ok(if newest.is_none_or(|newest| newest <= key.number) { Err(Kept::Newest) } else { Ok(entry) })
}

/// Sets or takes off protection: a manifest first, then what is visible. `None`: it is not there.
pub(crate) async fn protect(
    repository: &Repository,
    key: GenerationKey,
    protected: bool,
    now_ms: u64,
) -> Result<Option<v1::Generation>, Failed> {
    let _marking = repository.marking.lock().await;
    let _claim = repository.store.claim();
    let found = repository.catalogue.generation(key.volume, Selector::Number(key.number)).await?;
    let Some(Entry { mut generation, revision }) = found else { return Ok(None) };
    if generation.protected == protected {
        return Ok(Some(generation));
    }
    generation.protected = protected;
    let revision = next_revision(revision, now_ms);
    let (manifest, record) = Manifest::new(&generation, revision).record();
    repository.store.put(vec![record]).await?;
    let set = repository.catalogue.set_protected(&generation, revision, manifest).await?;
    Ok(set.then_some(generation))
}

/// Makes a deleted generation visible again: a manifest that the tombstone does not end first, then what is
/// visible.
pub(crate) async fn undelete(
    repository: &Repository,
    key: GenerationKey,
    shown: &str,
    now_ms: u64,
) -> Result<v1::Generation, Failed> {
    let _marking = repository.marking.lock().await;
    let _claim = repository.store.claim();
    let refused = |why: String| Failed::new(FailureKind::Refused, format!("cannot undelete {shown}: {why}"));
    let Some(deleted) = repository.catalogue.deleted(key).await? else {
        if repository.catalogue.generation(key.volume, Selector::Number(key.number)).await?.is_some() {
            return Err(refused("it is not deleted".into()));
        }
        if key.number == 0 || key.number >= repository.catalogue.next(key.volume).await?.number {
            return Err(Failed::new(FailureKind::NotFound, format!("there never was a generation {shown}")));
        }
        return Err(refused("its grace period is over, and its content was given up to collection".into()));
    };
    if deleted.deleted_at_ms <= cutoff(repository, now_ms).await? {
        let message = format!("its grace period of {} is over", days(repository.catalogue.grace_ms().await?));
        return Err(refused(message));
    }
    let Entry { generation, revision } = deleted.entry;
    let revision = next_revision(revision, now_ms);
    let (manifest, record) = Manifest::new(&generation, revision).record();
    repository.store.put(vec![record]).await?;
    if !repository.catalogue.undelete(&generation, revision, manifest).await? {
        return Err(Failed::new(FailureKind::Busy, format!("{shown} was changed while it was undeleted")));
    }
    tracing::info!(volume = generation.volume_name, generation = generation.number, "generation undeleted");
    Ok(generation)
}

/// What was deleted at this moment or before cannot be undeleted.
pub(crate) async fn cutoff(repository: &Repository, now_ms: u64) -> Result<u64, Failed> {
    Ok(now_ms.saturating_sub(repository.catalogue.grace_ms().await?))
}

/// Gives up all deleted generations whose grace period, the repository's or another, is over, in steps; returns how
/// many. A crash between two steps leaves the rest to the next call.
pub(crate) async fn forget_expired(
    repository: &Repository,
    now_ms: u64,
    grace_ms: Option<u64>,
) -> Result<u64, Failed> {
    let mut forgotten = 0;
    let mut after = None;
    loop {
        let _marking = repository.marking.lock().await;
        let _claim = repository.store.claim();
        let cutoff = match grace_ms {
            Some(grace_ms) => now_ms.saturating_sub(grace_ms),
            None => cutoff(repository, now_ms).await?,
        };
        let page = repository.catalogue.expired(cutoff, after, STEP as u32).await?;
        let Some(last) = page.last() else { return Ok(forgotten) };
        after = Some(last.key);
        let ended = |root: &Root| {
            let revision = next_revision(root.revision, now_ms);
            // Not as deleted now: a catalogue made from the packs must not give it another grace period.
            Tombstone::new(root.key, revision, GIVEN_UP).record().1
        };
        repository.store.put(page.iter().map(ended).collect()).await?;
        let keys: Vec<_> = page.iter().map(|root| root.key).collect();
        forgotten += repository.catalogue.forget(&keys, cutoff).await?;
    }
}

/// A period in days, to the hour.
fn days(ms: u64) -> String {
    match (ms / 86_400_000, ms % 86_400_000 / 3_600_000) {
        (days, 0) => format!("{days} d"),
        (0, hours) => format!("{hours} h"),
        (days, hours) => format!("{days} d {hours} h"),
    }
}
