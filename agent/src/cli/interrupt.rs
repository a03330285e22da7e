//! Ctrl-C and SIGTERM: the call that is running is dropped, which cancels its job.

use thinbak_proto::{Failed, FailureKind};
use tokio::signal::unix::{SignalKind, signal};

use super::stop::{INTERRUPTED, Stop};

/// Runs `work` until it ends or the process is asked to end. In a second interrupt the system's own way counts.
pub(super) async fn unless_interrupted(work: impl Future<Output = Result<(), Stop>>) -> Result<(), Stop> {
    let catch = |kind| {
        signal(kind).map_err(|error| Failed::new(FailureKind::Failed, format!("catch signals: {error}")))
    };
    let (mut interrupt, mut terminate) = (catch(SignalKind::interrupt())?, catch(SignalKind::terminate())?);
    tokio::select! {
        outcome = work => outcome,
        _ = interrupt.recv() => Err(Stop::Exit(INTERRUPTED)),
        _ = terminate.recv() => Err(Stop::Exit(INTERRUPTED)),
    }
}
