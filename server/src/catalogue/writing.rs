//! Whether the catalogue can be written. A change that fails for SQLite or the disk leaves a note; the next one that
//! succeeds takes it back, and so does a write that changes nothing, which is tried for whoever asks.

use std::{
    future::Future,
    io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use sqlx::SqlitePool;
use tokio::time::Instant;

use super::{Catalogue, CatalogueError};

/// With less room than this a change may fail although a small one succeeds.
const ROOM_BYTES: u64 = 1 << 20;
/// Who asks waits no longer than this for a disk that does not answer; the answer is noted whenever it comes.
const PATIENCE: Duration = Duration::from_secs(1);

impl Catalogue {
    /// Makes a change, and notes whether that was possible.
    pub(super) async fn noting<T>(
        &self,
        change: impl Future<Output = Result<T, CatalogueError>>,
    ) -> Result<T, CatalogueError> {
        let made = change.await;
        match &made {
            Err(error @ CatalogueError::Sql(_)) => self.write_failure.note(error.to_string()),
            // The name or the number: the catalogue has done its work.
            Ok(_) | Err(_) => self.write_failure.clear(),
        }
        made
    }

    /// Why the catalogue cannot be written: nothing, until a change failed. From then on whoever asks has a write
    /// tried that changes nothing.
    pub(crate) async fn write_failure(&self) -> Option<String> {
        let failure = Arc::clone(&self.write_failure);
        if let Some(probe) = failure.probe(Instant::now()) {
            let (pool, path) = (self.pool.clone(), self.path.clone());
            // Of its own, for it must come to its end also when nobody waits for it any more.
            let trying = tokio::spawn(async move {
                let tried = try_writing(&pool, path).await;
                if let Err(error) = &tried {
                    tracing::debug!(%error, "the catalogue cannot be written yet");
                }
                failure.probed(probe, tried.is_ok(), Instant::now());
            });
            let _ = tokio::time::timeout(PATIENCE, trying).await;
        }
        self.write_failure.get()
    }
}

async fn try_writing(pool: &SqlitePool, path: PathBuf) -> Result<(), CatalogueError> {
    let room = tokio::task::spawn_blocking(move || room(&path)).await.map_err(io::Error::other);
    if room.and_then(|room| room).map_err(sqlx::Error::Io)? < ROOM_BYTES {
        return Err(sqlx::Error::Io(io::ErrorKind::StorageFull.into()).into());
    }
    // A row that is made to say what it says is not written, and a transaction that is rolled back neither. This
    // number is nobody's; it is in the first page, which is written whatever it is.
    sqlx::query("PRAGMA user_version = 0").execute(pool).await?;
    Ok(())
}

/// Bytes free where the catalogue is.
fn room(path: &Path) -> io::Result<u64> {
    let stat = rustix::fs::statvfs(path.parent().unwrap_or(path))?;
    Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
}
