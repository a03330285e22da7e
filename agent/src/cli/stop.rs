//! How a command can end early.

use std::io;

use thinbak_proto::{Failed, FailureKind};
use tonic::Status;

/// Why a command ends before its end, or with a verdict.
#[derive(Debug)]
pub(super) enum Stop {
    /// It failed; nothing was said yet.
    Failed(Failed),
    /// All was said; this is the exit code.
    Exit(u8),
    /// Nobody reads what is printed any more. Not an error.
    PipeClosed,
}

/// Some volumes failed, the others are safe. Of `status`: not all is well.
pub(super) const PARTIAL: u8 = 3;
/// Damage was found.
pub(super) const DAMAGED: u8 = 4;
/// Ctrl-C.
pub(super) const INTERRUPTED: u8 = 130;

impl Stop {
    pub(super) fn exit_code(&self) -> u8 {
        match self {
            Self::Failed(failed) => failed.exit_code(),
            Self::Exit(code) => *code,
            Self::PipeClosed => 0,
        }
    }
}

impl From<Failed> for Stop {
    fn from(failed: Failed) -> Self {
        Self::Failed(failed)
    }
}

impl From<Status> for Stop {
    fn from(status: Status) -> Self {
        Self::Failed(status.into())
    }
}

/// Of printing.
impl From<io::Error> for Stop {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::BrokenPipe => Self::PipeClosed,
            _ => Self::Failed(Failed::new(FailureKind::Failed, format!("write to stdout: {error}"))),
        }
    }
}
