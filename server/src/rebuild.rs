//! Making the catalogue anew, or bringing a copy of it up to date, from what the packs say.
//!
//! 1. The packs are read ([`survey`]): every manifest, every tombstone, and what is damaged.
//! 2. A draft beside the catalogue, empty or the copy, is made to say the same ([`merge`]), as far as the content of
//!    its generations is in the packs ([`check`]).
//! 3. The draft takes the place of the catalogue ([`swap_in`]), which is kept under another name.
//!
//! Before step 3 nothing that counts was touched; step 3 is done wholly or not at all. So this may be killed
//! anywhere and begun again, and it may be run as often as one likes.
//!
//! What is not in the packs cannot come back this way: [`ONLY_IN_THE_CATALOGUE`].

mod check;
mod damage;
mod merge;
mod survey;
#[cfg(test)]
mod tests;

use std::{
    fs,
    path::{Path, PathBuf},
};

use thinbak_proto::Failed;
use tokio::task::spawn_blocking;
use uuid::Uuid;

pub use damage::Damage;

use crate::{
    catalogue::{CATALOGUE_NAME, Catalogue, CatalogueError, DRAFT_NAME, finish_swap, remove_draft, swap_in},
    environment::{ChangeGate, Environment},
    repository::{Offline, RepositoryError, file_time},
    store::{Problem, Quarantined, Store, StoreError},
};
use damage::Damages;
use merge::Merged;
use survey::Survey;

/// Something that the catalogue says and no pack.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OnlyInTheCatalogue {
    /// The table, or `table.column` in a table that is otherwise made from packs.
    pub place: &'static str,
    /// What it says, for people.
    pub what: &'static str,
}

/// What only a copy of the catalogue can bring back. A migration that adds a table or a column adds it here, or to
/// what is made from packs: a test compares this list with the schema.
pub const ONLY_IN_THE_CATALOGUE: &[OnlyInTheCatalogue] = &[
    only(
        "volumes.name",
        "what volumes are called that lost their name by adoption, where the generation that took it is gone, or the \
         server's clock was wrong",
    ),
    only("generations.deleted_at_ms", "when generations were deleted: their grace begins anew"),
    only("settings", "how long a deletion can be undone, where server.toml does not say it"),
    only("schedules", "when the server last did what it does by itself"),
    only("quarantine", "which records are damaged: the next verification finds them again"),
    only("pack_verifications", "when packs were last verified"),
    only(
        "tokens",
        "who may do what, where the catalogue before cannot be read: nobody comes in until a token is made in the repository's directory",
    ),
    only("audit", "who did what, where the catalogue before cannot be read"),
];

const fn only(place: &'static str, what: &'static str) -> OnlyInTheCatalogue {
    OnlyInTheCatalogue { place, what }
}

/// What a rebuild, or bringing back a copy, found and did.
#[derive(Debug, Clone, Default)]
pub struct Rebuilt {
    /// Manifests read.
    pub manifests: u64,
    /// Tombstones read.
    pub tombstones: u64,
    /// Volumes that the catalogue has now.
    pub volumes: u64,
    /// Generations that can be seen now.
    pub generations: u64,
    /// Generations that are deleted and still there.
    pub deleted: u64,
    /// Of both, those that the catalogue did not have before: all of them in a rebuild.
    pub added: u64,
    /// Generations of which the packs knew something later than the copy.
    pub changed: u64,
    /// Generations that were deleted and given up, and need not be there any more; they were left out.
    pub collected: u64,
    /// What is damaged; at most [`MAX_DAMAGE`] are kept.
    pub damage: Vec<Damage>,
    /// How many there were.
    pub damaged: u64,
    /// Why tokens, revocations and the audit log of the catalogue before were not taken over, if so.
    pub access_lost: Option<String>,
    /// Where the catalogue before is, if there was one.
    pub old: Option<PathBuf>,
}

/// Damages named at most.
pub const MAX_DAMAGE: usize = 1000;

/// Makes catalogue and chunk index anew from the packs. The repository must be closed; it is locked meanwhile.
pub async fn rebuild_catalogue(dir: &Path) -> Result<Rebuilt, Failed> {
    rebuild_catalogue_in(dir, &Environment::system()).await
}

/// The same with the clock and the packs of `environment`.
pub async fn rebuild_catalogue_in(dir: &Path, environment: &Environment) -> Result<Rebuilt, Failed> {
    let offline = Offline::lock(dir)?;
    let mut damages = Damages::default();
    missing_packs(dir, offline.uuid(), environment, &mut damages).await?;
    Store::condemn_index(dir).map_err(RepositoryError::Store)?;
    let store = open_store(dir, offline.uuid(), environment, Vec::new()).await?;
    prepare(dir, environment)?;
    let draft = dir.join(DRAFT_NAME);
    Catalogue::create(&draft, &environment.changes).await?;
    let rebuilt = fill(&offline, &store, &draft, environment, damages).await;
    // Sealed or not: the next open looks.
    store.close().await;
    rebuilt
}

/// Makes a copy of the catalogue the catalogue, and adds what the packs know that is later. The repository must be
/// closed; it is locked meanwhile. `copy` is left as it is.
pub async fn restore_catalogue(dir: &Path, copy: &Path) -> Result<Rebuilt, Failed> {
    let environment = &Environment::system();
    let offline = Offline::lock(dir)?;
    prepare(dir, environment)?;
    let draft = dir.join(DRAFT_NAME);
    let (from, to) = (copy.to_path_buf(), draft.clone());
    blocking(move || fs::copy(from, to)).await?.map_err(RepositoryError::io("copy", copy))?;
    let damaged = check_copy(&draft, offline.uuid()).await.map_err(|error| error.of_file(copy))?;
    let store = open_store(dir, offline.uuid(), environment, damaged).await?;
    let rebuilt = fill(&offline, &store, &draft, environment, Damages::default()).await;
    store.close().await;
    rebuilt
}

/// That the copy is whole, and a catalogue of this repository; and what it says is damaged.
async fn check_copy(draft: &Path, repository: Uuid) -> Result<Vec<Quarantined>, CatalogueError> {
    let catalogue = Catalogue::open_draft(draft, &ChangeGate::default()).await?;
    let checked = async {
        catalogue.check_is_of(repository).await?;
        catalogue.check_integrity().await?;
        Ok(catalogue.quarantined().await?.iter().map(|entry| entry.place).collect())
    };
    let checked = checked.await;
    catalogue.close().await;
    checked
}

/// Clears the place for a draft.
fn prepare(dir: &Path, environment: &Environment) -> Result<(), RepositoryError> {
    let changes = &environment.changes;
    let prepared = finish_swap(dir, changes).and_then(|()| remove_draft(dir, changes));
    prepared.map_err(RepositoryError::io("clear a draft in", dir))
}

/// Merges the packs into the draft and puts it into its place.
async fn fill(
    offline: &Offline,
    store: &Store,
    draft: &Path,
    environment: &Environment,
    damages: Damages,
) -> Result<Rebuilt, Failed> {
    let dir = offline.dir();
    let (reader, chunk_bytes) = (store.clone(), offline.chunk_bytes());
    let survey = blocking(move || Survey::of(&reader, chunk_bytes, damages)).await?;
    let mut survey = survey.map_err(RepositoryError::Store)?;
    let (manifests, tombstones) = (survey.manifests, survey.tombstones);
    let mut damages = std::mem::take(&mut survey.damages);
    store.problems().into_iter().for_each(|problem| damages.add(Damage::Store(problem)));

    let catalogue = Catalogue::open_draft(draft, &environment.changes).await?;
    let now_ms = environment.clock.now_ms();
    let merged = merge::merge(&catalogue, store, &survey, &mut damages, now_ms).await;
    let checked = match merged {
        Ok(merged) => catalogue.bind_to(offline.uuid()).await.map(|()| merged).map_err(Failed::from),
        Err(failed) => Err(failed),
    };
    let access_lost = carry_over(dir, &catalogue).await.err().map(|error| error.to_string());
    let sound = catalogue.check_integrity().await;
    catalogue.close().await;
    let Merged { volumes, generations, deleted, added, changed, collected } = checked?;
    sound?;

    let had_one = dir.join(CATALOGUE_NAME).exists();
    let old = swap_in(dir, &file_time(now_ms), &environment.changes)
        .map_err(RepositoryError::io("replace the catalogue in", dir))?;
    let Damages { named: damage, total: damaged } = damages;
    Ok(Rebuilt {
        manifests,
        tombstones,
        volumes,
        generations,
        deleted,
        added,
        changed,
        collected,
        damage,
        damaged,
        access_lost,
        old: had_one.then_some(old),
    })
}

/// Who may come in, and who did what, is what the catalogue before said, as far as it can be read.
async fn carry_over(dir: &Path, catalogue: &Catalogue) -> Result<(), CatalogueError> {
    let former = dir.join(CATALOGUE_NAME);
    if !former.exists() {
        return Ok(());
    }
    let carried = catalogue.carry_over(&former).await;
    match &carried {
        Ok(carried) => tracing::info!(?carried, "taken over from the catalogue before"),
        Err(error) => tracing::warn!(%error, "tokens and audit log of the catalogue before cannot be read"),
    }
    carried.map(drop)
}

/// The index that is about to be thrown away may know of packs that are not there any more. Whatever else is wrong
/// with it does not matter.
async fn missing_packs(
    dir: &Path,
    uuid: Uuid,
    environment: &Environment,
    damages: &mut Damages,
) -> Result<(), Failed> {
    if !Store::has_index(dir) {
        return Ok(());
    }
    let store = match open_store(dir, uuid, environment, Vec::new()).await {
        Ok(store) => store,
        Err(RepositoryError::Store(
            error @ (StoreError::Index { .. } | StoreError::IndexEntry { .. } | StoreError::Closed),
        )) => {
            tracing::warn!(%error, "the old chunk index cannot tell which packs are missing");
            return Ok(());
        }
        Err(error) => return Err(error.into()),
    };
    let missing = |problem: &Problem| matches!(problem, Problem::Pack(StoreError::PackMissing { .. }));
    store.problems().into_iter().filter(missing).for_each(|problem| damages.add(Damage::Store(problem)));
    store.close().await;
    Ok(())
}

async fn open_store(
    dir: &Path,
    uuid: Uuid,
    environment: &Environment,
    damaged: Vec<Quarantined>,
) -> Result<Store, RepositoryError> {
    let (place, outside) = (dir.to_path_buf(), environment.clone());
    let open = move || Store::open_in(&place, uuid, &outside, &damaged);
    let opened = spawn_blocking(open).await;
    Ok(opened.unwrap_or(Err(StoreError::Closed))?)
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, RepositoryError> {
    spawn_blocking(work).await.map_err(|_| RepositoryError::Store(StoreError::Closed))
}
