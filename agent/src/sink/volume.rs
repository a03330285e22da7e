//! Sink: a private head in a pool.

use thinbak_proto::{Failed, FailureKind};
use tokio::task::JoinHandle;

use crate::{
    stream::{Batch, Content, Sink},
    volume::PoolVolume,
};

/// Writes a stream into a thin device that nobody else uses. One batch is written while the next one is
/// awaited.
pub struct VolumeSink {
    target: PoolVolume,
    /// Nothing is mapped in the target yet, so zero and unmapped extents need no work.
    clean: bool,
    writing: Option<JoinHandle<Result<(), Failed>>>,
}

impl VolumeSink {
    /// A sink into a device that holds nothing yet.
    #[must_use]
    pub fn clean(target: PoolVolume) -> Self {
        Self { target, clean: true, writing: None }
    }

    /// A sink into a device with content of its own.
    #[must_use]
    pub fn dirty(target: PoolVolume) -> Self {
        Self { target, clean: false, writing: None }
    }

    async fn settle(&mut self) -> Result<(), Failed> {
        match self.writing.take() {
            Some(writing) => joined(writing.await),
            None => Ok(()),
        }
    }
}

fn joined(result: Result<Result<(), Failed>, tokio::task::JoinError>) -> Result<(), Failed> {
    result.unwrap_or_else(|error| {
        Err(Failed::new(FailureKind::Failed, format!("a writing task ended early: {error}")))
    })
}

impl Sink for VolumeSink {
    async fn apply(&mut self, batch: Batch) -> Result<(), Failed> {
        self.settle().await?;
        let (target, clean) = (self.target.clone(), self.clean);
        self.writing = Some(tokio::task::spawn_blocking(move || write(&target, clean, batch)));
        Ok(())
    }

    async fn finish(&mut self) -> Result<(), Failed> {
        self.settle().await?;
        let target = self.target.clone();
        joined(tokio::task::spawn_blocking(move || target.flush()).await)
    }
}

fn write(target: &PoolVolume, clean: bool, batch: Batch) -> Result<(), Failed> {
    for extent in batch {
        match extent.content {
            Content::Data(bytes) => target.write(extent.offset, &bytes)?,
            Content::Zero(_) | Content::Unmapped(_) if clean => {}
            Content::Zero(len) => target.zero(extent.offset, len)?,
            Content::Unmapped(len) => target.unmap(extent.offset, len)?,
        }
    }
    Ok(())
}
