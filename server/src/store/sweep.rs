//! What collection does with a store: which packs there are, what is in them, moving records, removing packs.

use tokio::sync::oneshot;

use super::{
    Claim, Location, RecordMarks, Request, Store, StoreError, blocking,
    format::{PACK_ENTRY_LEN, record_len},
    index::PackState,
    writer::{Leaving, Moving, Prepared, Removal},
};

/// A pack that is never changed again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct SealedPack {
    pub(crate) number: u32,
    /// Length of the file in bytes.
    pub(crate) len: u64,
    /// Records of all kinds.
    pub(crate) records: u64,
    /// The file is there, as long as it was when it was sealed.
    pub(crate) whole: bool,
}

/// A record of a sealed pack.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct PackRecord {
    pub(crate) id: [u8; 32],
    pub(crate) location: Location,
    /// The index points here; else to another copy, or nowhere.
    pub(crate) indexed: bool,
}

impl PackRecord {
    /// Bytes that it takes in a pack: header, padding and its entry in the pack's index included.
    pub(crate) fn len(&self) -> u64 {
        record_len(self.location.stored_len) + PACK_ENTRY_LEN as u64
    }
}

/// What was copied, and what could not be.
#[derive(Debug, Default)]
pub(crate) struct Moved {
    /// Bytes appended, and those that their entries in the pack's index will take.
    pub(crate) bytes: u64,
    /// Records that are not readable.
    pub(crate) damaged: Vec<StoreError>,
}

impl Store {
    /// Keeps every record that is found by [`contains`](Self::contains) or stored from now on, until the claim is
    /// dropped: for who is about to make a generation of them.
    pub(crate) fn claim(&self) -> Claim {
        self.inner.shared.touched.claim()
    }

    /// Claims, for a collection, also all that was kept for others when it began.
    pub(crate) fn claim_all(&self) -> Claim {
        self.inner.shared.touched.claim_all()
    }

    /// Adds everything that is claimed to `marks`.
    pub(crate) fn mark_claimed(&self, marks: &mut RecordMarks) {
        self.inner.shared.touched.add_to(marks);
    }

    /// Seals the pack that is being written, and removes packs that should be gone already. Returns how many of
    /// those could not be removed.
    pub(crate) async fn settle(&self) -> Result<usize, StoreError> {
        self.ask(|answer| Request::Settle { answer }).await
    }

    /// All sealed packs, in ascending order of their numbers.
    pub(crate) async fn sealed_packs(&self) -> Result<Vec<SealedPack>, StoreError> {
        let shared = self.inner.shared.clone();
        blocking(move || {
            let mut packs = Vec::new();
            shared.index.for_each_mark(|number, mark| {
                if mark.state == PackState::Sealed {
                    let whole = shared.is_whole(number);
                    packs.push(SealedPack { number, len: mark.len, records: mark.records(), whole });
                }
            })?;
            Ok(packs)
        })
        .await
    }

    /// The records of a sealed pack in the order in which they lie there, and which of them the index finds there.
    /// At most 65,536.
    pub(crate) async fn pack_records(&self, pack: u32) -> Result<Vec<PackRecord>, StoreError> {
        let shared = self.inner.shared.clone();
        blocking(move || {
            let entries = shared.pack(pack)?.entries()?;
            let ids: Vec<[u8; 32]> = entries.iter().map(|entry| entry.id).collect();
            let located = shared.index.locate(&ids)?;
            let record = |((ordinal, entry), found): ((u32, _), Option<Location>)| {
                let lies = Location::of(pack, ordinal, entry);
                let here = found.filter(|found| (found.pack, found.offset) == (pack, lies.offset));
                // The index knows the ordinal better than a pack whose own index is damaged.
                let location = here.unwrap_or(lies);
                PackRecord { id: entry.id, location, indexed: here.is_some() }
            };
            Ok((0..).zip(&entries).zip(located).map(record).collect())
        })
        .await
    }

    /// Copies records of one pack to where new ones are put, header and stored bytes as they are, and points the
    /// index to the copies. All of them are in memory at once.
    pub(crate) async fn move_records(
        &self,
        pack: u32,
        records: Vec<PackRecord>,
    ) -> Result<Moved, StoreError> {
        let shared = self.inner.shared.clone();
        let (moving, damaged) = blocking(move || {
            let pack = shared.pack(pack)?;
            let (mut moving, mut damaged) = (Vec::with_capacity(records.len()), Vec::new());
            for PackRecord { id, location, .. } in records {
                match pack.read_raw(&location, &id) {
                    Ok((header, stored)) => {
                        moving.push(Moving { from: location, record: Prepared { header, stored } });
                    }
                    Err(error) if error.is_damage() => damaged.push(error),
                    Err(error) => return Err(error),
                }
            }
            Ok((moving, damaged))
        })
        .await?;
        let bytes = self.ask(|answer| Request::Move { records: moving, answer }).await?;
        Ok(Moved { bytes, damaged })
    }

    /// Removes a pack, all of whose records are named. Those that are `needed` were moved before.
    pub(crate) async fn retire(
        &self,
        pack: u32,
        records: &[PackRecord],
        needed: impl Fn(&PackRecord) -> bool,
    ) -> Result<Removal, StoreError> {
        let leaving = |record: &PackRecord| Leaving {
            id: record.id,
            offset: record.location.offset,
            needed: needed(record),
        };
        let entries = records.iter().map(leaving).collect();
        self.ask(|answer| Request::Retire { pack, entries, answer }).await
    }

    async fn ask<T>(
        &self,
        request: impl FnOnce(oneshot::Sender<Result<T, StoreError>>) -> Request,
    ) -> Result<T, StoreError> {
        let (answer, answered) = oneshot::channel();
        self.send(request(answer)).await?;
        answered.await.map_err(|_| StoreError::Closed)?
    }
}
