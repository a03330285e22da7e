//! The chunk index: id to place, in an embedded log-structured store on disk.
//!
//! It is derived from the packs and never the only witness of anything, so it is not synced. Each pack
//! has a mark, written in the same atomic batch as the entries of that pack's records and into the same
//! tree; batches reach the disk in order. So whatever part of the index a crash leaves, a mark that is
//! there has its entries there too, and a pack whose mark is missing or says 'not sealed' is read again
//! at the next open.

mod entries;

use std::{
    collections::HashSet,
    fs,
    panic::{AssertUnwindSafe, catch_unwind},
    path::PathBuf,
    sync::Arc,
    thread,
};

use fjall::{
    Database, Keyspace, KeyspaceCreateOptions, PersistMode,
    config::{PartitioningPolicy, PinningPolicy},
};
use parking_lot::RwLock;
use uuid::Uuid;

#[cfg(test)]
pub(super) use entries::Count;
pub(crate) use entries::Location;
pub(super) use entries::{Mark, PackState, mark_key, owner_value};

use super::{
    error::StoreError,
    format::{INDEX_MARK_KEY_LEN, INDEX_MARK_PREFIX, INDEX_OWNER_KEY},
    layout::PackEntry,
    medium,
};

/// Memory of the embedded store beside what stays in memory (see `open_database`): blocks read, and entries not yet in a table (up to five such tables
/// exist at a time). The larger these tables are, the less often the levels below them are written anew: each of theirs
/// spans all ids.
const CACHE_BYTES: u64 = 24 * 1024 * 1024;
const MEMTABLE_BYTES: u64 = 16 * 1024 * 1024;
const JOURNAL_BYTES: u64 = 128 * 1024 * 1024;
const OPEN_TABLES: usize = 128;
/// From how many ids on a second thread is worth its start.
const SPLIT_LOOK_UPS: usize = 512;
const KEYSPACE: &str = "chunks";
/// What must fit before a store that gave up on a full disk is opened again.
const PROBE_BYTES: usize = 4 * 1024 * 1024;

#[derive(Clone)]
struct Handle {
    database: Database,
    entries: Keyspace,
}

/// The chunk index of one repository.
pub(super) struct Index {
    path: PathBuf,
    rebuild_mark: PathBuf,
    repository: Uuid,
    handle: RwLock<Option<Handle>>,
}

impl Index {
    /// Opens the index in `path`. One that is missing, not readable, of another layout or of another
    /// repository, or that the file `rebuild_mark` condemns, is replaced by an empty one.
    pub(super) fn open(path: PathBuf, rebuild_mark: PathBuf, repository: Uuid) -> Result<Self, StoreError> {
        let index = Self { path, rebuild_mark, repository, handle: RwLock::new(None) };
        let io = |attempted, source| StoreError::io(attempted, &index.path, source);
        let condemned =
            index.rebuild_mark.try_exists().map_err(|source| io("looking for the rebuild mark", source))?;
        if !condemned {
            match index.open_existing() {
                Ok(Some(handle)) => {
                    *index.handle.write() = Some(handle);
                    return Ok(index);
                }
                Ok(None) => {}
                Err(StoreError::Index { source, .. }) if matches!(*source, fjall::Error::Locked) => {
                    return Err(StoreError::IndexLocked { path: index.path.clone() });
                }
                Err(error) => tracing::warn!(%error, "the chunk index is not usable and is made anew"),
            }
        }
        match fs::remove_dir_all(&index.path) {
            Ok(()) => {
                tracing::info!(path = %index.path.display(), "making the chunk index anew from the packs")
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => return Err(io("removing the old chunk index", error)),
        }
        let handle = index.open_database()?;
        *index.handle.write() = Some(handle);
        index.own()?;
        if condemned {
            fs::remove_file(&index.rebuild_mark).map_err(|source| io("removing the rebuild mark", source))?;
        }
        Ok(index)
    }

    /// The index that is there, if it is one and ours.
    fn open_existing(&self) -> Result<Option<Handle>, StoreError> {
        let exists =
            self.path.try_exists().map_err(|source| StoreError::io("opening", &self.path, source))?;
        if !exists {
            return Ok(None);
        }
        let handle = self.open_database()?;
        let owner = handle
            .entries
            .get(INDEX_OWNER_KEY)
            .map_err(|source| self.failed("reading the chunk index", source))?;
        Ok((owner.as_deref() == Some(&owner_value(self.repository)[..])).then_some(handle))
    }

    /// Opens or makes the store's files. A store that finds its files damaged may panic; here that is an error.
    fn open_database(&self) -> Result<Handle, StoreError> {
        let open = || -> fjall::Result<Handle> {
            let database = Database::builder(&self.path)
                .cache_size(CACHE_BYTES)
                .max_journaling_size(JOURNAL_BYTES)
                .max_cached_files(Some(OPEN_TABLES))
                .worker_threads(1)
                .open()?;
            let options = || {
                // Filters stay in memory, 10 bits for each id, and so do the lists of the tables' blocks, about 6 bits:
                // read in pieces they cost more than all else of a look-up.
                KeyspaceCreateOptions::default()
                    .max_memtable_size(MEMTABLE_BYTES)
                    .filter_block_partitioning_policy(PartitioningPolicy::all(false))
                    .filter_block_pinning_policy(PinningPolicy::all(true))
                    .index_block_partitioning_policy(PartitioningPolicy::all(false))
                    .index_block_pinning_policy(PinningPolicy::all(true))
            };
            let entries = database.keyspace(KEYSPACE, options)?;
            Ok(Handle { database, entries })
        };
        catch_unwind(AssertUnwindSafe(open))
            .unwrap_or(Err(fjall::Error::Unrecoverable))
            .map_err(|source| self.failed("opening the chunk index", source))
    }

    fn failed(&self, attempted: &'static str, source: fjall::Error) -> StoreError {
        if matches!(&source, fjall::Error::Io(error) if error.kind() == std::io::ErrorKind::StorageFull) {
            return StoreError::NoSpace { attempted, path: self.path.clone() };
        }
        StoreError::Index { attempted, path: self.path.clone(), source: Arc::new(source) }
    }

    fn handle(&self) -> Result<Handle, StoreError> {
        self.handle
            .read()
            .clone()
            .ok_or_else(|| self.failed("reading the chunk index", fjall::Error::Poisoned))
    }

    /// Runs a read, and condemns the index if its files turn out to be damaged.
    fn read<T>(&self, run: impl FnOnce(&Keyspace) -> Result<T, fjall::Error>) -> Result<T, StoreError> {
        let handle = self.handle()?;
        let result = catch_unwind(AssertUnwindSafe(|| run(&handle.entries)));
        result.unwrap_or(Err(fjall::Error::Unrecoverable)).map_err(|source| {
            match &source {
                fjall::Error::Io(_)
                | fjall::Error::Storage(fjall::LsmError::Io(_))
                | fjall::Error::Poisoned => {}
                _ => self.condemn(),
            }
            self.failed("reading the chunk index", source)
        })
    }

    /// Makes the next open build the index anew.
    pub(super) fn condemn(&self) {
        tracing::error!(path = %self.path.display(), "the chunk index is damaged; it is rebuilt at the next start");
        if let Err(error) = fs::write(&self.rebuild_mark, b"") {
            tracing::error!(%error, path = %self.rebuild_mark.display(), "the rebuild mark could not be written");
        }
    }

    /// Where the records of `ids` are, in the order of `ids`. Looked up in the order of the keys: so each
    /// filter and index block is read once for all ids that need it, however small the cache. Many are looked up by
    /// two threads: what a look-up takes is waiting for memory and the disk.
    pub(super) fn locate(&self, ids: &[[u8; 32]]) -> Result<Vec<Option<Location>>, StoreError> {
        let mut order: Vec<(&[u8; 32], usize)> = ids.iter().zip(0..).collect();
        order.sort_unstable();
        let found = if ids.len() < SPLIT_LOOK_UPS {
            self.locate_sorted(&order)?
        } else {
            let (low, high) = order.split_at(ids.len() / 2);
            let (low, high) = thread::scope(|scope| {
                let low = scope.spawn(|| self.locate_sorted(low));
                let high = self.locate_sorted(high);
                (low.join(), high)
            });
            let panicked = |_| Err(self.failed("reading the chunk index", fjall::Error::Unrecoverable));
            let mut found = low.unwrap_or_else(panicked)?;
            found.append(&mut high?);
            found
        };
        let mut located = vec![None; ids.len()];
        for (place, location) in found {
            if let Some(slot) = located.get_mut(place) {
                *slot = Some(location);
            }
        }
        Ok(located)
    }

    /// Which of `ids` are known, by the numbers that stand beside them, and where.
    fn locate_sorted(&self, ids: &[(&[u8; 32], usize)]) -> Result<Vec<(usize, Location)>, StoreError> {
        let found = self.read(|entries| {
            let mut found = Vec::new();
            for (id, place) in ids {
                let Some(value) = entries.get(id)? else { continue };
                let Some(location) = Location::decode(&value) else { return Ok(None) };
                found.push((*place, location));
            }
            Ok(Some(found))
        })?;
        found.ok_or_else(|| self.invalid_entry())
    }

    /// The index holds what we never write.
    fn invalid_entry(&self) -> StoreError {
        self.condemn();
        StoreError::IndexEntry { path: self.path.clone() }
    }

    /// Adds records of a pack, from the one that is number `first` on, and the pack's mark in one step.
    pub(super) fn cover(
        &self,
        pack: u32,
        first: usize,
        entries: &[PackEntry],
        mark: &Mark,
    ) -> Result<(), StoreError> {
        self.cover_all_but(pack, first, entries, mark, &HashSet::new())
    }

    /// The same without the records at some offsets.
    pub(super) fn cover_all_but(
        &self,
        pack: u32,
        first: usize,
        entries: &[PackEntry],
        mark: &Mark,
        left_out: &HashSet<u32>,
    ) -> Result<(), StoreError> {
        self.write(|handle| {
            let mut batch = handle.database.batch();
            let entries = (u32::try_from(first).unwrap_or(u32::MAX)..).zip(entries);
            for (ordinal, entry) in entries.filter(|(_, entry)| !left_out.contains(&entry.offset)) {
                batch.insert(&handle.entries, entry.id, Location::of(pack, ordinal, entry).encode());
            }
            batch.insert(&handle.entries, mark_key(pack), mark.encode());
            batch.commit()
        })
    }

    fn write(&self, run: impl FnOnce(&Handle) -> fjall::Result<()>) -> Result<(), StoreError> {
        let handle = self.handle()?;
        catch_unwind(AssertUnwindSafe(|| run(&handle)))
            .unwrap_or(Err(fjall::Error::Poisoned))
            .map_err(|source| self.failed("writing the chunk index", source))
    }

    /// Writes whose index this is; nothing else changes.
    pub(super) fn own(&self) -> Result<(), StoreError> {
        self.write(|handle| handle.entries.insert(INDEX_OWNER_KEY, owner_value(self.repository)))
    }

    /// Takes out the entries of `ids`, all of which point into `pack`, and marks the pack as retired, in one
    /// step. It is durable only after [`persist`](Self::persist).
    pub(super) fn retire(&self, pack: u32, ids: &[[u8; 32]]) -> Result<(), StoreError> {
        self.write(|handle| {
            let mut batch = handle.database.batch();
            for id in ids {
                batch.remove(&handle.entries, *id);
            }
            batch.insert(&handle.entries, mark_key(pack), Mark::new(PackState::Retired, 0, &[]).encode());
            batch.commit()
        })
    }

    /// Forgets a pack that is gone.
    pub(super) fn remove_mark(&self, pack: u32) -> Result<(), StoreError> {
        self.write(|handle| handle.entries.remove(mark_key(pack)))
    }

    /// Makes everything that was written durable.
    pub(super) fn persist(&self) -> Result<(), StoreError> {
        self.write(|handle| handle.database.persist(PersistMode::SyncAll))
    }

    /// Shows the marks of all packs to `visit`, in ascending order of their numbers.
    pub(super) fn for_each_mark(&self, mut visit: impl FnMut(u32, Mark)) -> Result<(), StoreError> {
        let all_valid = self.read(|entries| {
            for guard in entries.prefix(INDEX_MARK_PREFIX) {
                let (key, value) = guard.into_inner()?;
                if key.len() != INDEX_MARK_KEY_LEN {
                    continue;
                }
                let number = key.last_chunk::<4>().map(|number| u32::from_be_bytes(*number));
                let (Some(number), Some(mark)) = (number, Mark::decode(&value)) else { return Ok(false) };
                visit(number, mark);
            }
            Ok(true)
        })?;
        if all_valid { Ok(()) } else { Err(self.invalid_entry()) }
    }

    /// Shows all records to `visit`, in the order of their ids.
    pub(super) fn for_each_record(
        &self,
        mut visit: impl FnMut([u8; 32], Location),
    ) -> Result<(), StoreError> {
        let all_valid = self.read(|entries| {
            for guard in entries.iter() {
                let (key, value) = guard.into_inner()?;
                let Ok(id) = <[u8; 32]>::try_from(&*key) else { continue };
                let Some(location) = Location::decode(&value) else { return Ok(false) };
                visit(id, location);
            }
            Ok(true)
        })?;
        if all_valid { Ok(()) } else { Err(self.invalid_entry()) }
    }

    /// The mark of one pack.
    pub(super) fn mark(&self, pack: u32) -> Result<Option<Mark>, StoreError> {
        let value = self.read(|entries| entries.get(mark_key(pack)))?;
        Ok(value.and_then(|value| Mark::decode(&value)))
    }

    /// Bytes of disk that the index takes.
    pub(super) fn disk_bytes(&self) -> u64 {
        self.handle().ok().and_then(|handle| handle.database.disk_space().ok()).unwrap_or_default()
    }

    /// After a failed write the embedded store takes no further ones. Opens it again, if there is room
    /// to: until then it can still be read.
    pub(super) fn reopen(&self) -> Result<(), StoreError> {
        medium::probe(&self.rebuild_mark.with_extension("probe"), PROBE_BYTES)
            .map_err(|source| StoreError::io("reopening the chunk index", &self.path, source))?;
        let mut handle = self.handle.write();
        *handle = None;
        *handle = Some(self.open_database()?);
        Ok(())
    }
}

/// Whether only reopening helps.
pub(super) fn is_poisoned(error: &StoreError) -> bool {
    matches!(error, StoreError::Index { source, .. } if matches!(**source, fjall::Error::Poisoned))
}
