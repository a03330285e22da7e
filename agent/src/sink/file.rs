//! Sink: a regular file, sparse where the volume is.

use std::{
    collections::VecDeque,
    fs::{self, File, OpenOptions},
    io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    sync::Arc,
};

use rustix::fs::{FlockOperation, flock};
use tempfile::TempPath;
use thinbak_engine::{Access, BlockDevice as _, FileDevice};
use thinbak_proto::{Failed, FailureKind};
use tokio::task::JoinHandle;

use crate::stream::{Batch, Content, Sink};

/// Writes a stream beside the path it is meant for and moves it there at the end, so that the file is
/// whole or absent. What a process left that was killed is removed by the next one that writes to the same path.
pub struct FileSink {
    path: PathBuf,
    /// Locked as long as it is written, so that nobody takes it for left.
    _locked: File,
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
        let prefix = format!(".{name}.thinbak-");
        remove_left(folder, &prefix);
        let (locked, temporary) =
            locked_file(folder, &prefix).map_err(|error| attempt(path, "creating", &error))?;
        locked.set_len(size).map_err(|error| attempt(path, "sizing", &error))?;
        let file = FileDevice::open(&temporary, Access::ReadWrite);
        let file = file.map_err(|error| attempt(path, "opening", &error))?;
        let (file, path) = (Arc::new(file), path.to_owned());
        Ok(Self { path, _locked: locked, file, temporary: Some(temporary), writing: VecDeque::new() })
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

/// Characters behind the prefix of a temporary file's name.
const RANDOM_CHARS: usize = 6;
/// Times that a file is made, should others take it for left before it is locked.
const ATTEMPTS: usize = 10;

/// A new file with a name that begins so, locked.
fn locked_file(folder: &Path, prefix: &str) -> io::Result<(File, TempPath)> {
    for _ in 0..ATTEMPTS {
        let made = tempfile::Builder::new().prefix(prefix).rand_bytes(RANDOM_CHARS).tempfile_in(folder)?;
        let (file, path) = made.into_parts();
        if flock(&file, FlockOperation::NonBlockingLockExclusive).is_ok()
            && path.metadata().is_ok_and(|found| file.metadata().is_ok_and(|ours| ours.ino() == found.ino()))
        {
            return Ok((file, path));
        }
    }
    Err(io::Error::other("others remove the file"))
}

/// Removes files of dead processes: those that nobody has locked. What cannot be looked at stays.
fn remove_left(folder: &Path, prefix: &str) {
    let Ok(entries) = fs::read_dir(folder) else { return };
    for entry in entries.filter_map(Result::ok) {
        let name = entry.file_name();
        let random = name.to_str().and_then(|name| name.strip_prefix(prefix));
        let is_ours = random.is_some_and(|random| {
            random.len() == RANDOM_CHARS && random.bytes().all(|byte| byte.is_ascii_alphanumeric())
        });
        if !is_ours || !entry.file_type().is_ok_and(|kind| kind.is_file()) {
            continue;
        }
        let path = entry.path();
        let Ok(file) = OpenOptions::new().read(true).open(&path) else { continue };
        if flock(&file, FlockOperation::NonBlockingLockExclusive).is_ok() {
            match fs::remove_file(&path) {
                Ok(()) => {
                    tracing::info!(path = %path.display(), "what an interrupted restore left is removed")
                }
                Err(error) => {
                    tracing::warn!(path = %path.display(), %error, "what an interrupted restore left stays")
                }
            }
        }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_dead_process_left_goes_and_what_is_being_written_stays() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("image");
        let there = |name: &str| dir.path().join(name).exists();
        for name in
            [".image.thinbak-aB3xyz", ".image.thinbak-aB3xyz.txt", ".image.thinbak-", ".other.thinbak-aB3xyz"]
        {
            fs::write(dir.path().join(name), b"x").unwrap();
        }
        let first = FileSink::create(&path, 4096).unwrap();
        assert!(!there(".image.thinbak-aB3xyz"));
        assert!(
            there(".image.thinbak-aB3xyz.txt") && there(".image.thinbak-") && there(".other.thinbak-aB3xyz")
        );
        let second = FileSink::create(&path, 4096).unwrap();
        for sink in [&first, &second] {
            assert!(sink.temporary.as_ref().unwrap().exists());
        }
    }
}
