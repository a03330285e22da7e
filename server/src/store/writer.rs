//! The one thread that appends.
//!
//! Group commit: whatever puts are queued become one batch. A batch is written, synced, entered into the
//! index, and only then are all its callers answered: so an answer means durable and findable, and a
//! duplicate of a record is dropped only when that record is durable and findable too.
//!
//! Failures: bytes that may be torn are cut off again, and if that or a sync fails the pack is abandoned
//! where its last sync left it (after a failed sync nothing is known of the pages since, and a second sync
//! would not tell); the next open completes it. The next put starts afresh, so it succeeds as soon as
//! there is room again. A pack that is no longer found under its name is given up in the same way before anything that
//! went into it is answered.

mod retry;
mod sweep;

use std::{
    collections::HashSet,
    io::{self, IoSlice},
    sync::Arc,
};

use bytes::Bytes;
use tokio::sync::{mpsc, oneshot};

use retry::cover;
pub(super) use sweep::Leaving;
pub(crate) use sweep::Removal;

use super::{
    error::{Problem, StoreError},
    format::{
        PACK_HEADER_LEN, PACK_TARGET_LEN, PACK_TARGET_RECORDS, PACK_VERSION, RECORD_ALIGN, RECORD_HEADER_LEN,
    },
    index::{Location, Mark, PackState, is_poisoned},
    layout::{PackEntry, PackHeader, encode_tail},
    medium::PackWrite,
    record::{Kind, Place, RecordHeader},
    shared::Shared,
};
use crate::write_failure::Probe;

/// Requests that may wait for the writer.
pub(super) const QUEUE_LEN: usize = 64;
/// A batch takes no further request once it has so many bytes.
const BATCH_LEN: u64 = 8 * 1024 * 1024;
const PADDING: [u8; RECORD_ALIGN as usize] = [0; RECORD_ALIGN as usize];

/// What a put did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PutOutcome {
    /// Records that were not stored before.
    pub new_records: u64,
    /// Their plain bytes.
    pub new_plain_bytes: u64,
    /// Bytes appended for them, headers included.
    pub new_stored_bytes: u64,
    /// Plain bytes of those that took the place of damaged or lost ones.
    pub healed_plain_bytes: u64,
}

/// A record whose bytes were hashed and whose lengths were checked.
pub(super) struct Prepared {
    pub(super) header: RecordHeader,
    pub(super) stored: Bytes,
}

/// A record to be copied from where it lies.
pub(super) struct Moving {
    pub(super) from: Location,
    pub(super) record: Prepared,
}

type Answer<T> = oneshot::Sender<Result<T, StoreError>>;

/// What the writer is asked.
pub(super) enum Request {
    Put {
        records: Vec<Prepared>,
        answer: Answer<PutOutcome>,
    },
    /// Seal the current pack, and remove what was retired and could not be removed. Answered by how many packs
    /// still could not.
    Settle {
        answer: Answer<usize>,
    },
    /// Copy records of one pack. Answered by the bytes that they take, their entries in the pack's index included.
    Move {
        records: Vec<Moving>,
        answer: Answer<u64>,
    },
    /// See whether a put would be stored, after one was not. Answered when that is noted.
    Probe {
        probe: Probe,
        answer: oneshot::Sender<()>,
    },
    /// Remove a pack.
    Retire {
        pack: u32,
        entries: Vec<Leaving>,
        answer: Answer<Removal>,
    },
    Close {
        answer: oneshot::Sender<()>,
    },
}

/// The pack being written.
struct OpenPack {
    number: u32,
    file: Box<dyn PackWrite>,
    /// End of the last durable record; the header counts as one.
    len: u64,
    /// Of all durable records.
    entries: Vec<PackEntry>,
    /// How many of them the index has.
    indexed: usize,
    mark: Mark,
    /// Records that are not indexed yet and lie elsewhere by the index: from where, and to where.
    moving: Vec<(Location, Location)>,
}

/// A record to be appended, and where it lies now.
struct Placing<'a> {
    record: &'a Prepared,
    from: Option<Location>,
}

impl OpenPack {
    /// Where its records are, from number `first` on.
    fn locations(&self, first: usize) -> impl Iterator<Item = Location> + '_ {
        let entries = self.entries.iter().enumerate().skip(first);
        entries.map(|(ordinal, entry)| {
            Location::of(self.number, u32::try_from(ordinal).unwrap_or(u32::MAX), entry)
        })
    }
}

/// The writer of a store.
pub(super) struct Writer {
    shared: Arc<Shared>,
    current: Option<OpenPack>,
    next_number: Option<u32>,
}

impl Writer {
    pub(super) fn new(shared: Arc<Shared>, next_number: Option<u32>) -> Self {
        Self { shared, current: None, next_number }
    }

    /// Serves until it is told to close, or all handles of the store are gone.
    pub(super) fn run(mut self, mut queue: mpsc::Receiver<Request>) {
        while let Some(first) = queue.blocking_recv() {
            let mut batch = Vec::new();
            let mut bytes = 0;
            let mut next = Some(first);
            let mut after = None;
            while let Some(request) = next.take() {
                match request {
                    Request::Put { records, answer } if !only_tombstones(&records) => {
                        bytes += records.iter().map(|record| record.header.record_len()).sum::<u64>();
                        batch.push((records, answer));
                        if bytes < BATCH_LEN {
                            next = queue.try_recv().ok();
                        }
                    }
                    other => after = Some(other),
                }
            }
            self.serve(batch);
            // Nobody may be waiting for an answer any more.
            match after {
                None => {}
                // Not in a batch with what may find no room.
                Some(Request::Put { records, answer }) => self.serve(vec![(records, answer)]),
                Some(Request::Settle { answer }) => drop(answer.send(self.settle())),
                Some(Request::Probe { probe, answer }) => {
                    self.probe(probe);
                    let _ = answer.send(());
                }
                Some(Request::Move { records, answer }) => drop(answer.send(self.relocate(&records))),
                Some(Request::Retire { pack, entries, answer }) => {
                    drop(answer.send(self.retire(pack, &entries)));
                }
                Some(Request::Close { answer }) => {
                    queue.close();
                    self.seal();
                    let _ = answer.send(());
                    return;
                }
            }
        }
    }

    fn serve(&mut self, batch: Vec<(Vec<Prepared>, Answer<PutOutcome>)>) {
        let (requests, answers): (Vec<_>, Vec<_>) = batch.into_iter().unzip();
        let result = self.commit(&requests);
        match &result {
            Err(error) => self.shared.write_failure.note(error.clone()),
            Ok(outcomes) if outcomes.iter().any(|outcome| outcome.new_records > 0) => {
                self.shared.write_failure.clear();
            }
            // Nothing was written: nothing is known.
            Ok(_) => {}
        }
        for (place, answer) in answers.into_iter().enumerate() {
            let answered = match &result {
                Ok(outcomes) => Ok(outcomes.get(place).copied().unwrap_or_default()),
                Err(error) => Err(error.clone()),
            };
            // A caller that went away needs no answer; its records are as stored as the others'.
            let _ = answer.send(answered);
        }
    }

    /// Stores what is new in a batch, and says per request what that was.
    fn commit(&mut self, requests: &[Vec<Prepared>]) -> Result<Vec<PutOutcome>, StoreError> {
        let ids: Vec<[u8; 32]> = requests.iter().flatten().map(|record| record.header.id).collect();
        // Nothing is taken out of the index before this has returned: that is done on this thread.
        let located = self.shared.index.locate(&ids)?;
        let there = located.iter().flatten().filter(|location| self.shared.reachable(location));
        self.shared.touched.insert(there.collect::<Vec<_>>().into_iter());
        let mut known = located.iter().copied();
        let mut healed = Vec::new();
        let mut seen = HashSet::new();
        let mut outcomes = vec![PutOutcome::default(); requests.len()];
        let mut fresh = Vec::new();
        for (request, outcome) in requests.iter().zip(&mut outcomes) {
            for record in request {
                let found = known.next().flatten();
                if found.is_some_and(|location| self.shared.reachable(&location)) {
                    continue;
                }
                if seen.insert(record.header.id) {
                    if let Some(location) = found {
                        outcome.healed_plain_bytes += u64::from(record.header.plain_len);
                        healed.push(location.place());
                    }
                    outcome.new_records += 1;
                    outcome.new_plain_bytes += u64::from(record.header.plain_len);
                    outcome.new_stored_bytes += record.header.record_len();
                    fresh.push(Placing { record, from: None });
                }
            }
        }
        if !fresh.iter().all(|placing| is_tombstone(placing.record)) {
            self.check_room(outcomes.iter().map(|outcome| outcome.new_stored_bytes).sum())?;
        }
        self.store(&fresh)?;
        healed.into_iter().for_each(|place| self.shared.quarantine.heal(place));
        Ok(outcomes)
    }

    fn check_room(&self, needed: u64) -> Result<(), StoreError> {
        let path = self.shared.medium.path();
        let available = self
            .shared
            .medium
            .available_bytes()
            .map_err(|source| StoreError::io("asking for the free space", path, source))?;
        if available < needed {
            return Err(StoreError::NoSpace { attempted: "appending to a pack", path: path.to_owned() });
        }
        Ok(())
    }

    /// Appends records to the current pack and to as many further ones as it takes.
    fn store(&mut self, mut records: &[Placing<'_>]) -> Result<(), StoreError> {
        while !records.is_empty() {
            let pack = match self.current.take() {
                Some(pack) => pack,
                None => self.start_pack()?,
            };
            let (count, is_new) = (fitting(&pack, records), pack.entries.is_empty());
            let (now, later) = records.split_at_checked(count).unwrap_or((records, &[]));
            let pack = match self.append(pack, now) {
                // The pack was taken away under us, and is given up: into the next one.
                Err(error) if error.is_damage() && !is_new => continue,
                appended => appended?,
            };
            let pack = self.current.insert(pack);
            let first = pack.entries.len().saturating_sub(now.len());
            cover(&self.shared, pack)?;
            let stored = pack.locations(first);
            // What is moved is not touched by that; who relies on it is told where it is.
            let put = stored.zip(now).filter(|(_, placing)| placing.from.is_none());
            self.shared.touched.insert(put.map(|(location, _)| location).collect::<Vec<_>>().iter());
            let full = pack.len >= PACK_TARGET_LEN || pack.entries.len() >= PACK_TARGET_RECORDS;
            if full || !later.is_empty() {
                self.seal();
            }
            records = later;
        }
        Ok(())
    }

    /// Makes a new pack. Its header becomes durable with its first records.
    fn start_pack(&mut self) -> Result<OpenPack, StoreError> {
        let number = self.next_number.ok_or(StoreError::NoPackNumbers)?;
        let created_at_ms = self.shared.clock.now_ms();
        let header =
            PackHeader { version: PACK_VERSION, number, repository: self.shared.repository, created_at_ms };
        // A number is used once even if making the pack fails half-way.
        self.next_number = number.checked_add(1);
        let failed = |source| StoreError::io("making a new pack", self.shared.medium.path(), source);
        let mut file = self.shared.medium.create(number).map_err(failed)?;
        if let Err(source) = file.append(&mut [IoSlice::new(&header.encode())]) {
            // Removed now or at the next open: it holds nothing.
            let _ = self.shared.medium.remove(number);
            return Err(failed(source));
        }
        let len = PACK_HEADER_LEN as u64;
        let mark = Mark::new(PackState::Unfinished, len, &[]);
        self.shared.know(number);
        self.shared.add_pack(len, &mark);
        Ok(OpenPack { number, file, len, entries: Vec::new(), indexed: 0, mark, moving: Vec::new() })
    }

    /// Appends records and syncs. On failure nothing of them stays, and the pack is kept only if its
    /// state is certain.
    fn append(&mut self, mut pack: OpenPack, records: &[Placing<'_>]) -> Result<OpenPack, StoreError> {
        let mut offset = pack.len;
        let mut headers: Vec<[u8; RECORD_HEADER_LEN]> = Vec::with_capacity(records.len());
        let mut entries = Vec::with_capacity(records.len());
        for Placing { record, .. } in records {
            let place = Place { repository: self.shared.repository, pack: pack.number, offset };
            headers.push(record.header.encode(place));
            // A pack ends soon after its target length, far below 4 GiB.
            entries.push(PackEntry::new(&record.header, u32::try_from(offset).unwrap_or(u32::MAX)));
            offset += record.header.record_len();
        }
        let mut slices = Vec::with_capacity(3 * records.len());
        for (Placing { record, .. }, header) in records.iter().zip(&headers) {
            let written = RECORD_HEADER_LEN as u64 + u64::from(record.header.stored_len);
            let padding = usize::try_from(record.header.record_len() - written).unwrap_or_default();
            slices.push(IoSlice::new(header));
            slices.push(IoSlice::new(&record.stored));
            slices.push(IoSlice::new(PADDING.get(..padding).unwrap_or_default()));
        }
        let path = self.shared.medium.path();
        if let Err(source) = pack.file.append(&mut slices) {
            if pack.file.truncate(pack.len).is_ok() {
                self.current = Some(pack);
            }
            return Err(StoreError::io("appending to a pack", path, source));
        }
        if let Err(source) = pack.file.sync() {
            // Best effort: whatever stays is no acknowledged record, and the next open judges it.
            let _ = pack.file.truncate(pack.len);
            tracing::error!(pack = pack.number, %source, "a pack could not be synced and is abandoned");
            return Err(StoreError::io("syncing a pack", path, source));
        }
        self.check_place(&pack, offset)?;
        let before = pack.mark;
        entries.iter().for_each(|entry| pack.mark.add(entry));
        self.shared.remove_pack(pack.len, &before);
        self.shared.add_pack(offset, &pack.mark);
        let first = pack.entries.len();
        pack.entries.append(&mut entries);
        let moving: Vec<_> = records
            .iter()
            .zip(pack.locations(first))
            .filter_map(|(placing, to)| Some((placing.from?, to)))
            .collect();
        pack.moving.extend(moving);
        pack.len = offset;
        pack.mark.len = offset;
        Ok(pack)
    }

    /// Sees to it that what was appended, up to `end`, lies where it is looked for. Else somebody has removed, cut or
    /// replaced the file: it is given up, and what it held counts as not stored.
    fn check_place(&self, pack: &OpenPack, end: u64) -> Result<(), StoreError> {
        let (shared, number) = (&self.shared, pack.number);
        let error = match shared.medium.open_read(number).and_then(|file| file.len()) {
            Ok(found) if found == end => return Ok(()),
            Ok(found) => StoreError::PackTruncated { pack: number, expected: end, found },
            Err(source) if source.kind() == io::ErrorKind::NotFound => {
                StoreError::PackMissing { pack: number }
            }
            Err(source) => return Err(StoreError::io("looking at a pack", shared.medium.path(), source)),
        };
        let readable = match error {
            // What was appended now lies behind the cut.
            StoreError::PackTruncated { found, .. } => found.saturating_sub(end - pack.len),
            _ => 0,
        };
        if shared.withdraw(number, readable) {
            shared.report(Problem::Pack(error.clone()));
        }
        Err(error)
    }

    /// Completes the current pack. A failure costs nothing but an unfinished pack, which the next open
    /// completes: so nobody waits for this to succeed.
    fn seal(&mut self) {
        let Some(mut pack) = self.current.take() else { return };
        let tail = encode_tail(self.shared.repository, pack.number, pack.len, &pack.entries);
        let written = pack.file.append(&mut [IoSlice::new(&tail)]).and_then(|()| pack.file.sync());
        if let Err(error) = written {
            let _ = pack.file.truncate(pack.len);
            tracing::warn!(pack = pack.number, %error, "a pack could not be sealed and is left unfinished");
            return;
        }
        let mark = Mark { state: PackState::Sealed, len: pack.len + tail.len() as u64, ..pack.mark };
        self.shared.remove_pack(pack.len, &pack.mark);
        self.shared.add_pack(mark.len, &mark);
        let rest = pack.entries.get(pack.indexed..).unwrap_or_default();
        match self.shared.index.cover(pack.number, pack.indexed, rest, &mark) {
            Ok(()) => self.shared.touched.moved(&std::mem::take(&mut pack.moving)),
            Err(error) => {
                tracing::warn!(pack = pack.number, %error, "the index does not know that a pack is sealed");
            }
        }
    }
}

/// Deleting makes room: what says so may take the space that other puts must leave.
fn is_tombstone(record: &Prepared) -> bool {
    record.header.kind == Kind::Tombstone
}

fn only_tombstones(records: &[Prepared]) -> bool {
    records.iter().all(is_tombstone)
}

/// How many of `records` go into this pack: at least one into an empty one.
fn fitting(pack: &OpenPack, records: &[Placing<'_>]) -> usize {
    let room = PACK_TARGET_RECORDS.saturating_sub(pack.entries.len());
    let mut len = pack.len;
    let fitting = records
        .iter()
        .take(room)
        .take_while(|Placing { record, .. }| {
            len += record.header.record_len();
            len <= PACK_TARGET_LEN
        })
        .count();
    if pack.entries.is_empty() { fitting.max(1) } else { fitting }
}
