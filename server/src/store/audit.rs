//! Reading packs back whole: which records each should have, and the records, many at a time.
//!
//! What a pack should have is told by its own index; where that is damaged by a scan, if the scan finds as much as
//! the chunk index counts; else by the chunk index, which is then read through once for many packs.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Range,
    sync::Arc,
};

use super::{
    Store,
    error::StoreError,
    format::{RECORD_ALIGN, RECORD_HEADER_LEN},
    index::{Location, Mark, PackState},
    layout::PackEntry,
    pack::Pack,
    record::StoredRecord,
};

/// Records are read together if no more than this lies between them,
const MAX_GAP: u64 = 256 * 1024;
/// and as long as they are no longer than this together.
const MAX_SPAN: u64 = 4 * 1024 * 1024;

/// A record that a pack should have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct AuditEntry {
    pub(crate) location: Location,
    pub(crate) id: [u8; 32],
}

/// What is known of a pack before its records are read.
pub(crate) struct PackAudit {
    pub(crate) number: u32,
    /// The records, in the order of their offsets; `None`: only the chunk index can tell.
    pub(crate) entries: Option<Vec<AuditEntry>>,
    /// What is wrong with the pack itself.
    pub(crate) problems: Vec<StoreError>,
    /// Header, index and footer are as they were written, for good.
    pub(crate) sealed: bool,
    /// `None`: nothing of it can be read.
    pack: Option<Arc<Pack>>,
}

impl Store {
    /// The packs that are there or should be, in ascending order. Blocks.
    pub(crate) fn pack_numbers(&self) -> Result<Vec<u32>, StoreError> {
        let shared = &self.inner.shared;
        let files = shared
            .medium
            .list()
            .map_err(|source| StoreError::io("listing packs", shared.medium.path(), source))?;
        let mut numbers: BTreeSet<u32> = files.into_iter().map(|file| file.number).collect();
        shared.index.for_each_mark(|number, mark| {
            match mark.state {
                // No entry points into it: whether its file is still there is nobody's concern.
                PackState::Retired => numbers.remove(&number),
                PackState::Unfinished | PackState::Sealed => numbers.insert(number),
            };
        })?;
        Ok(numbers.into_iter().collect())
    }

    /// Looks at a pack's header, index and footer. An error is one of the chunk index or the operating system; `None`:
    /// the pack was removed, or nothing was stored in it yet. Blocks.
    pub(crate) fn audit(&self, number: u32) -> Result<Option<PackAudit>, StoreError> {
        let shared = &self.inner.shared;
        let Some(mark) = shared.index.mark(number)? else { return self.audit_stranger(number) };
        if mark.state == PackState::Retired {
            return Ok(None);
        }
        let mut audit = PackAudit {
            number,
            entries: None,
            problems: Vec::new(),
            sealed: mark.state == PackState::Sealed,
            pack: None,
        };
        // Anew and not from the cache: what is judged is the file that has the name now.
        match Pack::open(&*shared.medium, shared.repository, number) {
            Ok(pack) => {
                if !pack.header_valid() {
                    audit.problems.push(StoreError::PackHeader { pack: number });
                }
                audit.entries = entries(&pack, &mark, &mut audit.problems)?.map(|entries| {
                    (0..)
                        .zip(entries)
                        .map(|(ordinal, entry)| AuditEntry {
                            location: Location::of(number, ordinal, &entry),
                            id: entry.id,
                        })
                        .collect()
                });
                audit.pack = Some(Arc::new(pack));
            }
            Err(error) if error.is_damage() => {
                shared.withdraw(number, 0);
                audit.problems.push(error);
            }
            Err(error) => return Err(error),
        }
        audit.sealed &= audit.problems.is_empty();
        Ok(Some(audit))
    }

    /// Whether a pack is still one of the store's: a collection may remove packs while they are looked at. Blocks.
    pub(crate) fn audit_is_current(&self, number: u32) -> Result<bool, StoreError> {
        let shared = &self.inner.shared;
        Ok(match shared.index.mark(number)? {
            Some(mark) => mark.state != PackState::Retired,
            None => shared.medium.open_read(number).is_ok(),
        })
    }

    /// A file that the index knows nothing of: a new pack, or none of ours.
    fn audit_stranger(&self, number: u32) -> Result<Option<PackAudit>, StoreError> {
        let shared = &self.inner.shared;
        match Pack::open(&*shared.medium, shared.repository, number) {
            Ok(_) | Err(StoreError::PackMissing { .. }) => Ok(None),
            Err(error) if error.is_damage() => {
                let (entries, problems) = (Some(Vec::new()), vec![error]);
                Ok(Some(PackAudit { number, entries, problems, sealed: false, pack: None }))
            }
            Err(error) => Err(error),
        }
    }

    /// What the chunk index has of some packs, by pack and in the order of the offsets. Reads the whole chunk
    /// index. Blocks.
    pub(crate) fn indexed(
        &self,
        packs: &BTreeSet<u32>,
    ) -> Result<BTreeMap<u32, Vec<AuditEntry>>, StoreError> {
        let mut found: BTreeMap<u32, Vec<AuditEntry>> = BTreeMap::new();
        self.inner.shared.index.for_each_record(|id, location| {
            if packs.contains(&location.pack) {
                found.entry(location.pack).or_default().push(AuditEntry { location, id });
            }
        })?;
        found.values_mut().for_each(|entries| entries.sort_unstable_by_key(|entry| entry.location));
        Ok(found)
    }

    /// Whether a place is in quarantine.
    pub(crate) fn is_quarantined(&self, location: &Location) -> bool {
        self.inner.shared.quarantine.contains(location.place())
    }

    /// Where the index has the records of `ids`, readable or not, in their order.
    pub(crate) async fn indexed_at(&self, ids: Vec<[u8; 32]>) -> Result<Vec<Option<Location>>, StoreError> {
        let shared = self.inner.shared.clone();
        super::blocking(move || shared.index.locate(&ids)).await
    }
}

/// The records of a pack, if the pack itself can tell.
fn entries(
    pack: &Pack,
    mark: &Mark,
    problems: &mut Vec<StoreError>,
) -> Result<Option<Vec<PackEntry>>, StoreError> {
    let len = pack.len()?;
    if mark.state == PackState::Sealed && len != mark.len {
        problems.push(StoreError::PackLength { pack: pack.number(), expected: mark.len, found: len });
    }
    let damaged = match pack.sealed_entries() {
        Ok(entries) => return Ok(Some(entries)),
        Err(error) if error.is_damage() => error,
        Err(error) => return Err(error),
    };
    // A pack that is being written has neither index nor footer.
    if mark.state == PackState::Sealed && len == mark.len {
        problems.push(damaged);
    }
    let found = match pack.scan(mark.len.min(len)) {
        Ok(scan) => scan.entries,
        Err(StoreError::PackTruncated { .. } | StoreError::Io { .. }) => return Ok(None),
        Err(error) => return Err(error),
    };
    Ok((found.len() as u64 == mark.records()).then_some(found))
}

impl PackAudit {
    /// Why nothing of the pack can be read.
    pub(crate) fn unreadable(&self) -> Option<&StoreError> {
        if self.pack.is_some() { None } else { self.problems.first() }
    }

    /// Reads records that lie close to each other; see [`spans`]. A record that cannot be read is tried once more by
    /// itself.
    pub(crate) fn read(&self, records: &[AuditEntry]) -> Vec<Result<StoredRecord, StoreError>> {
        let Some(pack) = &self.pack else {
            let error = || self.problems.first().cloned().unwrap_or(StoreError::Closed);
            return records.iter().map(|_| Err(error())).collect();
        };
        let begin = records.first().map_or(0, |entry| u64::from(entry.location.offset));
        let end = records.iter().map(|entry| entry.location.content_end()).max().unwrap_or(begin);
        let len = usize::try_from(end.saturating_sub(begin)).unwrap_or_default();
        let whole = pack.read_bytes(begin, len).ok();
        let one = |entry: &AuditEntry| {
            let range = entry.location.content_range(begin)?;
            let bytes = whole.as_ref().filter(|bytes| range.end <= bytes.len())?.slice(range);
            pack.parse_record(&entry.location, &entry.id, &bytes).ok()
        };
        records.iter().map(|entry| one(entry).map_or_else(|| self.read_again(entry), Ok)).collect()
    }

    /// Reads one record by itself.
    pub(crate) fn read_again(&self, entry: &AuditEntry) -> Result<StoredRecord, StoreError> {
        match &self.pack {
            Some(pack) => pack.read_record(&entry.location, &entry.id),
            None => Err(self.problems.first().cloned().unwrap_or(StoreError::Closed)),
        }
    }

    /// Whether the bytes that fill up a record are the zeros that they should be.
    pub(crate) fn padding_is_zero(&self, entry: &AuditEntry) -> bool {
        let Some(pack) = &self.pack else { return true };
        let from = entry.location.content_end();
        let len = usize::try_from(entry.location.end().saturating_sub(from)).unwrap_or_default();
        let mut bytes = [0; RECORD_ALIGN as usize];
        match bytes.get_mut(..len) {
            // What cannot be read is found with the record.
            Some(padding) => pack.read_exact(padding, from).is_err() || padding.iter().all(|byte| *byte == 0),
            None => true,
        }
    }
}

/// Cuts the records of one pack into groups that are read at once.
pub(crate) fn spans(entries: &[AuditEntry]) -> Vec<Range<usize>> {
    let mut spans = Vec::new();
    let (mut begin, mut first, mut end) = (0, 0, 0);
    for (place, entry) in entries.iter().enumerate() {
        let (offset, record_end) = (u64::from(entry.location.offset), entry.location.end());
        if place > begin && (offset > end + MAX_GAP || record_end.saturating_sub(first) > MAX_SPAN) {
            spans.push(begin..place);
            begin = place;
        }
        if place == begin {
            (first, end) = (offset, record_end);
        }
        end = end.max(record_end);
    }
    if begin < entries.len() {
        spans.push(begin..entries.len());
    }
    spans
}

impl Location {
    /// End of the record without its padding.
    pub(super) fn content_end(&self) -> u64 {
        u64::from(self.offset) + RECORD_HEADER_LEN as u64 + u64::from(self.stored_len)
    }

    /// Where the record is in bytes that were read from `begin` on.
    fn content_range(&self, begin: u64) -> Option<Range<usize>> {
        let from = usize::try_from(u64::from(self.offset).checked_sub(begin)?).ok()?;
        let to = usize::try_from(self.content_end().checked_sub(begin)?).ok()?;
        Some(from..to)
    }
}
