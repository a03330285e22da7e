//! What is in use, and everything that it needs.

use std::collections::{HashMap, HashSet, hash_map::Entry};

use thinbak_proto::{Failed, FailureKind, chunk_count};
use tokio::task::spawn_blocking;

use super::End;
use crate::{
    catalogue::{GenerationKey, Root, Selector},
    manifest::subject_of,
    map_tree::Tree,
    marking::{Lost, Marker},
    repository::Repository,
    store::{Claim, Kind, RecordMarks, SealedPack, Store, StoreError},
};

/// Rows of the catalogue that are read at a time.
const PAGE: u32 = 1024;
/// Damaged generations that are named.
const MAX_NAMED: usize = 8;

/// What is in use at one moment.
pub(super) struct Roots {
    /// The generations that are visible, or deleted and kept.
    pub(super) generations: Vec<Root>,
    /// Those that are in the catalogue, but count as given up.
    pub(super) expired: HashSet<GenerationKey>,
    pinned: Vec<Tree>,
    /// The packs that were sealed at that moment: what is stored later is in others.
    pub(super) packs: Vec<SealedPack>,
    /// A pack may be lost for now only, with manifests in it: no tombstone goes.
    keep_tombstones: bool,
    /// Keeps what running backups rely on until the collection has ended.
    _claim: Claim,
}

/// The records in use.
pub(super) struct Marked {
    pub(super) live: RecordMarks,
    pub(super) lost: Lost,
}

/// What was deleted at this moment or before is not kept.
pub(super) async fn cutoff(
    repository: &Repository,
    now_ms: u64,
    grace_ms: Option<u64>,
) -> Result<u64, Failed> {
    let grace_ms = match grace_ms {
        Some(grace_ms) => grace_ms,
        None => repository.catalogue.grace_ms().await?,
    };
    Ok(now_ms.saturating_sub(grace_ms))
}

/// Generations by when they were deleted.
#[derive(Clone, Copy)]
enum Which {
    /// Not at all, or after a moment.
    Kept,
    /// At a moment or before.
    Expired,
}

async fn read(repository: &Repository, which: Which, cutoff_ms: u64) -> Result<Vec<Root>, Failed> {
    let (mut all, mut after) = (Vec::new(), None);
    loop {
        let page = match which {
            Which::Kept => repository.catalogue.roots(cutoff_ms, after, PAGE).await?,
            Which::Expired => repository.catalogue.expired(cutoff_ms, after, PAGE).await?,
        };
        let Some(last) = page.last() else { return Ok(all) };
        after = Some(last.key);
        all.extend(page);
    }
}

impl Roots {
    /// Reads what is in use now, what was deleted after `cutoff_ms` included; what was deleted before counts as given
    /// up. `complete`: no pack is there that should be gone.
    pub(super) async fn read(repository: &Repository, cutoff_ms: u64, complete: bool) -> Result<Self, End> {
        let _nobody_pins = repository.pins.close().await;
        let _nobody_deletes = repository.marking.lock().await;
        let claim = repository.store.claim_all();
        let generations = read(repository, Which::Kept, cutoff_ms).await?;
        let expired =
            read(repository, Which::Expired, cutoff_ms).await?.into_iter().map(|root| root.key).collect();
        let packs = repository.store.sealed_packs().await?;
        let keep_tombstones =
            !complete || packs.iter().any(|pack| !pack.whole) || !repository.store.problems().is_empty();
        Ok(Self {
            generations,
            expired,
            pinned: repository.pins.roots(),
            packs,
            keep_tombstones,
            _claim: claim,
        })
    }

    /// Marks everything that is needed. Fails if a map node cannot be read: what it names is not known, and so
    /// nothing may be freed.
    pub(super) async fn mark(&self, repository: &Repository) -> Result<Marked, End> {
        let mut marker = Marker::new(repository.store.clone());
        let mut damaged = Vec::new();
        for root in &self.generations {
            let lost = marker.lost().nodes.len();
            let chunks = chunk_count(root.size_bytes, root.chunk_bytes);
            marker.tree(Tree { root: root.root, chunks }).await?;
            marker.record(*root.manifest.as_bytes()).await?;
            if let Some(tombstone) = root.tombstone {
                marker.record(*tombstone.as_bytes()).await?;
            }
            if marker.lost().nodes.len() > lost {
                damaged.push(root.key);
            }
        }
        for tree in &self.pinned {
            marker.tree(*tree).await?;
        }
        for id in tombstones(&repository.store, self.keep_tombstones, self.expired.clone()).await? {
            marker.record(id).await?;
        }
        if !marker.lost().nodes.is_empty() || marker.lost().more {
            return Err(refusal(repository, &damaged, marker.lost()).await?.into());
        }
        let (live, lost) = marker.finish();
        if !lost.chunks.is_empty() {
            tracing::warn!(chunks = lost.chunks.len(), "chunks are needed that are not stored");
        }
        Ok(Marked { live, lost })
    }
}

/// The tombstones that are needed: those of which a manifest that they end is still in a pack, in use or not. Without
/// them a catalogue made from the packs would show the generation again. When a generation is given up another tombstone
/// is made, so what there is of those that are `ended` goes.
async fn tombstones(
    store: &Store,
    all: bool,
    ended: HashSet<GenerationKey>,
) -> Result<Vec<[u8; 32]>, StoreError> {
    let store = store.clone();
    let scan = move || {
        let mut needed = Vec::new();
        let mut highest: HashMap<GenerationKey, (u64, [u8; 32], bool)> = HashMap::new();
        let mut unreadable = false;
        for record in store.records(Kind::Tombstone)? {
            let Some(record) = readable(record, &mut unreadable)? else { continue };
            match subject_of(&record) {
                Some((key, _)) if !all && ended.contains(&key) => {}
                Some((key, revision)) if !all => match highest.entry(key) {
                    Entry::Occupied(mut known) if known.get().0 < revision => {
                        known.insert((revision, record.id, false));
                    }
                    Entry::Occupied(_) => {}
                    Entry::Vacant(unknown) => {
                        unknown.insert((revision, record.id, false));
                    }
                },
                _ => needed.push(record.id),
            }
        }
        if !highest.is_empty() {
            for record in store.records(Kind::Manifest)? {
                let Some(record) = readable(record, &mut unreadable)? else { continue };
                let Some((key, revision)) = subject_of(&record) else { continue };
                if let Some((ended, _, needed)) = highest.get_mut(&key) {
                    *needed |= revision <= *ended;
                }
            }
        }
        needed.extend(
            highest.into_values().filter(|(_, _, needed)| *needed || unreadable).map(|(_, id, _)| id),
        );
        Ok(needed)
    };
    spawn_blocking(scan).await.unwrap_or(Err(StoreError::Closed))
}

/// The record, if it is not damaged.
fn readable<T>(read: Result<T, StoreError>, unreadable: &mut bool) -> Result<Option<T>, StoreError> {
    match read {
        Ok(record) => Ok(Some(record)),
        Err(error) if error.is_damage() => {
            *unreadable = true;
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

async fn refusal(repository: &Repository, damaged: &[GenerationKey], lost: &Lost) -> Result<Failed, Failed> {
    let mut names = Vec::new();
    for key in damaged.iter().take(MAX_NAMED) {
        names.push(name_of(repository, *key).await?);
    }
    if damaged.len() > MAX_NAMED {
        names.push(format!("{} more", damaged.len() - MAX_NAMED));
    }
    if names.is_empty() {
        names.push("a generation that is being read or built upon".into());
    }
    let what = match lost.more {
        true => "too much is missing".to_owned(),
        false => format!("{} map nodes cannot be read", lost.nodes.len()),
    };
    let message =
        format!("nothing was freed: of {} {what}, and what they name is not known", names.join(", "));
    Ok(Failed::new(FailureKind::Damaged, message).with_hint(
        "`thinbak verify` names all that is damaged; a backup of the volume may heal it, or delete those \
         generations and collect with `--grace 0s`",
    ))
}

async fn name_of(repository: &Repository, key: GenerationKey) -> Result<String, Failed> {
    let visible = repository.catalogue.generation(key.volume, Selector::Number(key.number)).await?;
    let entry = match visible {
        Some(entry) => Some(entry),
        None => repository.catalogue.deleted(key).await?.map(|deleted| deleted.entry),
    };
    let volume = entry.map_or_else(|| key.volume.to_string(), |entry| entry.generation.volume_name);
    Ok(format!("{volume}:{}", key.number))
}
