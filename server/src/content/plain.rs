//! Back to the plain bytes of a chunk, within bounds.

use parking_lot::Mutex;
use thinbak_proto::{CODEC_PLAIN, CODEC_ZSTD, ChunkId};
use zstd::bulk::Decompressor;

/// Stored bytes that are not what they are said to be.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PlainError {
    #[error("codec {0} is not known")]
    Codec(u32),
    #[error("{expected} bytes are announced, where a chunk has {limit} at most")]
    TooLong { expected: u32, limit: u32 },
    #[error("it has {found} bytes where {expected} are announced")]
    Length { expected: u32, found: usize },
    #[error("it cannot be decompressed: {0}")]
    Zstd(std::io::Error),
    #[error("its content has the id {0}")]
    Id(ChunkId),
}

/// Unpackers that wait for their next use: making one costs as much as using it for a few chunks. There are never more
/// than are used at one time.
pub(crate) struct Unpackers {
    limit: u32,
    idle: Mutex<Vec<Unpacker>>,
}

impl Unpackers {
    /// For chunks of at most `limit` plain bytes.
    pub(crate) fn new(limit: u32) -> Self {
        Self { limit, idle: Mutex::default() }
    }

    /// Does something with an unpacker. One that was in use by a panicking thread is not used again.
    pub(crate) fn with<T>(&self, run: impl FnOnce(&mut Unpacker) -> T) -> Result<T, PlainError> {
        let idle = self.idle.lock().pop();
        let mut unpacker = match idle {
            Some(unpacker) => unpacker,
            None => Unpacker::new(self.limit)?,
        };
        let done = run(&mut unpacker);
        self.idle.lock().push(unpacker);
        Ok(done)
    }
}

/// Decompresses and identifies chunks, in one buffer. Synchronous: hashing takes a processor for a while.
pub(crate) struct Unpacker {
    decompressor: Decompressor<'static>,
    buffer: Vec<u8>,
    limit: u32,
}

impl Unpacker {
    /// For chunks of at most `limit` plain bytes.
    pub(crate) fn new(limit: u32) -> Result<Self, PlainError> {
        let decompressor = Decompressor::new().map_err(PlainError::Zstd)?;
        Ok(Self { decompressor, buffer: Vec::new(), limit })
    }

    /// The plain bytes, exactly `plain_len` of them and with this id.
    pub(crate) fn check<'a>(
        &'a mut self,
        id: ChunkId,
        codec: u32,
        plain_len: u32,
        stored: &'a [u8],
    ) -> Result<&'a [u8], PlainError> {
        if plain_len > self.limit {
            return Err(PlainError::TooLong { expected: plain_len, limit: self.limit });
        }
        let plain = match codec {
            CODEC_PLAIN => stored,
            CODEC_ZSTD => {
                let capacity = usize::try_from(plain_len).unwrap_or_default();
                self.buffer.clear();
                self.buffer.reserve_exact(capacity);
                let decompressed = self.decompressor.decompress_to_buffer(stored, &mut self.buffer);
                decompressed.map_err(PlainError::Zstd)?;
                self.buffer.as_slice()
            }
            other => return Err(PlainError::Codec(other)),
        };
        if u32::try_from(plain.len()) != Ok(plain_len) {
            return Err(PlainError::Length { expected: plain_len, found: plain.len() });
        }
        match ChunkId::of(plain) {
            found if found == id => Ok(plain),
            found => Err(PlainError::Id(found)),
        }
    }
}
