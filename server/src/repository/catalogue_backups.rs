//! Copies of the catalogue, made while it is in use, in `catalogue-backups/`.
//!
//! A copy is written under a passing name, checked, synced, and renamed; then the folder is synced. So a copy that
//! can be found by its name is whole.

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
};

use jiff::Timestamp;
use tokio::task::spawn_blocking;

use super::{Repository, RepositoryError};
use crate::{catalogue::Catalogue, metrics::Job};

const DIR_NAME: &str = "catalogue-backups";
const PARTIAL_NAME: &str = "partial";
const PREFIX: &str = "catalogue-";
const SUFFIX: &str = ".sqlite";

/// A copy of the catalogue.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CatalogueBackup {
    /// Where it is.
    pub path: PathBuf,
    /// Its length in bytes.
    pub bytes: u64,
    /// Older copies that were removed for it.
    pub removed: u64,
}

/// A time as it stands in the names of files: in the order of time, whatever sorts them.
pub(crate) fn file_time(unix_ms: u64) -> String {
    let time = i64::try_from(unix_ms).ok().and_then(|ms| Timestamp::from_millisecond(ms).ok());
    time.unwrap_or(Timestamp::MAX).strftime("%Y%m%dT%H%M%S.%3fZ").to_string()
}

/// The newest copy, if there is one that can be seen.
pub(super) fn newest(dir: &Path) -> Option<PathBuf> {
    list(&dir.join(DIR_NAME)).ok()?.pop()
}

/// All copies, oldest first.
fn list(dir: &Path) -> io::Result<Vec<PathBuf>> {
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let mut found = Vec::new();
    for entry in entries {
        let path = entry?.path();
        found.extend(time_of(&path).is_some().then_some(path));
    }
    found.sort_unstable();
    Ok(found)
}

fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        done => done,
    }
}

impl Repository {
    /// Copies of the catalogue that are kept where nobody says otherwise.
    pub const CATALOGUE_BACKUPS: usize = 7;

    /// Copies the catalogue into `catalogue-backups/`, on stable storage, and removes all but the newest `keep`
    /// copies (at least the new one stays). Others may use the repository meanwhile.
    pub async fn back_up_catalogue(&self, keep: usize) -> Result<CatalogueBackup, RepositoryError> {
        let _one_at_a_time = self.copying.lock().await;
        let backup = self.copy_catalogue(keep).await;
        self.metrics.ended(Job::CatalogueBackup, backup.is_ok());
        backup
    }

    async fn copy_catalogue(&self, keep: usize) -> Result<CatalogueBackup, RepositoryError> {
        let dir = self.dir().join(DIR_NAME);
        let partial = dir.join(PARTIAL_NAME);
        let prepare = {
            let (root, dir, partial) = (self.dir().to_path_buf(), dir.clone(), partial.clone());
            move || {
                match fs::create_dir(&dir) {
                    Ok(()) => File::open(root)?.sync_all()?,
                    Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                    Err(error) => return Err(error),
                }
                remove(&partial)
            }
        };
        on_disk(prepare).await.map_err(RepositoryError::io("prepare", &dir))?;
        let copied = self.copy_checked(&partial).await;
        if copied.is_err() {
            // Half a copy helps nobody and takes room.
            let _ = remove(&partial);
        }
        copied?;
        let (place, now_ms) = (dir.clone(), self.now_ms());
        let published = on_disk(move || publish(&place, &partial, keep.max(1), now_ms)).await;
        let backup = published.map_err(RepositoryError::io("put a copy of the catalogue into", &dir))?;
        tracing::info!(job = "backup-catalogue", path = %backup.path.display(), bytes = backup.bytes, "catalogue copied");
        Ok(backup)
    }

    /// A copy of a catalogue that is damaged must not push out one from before.
    async fn copy_checked(&self, partial: &Path) -> Result<(), RepositoryError> {
        self.catalogue.copy_to(partial).await?;
        let copy = Catalogue::open_copy(partial).await?;
        let sound = match copy.check_is_of(self.uuid()).await {
            Ok(()) => copy.check_integrity().await,
            Err(error) => Err(error),
        };
        copy.close().await;
        Ok(sound?)
    }
}

fn publish(dir: &Path, partial: &Path, keep: usize, now_ms: u64) -> io::Result<CatalogueBackup> {
    let file = File::open(partial)?;
    file.sync_all()?;
    let bytes = file.metadata()?.len();
    // The clock may have been set back: the newest copy has the last name all the same.
    let last = list(dir)?.last().and_then(|last| time_of(last));
    let time = last.map_or(now_ms, |last| now_ms.max(last.saturating_add(1)));
    let path = dir.join(format!("{PREFIX}{}{SUFFIX}", file_time(time)));
    fs::rename(partial, &path)?;
    File::open(dir)?.sync_all()?;
    let copies = list(dir)?;
    let old = copies.get(..copies.len().saturating_sub(keep)).unwrap_or_default();
    old.iter().try_for_each(|path| remove(path))?;
    Ok(CatalogueBackup { path, bytes, removed: old.len() as u64 })
}

/// The time in the name of a copy.
fn time_of(path: &Path) -> Option<u64> {
    let name = path.file_name()?.to_str()?;
    let time = name.strip_prefix(PREFIX)?.strip_suffix(SUFFIX)?;
    let (date, rest) = (time.get(..8)?, time.get(9..)?);
    let part = |text: &str, from: usize, to: usize| text.get(from..to).map(str::to_owned);
    let text = format!(
        "{}-{}-{}T{}:{}:{}",
        part(date, 0, 4)?,
        part(date, 4, 6)?,
        part(date, 6, 8)?,
        part(rest, 0, 2)?,
        part(rest, 2, 4)?,
        rest.get(4..)?
    );
    u64::try_from(text.parse::<Timestamp>().ok()?.as_millisecond()).ok()
}

async fn on_disk<T: Send + 'static>(work: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
    spawn_blocking(work).await.unwrap_or_else(|error| Err(io::Error::other(error)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_times_in_names_are_in_order_and_can_be_read_back() {
        let times = [0, 1, 999, 1_000, 1_795_543_810_123, 4_102_444_800_000];
        let names: Vec<String> = times.iter().map(|time| file_time(*time)).collect();
        assert!(names.is_sorted(), "{names:?}");
        for (time, name) in times.iter().zip(&names) {
            let path = PathBuf::from(format!("/x/{PREFIX}{name}{SUFFIX}"));
            assert_eq!(time_of(&path), Some(*time), "{name}");
        }
    }
}
