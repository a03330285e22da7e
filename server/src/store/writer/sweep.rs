//! Copying records out of packs, and removing packs. On the writer's thread, since it alone changes the index.
//!
//! A pack is removed in this order: its entries are taken out of the index, together with the change of its mark
//! to *retired*; the index is made durable; the file is removed; the mark goes. So the index never points into a
//! file that is gone, whenever the power fails, and a file that was not removed is known as such.

use super::{Moving, Placing, Writer, cover, is_poisoned};
use crate::store::{
    error::StoreError,
    format::PACK_ENTRY_LEN,
    index::{Location, PackState},
    recovery::remove_retired,
};

/// A record of a pack that is to be removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::store) struct Leaving {
    pub(in crate::store) id: [u8; 32],
    pub(in crate::store) offset: u32,
    /// It is in use: the index must not point here any more.
    pub(in crate::store) needed: bool,
}

/// How the removal of a pack ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Removal {
    /// The pack is gone.
    Removed,
    /// The pack stays, for somebody relies on these records of it.
    Touched(Vec<[u8; 32]>),
    /// The pack stays, for the index points to records of it that are in use, or it is being written.
    InUse,
}

impl Writer {
    /// Begins a state in which all that was put is in sealed packs. Returns the number of packs that should be gone
    /// and are not.
    pub(super) fn settle(&mut self) -> Result<usize, StoreError> {
        self.seal();
        let mut retired = Vec::new();
        self.shared.index.for_each_mark(|number, mark| {
            if mark.state == PackState::Retired {
                retired.push(number);
            }
        })?;
        if !retired.is_empty() {
            self.shared.index.persist()?;
        }
        let mut left = 0;
        for number in retired {
            self.shared.forget(number);
            if let Err(error) = remove_retired(&self.shared, number, self.highest_number()) {
                tracing::warn!(pack = number, %error, "a pack that is not needed could not be removed");
                left += 1;
            }
        }
        Ok(left)
    }

    /// Copies those records that the index still finds where they are said to be, and points it to the copies. They
    /// may take the space that puts must leave: a collection on a full disk has to begin somewhere.
    pub(super) fn relocate(&mut self, records: &[Moving]) -> Result<u64, StoreError> {
        let ids: Vec<[u8; 32]> = records.iter().map(|moving| moving.record.header.id).collect();
        let located = self.shared.index.locate(&ids)?;
        let here = |found: &Option<Location>, from: &Location| {
            found.is_some_and(|found| (found.pack, found.offset) == (from.pack, from.offset))
        };
        let moving: Vec<Placing<'_>> = records
            .iter()
            .zip(&located)
            .filter(|(moving, found)| here(found, &moving.from))
            .map(|(moving, found)| Placing { record: &moving.record, from: *found })
            .collect();
        self.store(&moving)?;
        let len = |placing: &Placing<'_>| placing.record.header.record_len() + PACK_ENTRY_LEN as u64;
        Ok(moving.iter().map(len).sum())
    }

    /// Removes a sealed pack of which `entries` are all records, unless something of it is relied on.
    pub(super) fn retire(&mut self, pack: u32, entries: &[Leaving]) -> Result<Removal, StoreError> {
        if self.current.as_ref().is_some_and(|current| current.number == pack) {
            return Ok(Removal::InUse);
        }
        let ids: Vec<[u8; 32]> = entries.iter().map(|entry| entry.id).collect();
        let mut leaving = Vec::new();
        for (entry, found) in entries.iter().zip(self.shared.index.locate(&ids)?) {
            let here = found.filter(|found| (found.pack, found.offset) == (pack, entry.offset));
            let Some(location) = here else { continue };
            if entry.needed {
                return Ok(Removal::InUse);
            }
            leaving.push((entry.id, location.ordinal));
        }
        let shared = self.shared.clone();
        {
            let _gate = shared.touched.retiring();
            let relied_on = |(_, ordinal): &&([u8; 32], u32)| shared.touched.contains(pack, *ordinal);
            let touched: Vec<[u8; 32]> = leaving.iter().filter(relied_on).map(|(id, _)| *id).collect();
            if !touched.is_empty() {
                return Ok(Removal::Touched(touched));
            }
            let ids: Vec<[u8; 32]> = leaving.into_iter().map(|(id, _)| id).collect();
            self.take_out(pack, &ids)?;
            shared.forget(pack);
        }
        self.shared.index.persist()?;
        remove_retired(&self.shared, pack, self.highest_number())?;
        Ok(Removal::Removed)
    }

    fn take_out(&mut self, pack: u32, ids: &[[u8; 32]]) -> Result<(), StoreError> {
        let mark = self.shared.index.mark(pack)?.unwrap_or_default();
        if let Err(error) = self.shared.index.retire(pack, ids) {
            if is_poisoned(&error) {
                self.reopen_index()?;
            }
            // Not tried again: an index that was opened again may have forgotten that records were moved.
            return Err(error);
        }
        self.shared.remove_pack(mark.len, &mark);
        Ok(())
    }

    fn reopen_index(&mut self) -> Result<(), StoreError> {
        self.shared.index.reopen()?;
        let Some(current) = &mut self.current else { return Ok(()) };
        current.indexed = 0;
        cover(&self.shared, current)
    }

    /// The highest number that a pack ever had.
    fn highest_number(&self) -> Option<u32> {
        match self.next_number {
            Some(next) => next.checked_sub(1),
            None => Some(u32::MAX),
        }
    }
}
