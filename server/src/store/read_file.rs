//! A pack open for reading: large pieces around the page cache.
//!
//! A restore or a verification reads each byte once, of what was written around the page cache too. Through it that costs
//! a copy, and the memory of what else could be there.

use std::{
    fs::{File, OpenOptions},
    io,
    os::unix::fs::{FileExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    sync::OnceLock,
};

use bytes::Bytes;
use rustix::fs::OFlags;
use thinbak_proto::{BufferPool, TRANSFER_ALIGNMENT};

use super::{append_file::cannot_be_direct, medium::PackRead};

/// A piece with fewer bytes than this goes through the page cache.
const SMALL: usize = 128 << 10;

/// A file open for reading.
#[derive(Debug)]
pub(super) struct ReadFile {
    file: File,
    path: PathBuf,
    /// The same file, read around the page cache; `None` where the file system cannot do that. Opened when needed: of most
    /// packs only small pieces are read.
    direct: OnceLock<Option<File>>,
    buffers: BufferPool,
}

impl ReadFile {
    /// Opens a file. Large pieces are read into memory of `buffers`.
    pub(super) fn open(path: &Path, buffers: &BufferPool) -> io::Result<Self> {
        let (file, path) = (File::open(path)?, path.to_owned());
        Ok(Self { file, path, direct: OnceLock::new(), buffers: buffers.clone() })
    }

    /// The file around the page cache. Whatever keeps it from being opened, the page cache is there.
    fn direct(&self) -> Option<&File> {
        let open = || {
            let flags = i32::try_from(OFlags::DIRECT.bits()).ok()?;
            let direct = OpenOptions::new().read(true).custom_flags(flags).open(&self.path).ok()?;
            // The name may by now be another file's, or nobody's.
            let same = rustix::fs::fstat(&direct).ok()?.st_ino == rustix::fs::fstat(&self.file).ok()?.st_ino;
            same.then_some(direct)
        };
        self.direct.get_or_init(open).as_ref()
    }

    /// Reads `len` bytes from `offset` with whole blocks around the page cache; `None` where the file system refuses that.
    fn read_direct(&self, direct: &File, offset: u64, len: usize) -> io::Result<Option<Bytes>> {
        let skip = usize::try_from(offset % TRANSFER_ALIGNMENT as u64).map_err(io::Error::other)?;
        let begin = offset - skip as u64;
        let mut buffer = self.buffers.take((skip + len).next_multiple_of(TRANSFER_ALIGNMENT));
        let mut filled = 0;
        // A file may end inside its last block.
        while filled < skip + len {
            let rest = buffer.bytes_mut().get_mut(filled..).unwrap_or_default();
            match direct.read_at(rest, begin + filled as u64) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(read) => filled += read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if cannot_be_direct(&error) => return Ok(None),
                Err(error) => return Err(error),
            }
        }
        Ok(Some(buffer.freeze().slice(skip..skip + len)))
    }
}

impl PackRead for ReadFile {
    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        self.file.read_exact_at(buf, offset)
    }

    fn read_bytes(&self, offset: u64, len: usize) -> io::Result<Bytes> {
        if len < SMALL {
            let mut bytes = vec![0; len];
            self.read_exact_at(&mut bytes, offset)?;
            return Ok(bytes.into());
        }
        if let Some(direct) = self.direct()
            && let Some(bytes) = self.read_direct(direct, offset, len)?
        {
            return Ok(bytes);
        }
        let mut buffer = self.buffers.take(len);
        self.read_exact_at(buffer.bytes_mut(), offset)?;
        Ok(buffer.freeze())
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.len())
    }
}

#[cfg(test)]
mod tests {
    use rand::{Rng as _, SeedableRng as _, rngs::StdRng};

    use super::*;

    /// Any piece, cached or not, is what was written; past the end is an error.
    fn reads_what_was_written(folder: &Path) {
        let seed = std::env::var("THINBAK_SEED").ok().and_then(|text| text.parse().ok());
        let seed = seed.unwrap_or_else(rand::random);
        println!("THINBAK_SEED={seed}");
        let mut random = StdRng::seed_from_u64(seed);
        let path = folder.join("pack");
        let mut bytes = vec![0; 3_000_000 + random.random_range(0..5000)];
        random.fill(&mut bytes[..]);
        std::fs::write(&path, &bytes).unwrap();
        let buffers = BufferPool::new(1 << 20, 2);
        let file = ReadFile::open(&path, &buffers).unwrap();
        for round in 0..60 {
            if round % 3 == 0 {
                File::open(&path).unwrap().sync_all().unwrap();
                rustix::fs::fadvise(&file.file, 0, None, rustix::fs::Advice::DontNeed).unwrap();
            }
            let begin = random.random_range(0..bytes.len());
            let len = random.random_range(0..=bytes.len() - begin);
            let read = file.read_bytes(begin as u64, len).unwrap();
            assert!(read == bytes[begin..begin + len], "other bytes at {begin}, {len} of them");
            let error = file.read_bytes(begin as u64, bytes.len() - begin + 1).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
        }
    }

    #[test]
    fn any_piece_is_what_was_written() {
        // The build's directory is on a disk; the other one often is in memory.
        for parent in [Path::new(env!("CARGO_MANIFEST_DIR")), &std::env::temp_dir(), Path::new("/dev/shm")] {
            if parent.is_dir() {
                reads_what_was_written(tempfile::tempdir_in(parent).unwrap().path());
            }
        }
    }
}
