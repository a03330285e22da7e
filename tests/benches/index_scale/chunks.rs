//! Chunks that are all different and next to nothing as they are sent.

use bytes::Bytes;
use rand::{Rng as _, SeedableRng as _, rngs::StdRng};
use thinbak_proto::{
    CODEC_ZSTD, ChunkId,
    v1::{MapItem, NewChunk, map_item::Entry},
};

/// The smallest size that a repository can have.
pub(crate) const CHUNK_BYTES: usize = 4096;

/// The plain content of chunk `number`: its number from 1, then zeros.
fn plain(number: u64) -> [u8; CHUNK_BYTES] {
    let mut plain = [0; CHUNK_BYTES];
    if let Some(front) = plain.first_chunk_mut::<8>() {
        *front = (number + 1).to_le_bytes();
    }
    plain
}

pub(crate) fn id(number: u64) -> ChunkId {
    ChunkId::of(&plain(number))
}

/// The chunk as one zstd frame of RFC 8878: a raw block with the number and one byte repeated. Compressing each
/// would measure the compressor.
fn frame(number: u64) -> Vec<u8> {
    const ZEROS: u32 = CHUNK_BYTES as u32 - 8;
    let mut frame = Vec::with_capacity(22);
    frame.extend_from_slice(&0xFD2F_B528_u32.to_le_bytes());
    // One segment; the content's length less 256 follows in two bytes.
    frame.push(0x60);
    frame.extend_from_slice(&(CHUNK_BYTES as u16 - 256).to_le_bytes());
    frame.extend_from_slice(&[8 << 3, 0, 0]);
    frame.extend_from_slice(&(number + 1).to_le_bytes());
    // The last block, repeated bytes.
    frame.extend_from_slice((ZEROS << 3 | 0b011).to_le_bytes().first_chunk::<3>().unwrap_or(&[0; 3]));
    frame.push(0);
    frame
}

/// Chunk `number` at its place of the volume.
pub(crate) fn item(number: u64, id: ChunkId) -> MapItem {
    let stored = Bytes::from(frame(number));
    let new = NewChunk { id: id.to_bytes(), codec: CODEC_ZSTD, plain_len: CHUNK_BYTES as u32, stored };
    MapItem { chunk: number, entry: Some(Entry::New(new)) }
}

/// Ids of chunks below `chunks`, at random.
pub(crate) fn known(chunks: u64, count: u64, seed: u64) -> Vec<ChunkId> {
    let mut random = StdRng::seed_from_u64(seed);
    (0..count).map(|_| id(random.random_range(0..chunks.max(1)))).collect()
}

/// Ids of nothing.
pub(crate) fn unknown(count: u64, seed: u64) -> Vec<ChunkId> {
    let mut random = StdRng::seed_from_u64(seed);
    (0..count).map(|_| ChunkId::from_bytes(random.random())).collect()
}
