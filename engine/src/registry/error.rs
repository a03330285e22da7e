//! Why the registry did not do what it was asked.

use std::io;

use uuid::Uuid;

use super::record::FORMAT;
use crate::pool::PoolError;

/// Why the registry did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    /// A finished line of the journal is not what was written.
    #[error("line {line} of the registry is damaged: {reason}")]
    Damaged {
        /// Counted from 1.
        line: u64,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// A line's checksum is right but its content makes no sense.
    #[error("line {line} of the registry cannot be understood: {source}")]
    Content {
        /// Counted from 1.
        line: u64,
        /// What the parser said.
        source: serde_json::Error,
    },
    /// Written by a newer version.
    #[error("the registry has format {found}, newer than {FORMAT}")]
    NewerFormat {
        /// The version found.
        found: u32,
    },
    /// It belongs to another pool.
    #[error("the registry belongs to pool {found}, not to {expected}")]
    OtherPool {
        /// The pool it was opened for.
        expected: Uuid,
        /// The pool it names.
        found: Uuid,
    },
    /// The pool was changed by something else, or pool and registry are not of one time.
    #[error("the pool is at transaction {found}, its registry at {expected}{}", .intent.map_or("", |_| " (or the next)"))]
    Transaction {
        /// What the registry says.
        expected: u64,
        /// The transaction id that an unsettled change would have led to.
        intent: Option<u64>,
        /// What the pool says.
        found: u64,
    },
    /// An earlier failure left it open what is on the disk.
    #[error("an earlier write failed: the pool must be opened again")]
    Undecided,
    /// The journal could not be written or read.
    #[error("the registry could not be {attempt}: {source}")]
    Io {
        /// What was attempted.
        attempt: &'static str,
        /// What the system said.
        source: io::Error,
    },
}

/// Why a change that touches the pool was not made.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TransactError {
    /// The registry's doing.
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// The pool's doing. Nothing was changed.
    #[error("{attempt}: {source}")]
    Pool {
        /// What was attempted.
        attempt: &'static str,
        /// What the pool said.
        source: PoolError,
    },
}
