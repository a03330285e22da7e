//! What readers and the writer of a store have in common.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use parking_lot::{Mutex, RwLock};
use quick_cache::sync::Cache;
use uuid::Uuid;

use super::{
    error::{DamageReason, Problem, StoreError},
    index::{Index, Location, Mark},
    medium::Medium,
    pack::Pack,
    quarantine::{DamagedRecord, Quarantine, RecordPlace},
    record::Kind,
    touched::Touched,
};
use crate::{environment::Clock, write_failure::WriteFailure};

/// Packs kept open for reading.
const OPEN_PACKS: usize = 128;
/// Problems kept for [`Shared::problems`]; all are logged.
const MAX_PROBLEMS: usize = 1000;

/// Sizes of a store. Records and bytes are those of all readable packs; a record that a crash made to be
/// stored twice counts twice.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct StoreStats {
    /// Packs, the unfinished one included.
    pub packs: u64,
    /// Bytes of all packs.
    pub pack_bytes: u64,
    /// Chunk records.
    pub chunks: u64,
    /// Plain bytes of the chunks.
    pub chunk_plain_bytes: u64,
    /// Stored bytes of the chunks, without record headers.
    pub chunk_stored_bytes: u64,
    /// Map node records.
    pub map_nodes: u64,
    /// Stored bytes of the map nodes, without record headers.
    pub map_node_bytes: u64,
    /// Bytes that the chunk index takes on disk.
    pub index_bytes: u64,
}

/// State shared by all handles of one store.
pub(super) struct Shared {
    pub(super) repository: Uuid,
    pub(super) medium: Arc<dyn Medium>,
    pub(super) clock: Clock,
    pub(super) index: Index,
    pub(super) quarantine: Quarantine,
    packs: Cache<u32, Arc<Pack>>,
    /// The packs that are there, and how many bytes of each can be read. An entry of the index that points into another one
    /// counts for nothing.
    known: RwLock<HashMap<u32, u64>>,
    /// How often a pack was found missing, or less than a whole one.
    withdrawals: AtomicU64,
    pub(super) touched: Arc<Touched>,
    problems: Mutex<Vec<Problem>>,
    stats: Mutex<StoreStats>,
    /// Why the last batch could not be stored, until one can or a probe says that it could.
    pub(super) write_failure: WriteFailure<StoreError>,
}

impl Shared {
    pub(super) fn new(
        repository: Uuid,
        medium: Arc<dyn Medium>,
        index: Index,
        quarantine: Quarantine,
        clock: Clock,
    ) -> Self {
        Self {
            repository,
            medium,
            clock,
            index,
            quarantine,
            packs: Cache::new(OPEN_PACKS),
            known: RwLock::default(),
            withdrawals: AtomicU64::new(0),
            touched: Arc::default(),
            problems: Mutex::default(),
            stats: Mutex::default(),
            write_failure: WriteFailure::default(),
        }
    }

    /// An open pack, from the cache if it is there.
    pub(super) fn pack(&self, number: u32) -> Result<Arc<Pack>, StoreError> {
        let pack = self.packs.get_or_insert_with(&number, || {
            let pack = Pack::open(&*self.medium, self.repository, number).inspect_err(|error| {
                if error.is_damage() && self.limit(number, 0) {
                    self.report(Problem::Pack(error.clone()));
                }
            })?;
            if !pack.header_valid() {
                self.report(Problem::PackHeader { pack: number });
            }
            Ok(Arc::new(pack))
        })?;
        if !self.is_known(number) {
            // Retired just now: an open file would keep its space from being freed.
            self.packs.remove(&number);
        }
        Ok(pack)
    }

    /// Notes that a pack is there, whole.
    pub(super) fn know(&self, pack: u32) {
        self.known.write().insert(pack, u64::MAX);
    }

    /// Notes that only the first `readable` bytes of a pack can be read. False if that was known, or if the pack is
    /// not. Who reads it from now on reads what has its name: a file that was removed while it was open would look whole.
    pub(super) fn withdraw(&self, pack: u32, readable: u64) -> bool {
        let news = self.limit(pack, readable);
        self.packs.remove(&pack);
        news
    }

    fn limit(&self, pack: u32, readable: u64) -> bool {
        let mut known = self.known.write();
        let news = known.get_mut(&pack).is_some_and(|before| std::mem::replace(before, readable) != readable);
        self.withdrawals.fetch_add(news.into(), Ordering::AcqRel);
        news
    }

    /// Notes that a pack is missing that should be there.
    pub(super) fn miss(&self) {
        self.withdrawals.fetch_add(1, Ordering::AcqRel);
    }

    /// Notes that a pack is gone.
    pub(super) fn forget(&self, pack: u32) {
        self.known.write().remove(&pack);
        self.packs.remove(&pack);
    }

    pub(super) fn is_known(&self, pack: u32) -> bool {
        self.known.read().contains_key(&pack)
    }

    /// Whether a pack is known and nothing of it is known to be lost.
    pub(super) fn is_whole(&self, pack: u32) -> bool {
        self.known.read().get(&pack) == Some(&u64::MAX)
    }

    /// How often a pack was found missing, cut off or another one than its name says.
    pub(super) fn withdrawals(&self) -> u64 {
        self.withdrawals.load(Ordering::Acquire)
    }

    /// Whether a record can be there, as far as is known without reading it.
    pub(super) fn reachable(&self, location: &Location) -> bool {
        !self.quarantine.contains(location.place())
            && self.known.read().get(&location.pack).is_some_and(|readable| location.end() <= *readable)
    }

    /// Where the records of `ids` are, in their order, as far as they are [`reachable`](Self::reachable).
    pub(super) fn locate(&self, ids: &[[u8; 32]]) -> Result<Vec<Option<Location>>, StoreError> {
        let located = self.index.locate(ids)?.into_iter();
        Ok(located.map(|found| found.filter(|location| self.reachable(location))).collect())
    }

    /// The same for somebody who relies on what is found: it stays until all claims of now have ended.
    pub(super) fn touch(&self, ids: &[[u8; 32]]) -> Result<Vec<Option<Location>>, StoreError> {
        let _no_retirement = self.touched.looking();
        let located = self.locate(ids)?;
        self.touched.insert(located.iter().flatten());
        Ok(located)
    }

    /// Quarantines a record that was read twice and is damaged. Anything but damage at that place is none of
    /// its business: a pack that is missing as a whole is withdrawn, and where another record lies it is the index
    /// that is wrong.
    pub(super) fn stumbled(&self, location: &Location, id: &[u8; 32], error: &StoreError) {
        match error {
            StoreError::Damaged { reason: DamageReason::OtherRecord, .. } => self.index.condemn(),
            StoreError::Damaged { .. } | StoreError::PackTruncated { .. } => {
                let reason = error.to_string();
                self.quarantine(DamagedRecord {
                    place: location.place(),
                    id: *id,
                    kind: location.kind,
                    reason,
                });
            }
            _ => {}
        }
    }

    /// Adds a record to the quarantine. False if it was there.
    pub(super) fn quarantine(&self, damaged: DamagedRecord) -> bool {
        let RecordPlace { pack, offset } = damaged.place;
        let (kind, reason) = (damaged.kind, damaged.reason.clone());
        let new = self.quarantine.add(damaged);
        if new {
            tracing::error!(pack, offset, ?kind, reason, "a damaged record is put into quarantine");
        }
        new
    }

    /// Notes and logs a problem.
    pub(super) fn report(&self, problem: Problem) {
        tracing::error!(%problem, "damage in the chunk storage");
        let mut problems = self.problems.lock();
        if problems.len() < MAX_PROBLEMS {
            problems.push(problem);
        }
    }

    pub(super) fn problems(&self) -> Vec<Problem> {
        self.problems.lock().clone()
    }

    pub(super) fn stats(&self) -> StoreStats {
        let stats = *self.stats.lock();
        StoreStats { index_bytes: self.index.disk_bytes(), ..stats }
    }

    /// Counts a pack of `len` bytes.
    pub(super) fn add_pack(&self, len: u64, mark: &Mark) {
        let (chunks, nodes) = (mark.count(Kind::Chunk), mark.count(Kind::MapNode));
        let mut stats = self.stats.lock();
        stats.packs += 1;
        stats.pack_bytes += len;
        stats.chunks += u64::from(chunks.records);
        stats.chunk_plain_bytes += chunks.plain_bytes;
        stats.chunk_stored_bytes += chunks.stored_bytes;
        stats.map_nodes += u64::from(nodes.records);
        stats.map_node_bytes += nodes.stored_bytes;
    }

    /// Takes back what [`add_pack`](Self::add_pack) counted.
    pub(super) fn remove_pack(&self, len: u64, mark: &Mark) {
        let (chunks, nodes) = (mark.count(Kind::Chunk), mark.count(Kind::MapNode));
        let mut stats = self.stats.lock();
        stats.packs = stats.packs.saturating_sub(1);
        stats.pack_bytes = stats.pack_bytes.saturating_sub(len);
        stats.chunks = stats.chunks.saturating_sub(u64::from(chunks.records));
        stats.chunk_plain_bytes = stats.chunk_plain_bytes.saturating_sub(chunks.plain_bytes);
        stats.chunk_stored_bytes = stats.chunk_stored_bytes.saturating_sub(chunks.stored_bytes);
        stats.map_nodes = stats.map_nodes.saturating_sub(u64::from(nodes.records));
        stats.map_node_bytes = stats.map_node_bytes.saturating_sub(nodes.stored_bytes);
    }
}
