//! Where an export goes: a file that keeps holes, or anything that only writes on.

use std::{
    fs::File,
    io::{self, Seek as _, SeekFrom, Write as _},
    os::fd::AsFd as _,
};

use rustix::fs::{OFlags, fcntl_getfl};

static ZEROS: [u8; 64 * 1024] = [0; 64 * 1024];

/// A volume of a known size on its way out.
pub(super) struct Sparse {
    file: File,
    /// Where in the file the volume begins, if the file can be skipped through.
    start: Option<u64>,
    size_bytes: u64,
    /// Bytes of the volume that are out.
    at: u64,
}

impl Sparse {
    pub(super) fn stdout(size_bytes: u64) -> io::Result<Self> {
        Self::to(File::from(io::stdout().as_fd().try_clone_to_owned()?), size_bytes)
    }

    /// Holes only where the file has nothing yet and is not in append mode; else zeros are written.
    pub(super) fn to(mut file: File, size_bytes: u64) -> io::Result<Self> {
        let metadata = file.metadata()?;
        let appends = fcntl_getfl(&file)?.contains(OFlags::APPEND);
        let start = match metadata.is_file() && !appends {
            true => Some(file.stream_position()?).filter(|start| *start >= metadata.len()),
            false => None,
        };
        Ok(Self { file, start, size_bytes, at: 0 })
    }

    /// The next data; what was left out since the last reads as zero.
    pub(super) fn write(&mut self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.skip_to(offset)?;
        self.file.write_all(data)?;
        self.at = offset + data.len() as u64;
        Ok(())
    }

    /// Brings the output to its full length.
    pub(super) fn finish(mut self) -> io::Result<()> {
        self.skip_to(self.size_bytes)?;
        if let Some(start) = self.start {
            self.file.set_len(start + self.size_bytes)?;
        }
        Ok(())
    }

    fn skip_to(&mut self, offset: u64) -> io::Result<()> {
        if offset < self.at {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "extents of an export are not in order"));
        }
        if let Some(start) = self.start {
            self.file.seek(SeekFrom::Start(start + offset))?;
        } else {
            let mut left = offset - self.at;
            while left > 0 {
                let len = usize::try_from(left).unwrap_or(usize::MAX).min(ZEROS.len());
                self.file.write_all(ZEROS.get(..len).unwrap_or(&ZEROS))?;
                left -= len as u64;
            }
        }
        self.at = offset;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, io::Read as _, os::unix::fs::MetadataExt as _};

    use super::*;

    fn expected() -> Vec<u8> {
        let mut bytes = vec![0; 8 << 20];
        bytes[1 << 20..(1 << 20) + 3].copy_from_slice(b"abc");
        bytes
    }

    fn fill(mut out: Sparse) {
        out.write(1 << 20, b"abc").unwrap();
        out.finish().unwrap();
    }

    #[test]
    fn a_file_gets_holes_and_its_full_length() {
        let file = tempfile::NamedTempFile::new().unwrap();
        fill(Sparse::to(file.reopen().unwrap(), 8 << 20).unwrap());
        assert_eq!(fs::read(file.path()).unwrap(), expected());
        assert!(fs::metadata(file.path()).unwrap().blocks() * 512 < 1 << 20);
    }

    #[test]
    fn a_file_that_is_appended_to_or_has_content_gets_zeros() {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), b"before").unwrap();
        let append = fs::OpenOptions::new().append(true).open(file.path()).unwrap();
        fill(Sparse::to(append, 8 << 20).unwrap());
        assert_eq!(fs::read(file.path()).unwrap(), [b"before".to_vec(), expected()].concat());
        fs::write(file.path(), vec![7; 8 << 20]).unwrap();
        let over = fs::OpenOptions::new().write(true).open(file.path()).unwrap();
        fill(Sparse::to(over, 8 << 20).unwrap());
        assert_eq!(fs::read(file.path()).unwrap(), expected());
    }

    #[test]
    fn a_pipe_gets_zeros() {
        let (mut read, write) = io::pipe().unwrap();
        let reader = std::thread::spawn(move || {
            let mut bytes = Vec::new();
            read.read_to_end(&mut bytes).unwrap();
            bytes
        });
        fill(Sparse::to(File::from(std::os::fd::OwnedFd::from(write)), 8 << 20).unwrap());
        assert_eq!(reader.join().unwrap(), expected());
    }
}
