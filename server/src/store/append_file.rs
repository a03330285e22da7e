//! A file that grows at its end, around the page cache.
//!
//! A pack is written once and in large pieces, and is seldom read soon. Through the page cache that costs a copy, the
//! memory of what else could be there, and a flush that comes all at once.

use std::{
    fs::{File, OpenOptions},
    io::{self, IoSlice, Write as _},
    os::unix::fs::{FileExt as _, OpenOptionsExt as _},
    path::Path,
};

use rustix::{fs::OFlags, io::Errno};

use thinbak_proto::{BufferPool, TRANSFER_ALIGNMENT};

use super::medium::PackWrite;

/// A block of the file.
const BLOCK: usize = TRANSFER_ALIGNMENT;
/// Bytes of one transfer at most.
const TRANSFER: usize = 4 << 20;
/// An append with fewer bytes than this goes through the page cache.
const SMALL: usize = 128 << 10;

/// A file open for appending. Its last bytes, which fill no block, go through the page cache: when there are more, their
/// block is written once more with them.
#[derive(Debug)]
pub(super) struct AppendFile {
    /// In append mode.
    file: File,
    /// The same file, written around the page cache; `None` where the file system cannot do that.
    direct: Option<File>,
    /// Where the next append goes.
    len: u64,
    /// What is written is put together in one of these.
    buffers: BufferPool,
}

impl AppendFile {
    /// Makes a file, which must not exist.
    pub(super) fn create(path: &Path, buffers: &BufferPool) -> io::Result<Self> {
        let file = OpenOptions::new().read(true).append(true).create_new(true).open(path)?;
        Self::new(file, path, buffers)
    }

    /// Opens a file to append to what it has.
    pub(super) fn open(path: &Path, buffers: &BufferPool) -> io::Result<Self> {
        let file = OpenOptions::new().read(true).append(true).open(path)?;
        Self::new(file, path, buffers)
    }

    fn new(file: File, path: &Path, buffers: &BufferPool) -> io::Result<Self> {
        let flags = i32::try_from(OFlags::DIRECT.bits()).map_err(io::Error::other)?;
        let direct = match OpenOptions::new().write(true).custom_flags(flags).open(path) {
            Ok(direct) => Some(direct),
            Err(error) if cannot_be_direct(&error) => None,
            Err(error) => return Err(error),
        };
        let len = file.metadata()?.len();
        Ok(Self { file, direct, len, buffers: buffers.clone() })
    }

    /// Appends what fills whole blocks, and returns how many bytes of `slices` that was.
    fn append_blocks(&mut self, direct: &File, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        let lead = usize::try_from(self.len % BLOCK as u64).map_err(io::Error::other)?;
        let mut at = self.len - lead as u64;
        let total = lead + slices.iter().map(|slice| slice.len()).sum::<usize>();
        let end = at + (total - total % BLOCK) as u64;
        let mut buffer = self.buffers.take(TRANSFER);
        let memory = buffer.bytes_mut();
        let (mut filled, mut rest) = (lead, slices.iter().map(|slice| &**slice));
        self.file.read_exact_at(memory.get_mut(..lead).unwrap_or_default(), at)?;
        let mut slice: &[u8] = &[];
        while at < end {
            let room = usize::try_from(end - at).unwrap_or(TRANSFER).min(TRANSFER);
            while filled < room {
                if slice.is_empty() {
                    slice = rest.next().unwrap_or_default();
                }
                let (now, later) = slice.split_at(slice.len().min(room - filled));
                memory.get_mut(filled..filled + now.len()).unwrap_or_default().copy_from_slice(now);
                filled += now.len();
                slice = later;
            }
            direct.write_all_at(memory.get(..room).unwrap_or_default(), at)?;
            at += room as u64;
            filled = 0;
        }
        Ok(total - total % BLOCK - lead)
    }
}

impl PackWrite for AppendFile {
    fn append(&mut self, mut slices: &mut [IoSlice<'_>]) -> io::Result<()> {
        let bytes: usize = slices.iter().map(|slice| slice.len()).sum();
        let mut written = 0;
        if let Some(direct) = self.direct.take_if(|_| bytes >= SMALL) {
            match self.append_blocks(&direct, slices) {
                Ok(appended) => (self.direct, written) = (Some(direct), appended),
                // Some file systems refuse only when it comes to writing; from now on without.
                Err(error) if cannot_be_direct(&error) => self.file.set_len(self.len)?,
                Err(error) => {
                    self.direct = Some(direct);
                    return Err(error);
                }
            }
        }
        IoSlice::advance_slices(&mut slices, written);
        while !slices.is_empty() {
            match self.file.write_vectored(slices) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(written) => IoSlice::advance_slices(&mut slices, written),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        self.len += bytes as u64;
        Ok(())
    }

    fn sync(&mut self) -> io::Result<()> {
        self.file.sync_data()
    }

    fn truncate(&mut self, len: u64) -> io::Result<()> {
        self.file.set_len(len)?;
        self.len = len;
        Ok(())
    }
}

/// What a file system answers that cannot write around the page cache, or not at this alignment.
pub(super) fn cannot_be_direct(error: &io::Error) -> bool {
    matches!(Errno::from_io_error(error), Some(Errno::INVAL | Errno::OPNOTSUPP))
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use rand::{Rng as _, SeedableRng as _, rngs::StdRng};

    use super::*;

    fn pattern(first: u32, len: usize) -> Vec<u8> {
        (first..).step_by(7).flat_map(u32::to_le_bytes).take(len).collect()
    }

    fn seed() -> u64 {
        let seed = std::env::var("THINBAK_SEED").ok().and_then(|text| text.parse().ok());
        let seed = seed.unwrap_or_else(rand::random);
        println!("THINBAK_SEED={seed}");
        seed
    }

    /// Appends of all lengths, cuts and openings anew leave what a vector would hold, with and without the page cache.
    fn grows_as_a_vector_does(folder: &Path, seed: u64) {
        let mut random = StdRng::seed_from_u64(seed);
        let path = folder.join("pack");
        let mut expected: Vec<u8> = Vec::new();
        let buffers = BufferPool::new(TRANSFER, 1);
        let mut file = AppendFile::create(&path, &buffers).unwrap();
        for _ in 0..60 {
            match random.random_range(0..10) {
                0 => {
                    expected.truncate(random.random_range(0..=expected.len()));
                    file.truncate(expected.len() as u64).unwrap();
                }
                1 => file = AppendFile::open(&path, &buffers).unwrap(),
                2 => file.sync().unwrap(),
                _ => {
                    let lens = [1, 7, 512, 4096, 4097, 70_000, 300_000, TRANSFER + 5];
                    let parts: Vec<Vec<u8>> = (0..random.random_range(1..4))
                        .map(|_| pattern(random.random(), lens[random.random_range(0..lens.len())]))
                        .collect();
                    let mut slices: Vec<IoSlice<'_>> = parts.iter().map(|part| IoSlice::new(part)).collect();
                    file.append(&mut slices).unwrap();
                    expected.extend(parts.concat());
                }
            }
            assert_eq!(std::fs::metadata(&path).unwrap().len(), expected.len() as u64);
        }
        assert!(std::fs::read(&path).unwrap() == expected, "other bytes in {}", path.display());
    }

    #[test]
    fn any_appends_and_cuts_leave_what_a_vector_would_hold() {
        let seed = seed();
        // The build's directory is on a disk; the other one often is in memory.
        for parent in [Path::new(env!("CARGO_MANIFEST_DIR")), &std::env::temp_dir(), Path::new("/dev/shm")] {
            if parent.is_dir() {
                let folder = tempfile::tempdir_in(parent).unwrap();
                grows_as_a_vector_does(folder.path(), seed);
            }
        }
    }

    /// Who reads what is acknowledged, through the page cache, sees it although its last block is being written again;
    /// and the writer is not disturbed.
    #[test]
    fn readers_of_the_last_block_and_the_writer_do_not_disturb_each_other() {
        let mut random = StdRng::seed_from_u64(seed());
        let folder = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
        let path = folder.path().join("pack");
        let mut file = AppendFile::create(&path, &BufferPool::new(TRANSFER, 1)).unwrap();
        let durable = AtomicU64::new(0);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let file = File::open(&path).unwrap();
                let mut buffer = [0; 3 * BLOCK];
                loop {
                    let end = durable.load(Ordering::Acquire);
                    if end == u64::MAX {
                        break;
                    }
                    let part = &mut buffer[..usize::try_from(end).unwrap().min(3 * BLOCK)];
                    let begin = end - part.len() as u64;
                    file.read_exact_at(part, begin).unwrap();
                    let expected = (begin..end).map(|at| (at / 1000 % 251) as u8);
                    assert!(expected.eq(part.iter().copied()), "other bytes before {end}");
                }
            });
            let mut end = 0;
            for _ in 0..300 {
                let next = end + random.random_range(SMALL as u64..2 * SMALL as u64);
                let bytes: Vec<u8> = (end..next).map(|at| (at / 1000 % 251) as u8).collect();
                let done = file.append(&mut [IoSlice::new(&bytes)]).and_then(|()| file.sync());
                end = next;
                durable.store(if done.is_ok() { end } else { u64::MAX }, Ordering::Release);
                done.unwrap();
            }
            durable.store(u64::MAX, Ordering::Release);
        });
    }
}
