//! What makes map items of extents: cut into chunks, hash, leave out zeros, compress.

use std::collections::HashSet;

use bytes::Bytes;
use thinbak_proto::{
    ChunkId, Failed, FailureKind,
    v1::{MapItem, NewChunk, map_item},
};

use super::compress::Compressor;
use crate::stream::{Batch, Content, Extent};

/// A piece of the stream cut to chunks.
#[derive(Debug, Clone)]
pub(super) struct Piece {
    /// Number of the first chunk.
    pub(super) chunk: u64,
    /// What it holds.
    pub(super) content: PieceContent,
}

/// What a piece holds.
#[derive(Debug, Clone)]
pub(super) enum PieceContent {
    /// One chunk of data.
    Data {
        /// Its id.
        id: ChunkId,
        /// Its content.
        plain: Bytes,
    },
    /// This many chunks that read as zero.
    Zero(u64),
    /// This many chunks that are not mapped.
    Hole(u64),
}

/// Cuts a batch into chunks and hashes them. Extents begin at chunk boundaries and end at one or at the
/// end of the volume; anything else is an error of the source.
pub(super) fn cut(batch: Batch, chunk_bytes: u32, size: u64) -> Result<Vec<Piece>, Failed> {
    let chunk_len = u64::from(chunk_bytes);
    let mut pieces = Vec::new();
    for extent in batch {
        if !extent.offset.is_multiple_of(chunk_len)
            || (!extent.end().is_multiple_of(chunk_len) && extent.end() != size)
        {
            return Err(unaligned(&extent));
        }
        let first = extent.offset / chunk_len;
        let count = extent.len().div_ceil(chunk_len);
        match extent.content {
            Content::Unmapped(_) => pieces.push(Piece { chunk: first, content: PieceContent::Hole(count) }),
            Content::Zero(_) => pieces.push(Piece { chunk: first, content: PieceContent::Zero(count) }),
            Content::Data(bytes) => {
                let mut rest = bytes;
                for chunk in first..first + count {
                    let plain = rest.split_to(rest.len().min(chunk_bytes as usize));
                    pieces.push(Piece { chunk, content: content_of(plain) });
                }
            }
        }
    }
    Ok(pieces)
}

fn unaligned(extent: &Extent) -> Failed {
    let message = format!("an extent at {} of {} bytes does not fit the chunks", extent.offset, extent.len());
    Failed::new(FailureKind::Failed, message)
}

fn content_of(plain: Bytes) -> PieceContent {
    if is_zero(&plain) {
        PieceContent::Zero(1)
    } else {
        PieceContent::Data { id: ChunkId::of(&plain), plain }
    }
}

fn is_zero(bytes: &[u8]) -> bool {
    let (words, tail) = bytes.as_chunks::<16>();
    words.iter().all(|word| u128::from_ne_bytes(*word) == 0) && tail.iter().all(|byte| *byte == 0)
}

/// A piece ready to be sent.
#[derive(Debug, Clone)]
pub(super) struct Packed {
    /// The map item; a new chunk carries its data.
    pub(super) item: MapItem,
    /// The chunk's id and plain length, if it is one.
    pub(super) chunk: Option<(ChunkId, u64)>,
}

impl Packed {
    /// Bytes of chunk data in it.
    #[must_use]
    pub(super) fn stored_len(&self) -> usize {
        match &self.item.entry {
            Some(map_item::Entry::New(new)) => new.stored.len(),
            _ => 0,
        }
    }

    /// The same item, naming the chunk instead of carrying it.
    #[must_use]
    pub(super) fn into_present(self) -> Self {
        let entry = self.chunk.map(|(id, _)| map_item::Entry::Present(id.to_bytes()));
        match entry {
            Some(entry) => Self { item: MapItem { chunk: self.item.chunk, entry: Some(entry) }, ..self },
            None => self,
        }
    }
}

/// Compresses the chunks in `missing`, each once, and makes map items of all pieces.
pub(super) fn pack(
    pieces: Vec<Piece>,
    mut missing: HashSet<ChunkId>,
    compressor: &mut Compressor,
) -> Result<Vec<Packed>, Failed> {
    let mut packed = Vec::with_capacity(pieces.len());
    for piece in pieces {
        let (entry, chunk) = match piece.content {
            PieceContent::Hole(count) => (map_item::Entry::Hole(count), None),
            PieceContent::Zero(count) => (map_item::Entry::Zero(count), None),
            PieceContent::Data { id, plain } => {
                let chunk = Some((id, plain.len() as u64));
                if missing.remove(&id) {
                    (map_item::Entry::New(compress(compressor, id, plain)?), chunk)
                } else {
                    (map_item::Entry::Present(id.to_bytes()), chunk)
                }
            }
        };
        packed.push(Packed { item: MapItem { chunk: piece.chunk, entry: Some(entry) }, chunk });
    }
    Ok(packed)
}

fn compress(compressor: &mut Compressor, id: ChunkId, plain: Bytes) -> Result<NewChunk, Failed> {
    let plain_len = u32::try_from(plain.len()).unwrap_or(u32::MAX);
    let (codec, stored) = compressor.compress(plain).map_err(|error| compression(&error))?;
    Ok(NewChunk { id: id.to_bytes(), codec, plain_len, stored })
}

pub(super) fn compression(error: &std::io::Error) -> Failed {
    Failed::new(FailureKind::Failed, format!("compressing a chunk: {error}"))
}

#[cfg(test)]
mod tests {
    use thinbak_proto::CODEC_PLAIN;

    use super::*;
    use crate::sink::compress::Compressors;

    fn packed(pieces: Vec<Piece>, missing: HashSet<ChunkId>) -> Vec<Packed> {
        Compressors::new(4096).with(|compressor| pack(pieces, missing, compressor)).unwrap().unwrap()
    }

    fn data(offset: u64, bytes: Vec<u8>) -> Extent {
        Extent { offset, content: Content::Data(bytes.into()) }
    }

    #[test]
    fn data_is_cut_to_chunks_and_a_chunk_of_zeros_is_named_so() {
        let bytes = [vec![1; 4096], vec![0; 4096], vec![2; 100]].concat();
        let pieces = cut(vec![data(8192, bytes)], 4096, 8192 + 8292).unwrap();
        assert_eq!(pieces.iter().map(|piece| piece.chunk).collect::<Vec<_>>(), [2, 3, 4]);
        assert!(matches!(pieces[1].content, PieceContent::Zero(1)));
        assert!(matches!(&pieces[2].content, PieceContent::Data { id, plain }
            if plain.len() == 100 && *id == ChunkId::of(&[2; 100])));
    }

    #[test]
    fn an_extent_that_does_not_fit_the_chunks_is_refused() {
        assert!(cut(vec![data(100, vec![1; 4096])], 4096, 1 << 20).is_err());
        assert!(cut(vec![data(0, vec![1; 100])], 4096, 1 << 20).is_err());
    }

    #[test]
    fn a_missing_chunk_travels_once_and_is_named_from_then_on() {
        let pieces = cut(vec![data(0, vec![7; 8192])], 4096, 8192).unwrap();
        let packed = packed(pieces, HashSet::from([ChunkId::of(&[7; 4096])]));
        assert!(matches!(packed[0].item.entry, Some(map_item::Entry::New(_))));
        assert!(matches!(packed[1].item.entry, Some(map_item::Entry::Present(_))));
    }

    #[test]
    fn what_does_not_compress_travels_plain() {
        let noise: Vec<u8> =
            (0..4096u32).flat_map(|n| blake3::hash(&n.to_le_bytes()).as_bytes()[..1].to_vec()).collect();
        let pieces = cut(vec![data(0, noise.clone())], 4096, 4096).unwrap();
        let packed = packed(pieces, HashSet::from([ChunkId::of(&noise)]));
        assert!(matches!(&packed[0].item.entry, Some(map_item::Entry::New(new)) if new.codec == CODEC_PLAIN));
    }
}
