//! Chunk storage: records in packs, and the index that finds them. `FORMAT.md` describes every byte.
//!
//! Records are immutable and named by an id that follows from their content, so storing one twice is
//! storing it once. A put is answered when everything it holds is on stable storage and in the index.
//! Memory does not grow with the number of records: the index lives on disk with bounded caches, and only
//! the pack being written keeps its entries in memory.
//!
//! The packs are the truth. The index is derived from them and made anew from them when it is missing,
//! damaged or behind.

mod append_file;
mod audit;
mod error;
mod format;
#[cfg(any(test, fuzzing))]
#[expect(clippy::indexing_slicing, reason = "a panic is a finding")]
pub(crate) mod fuzzing;
mod index;
mod layout;
mod marks;
mod medium;
#[cfg(any(test, fuzzing, feature = "testing"))]
#[allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    dead_code,
    reason = "a stand-in for a disk: a panic is a finding, and each user needs another part of it"
)]
pub(crate) mod memory_medium;
mod pack;
mod quarantine;
mod read_file;
mod reader;
mod record;
mod recovery;
mod shared;
mod sweep;
mod touched;
mod writer;

#[cfg(test)]
mod tests;

use std::{
    fs,
    path::Path,
    sync::Arc,
    thread::{self, JoinHandle},
    time::Duration,
};

use parking_lot::Mutex;
use tokio::{
    sync::{mpsc, oneshot},
    task::spawn_blocking,
    time::Instant,
};
use uuid::Uuid;

pub(crate) use audit::{AuditEntry, PackAudit, spans};
pub use error::{DamageReason, Problem, StoreError};
pub use format::{MAX_PLAIN_LEN, MAX_STORED_GROWTH};
pub(crate) use index::Location;
pub(crate) use marks::RecordMarks;
pub(crate) use medium::{DirectoryMedium, Medium};
pub(crate) use quarantine::{Change, DamagedRecord, Quarantined, RecordPlace};
pub use reader::Records;
pub use record::{Kind, NewRecord, StoredRecord};
pub use shared::StoreStats;
pub(crate) use sweep::{PackRecord, SealedPack};
pub(crate) use touched::Claim;
pub use writer::PutOutcome;
pub(crate) use writer::Removal;

use crate::environment::Environment;
use format::{INDEX_DIR, INDEX_REBUILD_MARK, PACKS_DIR};
use index::Index;
use quarantine::Quarantine;
use record::RecordHeader;
use shared::Shared;
use writer::{Prepared, QUEUE_LEN, Request, Writer};

/// With so much room after a full disk, writing is worth another try.
const ROOM_BYTES: u64 = 16 << 20;
/// Who asks whether puts can be stored again waits so long for the answer; it is noted whenever it comes.
const PROBE_PATIENCE: Duration = Duration::from_secs(1);

/// The chunk storage of one repository. Clones are handles to the same store.
///
/// Dropping the last handle stops the writer without sealing the current pack; nothing acknowledged is
/// lost by that, only the next open has more to do.
#[derive(Clone)]
pub struct Store {
    inner: Arc<Inner>,
}

struct Inner {
    shared: Arc<Shared>,
    queue: Mutex<Option<mpsc::Sender<Request>>>,
    writer: Mutex<Option<JoinHandle<()>>>,
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.queue.lock().take();
        if let Some(writer) = self.writer.lock().take() {
            // A writer that panicked has said so in the log.
            let _ = writer.join();
        }
    }
}

impl Store {
    /// Makes the folders of an empty store in `dir`, the repository's folder, and opens it.
    pub fn init(dir: &Path, repository: Uuid) -> Result<Self, StoreError> {
        let packs = dir.join(PACKS_DIR);
        fs::create_dir(&packs)
            .and_then(|()| medium::sync_dir(dir))
            .map_err(|source| StoreError::io("making the packs' folder", &packs, source))?;
        Self::open(dir, repository)
    }

    /// Opens the store in `dir`. Blocks: unfinished packs are completed and the index is brought up to date.
    ///
    /// A damaged, missing or foreign pack is no error here but one of the [`problems`](Self::problems).
    /// The caller sees to it that a repository is opened once at a time.
    pub fn open(dir: &Path, repository: Uuid) -> Result<Self, StoreError> {
        Self::open_in(dir, repository, &Environment::system(), &[])
    }

    /// The same with the clock and the packs of `environment`, and with what is known to be damaged.
    pub(crate) fn open_in(
        dir: &Path,
        repository: Uuid,
        environment: &Environment,
        damaged: &[Quarantined],
    ) -> Result<Self, StoreError> {
        let medium = environment.medium(&dir.join(PACKS_DIR));
        // First, so that a folder that is no store is left as it is.
        let files = medium.list().map_err(|source| StoreError::io("listing packs", medium.path(), source))?;
        let index = Index::open(dir.join(INDEX_DIR), dir.join(INDEX_REBUILD_MARK), repository)?;
        let quarantine = Quarantine::new(damaged);
        let clock = environment.clock.clone();
        let shared = Arc::new(Shared::new(repository, medium, index, quarantine, clock));
        let next_number = recovery::recover(&shared, &files)?;
        let (queue, requests) = mpsc::channel(QUEUE_LEN);
        let writer = Writer::new(shared.clone(), next_number);
        let writer = thread::Builder::new()
            .name("pack-writer".to_owned())
            .spawn(move || writer.run(requests))
            .map_err(|source| StoreError::io("starting the writer", dir, source))?;
        let inner = Inner { shared, queue: Mutex::new(Some(queue)), writer: Mutex::new(Some(writer)) };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// Makes the next open make the chunk index anew, whatever it holds.
    pub(crate) fn condemn_index(dir: &Path) -> Result<(), StoreError> {
        let mark = dir.join(INDEX_REBUILD_MARK);
        fs::write(&mark, b"")
            .and_then(|()| medium::sync_dir(dir))
            .map_err(|source| StoreError::io("writing the rebuild mark", &mark, source))
    }

    /// Whether there is an index that could be opened.
    pub(crate) fn has_index(dir: &Path) -> bool {
        dir.join(INDEX_DIR).is_dir() && !dir.join(INDEX_REBUILD_MARK).exists()
    }

    /// Stores records. When this returns `Ok`, every one of them is on stable storage and is found by its
    /// id, whether it is new or was there before. After an error some of them may be stored.
    pub async fn put(&self, records: Vec<NewRecord>) -> Result<PutOutcome, StoreError> {
        let shared = self.inner.shared.clone();
        let records = blocking(move || prepare(&shared, records)).await?;
        if records.is_empty() {
            return Ok(PutOutcome::default());
        }
        let (answer, answered) = oneshot::channel();
        self.send(Request::Put { records, answer }).await?;
        answered.await.map_err(|_| StoreError::Closed)?
    }

    /// Which of `ids` are stored, in their order. A record of a pack that is known to be unreadable does
    /// not count, so that it is sent and stored again.
    ///
    /// Who relies on the answer made a [`claim`](Self::claim) before.
    pub async fn contains(&self, ids: Vec<[u8; 32]>) -> Result<Vec<bool>, StoreError> {
        Ok(self.touch(ids).await?.into_iter().map(|found| found.is_some()).collect())
    }

    /// Where the records are that [`contains`](Self::contains) finds, for who relies on them as well.
    pub(crate) async fn touch(&self, ids: Vec<[u8; 32]>) -> Result<Vec<Option<Location>>, StoreError> {
        let shared = self.inner.shared.clone();
        blocking(move || shared.touch(&ids)).await
    }

    /// Where the records of `ids` are, in their order; `None` where [`contains`](Self::contains) says no.
    pub(crate) async fn locate(&self, ids: Vec<[u8; 32]>) -> Result<Vec<Option<Location>>, StoreError> {
        let shared = self.inner.shared.clone();
        blocking(move || shared.locate(&ids)).await
    }

    /// Reads a record; `None` if there is none with this id. Header and checksum are verified; that the
    /// content gives the id is for the caller to check.
    pub async fn get(&self, id: [u8; 32]) -> Result<Option<StoredRecord>, StoreError> {
        self.get_many(vec![id]).await?.pop().flatten().transpose()
    }

    /// Reads records, as [`get`](Self::get) does each, in the order of `ids`. They are read in the order
    /// in which they lie in the packs, neighbours together. All of them are in memory at once.
    pub async fn get_many(
        &self,
        ids: Vec<[u8; 32]>,
    ) -> Result<Vec<Option<Result<StoredRecord, StoreError>>>, StoreError> {
        let shared = self.inner.shared.clone();
        blocking(move || reader::read_many(&shared, &ids)).await
    }

    /// Puts a record into quarantine: from now on it counts as not stored. False if it was there.
    pub(crate) fn quarantine(&self, damaged: DamagedRecord) -> bool {
        self.inner.shared.quarantine(damaged)
    }

    /// Takes a place out of quarantine, whose record was read and is good. False if it was not there.
    pub(crate) fn lift_quarantine(&self, place: RecordPlace) -> bool {
        self.inner.shared.quarantine.lift(place)
    }

    /// Notes that the content of a place is stored elsewhere.
    pub(crate) fn heal_quarantine(&self, place: RecordPlace) {
        self.inner.shared.quarantine.heal(place);
    }

    /// Forgets what was in quarantine of a pack that was removed.
    pub(crate) fn forget_quarantine(&self, pack: u32) {
        self.inner.shared.quarantine.forget_pack(pack);
    }

    /// Whether anything is known to be damaged or lost: else nothing needs to be looked for.
    pub(crate) fn any_damage(&self) -> bool {
        self.inner.shared.quarantine.unhealed() > 0 || self.inner.shared.withdrawals() > 0
    }

    /// How often something was found damaged or lost: what was looked up while this stayed the same is still so.
    pub(crate) fn damages(&self) -> u64 {
        self.inner.shared.quarantine.found() + self.inner.shared.withdrawals()
    }

    /// Damaged records that nothing has replaced yet.
    pub(crate) fn unhealed(&self) -> usize {
        self.inner.shared.quarantine.unhealed()
    }

    /// Changes of the quarantine since this was last asked, for the catalogue.
    pub(crate) fn quarantine_changes(&self) -> Vec<Change> {
        self.inner.shared.quarantine.take_changes()
    }

    /// Gives changes back that could not be kept; they come again.
    pub(crate) fn give_back_changes(&self, changes: Vec<Change>) {
        self.inner.shared.quarantine.give_back(changes);
    }

    /// Resolves when the quarantine has changed.
    pub(crate) async fn quarantine_changed(&self) {
        self.inner.shared.quarantine.changed().await;
    }

    /// Sizes, without reading packs.
    pub fn stats(&self) -> StoreStats {
        self.inner.shared.stats()
    }

    /// Why puts cannot be stored: nothing, until one was not. From then on whoever asks has it tried again, with
    /// something that does not count; so recovery is seen although nobody puts anything.
    pub(crate) async fn write_failure(&self) -> Option<StoreError> {
        let noted = &self.inner.shared.write_failure;
        let failure = noted.get()?;
        let full = matches!(failure, StoreError::NoSpace { .. });
        if full && self.available_bytes().await.is_none_or(|bytes| bytes < ROOM_BYTES) {
            return Some(failure);
        }
        // With a place in the queue first: a probe that was begun must end.
        let queue = self.inner.queue.lock().clone();
        if let Some(place) = queue.as_ref().and_then(|queue| queue.try_reserve().ok())
            && let Some(probe) = noted.probe(Instant::now())
        {
            let (answer, answered) = oneshot::channel();
            place.send(Request::Probe { probe, answer });
            let _ = tokio::time::timeout(PROBE_PATIENCE, answered).await;
        }
        noted.get()
    }

    /// Room for new packs in bytes, without what is kept free; `None` where the system does not say.
    pub(crate) async fn available_bytes(&self) -> Option<u64> {
        let shared = self.inner.shared.clone();
        spawn_blocking(move || shared.medium.available_bytes().ok()).await.ok().flatten()
    }

    /// Everything found wrong since the store was opened that did not stop it from working.
    pub fn problems(&self) -> Vec<Problem> {
        self.inner.shared.problems()
    }

    /// All readable records of one kind, in the order in which they were stored; blocks while iterating.
    /// Packs without such records are not read. A record stored twice comes twice.
    pub fn records(&self, kind: Kind) -> Result<Records, StoreError> {
        Records::new(self.inner.shared.clone(), kind)
    }

    /// Seals the current pack and stops writing; other handles can still read. Puts that were queued
    /// before are served first.
    pub async fn close(self) {
        let (answer, answered) = oneshot::channel();
        if self.send(Request::Close { answer }).await.is_ok() {
            // Closed by another handle meanwhile: as good.
            let _ = answered.await;
        }
        let writer = self.inner.writer.lock().take();
        if let Some(writer) = writer {
            // A writer that panicked has said so in the log.
            let _ = spawn_blocking(move || writer.join()).await;
        }
    }

    async fn send(&self, request: Request) -> Result<(), StoreError> {
        let queue = self.inner.queue.lock().clone().ok_or(StoreError::Closed)?;
        queue.send(request).await.map_err(|_| StoreError::Closed)
    }
}

/// Checks and hashes the records that are not stored yet.
fn prepare(shared: &Shared, records: Vec<NewRecord>) -> Result<Vec<Prepared>, StoreError> {
    let ids: Vec<[u8; 32]> = records.iter().map(|record| record.id).collect();
    let located = shared.touch(&ids)?;
    records
        .into_iter()
        .zip(located)
        .filter(|(_, found)| found.is_none())
        .map(|(record, _)| Ok(Prepared { header: RecordHeader::new(&record)?, stored: record.stored }))
        .collect()
}

async fn blocking<T: Send + 'static>(
    run: impl FnOnce() -> Result<T, StoreError> + Send + 'static,
) -> Result<T, StoreError> {
    spawn_blocking(run).await.unwrap_or(Err(StoreError::Closed))
}
