//! `pool.json`: what a directory must say about its pool before anything else is opened.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::EmbeddedError;
use crate::format::BlockSize;
use crate::pool::{Features, PoolError, PoolTable};
use crate::registry::sync_directory;

/// The version of the description that is written, and the newest that is understood.
const FORMAT: u32 = 1;
/// The description of a pool that is whole.
pub(super) const DESCRIPTION: &str = "pool.json";
/// The description of a pool that is being made or removed; beside the other one, its next form that was never finished.
pub(super) const UNFINISHED: &str = "pool.json.new";
/// The metadata device of a pool that brings none.
pub(super) const METADATA: &str = "metadata";
/// The data device of a pool that brings none.
pub(super) const DATA: &str = "data";
/// Longer descriptions are not read.
const MAX_BYTES: u64 = 1 << 20;

/// What `pool.json` holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Description {
    format: u32,
    /// The name that the pool was given.
    pub(super) name: String,
    /// The pool's identity.
    pub(super) uuid: Uuid,
    /// The size of data blocks.
    pub(super) block_bytes: BlockSize,
    /// The data device, when it is not the file `data` in the directory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) data: Option<PathBuf>,
    /// The metadata device, when it is not the file `metadata` in the directory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) metadata: Option<PathBuf>,
    /// How the pool behaves.
    #[serde(default)]
    pub(super) table: Table,
}

/// A pool's table as it is stored. A description without one means [`PoolTable::without_waiting`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "StoredTable", into = "StoredTable")]
pub(super) struct Table(pub(super) PoolTable);

impl Default for Table {
    fn default() -> Self {
        Self(PoolTable::without_waiting())
    }
}

#[derive(Serialize, Deserialize)]
struct StoredTable {
    low_water_blocks: u64,
    /// By the names that the kernel has for them.
    features: Vec<String>,
    /// 0: for ever.
    no_space_timeout_seconds: u64,
}

impl From<Table> for StoredTable {
    fn from(Table(table): Table) -> Self {
        Self {
            low_water_blocks: table.low_water_blocks,
            features: table.features.names().map(ToOwned::to_owned).collect(),
            no_space_timeout_seconds: table.no_space_timeout.as_secs(),
        }
    }
}

impl TryFrom<StoredTable> for Table {
    type Error = PoolError;

    fn try_from(stored: StoredTable) -> Result<Self, PoolError> {
        Ok(Self(PoolTable {
            low_water_blocks: stored.low_water_blocks,
            features: Features::of_names(stored.features.iter().map(String::as_str))?,
            no_space_timeout: Duration::from_secs(stored.no_space_timeout_seconds),
        }))
    }
}

#[derive(Deserialize)]
struct FormatOnly {
    format: u32,
}

impl Description {
    pub(super) fn new(name: &str, uuid: Uuid, block_bytes: BlockSize) -> Self {
        let (name, table) = (name.to_owned(), Table::default());
        Self { format: FORMAT, name, uuid, block_bytes, data: None, metadata: None, table }
    }

    /// Where the metadata device of a pool in `dir` is.
    pub(super) fn metadata_path(&self, dir: &Path) -> PathBuf {
        self.metadata.clone().unwrap_or_else(|| dir.join(METADATA))
    }

    /// Where the data device of a pool in `dir` is.
    pub(super) fn data_path(&self, dir: &Path) -> PathBuf {
        self.data.clone().unwrap_or_else(|| dir.join(DATA))
    }

    /// Reads the description of a directory.
    pub(super) fn read(dir: &Path) -> Result<Self, EmbeddedError> {
        let path = dir.join(DESCRIPTION);
        let text = match fs::metadata(&path) {
            Ok(metadata) if metadata.len() > MAX_BYTES => {
                let source = io::Error::new(io::ErrorKind::FileTooLarge, "too long to be a description");
                return Err(EmbeddedError::Io { attempt: "read", path, source });
            }
            _ => fs::read(&path),
        };
        let text = text.map_err(|source| match source.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => {
                EmbeddedError::NoPool { dir: dir.to_owned() }
            }
            _ => EmbeddedError::Io { attempt: "read", path: path.clone(), source },
        })?;
        let damaged = |source| EmbeddedError::Description { path: path.clone(), source };
        let FormatOnly { format: found } = serde_json::from_slice(&text).map_err(damaged)?;
        if found > FORMAT {
            return Err(EmbeddedError::NewerFormat { path, found, supported: FORMAT });
        }
        serde_json::from_slice(&text).map_err(damaged)
    }

    /// Writes the description of a pool that is being made.
    pub(super) fn write_unfinished(&self, dir: &Path) -> Result<(), EmbeddedError> {
        let path = dir.join(UNFINISHED);
        let write = || self.write_to(File::create_new(&path)?);
        write().map_err(EmbeddedError::io("write", &path))
    }

    /// Puts this in the place of the description of a whole pool, durably. A crash leaves the old one or this.
    pub(super) fn replace(&self, dir: &Path) -> Result<(), EmbeddedError> {
        let path = dir.join(UNFINISHED);
        let replace = || -> io::Result<()> {
            self.write_to(File::create(&path)?)?;
            fs::rename(&path, dir.join(DESCRIPTION))?;
            sync_directory(dir)
        };
        replace().map_err(EmbeddedError::io("replace", dir.join(DESCRIPTION)))
    }

    fn write_to(&self, mut file: File) -> io::Result<()> {
        let mut text = serde_json::to_vec_pretty(self)?;
        text.push(b'\n');
        file.write_all(&text)?;
        file.sync_all()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_description_comes_back() {
        let dir = tempfile::tempdir().unwrap();
        let mut written =
            Description::new("p", Uuid::from_u128(5), BlockSize::from_bytes(192 << 10).unwrap());
        written.data = Some("/dev/x".into());
        written.write_unfinished(dir.path()).unwrap();
        assert!(matches!(Description::read(dir.path()), Err(EmbeddedError::NoPool { .. })));
        fs::rename(dir.path().join(UNFINISHED), dir.path().join(DESCRIPTION)).unwrap();
        assert_eq!(Description::read(dir.path()).unwrap(), written);
    }

    #[test]
    fn a_table_comes_back_and_none_means_what_it_meant_before_there_were_any() {
        let dir = tempfile::tempdir().unwrap();
        let mut written = Description::new("p", Uuid::nil(), BlockSize::from_bytes(64 << 10).unwrap());
        let plain = serde_json::to_value(&written).unwrap();
        let mut old = plain.clone();
        old.as_object_mut().unwrap().remove("table").unwrap();
        assert_eq!(serde_json::from_value::<Description>(old).unwrap(), written);
        assert!(written.table.0.features.error_if_no_space && !written.table.0.features.skip_block_zeroing);
        written.table.0 = "7 2 skip_block_zeroing ignore_discard".parse().unwrap();
        written.table.0.no_space_timeout = Duration::from_secs(5);
        written.replace(dir.path()).unwrap();
        assert_eq!(Description::read(dir.path()).unwrap(), written);
        let mut unknown = plain;
        unknown["table"]["features"] = serde_json::json!(["levitate"]);
        let error = serde_json::from_value::<Description>(unknown).unwrap_err();
        assert!(error.to_string().contains("`levitate` is no feature"), "{error}");
    }

    #[test]
    fn a_newer_format_is_told_from_damage() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(DESCRIPTION);
        fs::write(&path, br#"{"format":2,"pools":[]}"#).unwrap();
        assert!(matches!(
            Description::read(dir.path()),
            Err(EmbeddedError::NewerFormat { found: 2, supported: 1, .. })
        ));
        for text in ["", "{", "{\"format\":1}", "[]"] {
            fs::write(&path, text).unwrap();
            assert!(
                matches!(Description::read(dir.path()), Err(EmbeddedError::Description { .. })),
                "{text:?}"
            );
        }
    }
}
