//! Generations that the server keeps while they are read.

use thinbak_proto::{
    Failed, FailureKind,
    v1::{Generation, GenerationRange, GenerationSelector, HoldEvent, HoldRequest, VolumeName},
};
use tokio::{sync::watch, task::JoinHandle};
use tonic::Streaming;

use super::RepositoryConnection;

/// Generations of one volume, kept on the server until this is dropped, though they be deleted.
pub struct Held {
    generations: Vec<Generation>,
    lost: watch::Receiver<Option<Failed>>,
    listener: JoinHandle<()>,
}

impl RepositoryConnection {
    /// Looks up generations of one volume and has them kept. [`FailureKind::NotFound`] where one is not there or a range
    /// is empty.
    pub async fn hold(
        &self,
        volume: VolumeName,
        selectors: Vec<GenerationSelector>,
        ranges: Vec<GenerationRange>,
    ) -> Result<Held, Failed> {
        let single = selectors.len() == 1 && ranges.is_empty();
        let request = HoldRequest { volume: Some(volume), selectors, ranges };
        let mut events = self.content().hold(request).await?.into_inner();
        let HoldEvent { held } = events.message().await?.unwrap_or_default();
        check(&held)?;
        if single && held.len() > 1 {
            return Err(damaged("several generations where one was asked for"));
        }
        let (sender, lost) = watch::channel(None);
        let listener = tokio::spawn(async move {
            let failed = end_of(&mut events).await;
            sender.send_replace(Some(failed));
        });
        Ok(Held { generations: held, lost, listener })
    }

    /// The same for one generation.
    pub async fn hold_one(&self, volume: VolumeName, selector: GenerationSelector) -> Result<Held, Failed> {
        self.hold(volume, vec![selector], Vec::new()).await
    }
}

/// Waits for what must not come while something is read.
async fn end_of(events: &mut Streaming<HoldEvent>) -> Failed {
    match events.message().await {
        Err(status) => Failed::from(status),
        Ok(None) => damaged("that they are no longer kept, and not why"),
        Ok(Some(_)) => damaged("twice what is kept"),
    }
}

/// At least one, of one volume, ascending.
fn check(held: &[Generation]) -> Result<(), Failed> {
    if held.is_empty() {
        return Err(damaged("no generation"));
    }
    let in_order = held.windows(2).all(
        |pair| matches!(pair, [a, b] if a.number < b.number && a.volume_uuid == b.volume_uuid && a.chunk_bytes == b.chunk_bytes),
    );
    if in_order { Ok(()) } else { Err(damaged("generations that cannot be of one volume")) }
}

impl Held {
    /// The generations by ascending number, at least one.
    #[must_use]
    pub fn generations(&self) -> &[Generation] {
        &self.generations
    }

    /// Does something that reads them. Fails, and the work is dropped, when the server does not keep them any more.
    pub async fn during<T>(&self, work: impl Future<Output = Result<T, Failed>>) -> Result<T, Failed> {
        let mut lost = self.lost.clone();
        tokio::select! {
            biased;
            outcome = work => outcome,
            why = async { lost.wait_for(Option::is_some).await.ok().and_then(|failed| failed.clone()) } => {
                Err(why.unwrap_or_else(|| damaged("nothing any more")))
            }
        }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.listener.abort();
    }
}

fn damaged(what: &str) -> Failed {
    Failed::new(FailureKind::Failed, format!("asked which generations it keeps, the server said {what}"))
}
