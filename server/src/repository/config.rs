//! The file that says what a directory is.

use std::{
    fs::{self, File},
    io::{self, Write as _},
    path::Path,
};

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::RepositoryError;

pub(super) const FILE_NAME: &str = "thinbak-repository";
/// The newest format that this program reads, and the one it writes.
const FORMAT_VERSION: u32 = 1;
const MIN_CHUNK_BYTES: u32 = 4 << 10;
const MAX_CHUNK_BYTES: u32 = 1 << 20;
/// Of a file of some hundred bytes; a longer one is none of ours.
const MAX_FILE_BYTES: u64 = 64 << 10;

/// How a repository is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct InitOptions {
    /// Bytes of a chunk, a power of two from 4 KiB to 1 MiB; never changed later.
    pub chunk_bytes: u32,
}

impl Default for InitOptions {
    fn default() -> Self {
        Self { chunk_bytes: 64 << 10 }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct RepositoryFile {
    pub(super) format_version: u32,
    pub(super) uuid: Uuid,
    pub(super) chunk_bytes: u32,
    /// RFC 3339, for people.
    created: String,
}

/// All that may be asked of a file whose version is not known yet.
#[derive(Deserialize)]
struct Version {
    format_version: u32,
}

impl RepositoryFile {
    pub(super) fn new(options: InitOptions) -> Result<Self, RepositoryError> {
        check_chunk_bytes(options.chunk_bytes)?;
        let created = jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
        let uuid = Uuid::new_v4();
        Ok(Self { format_version: FORMAT_VERSION, uuid, chunk_bytes: options.chunk_bytes, created })
    }

    pub(super) fn read(dir: &Path) -> Result<Self, RepositoryError> {
        let path = dir.join(FILE_NAME);
        let damaged = |reason: String| RepositoryError::Config { path: path.clone(), reason };
        let length = match fs::metadata(&path) {
            Ok(metadata) => metadata.len(),
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
                return Err(RepositoryError::NotFound(dir.into()));
            }
            Err(error) => return Err(RepositoryError::io("read", &path)(error)),
        };
        if length > MAX_FILE_BYTES {
            return Err(damaged(format!("it has {length} bytes")));
        }
        let text = fs::read(&path).map_err(RepositoryError::io("read", &path))?;
        let version: Version = serde_json::from_slice(&text).map_err(|error| damaged(error.to_string()))?;
        match version.format_version {
            0 => return Err(damaged("format version 0 never was".into())),
            FORMAT_VERSION => {}
            found => {
                return Err(RepositoryError::NewerFormat { dir: dir.into(), found, known: FORMAT_VERSION });
            }
        }
        let file: Self = serde_json::from_slice(&text).map_err(|error| damaged(error.to_string()))?;
        check_chunk_bytes(file.chunk_bytes).map_err(|error| damaged(error.to_string()))?;
        Ok(file)
    }

    /// Writes the file so that it is there whole or not at all.
    pub(super) fn write(&self, dir: &Path) -> Result<(), RepositoryError> {
        let (path, draft) = (dir.join(FILE_NAME), dir.join(format!("{FILE_NAME}.new")));
        let written = (|| {
            let mut file = File::create(&draft)?;
            let mut text = serde_json::to_vec_pretty(self).map_err(io::Error::other)?;
            text.push(b'\n');
            file.write_all(&text)?;
            file.sync_all()?;
            fs::rename(&draft, &path)?;
            File::open(dir)?.sync_all()
        })();
        written.map_err(RepositoryError::io("write", &path))
    }
}

fn check_chunk_bytes(bytes: u32) -> Result<(), RepositoryError> {
    if bytes.is_power_of_two() && (MIN_CHUNK_BYTES..=MAX_CHUNK_BYTES).contains(&bytes) {
        Ok(())
    } else {
        Err(RepositoryError::ChunkBytes(bytes))
    }
}
