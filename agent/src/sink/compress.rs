//! Compressing chunks.

use bytes::Bytes;
use parking_lot::Mutex;
use thinbak_proto::{CODEC_PLAIN, CODEC_ZSTD};
use zstd::bulk::Compressor as Zstd;

/// zstd level of stored chunks.
const LEVEL: i32 = 3;
/// A sample of a chunk: so many stripes of so many bytes, evenly spread.
const STRIPES: usize = 64;
const STRIPE: usize = 64;
/// Bits a byte of the sample from which on a chunk is taken for incompressible. A sample of 4,096 random bytes has 7.955
/// on average, and never as little as this; of text, programs and tables it has 4 to 7.
const RANDOM_BITS: f64 = 7.9;

/// Compresses chunks with one zstd context and one buffer.
pub(super) struct Compressor {
    zstd: Zstd<'static>,
    buffer: Vec<u8>,
}

impl Compressor {
    fn new() -> std::io::Result<Self> {
        Ok(Self { zstd: Zstd::new(LEVEL)?, buffer: Vec::new() })
    }

    /// The codec, and the bytes to keep: what does not become smaller is kept as it is.
    pub(super) fn compress(&mut self, plain: Bytes) -> std::io::Result<(u32, Bytes)> {
        if looks_random(&plain) {
            return Ok((CODEC_PLAIN, plain));
        }
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

/// Whether compressing is not worth a try: in a sample of `plain` all bytes are about as frequent, as in what is encrypted
/// or compressed already. zstd would come to the same end, at the price of a look at every byte. What is random and yet
/// repeats itself within one chunk is missed by this, and zeros that are less than a twentieth of it; copies in other chunks
/// are found as ever.
fn looks_random(plain: &[u8]) -> bool {
    let Some(step) = (plain.len() / STRIPES).checked_sub(STRIPE) else { return false };
    let mut counts = [0u32; 256];
    for stripe in plain.chunks_exact(STRIPE + step).take(STRIPES) {
        for byte in stripe.iter().take(STRIPE) {
            if let Some(count) = counts.get_mut(usize::from(*byte)) {
                *count += 1;
            }
        }
    }
    let total = f64::from(counts.iter().sum::<u32>());
    let seen = counts.iter().filter(|count| **count > 0).map(|count| f64::from(*count));
    let bits: f64 = seen.map(|count| count * (total / count).log2()).sum();
    bits >= RANDOM_BITS * total
}

#[cfg(test)]
mod tests {
    use rand::{Rng as _, RngCore as _, SeedableRng as _, rngs::StdRng};

    use super::*;

    const CHUNK: usize = 64 * 1024;

    fn random(seed: u64) -> Vec<u8> {
        let mut bytes = vec![0; CHUNK];
        StdRng::seed_from_u64(seed).fill_bytes(&mut bytes);
        bytes
    }

    #[test]
    fn what_is_random_is_kept_as_it_is_without_a_try() {
        for seed in 0..100 {
            assert!(looks_random(&random(seed)), "seed {seed}");
        }
    }

    #[test]
    fn what_compresses_a_little_is_tried() {
        // Seven bits of eight: base64, text and programs have fewer.
        let mut bytes = random(1);
        bytes.iter_mut().for_each(|byte| *byte &= 0x7f);
        assert!(!looks_random(&bytes));
        // A 32-bit counter has one byte in four that looks random.
        let counter: Vec<u8> = (0..CHUNK as u32 / 4).flat_map(u32::to_le_bytes).collect();
        assert!(!looks_random(&counter));
        // A tenth of zeros among the noise.
        let mut random = StdRng::seed_from_u64(2);
        let holes: Vec<u8> =
            (0..CHUNK).map(|_| if random.random_bool(0.1) { 0 } else { random.random() }).collect();
        assert!(!looks_random(&holes));
    }

    #[test]
    fn a_chunk_too_small_for_a_sample_is_tried() {
        assert!(!looks_random(&[]));
        assert!(!looks_random(&random(3)[..STRIPES * STRIPE - 1]));
        assert!(looks_random(&random(3)[..STRIPES * STRIPE]));
    }

    #[test]
    fn a_compressor_gives_back_what_it_was_given() {
        let compressors = Compressors::default();
        for plain in [vec![7; CHUNK], random(4), b"a short last chunk".to_vec(), vec![1; 4096]] {
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
