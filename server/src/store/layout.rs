//! What surrounds the records of a pack: header, index, footer.

use uuid::Uuid;

use super::{
    error::DamageReason,
    format::{
        FOOTER_LEN, FOOTER_MAGIC, PACK_ENTRY_LEN, PACK_HEADER_LEN, PACK_MAGIC, PACK_VERSION, Put,
        RECORD_ALIGN, Take, record_len,
    },
    record::{Kind, RecordHeader, lengths_allowed},
};

/// The first bytes of a pack.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct PackHeader {
    pub(super) version: u16,
    pub(super) number: u32,
    pub(super) repository: Uuid,
    pub(super) created_at_ms: u64,
}

impl PackHeader {
    pub(super) fn encode(&self) -> [u8; PACK_HEADER_LEN] {
        let mut out = [0; PACK_HEADER_LEN];
        Put(&mut out)
            .bytes(&PACK_MAGIC)
            .bytes(&self.version.to_le_bytes())
            .bytes(&0u16.to_le_bytes())
            .bytes(&self.number.to_le_bytes())
            .bytes(self.repository.as_bytes())
            .bytes(&self.created_at_ms.to_le_bytes())
            .bytes(&[0; 20]);
        seal_crc(&mut out);
        out
    }

    /// Reads a header; `None` if magic, checksum or reserved bytes are wrong. The version is for the
    /// caller to judge.
    pub(super) fn decode(bytes: &[u8; PACK_HEADER_LEN]) -> Option<Self> {
        let mut take = Take(checked(bytes)?);
        let magic: [u8; 8] = take.array();
        let (version, flags) = (take.u16(), take.u16());
        let header = Self {
            version,
            number: take.u32(),
            repository: Uuid::from_bytes(take.array()),
            created_at_ms: take.u64(),
        };
        let known = version != PACK_VERSION || (flags == 0 && take.array() == [0u8; 20]);
        (magic == PACK_MAGIC && known).then_some(header)
    }
}

/// One record in a pack's index.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct PackEntry {
    pub(super) id: [u8; 32],
    pub(super) offset: u32,
    pub(super) stored_len: u32,
    pub(super) plain_len: u32,
    pub(super) kind: Kind,
    pub(super) codec: u8,
    pub(super) domain: u32,
}

impl PackEntry {
    pub(super) fn new(header: &RecordHeader, offset: u32) -> Self {
        Self {
            id: header.id,
            offset,
            stored_len: header.stored_len,
            plain_len: header.plain_len,
            kind: header.kind,
            codec: header.codec,
            domain: header.domain,
        }
    }

    /// First byte after the record.
    pub(super) fn end(&self) -> u64 {
        u64::from(self.offset) + record_len(self.stored_len)
    }

    pub(super) fn encode(&self) -> [u8; PACK_ENTRY_LEN] {
        let mut out = [0; PACK_ENTRY_LEN];
        Put(&mut out)
            .bytes(&self.id)
            .bytes(&self.offset.to_le_bytes())
            .bytes(&self.stored_len.to_le_bytes())
            .bytes(&self.plain_len.to_le_bytes())
            .bytes(&[self.kind.code(), self.codec])
            .bytes(&0u16.to_le_bytes())
            .bytes(&self.domain.to_le_bytes())
            .bytes(&0u32.to_le_bytes());
        out
    }

    pub(super) fn decode(bytes: &[u8; PACK_ENTRY_LEN]) -> Option<Self> {
        let mut take = Take(bytes);
        let (id, offset, stored_len, plain_len) = (take.array(), take.u32(), take.u32(), take.u32());
        let (kind, codec, flags) = (Kind::from_code(take.u8())?, take.u8(), take.u16());
        let (domain, reserved) = (take.u32(), take.u32());
        (flags == 0 && reserved == 0 && lengths_allowed(plain_len, stored_len)).then_some(Self {
            id,
            offset,
            stored_len,
            plain_len,
            kind,
            codec,
            domain,
        })
    }
}

/// The last bytes of a sealed pack.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Footer {
    pub(super) number: u32,
    pub(super) repository: Uuid,
    pub(super) index_offset: u64,
    pub(super) entries: u32,
    pub(super) index_hash: [u8; 32],
    pub(super) pack_len: u64,
}

impl Footer {
    pub(super) fn encode(&self) -> [u8; FOOTER_LEN] {
        let mut out = [0; FOOTER_LEN];
        Put(&mut out)
            .bytes(&FOOTER_MAGIC)
            .bytes(&PACK_VERSION.to_le_bytes())
            .bytes(&0u16.to_le_bytes())
            .bytes(&self.number.to_le_bytes())
            .bytes(self.repository.as_bytes())
            .bytes(&self.index_offset.to_le_bytes())
            .bytes(&self.entries.to_le_bytes())
            .bytes(&self.index_hash)
            .bytes(&self.pack_len.to_le_bytes())
            .bytes(&[0; 8]);
        seal_crc(&mut out);
        out
    }

    /// Reads the footer of a pack of `pack_len` bytes; `None` unless it is exactly that pack's.
    pub(super) fn decode(
        bytes: &[u8; FOOTER_LEN],
        repository: Uuid,
        number: u32,
        pack_len: u64,
    ) -> Option<Self> {
        let mut take = Take(checked(bytes)?);
        let (magic, version, flags): ([u8; 8], _, _) = (take.array(), take.u16(), take.u16());
        let footer = Self {
            number: take.u32(),
            repository: Uuid::from_bytes(take.array()),
            index_offset: take.u64(),
            entries: take.u32(),
            index_hash: take.array(),
            pack_len: take.u64(),
        };
        let index_len = u64::from(footer.entries) * PACK_ENTRY_LEN as u64;
        let ours = magic == FOOTER_MAGIC
            && (version, flags, take.array()) == (PACK_VERSION, 0, [0u8; 8])
            && (footer.number, footer.repository, footer.pack_len) == (number, repository, pack_len)
            && footer.index_offset.checked_add(index_len + FOOTER_LEN as u64) == Some(pack_len)
            && footer.index_offset >= PACK_HEADER_LEN as u64;
        ours.then_some(footer)
    }
}

/// Index and footer of a pack whose records end at `index_offset`.
pub(super) fn encode_tail(
    repository: Uuid,
    number: u32,
    index_offset: u64,
    entries: &[PackEntry],
) -> Vec<u8> {
    let mut out = Vec::with_capacity(entries.len() * PACK_ENTRY_LEN + FOOTER_LEN);
    for entry in entries {
        out.extend_from_slice(&entry.encode());
    }
    let footer = Footer {
        number,
        repository,
        index_offset,
        entries: u32::try_from(entries.len()).unwrap_or(u32::MAX),
        index_hash: *blake3::hash(&out).as_bytes(),
        pack_len: index_offset + (out.len() + FOOTER_LEN) as u64,
    };
    out.extend_from_slice(&footer.encode());
    out
}

/// The entries of a pack's index: checksum, order and bounds verified.
pub(super) fn decode_index(bytes: &[u8], footer: &Footer) -> Result<Vec<PackEntry>, DamageReason> {
    if blake3::hash(bytes) != blake3::Hash::from_bytes(footer.index_hash) {
        return Err(DamageReason::PackIndex);
    }
    let (encoded, rest) = bytes.as_chunks::<PACK_ENTRY_LEN>();
    let mut end = PACK_HEADER_LEN as u64;
    let mut entries = Vec::with_capacity(encoded.len());
    for bytes in encoded {
        let entry = PackEntry::decode(bytes).ok_or(DamageReason::PackIndex)?;
        if u64::from(entry.offset) < end || !u64::from(entry.offset).is_multiple_of(RECORD_ALIGN) {
            return Err(DamageReason::PackIndex);
        }
        end = entry.end();
        entries.push(entry);
    }
    let whole =
        rest.is_empty() && entries.len() as u64 == u64::from(footer.entries) && end <= footer.index_offset;
    whole.then_some(entries).ok_or(DamageReason::PackIndex)
}

/// Puts the CRC-32C of all before them into the last four bytes.
pub(super) fn seal_crc(bytes: &mut [u8]) {
    if let Some((body, crc)) = bytes.split_last_chunk_mut::<4>() {
        *crc = crc32c::crc32c(body).to_le_bytes();
    }
}

/// The bytes before the CRC, if it matches.
fn checked(bytes: &[u8]) -> Option<&[u8]> {
    let (body, crc) = bytes.split_last_chunk::<4>()?;
    (crc32c::crc32c(body) == u32::from_le_bytes(*crc)).then_some(body)
}
