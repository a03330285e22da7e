//! What can go wrong in the chunk storage, with the numbers that name the place.

use std::{io, path::PathBuf, sync::Arc};

use uuid::Uuid;

use super::format::{MAX_PLAIN_LEN, MAX_STORED_GROWTH};

/// Why bytes of a pack are not what was stored there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum DamageReason {
    /// The record header's checksum or one of its fields is wrong.
    #[error("the record header is not valid")]
    RecordHeader,
    /// The record is whole, but another one than the index says.
    #[error("another record lies there")]
    OtherRecord,
    /// The stored bytes do not match their checksum.
    #[error("the stored bytes do not match their checksum")]
    StoredBytes,
    /// The footer's checksum or one of its fields is wrong.
    #[error("the footer is not valid")]
    Footer,
    /// The pack's own index does not match its checksum or contradicts itself.
    #[error("the pack's index is not valid")]
    PackIndex,
}

/// An operation of the chunk storage failed.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// The file system has no room, or only what is kept free for deletion and repair.
    #[error("no space left in {path} while {attempted}")]
    NoSpace {
        /// What was being done.
        attempted: &'static str,
        /// The folder.
        path: PathBuf,
    },
    /// The operating system refused or failed.
    #[error("{attempted} in {path}: {source}")]
    Io {
        /// What was being done.
        attempted: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// Its answer.
        source: Arc<io::Error>,
    },
    /// A part of a pack is damaged. Everything else in it can still be read.
    #[error("pack {pack:08x} is damaged at offset {offset}: {reason}")]
    Damaged {
        /// Number of the pack.
        pack: u32,
        /// Where in the pack, in bytes.
        offset: u64,
        /// What is wrong there.
        reason: DamageReason,
    },
    /// A pack that the index names is not there.
    #[error("pack {pack:08x} is missing")]
    PackMissing {
        /// Number of the pack.
        pack: u32,
    },
    /// A pack ends before a record that the index names.
    #[error("pack {pack:08x} ends at byte {found}, where {expected} are needed")]
    PackTruncated {
        /// Number of the pack.
        pack: u32,
        /// Bytes that must be there.
        expected: u64,
        /// Bytes that are there.
        found: u64,
    },
    /// A pack is not as long as it was when it was sealed.
    #[error("pack {pack:08x} has {found} bytes, where it was sealed with {expected}")]
    PackLength {
        /// Number of the pack.
        pack: u32,
        /// Bytes when it was sealed.
        expected: u64,
        /// Bytes now.
        found: u64,
    },
    /// Only the header of the pack is damaged; its records can be read.
    #[error("the header of pack {pack:08x} is not valid")]
    PackHeader {
        /// Number of the pack.
        pack: u32,
    },
    /// The file of one pack holds another pack.
    #[error("the file of pack {pack:08x} holds pack {found:08x} of repository {repository}")]
    WrongPack {
        /// Number by the file's name.
        pack: u32,
        /// Number by its header.
        found: u32,
        /// Repository by its header.
        repository: Uuid,
    },
    /// A pack was written by a newer program.
    #[error("pack {pack:08x} has format version {version}, newer than this program knows")]
    NewerPack {
        /// Number of the pack.
        pack: u32,
        /// Its version.
        version: u16,
    },
    /// A file in a pack's place is longer than any pack.
    #[error("pack {pack:08x} has {len} bytes, more than any pack can have")]
    OversizedPack {
        /// Number of the pack.
        pack: u32,
        /// Its length in bytes.
        len: u64,
    },
    /// A record to be stored is larger than the format allows.
    #[error(
        "a record of {plain_len} plain and {stored_len} stored bytes: at most {MAX_PLAIN_LEN}, \
         and stored at most {MAX_STORED_GROWTH} more than plain"
    )]
    RecordTooLarge {
        /// Plain length in bytes.
        plain_len: u64,
        /// Stored length in bytes.
        stored_len: u64,
    },
    /// All pack numbers are used up.
    #[error("no pack numbers are left")]
    NoPackNumbers,
    /// The chunk index failed.
    #[error("{attempted} {path}: {source}")]
    Index {
        /// What was being done.
        attempted: &'static str,
        /// Folder of the index.
        path: PathBuf,
        /// The embedded store's answer.
        source: Arc<fjall::Error>,
    },
    /// Another process, or this one a moment ago, has the chunk index open.
    #[error("chunk index {path} is open in another process")]
    IndexLocked {
        /// Folder of the index.
        path: PathBuf,
    },
    /// The chunk index holds bytes that are no entry of ours; it is made anew at the next open.
    #[error(
        "chunk index {path} holds an entry that is not valid; it is rebuilt when the repository is next opened"
    )]
    IndexEntry {
        /// Folder of the index.
        path: PathBuf,
    },
    /// The store was closed, or its writer or a reader died.
    #[error("the chunk storage is closed")]
    Closed,
}

impl StoreError {
    /// An I/O error, told apart from a full disk.
    pub(super) fn io(attempted: &'static str, path: impl Into<PathBuf>, source: io::Error) -> Self {
        let path = path.into();
        match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Self::NoSpace { attempted, path },
            _ => Self::Io { attempted, path, source: Arc::new(source) },
        }
    }

    /// Whether stored bytes are lost or unreadable, as against an operation that may be tried again.
    #[must_use]
    pub fn is_damage(&self) -> bool {
        matches!(
            self,
            Self::Damaged { .. }
                | Self::PackMissing { .. }
                | Self::PackTruncated { .. }
                | Self::PackLength { .. }
                | Self::PackHeader { .. }
                | Self::WrongPack { .. }
                | Self::OversizedPack { .. }
        )
    }
}

/// Something found wrong that did not stop the rest from working.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum Problem {
    /// A pack or a part of it cannot be read.
    #[error(transparent)]
    Pack(StoreError),
    /// Only the header of the pack is damaged; its records are readable.
    #[error("the header of pack {pack:08x} is damaged; its records can still be read")]
    PackHeader {
        /// Number of the pack.
        pack: u32,
    },
    /// Bytes between valid records of an unfinished pack are no record: damaged, or written by a put
    /// that was never acknowledged.
    #[error("pack {pack:08x}: {len} bytes from offset {offset} are no valid record and were passed over")]
    Skipped {
        /// Number of the pack.
        pack: u32,
        /// First byte.
        offset: u64,
        /// How many.
        len: u64,
    },
    /// An unfinished pack could be read but not completed; the next open tries again.
    #[error("pack {pack:08x} was left unfinished and could not be completed: {source}")]
    Unfinished {
        /// Number of the pack.
        pack: u32,
        /// What prevented it.
        source: StoreError,
    },
}
