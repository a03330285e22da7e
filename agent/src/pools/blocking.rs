//! From async code to the engine, which blocks.

use thinbak_proto::{Failed, FailureKind};

/// Runs `work` on a thread where it may block.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Failed> + Send + 'static,
) -> Result<T, Failed> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|error| {
        Err(Failed::new(FailureKind::Failed, format!("a task of the agent ended early: {error}")))
    })
}
