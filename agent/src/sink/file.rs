//! Sink: a regular file, sparse where the volume is.

use std::{
    collections::VecDeque,
    fs::{File, OpenOptions},
    io,
    os::unix::fs::{FileExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::Arc,
};

use rustix::{fs::OFlags, io::Errno};
use tempfile::TempPath;
use thinbak_proto::{Failed, FailureKind, TRANSFER_ALIGNMENT};
use tokio::task::JoinHandle;

use crate::stream::{Batch, Content, Sink};

/// Writes a stream beside the path it is meant for and moves it there at the end, so that the file is
/// whole or absent.
pub struct FileSink {
    path: PathBuf,
    file: Arc<Target>,
    temporary: Option<TempPath>,
    /// Oldest first.
    writing: VecDeque<JoinHandle<io::Result<()>>>,
}

/// Batches written at a time. The device works on one while the next is handed over.
const WRITES: usize = 2;

/// The file, and how it is written: through the page cache everything would be copied once more, into memory that others
/// could use, and come to the disk all at once at the end.
struct Target {
    file: File,
    /// The same file, written around the page cache; `None` where the file system cannot do that.
    direct: Option<File>,
}

impl Target {
    fn open(file: File, path: &Path) -> io::Result<Self> {
        let flags = i32::try_from(OFlags::DIRECT.bits()).map_err(io::Error::other)?;
        match OpenOptions::new().write(true).custom_flags(flags).open(path) {
            Ok(direct) => Ok(Self { file, direct: Some(direct) }),
            Err(error) if cannot_be_direct(&error) => Ok(Self { file, direct: None }),
            Err(error) => Err(error),
        }
    }

    /// The file began as one hole and a generation names nothing twice: zero and unmapped are there.
    fn write(&self, batch: &Batch) -> io::Result<()> {
        batch.iter().try_for_each(|extent| match &extent.content {
            Content::Data(bytes) => self.write_data(bytes, extent.offset),
            Content::Zero(_) | Content::Unmapped(_) => Ok(()),
        })
    }

    fn write_data(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        let unit = TRANSFER_ALIGNMENT;
        let aligned = bytes.as_ptr().align_offset(unit) == 0 && offset.is_multiple_of(unit as u64);
        let (whole, rest) = bytes.split_at(if aligned { bytes.len() - bytes.len() % unit } else { 0 });
        if let Some(direct) = self.direct.as_ref().filter(|_| !whole.is_empty()) {
            match direct.write_all_at(whole, offset) {
                Ok(()) => return self.file.write_all_at(rest, offset + whole.len() as u64),
                // Some file systems refuse only when it comes to writing.
                Err(error) if cannot_be_direct(&error) => {}
                Err(error) => return Err(error),
            }
        }
        self.file.write_all_at(bytes, offset)
    }
}

/// What a file system answers that cannot write around the page cache, or not at this alignment.
fn cannot_be_direct(error: &io::Error) -> bool {
    matches!(Errno::from_io_error(error), Some(Errno::INVAL | Errno::OPNOTSUPP))
}

impl FileSink {
    /// Starts a file of `size` bytes, all hole. Refused where there already is something of that name.
    /// Blocking.
    pub fn create(path: &Path, size: u64) -> Result<Self, Failed> {
        if path.symlink_metadata().is_ok() {
            let failed = Failed::new(FailureKind::Refused, format!("{} already exists", path.display()));
            return Err(failed.with_hint("name a file that does not exist yet, or remove it first"));
        }
        let folder = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let temporary = tempfile::Builder::new()
            .prefix(&format!(".{name}.thinbak-"))
            .tempfile_in(folder)
            .map_err(|error| attempt(path, "creating", &error))?;
        let (file, temporary) = temporary.into_parts();
        file.set_len(size).map_err(|error| attempt(path, "sizing", &error))?;
        let file = Target::open(file, &temporary).map_err(|error| attempt(path, "opening", &error))?;
        let (file, path) = (Arc::new(file), path.to_owned());
        Ok(Self { path, file, temporary: Some(temporary), writing: VecDeque::new() })
    }

    /// Waits until at most `left` batches are being written.
    async fn settle(&mut self, left: usize) -> Result<(), Failed> {
        while self.writing.len() > left {
            let Some(writing) = self.writing.pop_front() else { break };
            joined(writing.await).map_err(|error| attempt(&self.path, "writing", &error))?;
        }
        Ok(())
    }
}

fn joined(result: Result<io::Result<()>, tokio::task::JoinError>) -> io::Result<()> {
    result.unwrap_or_else(|error| Err(io::Error::other(error)))
}

fn attempt(path: &Path, what: &str, error: &io::Error) -> Failed {
    Failed::new(FailureKind::Failed, format!("{what} {}: {error}", path.display()))
}

impl Sink for FileSink {
    async fn apply(&mut self, batch: Batch) -> Result<(), Failed> {
        self.settle(WRITES - 1).await?;
        let file = Arc::clone(&self.file);
        self.writing.push_back(tokio::task::spawn_blocking(move || file.write(&batch)));
        Ok(())
    }

    async fn finish(&mut self) -> Result<(), Failed> {
        self.settle(0).await?;
        let Some(temporary) = self.temporary.take() else { return Ok(()) };
        let (file, path) = (Arc::clone(&self.file), self.path.clone());
        let done = tokio::task::spawn_blocking(move || {
            file.file.sync_all()?;
            temporary.persist_noclobber(&path).map_err(|error| error.error)?;
            match path.parent().filter(|parent| !parent.as_os_str().is_empty()) {
                Some(folder) => File::open(folder)?.sync_all(),
                None => File::open(".")?.sync_all(),
            }
        });
        joined(done.await).map_err(|error| attempt(&self.path, "finishing", &error))
    }
}
