//! Compressing chunks.

use bytes::Bytes;
use parking_lot::Mutex;
use thinbak_proto::{CODEC_PLAIN, CODEC_ZSTD};
use zstd::bulk::Compressor as Zstd;

/// zstd level of stored chunks.
const LEVEL: i32 = 3;

/// Compresses chunks with one zstd context and one buffer.
pub(super) struct Compressor {
    zstd: Zstd<'static>,
    buffer: Vec<u8>,
}

impl Compressor {
    fn new() -> std::io::Result<Self> {
        Ok(Self { zstd: Zstd::new(LEVEL)?, buffer: Vec::new() })
    }

    /// The codec, and the bytes to keep: what does not become smaller is kept as it is. zstd sees by itself, and soon, that
    /// a chunk is random; a look at a sample beforehand was measured to cost more than it saves.
    pub(super) fn compress(&mut self, plain: Bytes) -> std::io::Result<(u32, Bytes)> {
        self.buffer.clear();
        self.buffer.reserve(zstd::zstd_safe::compress_bound(plain.len()));
        self.zstd.compress_to_buffer(&plain, &mut self.buffer)?;
        if self.buffer.len() < plain.len() {
            Ok((CODEC_ZSTD, Bytes::copy_from_slice(&self.buffer)))
        } else {
            Ok((CODEC_PLAIN, plain))
        }
    }
}

/// Compressors that wait for their next use. There are never more than are used at one time.
#[derive(Default)]
pub(super) struct Compressors {
    idle: Mutex<Vec<Compressor>>,
}

impl Compressors {
    /// Does something with a compressor. One whose user panicked is not used again.
    pub(super) fn with<T>(&self, run: impl FnOnce(&mut Compressor) -> T) -> std::io::Result<T> {
        let idle = self.idle.lock().pop();
        let mut compressor = match idle {
            Some(compressor) => compressor,
            None => Compressor::new()?,
        };
        let done = run(&mut compressor);
        self.idle.lock().push(compressor);
        Ok(done)
    }
}

#[cfg(test)]
mod tests {
    use rand::{RngCore as _, SeedableRng as _, rngs::StdRng};

    use super::*;

    const CHUNK: usize = 64 * 1024;

    fn random() -> Vec<u8> {
        let mut bytes = vec![0; CHUNK];
        StdRng::seed_from_u64(4).fill_bytes(&mut bytes);
        bytes
    }

    #[test]
    fn a_compressor_gives_back_what_it_was_given() {
        let compressors = Compressors::default();
        for plain in [vec![7; CHUNK], random(), b"a short last chunk".to_vec(), vec![1; 4096]] {
            let (codec, stored) =
                compressors.with(|one| one.compress(plain.clone().into())).unwrap().unwrap();
            assert!(stored.len() <= plain.len());
            let back = match codec {
                CODEC_ZSTD => zstd::bulk::decompress(&stored, plain.len()).unwrap(),
                _ => stored.to_vec(),
            };
            assert_eq!(back, plain);
        }
        assert_eq!(compressors.idle.lock().len(), 1);
    }
}
