//! What this machine can do at best, measured in the same run as whatever is held against it.

use std::{
    fs::{File, OpenOptions},
    io::{Read as _, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::Path,
    time::{Duration, Instant},
};

use anyhow::Result;

/// Seconds that one pass over the whole input takes at least, on one thread.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Bytes of the input.
    pub bytes: u64,
    /// Bytes of it as it is left by compression.
    pub compressed_bytes: u64,
    /// Reading it, as the page cache has it.
    pub read: Duration,
    /// BLAKE3 of it in chunks of 64 KiB.
    pub hash: Duration,
    /// Compression of it in chunks of 64 KiB.
    pub compress: Duration,
    /// Decompressing that again.
    pub decompress: Duration,
    /// Writing the compressed bytes to a file and fsync, through the page cache or around it, whichever is faster.
    pub write_compressed: Duration,
    /// The same with the plain bytes.
    pub write_plain: Duration,
}

impl Limits {
    /// A backup's work on all threads: one read, two BLAKE3 passes, one compression, one decompression, one write of the
    /// compressed bytes.
    #[must_use]
    pub fn backup(&self) -> Duration {
        let work = self.read + 2 * self.hash + self.compress + self.decompress + self.write_compressed;
        work / threads()
    }

    /// A restore's work on all threads: one decompression, one BLAKE3 pass, one write.
    #[must_use]
    pub fn restore(&self) -> Duration {
        (self.decompress + self.hash + self.write_plain) / threads()
    }
}

/// Threads that run at the same time on this machine.
#[must_use]
pub fn threads() -> u32 {
    std::thread::available_parallelism().map_or(1, |count| count.get() as u32)
}

/// Measures the limits on the content of `input`, compressed by `compressor`; scratch files go to `folder`.
pub fn measure(input: &Path, folder: &Path, mut compressor: zstd::bulk::Compressor<'_>) -> Result<Limits> {
    let mut file = File::open(input)?;
    let mut buffer = vec![0; 4 << 20];
    let mut limits = Limits {
        bytes: 0,
        compressed_bytes: 0,
        read: Duration::ZERO,
        hash: Duration::ZERO,
        compress: Duration::ZERO,
        decompress: Duration::ZERO,
        write_compressed: Duration::ZERO,
        write_plain: Duration::ZERO,
    };
    let mut decompressor = zstd::bulk::Decompressor::new()?;
    let (packed_path, plain_path) = (folder.join("limit-packed"), folder.join("limit-plain"));
    let mut packed_file = File::create(&packed_path)?;
    let mut plain_file = File::create(&plain_path)?;
    loop {
        let read = timed(&mut limits.read, || file.read(&mut buffer))?;
        let Some(part) = buffer.get(..read).filter(|part| !part.is_empty()) else { break };
        limits.bytes += read as u64;
        timed(&mut limits.write_plain, || plain_file.write_all(part))?;
        for chunk in part.chunks(64 * 1024) {
            std::hint::black_box(timed(&mut limits.hash, || blake3::hash(chunk)));
            let packed = timed(&mut limits.compress, || compressor.compress(chunk))?;
            timed(&mut limits.decompress, || decompressor.decompress(&packed, chunk.len()))?;
            let smaller = packed.len().min(chunk.len());
            limits.compressed_bytes += smaller as u64;
            let stored = packed.get(..smaller).unwrap_or_default();
            timed(&mut limits.write_compressed, || packed_file.write_all(stored))?;
        }
    }
    timed(&mut limits.write_compressed, || packed_file.sync_all())?;
    timed(&mut limits.write_plain, || plain_file.sync_all())?;
    let around = folder.join("limit-around");
    limits.write_compressed = limits.write_compressed.min(write_around(&packed_path, &around)?);
    std::fs::remove_file(packed_path)?;
    limits.write_plain = limits.write_plain.min(write_around(&plain_path, &around)?);
    std::fs::remove_file(plain_path)?;
    Ok(limits)
}

/// Time to write what `source` has to `target` around the page cache, and fsync; for ever where that cannot be done.
fn write_around(source: &Path, target: &Path) -> Result<Duration> {
    const BLOCK: usize = 4096;
    const TRANSFER: usize = 4 << 20;
    let direct = i32::try_from(rustix::fs::OFlags::DIRECT.bits())?;
    let opened = OpenOptions::new().write(true).create_new(true).custom_flags(direct).open(target);
    let Ok(mut file) = opened else { return Ok(Duration::MAX) };
    let mut memory = vec![0; TRANSFER + BLOCK];
    let start = memory.as_ptr().align_offset(BLOCK);
    let memory = memory.get_mut(start..start + TRANSFER).unwrap_or_default();
    let (mut source, mut spent) = (File::open(source)?, Duration::ZERO);
    loop {
        let read = source.read(memory)?;
        // The last block is written whole.
        let part = memory.get(..read.next_multiple_of(BLOCK)).unwrap_or_default();
        if part.is_empty() {
            break;
        }
        timed(&mut spent, || file.write_all(part))?;
    }
    timed(&mut spent, || file.sync_all())?;
    std::fs::remove_file(target)?;
    Ok(spent)
}

fn timed<T>(sum: &mut Duration, work: impl FnOnce() -> T) -> T {
    let since = Instant::now();
    let result = work();
    *sum += since.elapsed();
    result
}
