//! The engine's errors as failures that travel.

use thinbak_engine::{
    PoolError,
    check::CheckError,
    dump::TextError,
    embedded::{EmbeddedError, ErrorClass},
    metadata_view::ViewError,
};
use thinbak_proto::{Failed, FailureKind};

/// The failure that an engine error is told as.
#[must_use]
pub fn failed(error: EmbeddedError) -> Failed {
    let kind = match error.class() {
        ErrorClass::Usage => FailureKind::Usage,
        ErrorClass::Damaged => FailureKind::Damaged,
        ErrorClass::Refused => FailureKind::Refused,
        ErrorClass::NotFound => FailureKind::NotFound,
        ErrorClass::Busy => FailureKind::Busy,
        ErrorClass::Failed => FailureKind::Failed,
    };
    Failed { kind, message: error.to_string(), hint: error.hint() }
}

/// The same, with what was attempted in front.
pub(super) fn while_doing(attempt: impl FnOnce() -> String) -> impl FnOnce(EmbeddedError) -> Failed {
    move |error| {
        let failed = failed(error);
        Failed { message: format!("{}: {}", attempt(), failed.message), ..failed }
    }
}

/// A failure with what was attempted in front.
pub(super) fn during(attempt: impl FnOnce() -> String) -> impl FnOnce(Failed) -> Failed {
    move |failed| Failed { message: format!("{}: {}", attempt(), failed.message), ..failed }
}

/// Of an operation on the pool itself.
pub(super) fn of_pool(attempt: &'static str) -> impl FnOnce(PoolError) -> Failed {
    move |source| failed(EmbeddedError::Pool { attempt, source })
}

/// Of reading metadata beside a pool.
pub(super) fn of_view(error: ViewError) -> Failed {
    let kind = match &error {
        ViewError::NoMetadataSnapshot => FailureKind::NotFound,
        _ => FailureKind::Damaged,
    };
    let failed = Failed::new(kind, error.to_string());
    match error {
        ViewError::NoMetadataSnapshot => failed.with_hint("reserve one with: thinbak msnap reserve POOL"),
        _ => failed,
    }
}

/// Of writing metadata out as text.
pub(crate) fn of_text(error: TextError) -> Failed {
    match error {
        TextError::View(error) => of_view(error),
        TextError::NoSuchDevice(_) => Failed::new(FailureKind::NotFound, error.to_string()),
        TextError::Write(_) => Failed::new(FailureKind::Failed, error.to_string()),
    }
}

/// Of a check that could not be made.
pub(super) fn of_check(error: CheckError) -> Failed {
    Failed::new(FailureKind::Damaged, error.to_string())
}

/// A pool that somebody has may be an agent's.
pub(super) fn hint_at_agent(failed: Failed) -> Failed {
    match (failed.kind, &failed.hint) {
        (FailureKind::Busy, None) => {
            failed.with_hint("if an agent has it, commands reach it there: --socket names its socket")
        }
        _ => failed,
    }
}
