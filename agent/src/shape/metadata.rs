//! The dump of a pool's metadata: the XML that `thin_restore` reads, as a generation of HOST/POOL/.metadata.
//!
//! It says what a damaged pool held where. Over another data device it is worth nothing, and no command of ours writes it back.
//!
//! At most one is made in [`PAUSE`], for a pool and repository. That one was begun is noted durably before it is, so what
//! kills the agent meanwhile is not repeated at every run. The metadata snapshot is held while the text goes to a file
//! without a name, no longer than [`MAX_HOLD`], and is released before anything is sent.

use std::{
    fs::{self, File},
    io::{self, BufWriter, Read as _, Seek as _, Write},
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use bytes::Bytes;
use thinbak_engine::{dump::dump_restorable, format::SECTOR_BYTES};
use thinbak_proto::{Failed, FailureKind, METADATA_VOLUME};
use uuid::Uuid;

use super::store::Document;
use crate::{
    pools::{PoolManager, ThinPool, blocking, of_text},
    repository_client::RepositoryConnection,
    stream::BATCH_LEN,
};

/// A day, less what a run may begin earlier than the day before.
const PAUSE: Duration = Duration::from_secs(20 * 3600);
/// The metadata snapshot is held no longer: meanwhile no backup can compare.
const MAX_HOLD: Duration = Duration::from_secs(120);
/// A text is no longer: some 100 million mappings that are next to nothing.
const MAX_BYTES: u64 = 8 << 30;

/// When the last dump of a pool for a repository was begun, and how it ended.
pub(crate) struct Dumps {
    manager: Arc<PoolManager>,
    pool: Arc<dyn ThinPool>,
    repository: Uuid,
}

impl Dumps {
    pub(crate) fn new(manager: &Arc<PoolManager>, pool: &Arc<dyn ThinPool>, repository: Uuid) -> Self {
        Self { manager: Arc::clone(manager), pool: Arc::clone(pool), repository }
    }

    fn mark(&self) -> PathBuf {
        let name = format!("{}-{}", self.pool.uuid(), self.repository);
        self.manager.state_dir().join("metadata-dumps").join(name)
    }

    /// Why the last one failed, if it did.
    pub(crate) fn last_failure(&self) -> Option<String> {
        let why = fs::read_to_string(self.mark()).ok()?;
        (!why.is_empty()).then(|| format!("the metadata of pool {} were not stored: {why}", self.pool.name()))
    }

    /// Makes and stores one, if it is time. Returns whether.
    pub(crate) async fn store(&self, connection: &RepositoryConnection, host: &str) -> Result<bool, Failed> {
        if !self.is_due() {
            return Ok(false);
        }
        self.note("it was interrupted")?;
        let outcome = self.dump_and_send(connection, host).await;
        self.note(&outcome.as_ref().err().map(ToString::to_string).unwrap_or_default())?;
        outcome.map(|()| true)
    }

    fn is_due(&self) -> bool {
        let begun = fs::metadata(self.mark()).and_then(|mark| mark.modified());
        // What a clock that was set back dates in the future was not begun today.
        !begun.is_ok_and(|at| SystemTime::now().duration_since(at).is_ok_and(|since| since < PAUSE))
    }

    fn note(&self, why: &str) -> Result<(), Failed> {
        let mark = self.mark();
        let written = (|| {
            let dir = mark.parent().unwrap_or(&mark);
            fs::create_dir_all(dir)?;
            let mut file = tempfile::NamedTempFile::new_in(dir)?;
            file.write_all(why.as_bytes())?;
            file.as_file().sync_all()?;
            file.persist(&mark)?;
            File::open(dir)?.sync_all()
        })();
        written.map_err(|error: io::Error| {
            Failed::new(FailureKind::Failed, format!("write {}: {error}", mark.display()))
        })
    }

    async fn dump_and_send(&self, connection: &RepositoryConnection, host: &str) -> Result<(), Failed> {
        let lease = self.manager.lease(self.pool.uuid()).await;
        let (pool, dir) = (Arc::clone(&self.pool), self.manager.state_dir().to_owned());
        let (mut file, size_bytes) = blocking(move || {
            let _lease = lease;
            let file = tempfile::tempfile_in(&dir).map_err(|error| failed(&error))?;
            dump(pool.as_ref(), file)
        })
        .await?;
        let document = Document {
            name: format!("{host}/{}/{METADATA_VOLUME}", self.pool.name()),
            identity: Uuid::new_v4().to_string(),
            size_bytes,
        };
        let mut sending = document.begin(connection, self.pool.as_ref()).await?;
        loop {
            let (piece, rest) = blocking(move || {
                let mut piece = Vec::with_capacity(BATCH_LEN);
                let limit = u64::try_from(BATCH_LEN).unwrap_or(u64::MAX);
                io::Read::by_ref(&mut file)
                    .take(limit)
                    .read_to_end(&mut piece)
                    .map_err(|error| failed(&error))?;
                Ok((piece, file))
            })
            .await?;
            file = rest;
            if piece.is_empty() {
                break;
            }
            sending.add(Bytes::from(piece)).await?;
        }
        sending.commit().await
    }
}

/// Writes the text of the pool's metadata to a file, padded to whole sectors; returns it from its beginning with its size.
fn dump(pool: &dyn ThinPool, file: File) -> Result<(File, u64), Failed> {
    // Before it is frozen: a data device only grows.
    let data_blocks = pool.info()?.data_total_blocks;
    let frozen = pool.reserve()?;
    let mut out = BufWriter::new(Bounded { file, left: MAX_BYTES, until: Instant::now() + MAX_HOLD });
    let written = dump_restorable(&frozen.view, data_blocks, &mut out).map_err(of_text);
    frozen.release()?;
    written?;
    let (mut file, len) = (|| {
        let mut file = out.into_inner().map_err(io::IntoInnerError::into_error)?.file;
        let len = file.stream_position()?;
        let padding = len.next_multiple_of(SECTOR_BYTES).saturating_sub(len);
        file.write_all(&vec![b'\n'; usize::try_from(padding).unwrap_or_default()])?;
        file.rewind()?;
        Ok::<_, io::Error>((file, len.saturating_add(padding)))
    })()
    .map_err(|error| failed(&error))?;
    file.flush().map_err(|error| failed(&error))?;
    Ok((file, len))
}

fn failed(error: &io::Error) -> Failed {
    Failed::new(FailureKind::Failed, format!("keep a dump of the metadata in the state directory: {error}"))
}

/// Takes no more than so much, and nothing after a moment.
struct Bounded {
    file: File,
    left: u64,
    until: Instant,
}

impl Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if Instant::now() >= self.until {
            let seconds = MAX_HOLD.as_secs();
            return Err(io::Error::new(io::ErrorKind::TimedOut, format!("it takes more than {seconds} s")));
        }
        let len = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
        self.left = self.left.checked_sub(len).ok_or_else(|| {
            io::Error::new(io::ErrorKind::FileTooLarge, format!("it has more than {MAX_BYTES} bytes"))
        })?;
        self.file.write_all(bytes)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_takes_too_long_or_is_too_much_is_broken_off() {
        let bounded = |left, after| Bounded {
            file: tempfile::tempfile().unwrap(),
            left,
            until: Instant::now() + Duration::from_secs(after),
        };
        let mut out = bounded(3, 60);
        out.write_all(b"abc").unwrap();
        assert_eq!(out.write_all(b"d").unwrap_err().kind(), io::ErrorKind::FileTooLarge);
        assert_eq!(bounded(3, 0).write_all(b"a").unwrap_err().kind(), io::ErrorKind::TimedOut);
    }
}
