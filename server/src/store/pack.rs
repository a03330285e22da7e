//! Reading a pack: its header, single records, its own index, and the scan that finds the records of a
//! pack without one.

use std::io;

use bytes::Bytes;
use uuid::Uuid;

use super::{
    error::{DamageReason, StoreError},
    format::{
        FOOTER_LEN, MAX_PACK_LEN, PACK_ENTRY_LEN, PACK_HEADER_LEN, PACK_VERSION, RECORD_ALIGN,
        RECORD_HEADER_LEN, RECORD_MAGIC,
    },
    index::Location,
    layout::{Footer, PackEntry, PackHeader, decode_index},
    medium::{Medium, PackRead},
    record::{Place, RecordHeader, StoredRecord},
};

/// Bytes looked at in one go while searching for the next record header.
const SEARCH_WINDOW: usize = 64 * 1024;

/// An open pack whose header was looked at.
pub(super) struct Pack {
    number: u32,
    repository: Uuid,
    header_valid: bool,
    file: Box<dyn PackRead>,
}

/// What a scan found.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Scan {
    /// Whole records in the order of their offsets.
    pub(super) entries: Vec<PackEntry>,
    /// Offset and length of what lies between them and is no whole record.
    pub(super) gaps: Vec<(u64, u64)>,
    /// End of the last whole record.
    pub(super) end: u64,
}

impl Pack {
    /// Opens a pack. Refuses one that is another pack or of a newer format; a damaged header is only
    /// noted, since every record proves by itself that it belongs here.
    pub(super) fn open(medium: &dyn Medium, repository: Uuid, number: u32) -> Result<Self, StoreError> {
        let file = medium.open_read(number).map_err(|source| match source.kind() {
            io::ErrorKind::NotFound => StoreError::PackMissing { pack: number },
            _ => StoreError::io("opening a pack", medium.path(), source),
        })?;
        let mut pack = Self { number, repository, header_valid: false, file };
        let len = pack.len()?;
        if len > MAX_PACK_LEN {
            return Err(StoreError::OversizedPack { pack: number, len });
        }
        if len < PACK_HEADER_LEN as u64 {
            return Ok(pack);
        }
        let mut bytes = [0; PACK_HEADER_LEN];
        pack.read_exact(&mut bytes, 0)?;
        let Some(header) = PackHeader::decode(&bytes) else { return Ok(pack) };
        if (header.number, header.repository) != (number, repository) {
            let (found, repository) = (header.number, header.repository);
            return Err(StoreError::WrongPack { pack: number, found, repository });
        }
        if header.version != PACK_VERSION {
            return Err(StoreError::NewerPack { pack: number, version: header.version });
        }
        pack.header_valid = true;
        Ok(pack)
    }

    /// The pack's number.
    pub(super) fn number(&self) -> u32 {
        self.number
    }

    /// Whether the header is whole.
    pub(super) fn header_valid(&self) -> bool {
        self.header_valid
    }

    /// Length of the file now.
    pub(super) fn len(&self) -> Result<u64, StoreError> {
        self.file.len().map_err(|source| self.io("asking for the length of a pack", source))
    }

    fn io(&self, attempted: &'static str, source: io::Error) -> StoreError {
        StoreError::io(attempted, super::format::pack_path(self.number), source)
    }

    fn place(&self, offset: u64) -> Place {
        Place { repository: self.repository, pack: self.number, offset }
    }

    fn damaged(&self, offset: u64, reason: DamageReason) -> StoreError {
        StoreError::Damaged { pack: self.number, offset, reason }
    }

    /// Fills `buf`; a pack that ends too early is an error that says so.
    pub(super) fn read_exact(&self, buf: &mut [u8], offset: u64) -> Result<(), StoreError> {
        let len = buf.len();
        self.file.read_exact_at(buf, offset).map_err(|source| self.unread(source, offset, len))
    }

    /// The `len` bytes from `offset`, for large pieces; else as [`read_exact`](Self::read_exact).
    pub(super) fn read_bytes(&self, offset: u64, len: usize) -> Result<Bytes, StoreError> {
        self.file.read_bytes(offset, len).map_err(|source| self.unread(source, offset, len))
    }

    fn unread(&self, source: io::Error, offset: u64, len: usize) -> StoreError {
        match source.kind() {
            io::ErrorKind::UnexpectedEof => StoreError::PackTruncated {
                pack: self.number,
                expected: offset + len as u64,
                found: self.file.len().unwrap_or_default(),
            },
            _ => self.io("reading a pack", source),
        }
    }

    /// The record at `location`, out of bytes that were read from there.
    pub(super) fn parse_record(
        &self,
        location: &Location,
        id: &[u8; 32],
        bytes: &Bytes,
    ) -> Result<StoredRecord, StoreError> {
        let (header, stored) = self.parse_raw(location, id, bytes)?;
        Ok(header.with_stored(stored))
    }

    fn parse_raw(
        &self,
        location: &Location,
        id: &[u8; 32],
        bytes: &Bytes,
    ) -> Result<(RecordHeader, Bytes), StoreError> {
        let offset = u64::from(location.offset);
        let header = RecordHeader::decode(bytes, self.place(offset))
            .ok_or_else(|| self.damaged(offset, DamageReason::RecordHeader))?;
        let expected = (*id, location.kind, location.stored_len, location.plain_len);
        if (header.id, header.kind, header.stored_len, header.plain_len) != expected {
            return Err(self.damaged(offset, DamageReason::OtherRecord));
        }
        let stored_end = RECORD_HEADER_LEN + header.stored_len as usize;
        if bytes.len() < stored_end {
            return Err(self.damaged(offset, DamageReason::StoredBytes));
        }
        let stored = bytes.slice(RECORD_HEADER_LEN..stored_end);
        if !header.matches(&stored) {
            return Err(self.damaged(offset, DamageReason::StoredBytes));
        }
        Ok((header, stored))
    }

    /// Reads one record.
    pub(super) fn read_record(&self, location: &Location, id: &[u8; 32]) -> Result<StoredRecord, StoreError> {
        let (header, stored) = self.read_raw(location, id)?;
        Ok(header.with_stored(stored))
    }

    /// Reads one record with its whole header.
    pub(super) fn read_raw(
        &self,
        location: &Location,
        id: &[u8; 32],
    ) -> Result<(RecordHeader, Bytes), StoreError> {
        let mut bytes = vec![0; RECORD_HEADER_LEN + location.stored_len as usize];
        self.read_exact(&mut bytes, location.offset.into())?;
        self.parse_raw(location, id, &bytes.into())
    }

    /// The records of a pack that is not being written, by its own index, else by looking for them.
    pub(super) fn entries(&self) -> Result<Vec<PackEntry>, StoreError> {
        match self.sealed_entries() {
            Err(StoreError::Damaged { .. }) => Ok(self.scan(self.len()?)?.entries),
            entries => entries,
        }
    }

    /// The records by the pack's own index. `Err(Damaged)` also where the pack was never sealed.
    pub(super) fn sealed_entries(&self) -> Result<Vec<PackEntry>, StoreError> {
        let len = self.len()?;
        let footer_at = len.saturating_sub(FOOTER_LEN as u64);
        let no_footer = || self.damaged(footer_at, DamageReason::Footer);
        if len < (PACK_HEADER_LEN + FOOTER_LEN) as u64 || len > MAX_PACK_LEN {
            return Err(no_footer());
        }
        let mut bytes = [0; FOOTER_LEN];
        self.read_exact(&mut bytes, footer_at)?;
        let footer = Footer::decode(&bytes, self.repository, self.number, len).ok_or_else(no_footer)?;
        // Bounded by the length of the file: the decoder has checked the sum.
        let mut index = vec![0; footer.entries as usize * PACK_ENTRY_LEN];
        self.read_exact(&mut index, footer.index_offset)?;
        decode_index(&index, &footer).map_err(|reason| self.damaged(footer.index_offset, reason))
    }

    /// Finds all whole records in the first `len` bytes.
    pub(super) fn scan(&self, len: u64) -> Result<Scan, StoreError> {
        let mut scan = Scan { end: PACK_HEADER_LEN as u64, ..Scan::default() };
        let mut at = PACK_HEADER_LEN as u64;
        while let Some((offset, header)) = self.next_header(at, len)? {
            at = offset + header.record_len();
            if !self.payload_matches(offset, &header)? {
                continue;
            }
            if offset > scan.end {
                scan.gaps.push((scan.end, offset - scan.end));
            }
            // Packs are shorter than 2^32 bytes: checked when this one was opened.
            let offset =
                u32::try_from(offset).map_err(|_| self.damaged(offset, DamageReason::RecordHeader))?;
            scan.entries.push(PackEntry::new(&header, offset));
            scan.end = at;
        }
        Ok(scan)
    }

    /// The first valid record header at or after `at` whose record ends within `len`.
    fn next_header(&self, mut at: u64, len: u64) -> Result<Option<(u64, RecordHeader)>, StoreError> {
        // Where the last header said the next one is, it nearly always is: no window for that.
        let mut window = RECORD_HEADER_LEN;
        let mut buf = vec![0; SEARCH_WINDOW];
        while at + RECORD_HEADER_LEN as u64 <= len {
            let want = usize::try_from(len - at).unwrap_or(usize::MAX).min(window);
            let Some(bytes) = buf.get_mut(..want) else { break };
            self.read_exact(bytes, at)?;
            let last = want - RECORD_HEADER_LEN;
            let mut step = 0;
            while step <= last {
                let candidate = bytes.get(step..).unwrap_or_default();
                if candidate.starts_with(&RECORD_MAGIC) {
                    let offset = at + step as u64;
                    if let Some(header) = RecordHeader::decode(candidate, self.place(offset))
                        && offset + header.record_len() <= len
                    {
                        return Ok(Some((offset, header)));
                    }
                }
                step += RECORD_ALIGN as usize;
            }
            at += step as u64;
            window = SEARCH_WINDOW;
        }
        Ok(None)
    }

    fn payload_matches(&self, offset: u64, header: &RecordHeader) -> Result<bool, StoreError> {
        let mut stored = vec![0; header.stored_len as usize];
        self.read_exact(&mut stored, offset + RECORD_HEADER_LEN as u64)?;
        Ok(header.matches(&stored))
    }
}
