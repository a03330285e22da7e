//! What stands in the index, byte by byte.

use uuid::Uuid;

use crate::store::{
    format::{
        INDEX_MARK_KEY_LEN, INDEX_MARK_LEN, INDEX_MARK_PREFIX, INDEX_VALUE_LEN, INDEX_VERSION, Put, Take,
        record_len,
    },
    layout::PackEntry,
    quarantine::RecordPlace,
    record::{Kind, lengths_allowed},
};

/// Where a record lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Location {
    /// Number of the pack.
    pub(crate) pack: u32,
    /// Of the record's header in the pack, in bytes.
    pub(crate) offset: u32,
    /// Place among the records of the pack, in the order of their offsets, from 0.
    pub(crate) ordinal: u32,
    /// Stored length in bytes.
    pub(crate) stored_len: u32,
    /// Plain length in bytes.
    pub(crate) plain_len: u32,
    /// What the record holds.
    pub(crate) kind: Kind,
}

impl Location {
    pub(in crate::store) fn of(pack: u32, ordinal: u32, entry: &PackEntry) -> Self {
        Self {
            pack,
            offset: entry.offset,
            ordinal,
            stored_len: entry.stored_len,
            plain_len: entry.plain_len,
            kind: entry.kind,
        }
    }

    /// Where the record lies, without what it is.
    pub(crate) fn place(&self) -> RecordPlace {
        RecordPlace { pack: self.pack, offset: self.offset }
    }

    /// Bytes that the record takes in the pack.
    pub(crate) fn len(&self) -> u64 {
        record_len(self.stored_len)
    }

    /// First byte after the record.
    pub(crate) fn end(&self) -> u64 {
        u64::from(self.offset) + record_len(self.stored_len)
    }

    pub(in crate::store) fn encode(&self) -> [u8; INDEX_VALUE_LEN] {
        let mut out = [0; INDEX_VALUE_LEN];
        Put(&mut out)
            .bytes(&[self.kind.code()])
            .bytes(&self.pack.to_le_bytes())
            .bytes(&self.offset.to_le_bytes())
            .bytes(&self.ordinal.to_le_bytes())
            .bytes(&self.stored_len.to_le_bytes())
            .bytes(&self.plain_len.to_le_bytes());
        out
    }

    pub(in crate::store) fn decode(bytes: &[u8]) -> Option<Self> {
        let mut take = Take(<&[u8; INDEX_VALUE_LEN]>::try_from(bytes).ok()?);
        let kind = Kind::from_code(take.u8())?;
        let location = Self {
            pack: take.u32(),
            offset: take.u32(),
            ordinal: take.u32(),
            stored_len: take.u32(),
            plain_len: take.u32(),
            kind,
        };
        lengths_allowed(location.plain_len, location.stored_len).then_some(location)
    }
}

/// Records of one kind.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(in crate::store) struct Count {
    pub(in crate::store) records: u32,
    pub(in crate::store) plain_bytes: u64,
    pub(in crate::store) stored_bytes: u64,
}

/// How a pack stands with the index.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(in crate::store) enum PackState {
    /// Covered up to the mark's length, and read again at the next open.
    #[default]
    Unfinished = 0,
    /// Covered whole, and never changed again.
    Sealed = 1,
    /// No entry points into it any more: the file goes, if it is still there.
    Retired = 2,
}

impl PackState {
    fn from_code(code: u8) -> Option<Self> {
        [Self::Unfinished, Self::Sealed, Self::Retired].into_iter().find(|state| *state as u8 == code)
    }
}

/// What the index knows of a pack: up to where it is covered, and sums for the statistics.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(in crate::store) struct Mark {
    pub(in crate::store) state: PackState,
    /// Unfinished: end of the last record in the index. Else: length of the file.
    pub(in crate::store) len: u64,
    /// By kind, in the order of [`Kind::ALL`].
    pub(in crate::store) counts: [Count; 4],
}

impl Mark {
    pub(in crate::store) fn new(state: PackState, len: u64, entries: &[PackEntry]) -> Self {
        let mut mark = Self { state, len, ..Self::default() };
        entries.iter().for_each(|entry| mark.add(entry));
        mark
    }

    /// Counts one more record.
    pub(in crate::store) fn add(&mut self, entry: &PackEntry) {
        for (kind, count) in Kind::ALL.into_iter().zip(&mut self.counts) {
            if kind == entry.kind {
                count.records += 1;
                count.plain_bytes += u64::from(entry.plain_len);
                count.stored_bytes += u64::from(entry.stored_len);
            }
        }
    }

    pub(in crate::store) fn count(&self, wanted: Kind) -> Count {
        let found = Kind::ALL.into_iter().zip(self.counts).find(|(kind, _)| *kind == wanted);
        found.map(|(_, count)| count).unwrap_or_default()
    }

    /// Records of all kinds.
    pub(in crate::store) fn records(&self) -> u64 {
        self.counts.iter().map(|count| u64::from(count.records)).sum()
    }

    pub(in crate::store) fn encode(&self) -> [u8; INDEX_MARK_LEN] {
        let mut out = [0; INDEX_MARK_LEN];
        let mut put = Put(&mut out);
        put.bytes(&[self.state as u8]).bytes(&self.len.to_le_bytes());
        for count in &self.counts {
            put.bytes(&count.records.to_le_bytes())
                .bytes(&count.plain_bytes.to_le_bytes())
                .bytes(&count.stored_bytes.to_le_bytes());
        }
        out
    }

    pub(in crate::store) fn decode(bytes: &[u8]) -> Option<Self> {
        let mut take = Take(<&[u8; INDEX_MARK_LEN]>::try_from(bytes).ok()?);
        let state = PackState::from_code(take.u8())?;
        let len = take.u64();
        let mut counts = [Count::default(); 4];
        for count in &mut counts {
            *count = Count { records: take.u32(), plain_bytes: take.u64(), stored_bytes: take.u64() };
        }
        Some(Self { state, len, counts })
    }
}

pub(in crate::store) fn mark_key(pack: u32) -> [u8; INDEX_MARK_KEY_LEN] {
    let mut key = [0; INDEX_MARK_KEY_LEN];
    Put(&mut key).bytes(&INDEX_MARK_PREFIX).bytes(&pack.to_be_bytes());
    key
}

pub(in crate::store) fn owner_value(repository: Uuid) -> [u8; 17] {
    let mut value = [0; 17];
    Put(&mut value).bytes(&[INDEX_VERSION]).bytes(repository.as_bytes());
    value
}
