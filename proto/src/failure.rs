//! How a failure travels: its kind and hint in the details of the gRPC status, so that no program
//! has to search an error's text.

use prost::Message as _;
use tonic::{Code, Status};

use crate::v1::Failure;
pub use crate::v1::FailureKind;

/// A failure as it is told to a client and to a person.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Failed {
    /// What kind, which decides the exit code.
    pub kind: FailureKind,
    /// One line: what was attempted on what, and why it failed.
    pub message: String,
    /// The way out, where there is one.
    pub hint: Option<String>,
}

impl Failed {
    /// A failure without a hint.
    pub fn new(kind: FailureKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), hint: None }
    }

    /// The same with a hint.
    #[must_use]
    pub fn with_hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// The exit code of a command that failed so.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        match self.kind {
            FailureKind::Failed | FailureKind::NoSpace => 1,
            FailureKind::Usage => 2,
            FailureKind::Damaged => 4,
            FailureKind::Refused | FailureKind::BaseUnknown => 5,
            FailureKind::NotFound => 10,
            FailureKind::Busy => 11,
            FailureKind::Denied => 12,
        }
    }
}

impl From<Failed> for Failure {
    fn from(failed: Failed) -> Self {
        Self { kind: failed.kind.into(), message: failed.message, hint: failed.hint.unwrap_or_default() }
    }
}

impl From<Failure> for Failed {
    fn from(failure: Failure) -> Self {
        Self {
            kind: failure.kind(),
            message: failure.message,
            hint: Some(failure.hint).filter(|hint| !hint.is_empty()),
        }
    }
}

impl From<Failed> for Status {
    fn from(failed: Failed) -> Self {
        let code = match failed.kind {
            FailureKind::Failed => Code::Internal,
            FailureKind::Usage => Code::InvalidArgument,
            FailureKind::Damaged => Code::DataLoss,
            FailureKind::Refused | FailureKind::BaseUnknown => Code::FailedPrecondition,
            FailureKind::NotFound => Code::NotFound,
            FailureKind::Busy => Code::Unavailable,
            FailureKind::NoSpace => Code::ResourceExhausted,
            FailureKind::Denied => Code::PermissionDenied,
        };
        let message = failed.message.clone();
        Status::with_details(code, message, Failure::from(failed).encode_to_vec().into())
    }
}

impl From<Status> for Failed {
    /// Our own details where they are there, else what the code says.
    fn from(status: Status) -> Self {
        if !status.details().is_empty()
            && let Ok(failure) = Failure::decode(status.details())
        {
            return failure.into();
        }
        let kind = match status.code() {
            Code::InvalidArgument | Code::OutOfRange => FailureKind::Usage,
            Code::NotFound | Code::Unavailable => FailureKind::NotFound,
            Code::DataLoss => FailureKind::Damaged,
            Code::FailedPrecondition => FailureKind::Refused,
            Code::PermissionDenied | Code::Unauthenticated => FailureKind::Denied,
            _ => FailureKind::Failed,
        };
        Self::new(kind, said_by(&status))
    }
}

/// One line of a status that is not ours. One that this side made, because the connection failed, has a cause.
fn said_by(status: &Status) -> String {
    let mut cause = std::error::Error::source(status);
    while let Some(deeper) = cause.and_then(std::error::Error::source) {
        cause = Some(deeper);
    }
    match (cause.map(ToString::to_string), status.message()) {
        (Some(cause), _) if !cause.is_empty() => format!("the connection was lost: {cause}"),
        (_, "") => status.code().description().to_owned(),
        (_, message) => message.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_survives_the_trip_through_a_status() {
        let failed = Failed::new(FailureKind::Busy, "pool p is open elsewhere").with_hint("stop the agent");
        assert_eq!(Failed::from(Status::from(failed.clone())), failed);
    }

    #[test]
    fn a_status_that_is_not_ours_keeps_its_meaning() {
        let failed = Failed::from(Status::unavailable("connection refused"));
        assert_eq!((failed.kind, failed.exit_code()), (FailureKind::NotFound, 10));
    }

    #[test]
    fn a_status_without_words_still_says_something() {
        assert!(!Failed::from(Status::unimplemented("")).message.is_empty());
    }

    #[test]
    fn a_broken_connection_is_called_that_and_its_cause_is_named() {
        let cause = std::io::Error::new(std::io::ErrorKind::ConnectionReset, "reset by peer");
        let failed = Failed::from(Status::from_error(Box::new(cause)));
        assert_eq!(failed.message, "the connection was lost: reset by peer");
    }
}
