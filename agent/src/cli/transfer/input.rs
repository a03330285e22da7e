//! What is imported: a file with holes, or a pipe.

use std::{
    fs::File,
    io::{self, Read as _, Seek as _, SeekFrom},
    os::{
        fd::AsFd as _,
        unix::fs::{FileExt as _, FileTypeExt as _},
    },
};

use bytes::Bytes;
use rustix::{
    fs::{SeekFrom as Seek, seek},
    io::Errno,
};
use thinbak_proto::{
    MAX_PAYLOAD_LEN,
    v1::{Extent, extent::Content},
};

/// In a pipe there are no holes: pieces of this size that are all zero become some.
const PIECE_BYTES: usize = 64 * 1024;

/// An input and what it can do.
pub(super) enum Input {
    /// A regular file of `size` bytes: knows its holes.
    File { file: File, size: u64 },
    /// A block device of `size` bytes.
    Device { file: File, size: u64 },
    /// Anything that only reads on.
    Pipe(File),
}

impl Input {
    pub(super) fn stdin() -> io::Result<Self> {
        Self::of(File::from(io::stdin().as_fd().try_clone_to_owned()?))
    }

    pub(super) fn of(mut file: File) -> io::Result<Self> {
        let metadata = file.metadata()?;
        if metadata.is_file() {
            return Ok(Self::File { file, size: metadata.len() });
        }
        if metadata.file_type().is_block_device() {
            let size = file.seek(SeekFrom::End(0))?;
            file.seek(SeekFrom::Start(0))?;
            return Ok(Self::Device { file, size });
        }
        Ok(Self::Pipe(file))
    }

    /// Its size where that is known.
    pub(super) fn size_bytes(&self) -> Option<u64> {
        match self {
            Self::File { size, .. } | Self::Device { size, .. } => Some(*size),
            Self::Pipe(_) => None,
        }
    }

    /// Gives all data, ascending, until `give` says that it wants no more. Blocking.
    pub(super) fn read(self, give: &mut dyn FnMut(Extent) -> bool) -> io::Result<()> {
        match self {
            Self::File { file, size } => read_file(&file, size, give),
            Self::Device { file, .. } | Self::Pipe(file) => read_pipe(file, give),
        }
    }
}

fn read_file(file: &File, size: u64, give: &mut dyn FnMut(Extent) -> bool) -> io::Result<()> {
    let mut at = 0;
    while at < size {
        let (data, hole) = match seek(file, Seek::Data(at)) {
            Ok(data) => (data, seek(file, Seek::Hole(data))?.min(size)),
            Err(Errno::NXIO) => return Ok(()),
            // A file system without holes.
            Err(Errno::INVAL | Errno::OPNOTSUPP) => (at, size),
            Err(error) => return Err(error.into()),
        };
        at = data;
        while at < hole {
            let len = usize::try_from(hole - at).unwrap_or(usize::MAX).min(MAX_PAYLOAD_LEN);
            let mut bytes = vec![0; len];
            file.read_exact_at(&mut bytes, at)?;
            if !give(extent(at, Bytes::from(bytes))) {
                return Ok(());
            }
            at += len as u64;
        }
    }
    Ok(())
}

fn read_pipe(file: File, give: &mut dyn FnMut(Extent) -> bool) -> io::Result<()> {
    let mut begin = 0;
    loop {
        let mut bytes = Vec::with_capacity(MAX_PAYLOAD_LEN);
        (&file).take(MAX_PAYLOAD_LEN as u64).read_to_end(&mut bytes)?;
        if bytes.is_empty() {
            return Ok(());
        }
        let bytes = Bytes::from(bytes);
        for (offset, data) in data_runs(&bytes) {
            if !give(extent(begin + offset as u64, data)) {
                return Ok(());
            }
        }
        begin += bytes.len() as u64;
    }
}

/// Runs of pieces that are not all zero.
fn data_runs(bytes: &Bytes) -> Vec<(usize, Bytes)> {
    let mut runs: Vec<(usize, usize)> = Vec::new();
    let mut offset = 0;
    for piece in bytes.chunks(PIECE_BYTES) {
        let end = offset + piece.len();
        if piece.iter().any(|byte| *byte != 0) {
            match runs.last_mut() {
                Some((_, last)) if *last == offset => *last = end,
                _ => runs.push((offset, end)),
            }
        }
        offset = end;
    }
    runs.into_iter().map(|(begin, end)| (begin, bytes.slice(begin..end))).collect()
}

fn extent(offset_bytes: u64, data: Bytes) -> Extent {
    Extent { offset_bytes, content: Some(Content::Data(data)) }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    fn collect(input: Input) -> Vec<(u64, usize)> {
        let mut found = Vec::new();
        input
            .read(&mut |extent| {
                let Some(Content::Data(data)) = extent.content else { panic!("no data") };
                found.push((extent.offset_bytes, data.len()));
                true
            })
            .unwrap();
        found
    }

    #[test]
    fn holes_of_a_file_are_left_out() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(64 << 20).unwrap();
        file.write_all_at(&[1; 65536], 8 << 20).unwrap();
        file.write_all_at(&[0; 65536], 32 << 20).unwrap();
        let input = Input::of(file).unwrap();
        assert_eq!(input.size_bytes(), Some(64 << 20));
        let found = collect(input);
        assert_eq!(found, [(8 << 20, 65536), (32 << 20, 65536)], "written zeros are data");
    }

    #[test]
    fn zero_pieces_of_a_pipe_are_left_out() {
        let (read, mut write) = io::pipe().unwrap();
        let writer = std::thread::spawn(move || {
            let mut bytes = vec![0; 3 << 20];
            bytes[0] = 1;
            bytes[65536] = 1;
            bytes[2 << 20] = 1;
            bytes.push(1);
            write.write_all(&bytes).unwrap();
        });
        let input = Input::of(File::from(std::os::fd::OwnedFd::from(read))).unwrap();
        assert_eq!(input.size_bytes(), None);
        assert_eq!(collect(input), [(0, 131_072), (2 << 20, 65536), (3 << 20, 1)]);
        writer.join().unwrap();
    }

    #[test]
    fn nothing_is_read_for_a_reader_that_has_gone() {
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(&[1; 3 << 20], 0).unwrap();
        let mut given = 0;
        Input::of(file)
            .unwrap()
            .read(&mut |_| {
                given += 1;
                false
            })
            .unwrap();
        assert_eq!(given, 1);
    }
}
