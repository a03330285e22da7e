//! The pools that have a name: `pools.json` in the state directory.
//!
//! The file is replaced as a whole (written beside, synced, renamed), under a lock file that processes exclude
//! each other by, so that a crash leaves the old list or the new one and no registration is lost.

use std::{
    collections::BTreeMap,
    fs::{self, File, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};
use thinbak_proto::{Failed, FailureKind};

/// The version of the list that is written, and the newest that is understood.
const FORMAT: u32 = 1;

/// The list in the file.
#[derive(Debug, Serialize, Deserialize)]
struct List {
    format: u32,
    /// Directory of each pool by name.
    pools: BTreeMap<String, PathBuf>,
}

#[derive(Deserialize)]
struct FormatOnly {
    format: u32,
}

/// The registered pools of a state directory.
pub(super) struct KnownPools {
    state_dir: PathBuf,
}

impl KnownPools {
    pub(super) fn new(state_dir: PathBuf) -> Self {
        Self { state_dir }
    }

    /// Where all that is known of pools is kept.
    pub(super) fn state_dir(&self) -> &Path {
        &self.state_dir
    }

    /// Where pools go that are made without a place.
    pub(super) fn default_dir(&self, name: &str) -> PathBuf {
        self.state_dir.join("pools").join(name)
    }

    /// All, by name.
    pub(super) fn all(&self) -> Result<BTreeMap<String, PathBuf>, Failed> {
        let path = self.path();
        let text = match fs::read(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(BTreeMap::new()),
            Err(error) => return Err(self.io("read", error)),
        };
        let damaged = |error: serde_json::Error| {
            Failed::new(
                FailureKind::Damaged,
                format!("the list of pools {} is damaged: {error}", path.display()),
            )
            .with_hint("pools can be named by their place meanwhile: dir:/path")
        };
        let FormatOnly { format } = serde_json::from_slice(&text).map_err(damaged)?;
        if format > FORMAT {
            return Err(Failed::new(
                FailureKind::Failed,
                format!("the list of pools {} has format {format}, newer than {FORMAT}", path.display()),
            )
            .with_hint("use a newer thinbak"));
        }
        let list: List = serde_json::from_slice(&text).map_err(damaged)?;
        Ok(list.pools)
    }

    /// Where the pool called `name` is.
    pub(super) fn dir_of(&self, name: &str) -> Result<PathBuf, Failed> {
        self.all()?.remove(name).ok_or_else(|| {
            Failed::new(FailureKind::NotFound, format!("there is no pool called `{name}`"))
                .with_hint("thinbak pool list shows those that are known; dir:/path names one by its place")
        })
    }

    /// Changes the list while no other process does.
    pub(super) fn change<T>(
        &self,
        change: impl FnOnce(&mut BTreeMap<String, PathBuf>) -> Result<T, Failed>,
    ) -> Result<T, Failed> {
        self.make_state_dir().map_err(|error| self.io("make", error))?;
        let _lock = self.lock().map_err(|error| self.io("lock", error))?;
        let mut pools = self.all()?;
        let before = pools.clone();
        let result = change(&mut pools)?;
        if pools != before {
            self.replace(pools).map_err(|error| self.io("write", error))?;
        }
        Ok(result)
    }

    fn make_state_dir(&self) -> io::Result<()> {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&self.state_dir)
    }

    fn lock(&self) -> io::Result<File> {
        let path = self.state_dir.join("pools.lock");
        let file = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(path)?;
        flock(&file, FlockOperation::LockExclusive)?;
        Ok(file)
    }

    fn replace(&self, pools: BTreeMap<String, PathBuf>) -> io::Result<()> {
        let new = self.state_dir.join("pools.json.new");
        let mut text = serde_json::to_vec_pretty(&List { format: FORMAT, pools })?;
        text.push(b'\n');
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&new)?;
        file.write_all(&text)?;
        file.sync_all()?;
        fs::rename(&new, self.path())?;
        File::open(&self.state_dir)?.sync_all()
    }

    fn path(&self) -> PathBuf {
        self.state_dir.join("pools.json")
    }

    fn io(&self, attempt: &str, error: io::Error) -> Failed {
        let path: &Path = &self.path();
        let kind = match error.kind() {
            io::ErrorKind::PermissionDenied => FailureKind::Denied,
            _ => FailureKind::Failed,
        };
        Failed::new(kind, format!("{attempt} the list of pools {}: {error}", path.display()))
            .with_hint("another place can be given with --state-dir")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_registered_is_found_by_the_next_process() {
        let dir = tempfile::tempdir().unwrap();
        let state = dir.path().join("a/b");
        let known = KnownPools::new(state.clone());
        assert_eq!(known.all().unwrap(), BTreeMap::new());
        known
            .change(|pools| {
                pools.insert("p".to_owned(), PathBuf::from("/x"));
                Ok(())
            })
            .unwrap();
        assert_eq!(KnownPools::new(state).dir_of("p").unwrap(), PathBuf::from("/x"));
        assert_eq!(known.dir_of("q").unwrap_err().exit_code(), 10);
    }

    #[test]
    fn a_change_that_fails_changes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let known = KnownPools::new(dir.path().to_owned());
        let refused = known.change(|pools| {
            pools.insert("p".to_owned(), PathBuf::from("/x"));
            Err::<(), _>(Failed::new(FailureKind::Refused, "no"))
        });
        assert!(refused.is_err());
        assert_eq!(known.all().unwrap(), BTreeMap::new());
    }

    #[test]
    fn a_damaged_or_newer_list_is_an_error_not_an_empty_list() {
        let dir = tempfile::tempdir().unwrap();
        let known = KnownPools::new(dir.path().to_owned());
        fs::write(known.path(), b"{\"format\":1").unwrap();
        assert_eq!(known.all().unwrap_err().exit_code(), 4);
        fs::write(known.path(), b"{\"format\":2,\"anything\":[]}").unwrap();
        assert!(known.all().unwrap_err().message.contains("newer"));
    }
}
