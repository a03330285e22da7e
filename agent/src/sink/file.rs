//! Sink: a regular file, sparse where the volume is.

use std::{
    collections::VecDeque,
    fs::File,
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use tempfile::TempPath;
use thinbak_engine::{Access, BlockDevice as _, FileDevice};
use thinbak_proto::{Failed, FailureKind};
use tokio::task::JoinHandle;

use crate::stream::{Batch, Content, Sink};

/// Writes a stream beside the path it is meant for and moves it there at the end, so that the file is
/// whole or absent.
pub struct FileSink {
    path: PathBuf,
    /// Large pieces go around the page cache.
    file: Arc<FileDevice>,
    temporary: Option<TempPath>,
    /// Oldest first.
    writing: VecDeque<JoinHandle<io::Result<()>>>,
}

/// Batches written at a time. The device works on one while the next is handed over.
const WRITES: usize = 2;

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
        let file = FileDevice::open(&temporary, Access::ReadWrite);
        let file = file.map_err(|error| attempt(path, "opening", &error))?;
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

/// The file began as one hole and a generation names nothing twice: zero and unmapped are there.
fn write(file: &FileDevice, batch: &Batch) -> io::Result<()> {
    batch.iter().try_for_each(|extent| match &extent.content {
        Content::Data(bytes) => file.write_at(extent.offset, bytes),
        Content::Zero(_) | Content::Unmapped(_) => Ok(()),
    })
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
        self.writing.push_back(tokio::task::spawn_blocking(move || write(&file, &batch)));
        Ok(())
    }

    async fn finish(&mut self) -> Result<(), Failed> {
        self.settle(0).await?;
        let Some(temporary) = self.temporary.take() else { return Ok(()) };
        let (file, path) = (Arc::clone(&self.file), self.path.clone());
        let done = tokio::task::spawn_blocking(move || {
            file.file().sync_all()?;
            temporary.persist_noclobber(&path).map_err(|error| error.error)?;
            match path.parent().filter(|parent| !parent.as_os_str().is_empty()) {
                Some(folder) => File::open(folder)?.sync_all(),
                None => File::open(".")?.sync_all(),
            }
        });
        joined(done.await).map_err(|error| attempt(&self.path, "finishing", &error))
    }
}
