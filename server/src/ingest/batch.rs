//! Checking what a client sends, before anything of it is believed.

use thinbak_proto::{CODEC_PLAIN, ChunkId, Failed, FailureKind, ID_LEN, chunk_count, v1};
use v1::map_item::Entry;

use crate::{
    content::{PlainError, Unpacker, Unpackers, parse_id},
    map_tree::Edit,
    store::{Kind, NewRecord},
};

/// Stored bytes of one batch: "about 1 MiB", and one chunk more.
const MAX_BATCH_BYTES: u64 = 3 << 20;
/// Entries of one batch.
const MAX_BATCH_ITEMS: usize = 65_536;

/// The shape of the volume being backed up.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Geometry {
    pub(crate) chunk_bytes: u32,
    pub(crate) size_bytes: u64,
}

impl Geometry {
    /// Chunks of the volume.
    pub(crate) fn chunks(&self) -> u64 {
        chunk_count(self.size_bytes, self.chunk_bytes)
    }

    /// Bytes of a range of chunks; the last chunk of the volume may be short.
    pub(crate) fn bytes_of(&self, first: u64, chunks: u64) -> u64 {
        let offset = |chunk: u64| chunk.saturating_mul(u64::from(self.chunk_bytes)).min(self.size_bytes);
        offset(first.saturating_add(chunks)).saturating_sub(offset(first))
    }

    /// Refuses a chunk of another length than the volume has there; `how` it came, for the message.
    pub(super) fn check_length(&self, chunk: u64, plain_len: u32, how: &str) -> Result<(), Failed> {
        let expected = self.bytes_of(chunk, 1);
        if u64::from(plain_len) == expected {
            return Ok(());
        }
        Err(usage(format!("chunk {chunk} was {how} with {plain_len} bytes, where the volume has {expected}")))
    }
}

/// A batch that may be stored.
#[derive(Debug, Default)]
pub(super) struct Checked {
    /// New chunks.
    pub(super) records: Vec<NewRecord>,
    /// What the map is to say.
    pub(super) edits: Vec<(u64, Edit)>,
    /// Chunks that the client believes to be stored, and where in the volume they are.
    pub(super) present: Vec<(u64, [u8; ID_LEN])>,
    /// Volume bytes that the entries cover.
    pub(super) changed_bytes: u64,
    /// Stored bytes that the batch carried.
    pub(super) stored_bytes: u64,
}

pub(super) fn usage(message: impl Into<String>) -> Failed {
    Failed::new(FailureKind::Usage, message)
}

fn chunks_of(item: &v1::MapItem) -> u64 {
    match item.entry {
        Some(Entry::Zero(chunks) | Entry::Hole(chunks)) => chunks,
        Some(Entry::New(_) | Entry::Present(_)) => 1,
        None => 0,
    }
}

/// Checks size, order and bounds; `next` is the first chunk that may come. Returns the next one. Cheap, so
/// that batches can be checked further side by side.
pub(super) fn check_order(batch: &v1::BackupBatch, geometry: Geometry, mut next: u64) -> Result<u64, Failed> {
    if batch.items.len() > MAX_BATCH_ITEMS {
        return Err(usage(format!(
            "a batch of {} entries, where {MAX_BATCH_ITEMS} are allowed",
            batch.items.len()
        )));
    }
    let mut stored = 0u64;
    for item in &batch.items {
        let chunks = chunks_of(item);
        if chunks == 0 {
            return Err(usage(format!("the map entry of chunk {} covers nothing", item.chunk)));
        }
        if item.chunk < next {
            return Err(usage(format!(
                "the map entry of chunk {} comes late: chunk {next} is next",
                item.chunk
            )));
        }
        let end = item.chunk.checked_add(chunks).filter(|end| *end <= geometry.chunks());
        next = end.ok_or_else(|| {
            let all = geometry.chunks();
            usage(format!(
                "the map entry of {chunks} chunks at {} ends past the volume's {all} chunks",
                item.chunk
            ))
        })?;
        if let Some(Entry::New(new)) = &item.entry {
            stored = stored.saturating_add(new.stored.len() as u64);
        }
    }
    if stored > MAX_BATCH_BYTES {
        return Err(usage(format!("a batch of {stored} bytes, where {MAX_BATCH_BYTES} are allowed")));
    }
    Ok(next)
}

/// Checks the content of a batch whose order is right: every id is recomputed.
pub(super) fn check_content(
    batch: v1::BackupBatch,
    geometry: Geometry,
    unpackers: &Unpackers,
) -> Result<Checked, Failed> {
    let checked = unpackers.with(|unpacker| check_items(batch, geometry, unpacker));
    checked
        .map_err(|error| Failed::new(FailureKind::Failed, format!("cannot prepare to decompress: {error}")))?
}

fn check_items(
    batch: v1::BackupBatch,
    geometry: Geometry,
    unpacker: &mut Unpacker,
) -> Result<Checked, Failed> {
    let mut checked = Checked::default();
    for item in batch.items {
        checked.changed_bytes += geometry.bytes_of(item.chunk, chunks_of(&item));
        let edit = match item.entry {
            Some(Entry::Zero(chunks)) => Edit::Zero(chunks),
            Some(Entry::Hole(chunks)) => Edit::Hole(chunks),
            Some(Entry::Present(id)) => {
                let id = parse_id(&id)?;
                checked.present.push((item.chunk, id));
                Edit::Chunk(ChunkId::from_bytes(id))
            }
            Some(Entry::New(new)) => {
                checked.stored_bytes += new.stored.len() as u64;
                let (edit, record) = check_chunk(item.chunk, new, geometry, unpacker)?;
                checked.records.extend(record);
                edit
            }
            None => continue,
        };
        checked.edits.push((item.chunk, edit));
    }
    Ok(checked)
}

/// A new chunk's entry, and its record unless it is all zero.
fn check_chunk(
    chunk: u64,
    new: v1::NewChunk,
    geometry: Geometry,
    unpacker: &mut Unpacker,
) -> Result<(Edit, Option<NewRecord>), Failed> {
    let id = ChunkId::from_bytes(parse_id(&new.id)?);
    geometry.check_length(chunk, new.plain_len, "sent")?;
    let plain = unpacker.check(id, new.codec, new.plain_len, &new.stored).map_err(|error| {
        let kind = match error {
            PlainError::Codec(_) | PlainError::TooLong { .. } => FailureKind::Usage,
            PlainError::Length { .. } | PlainError::Zstd(_) | PlainError::Id(_) => FailureKind::Damaged,
        };
        Failed::new(kind, format!("chunk {chunk} with the id {id} arrived damaged: {error}"))
    })?;
    if plain.iter().all(|byte| *byte == 0) {
        return Ok((Edit::Zero(1), None));
    }
    let codec = u8::try_from(new.codec).map_err(|_| usage(format!("codec {} is not known", new.codec)))?;
    let record = NewRecord {
        kind: Kind::Chunk,
        id: *id.as_bytes(),
        codec,
        plain_len: new.plain_len,
        // Stored as they are, the bytes are those that the id was just computed of.
        stored_hash: (new.codec == CODEC_PLAIN).then_some(*id.as_bytes()),
        stored: new.stored,
    };
    Ok((Edit::Chunk(id), Some(record)))
}
