//! Where the journal is kept: append, make durable, cut, replace as a whole.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::path::{Path, PathBuf};

/// The name of the journal inside a pool's directory.
pub(crate) const JOURNAL: &str = "registry";
/// The journal's next form while it is being written.
pub(crate) const JOURNAL_NEW: &str = "registry.new";
/// A journal longer than this is taken for damage, not read into memory.
const MAX_JOURNAL_BYTES: u64 = 1 << 30;

/// An append-only file that can be replaced in one step.
///
/// What every implementation keeps: after [`sync`](Log::sync) everything appended before it survives a crash; what
/// was appended since may survive in part, from its beginning on. After [`replace`](Log::replace) the new content is
/// durable; a crash inside it leaves the old content or the new one.
pub(crate) trait Log: Send {
    /// Writes at the end. After an error any part of `bytes` may be there.
    fn append(&mut self, bytes: &[u8]) -> io::Result<()>;
    /// Makes everything durable.
    fn sync(&mut self) -> io::Result<()>;
    /// Cuts what lies beyond `length`.
    fn truncate(&mut self, length: u64) -> io::Result<()>;
    /// Replaces the whole content, durably. After an error the old content stays, unless [`ReplaceError::Unknown`].
    fn replace(&mut self, content: &[u8]) -> Result<(), ReplaceError>;
}

/// Why a log was not replaced.
#[derive(Debug)]
pub(crate) enum ReplaceError {
    /// The old content is still in place and may be appended to.
    Unchanged(io::Error),
    /// It is not known which of the two a crash would leave.
    Unknown(io::Error),
}

/// The journal file of a directory.
#[derive(Debug)]
pub(crate) struct FileLog {
    directory: PathBuf,
    file: File,
}

impl FileLog {
    /// Makes the file, which must not exist, with this content.
    pub(crate) fn create(directory: &Path, content: &[u8]) -> io::Result<Self> {
        let mut file =
            OpenOptions::new().read(true).append(true).create_new(true).open(directory.join(JOURNAL))?;
        file.write_all(content)?;
        file.sync_all()?;
        Ok(Self { directory: directory.to_owned(), file })
    }

    /// Opens the file and reads all of it. Nothing is changed.
    pub(crate) fn open(directory: &Path) -> io::Result<(Self, Vec<u8>)> {
        let mut file = OpenOptions::new().read(true).append(true).open(directory.join(JOURNAL))?;
        let length = file.metadata()?.len();
        if length > MAX_JOURNAL_BYTES {
            return Err(io::Error::new(io::ErrorKind::InvalidData, format!("{length} bytes are too many")));
        }
        let mut content = Vec::new();
        file.read_to_end(&mut content)?;
        Ok((Self { directory: directory.to_owned(), file }, content))
    }

    /// Writes the next form of the journal beside the present one.
    fn write_new(&self, path: &Path, content: &[u8]) -> io::Result<File> {
        let mut options = OpenOptions::new();
        let mut file = options.read(true).write(true).create(true).truncate(true).open(path)?;
        file.write_all(content)?;
        file.sync_all()?;
        drop(file);
        OpenOptions::new().read(true).append(true).open(path)
    }
}

impl Log for FileLog {
    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all(bytes)
    }

    fn sync(&mut self) -> io::Result<()> {
        self.file.sync_data()
    }

    fn truncate(&mut self, length: u64) -> io::Result<()> {
        self.file.set_len(length)
    }

    fn replace(&mut self, content: &[u8]) -> Result<(), ReplaceError> {
        let path = self.directory.join(JOURNAL_NEW);
        let file = self.write_new(&path, content).map_err(|error| {
            // Best effort: a leftover is removed at the next open too.
            let _ = fs::remove_file(&path);
            ReplaceError::Unchanged(error)
        })?;
        fs::rename(&path, self.directory.join(JOURNAL)).map_err(ReplaceError::Unknown)?;
        self.file = file;
        sync_directory(&self.directory).map_err(ReplaceError::Unknown)
    }
}

/// Makes the names inside a directory durable.
pub(crate) fn sync_directory(directory: &Path) -> io::Result<()> {
    File::open(directory)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn appended_and_replaced_content_is_read_back() {
        let directory = tempfile::tempdir().unwrap();
        let mut log = FileLog::create(directory.path(), b"one\n").unwrap();
        log.append(b"two\n").unwrap();
        log.sync().unwrap();
        assert_eq!(FileLog::open(directory.path()).unwrap().1, b"one\ntwo\n");
        log.truncate(4).unwrap();
        log.append(b"three\n").unwrap();
        assert_eq!(FileLog::open(directory.path()).unwrap().1, b"one\nthree\n");
        log.replace(b"new\n").unwrap();
        log.append(b"more\n").unwrap();
        assert_eq!(FileLog::open(directory.path()).unwrap().1, b"new\nmore\n");
        assert!(!directory.path().join(JOURNAL_NEW).exists());
    }

    #[test]
    fn a_log_that_exists_is_not_made_again() {
        let directory = tempfile::tempdir().unwrap();
        FileLog::create(directory.path(), b"one\n").unwrap();
        let error = FileLog::create(directory.path(), b"two\n").unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(FileLog::open(directory.path()).unwrap().1, b"one\n");
    }

    #[test]
    fn a_failed_replacement_keeps_the_old_content() {
        let directory = tempfile::tempdir().unwrap();
        let mut log = FileLog::create(directory.path(), b"one\n").unwrap();
        fs::create_dir(directory.path().join(JOURNAL_NEW)).unwrap();
        assert!(matches!(log.replace(b"new\n"), Err(ReplaceError::Unchanged(_))));
        log.append(b"two\n").unwrap();
        assert_eq!(FileLog::open(directory.path()).unwrap().1, b"one\ntwo\n");
    }
}
