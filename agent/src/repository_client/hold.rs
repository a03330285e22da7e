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

#[cfg(test)]
mod tests {
    use thinbak_proto::v1::{BackupBegin, BackupCommit, BackupRequest, backup_request::Message};
    use thinbak_server::{InitOptions, Repository};
    use tokio_stream::wrappers::ReceiverStream;

    use super::{super::open, *};

    /// A repository with one generation of an empty volume `v`.
    async fn one_generation() -> (tempfile::TempDir, RepositoryConnection) {
        let dir = tempfile::tempdir().unwrap();
        let place = dir.path().join("repo");
        Repository::init(&place, InitOptions::default()).await.unwrap();
        let connection = open(&place).await.unwrap();
        let begin = BackupBegin {
            volume_uuid: uuid::Uuid::from_u128(5).to_string(),
            volume_name: "v".into(),
            size_bytes: 1 << 20,
            ..BackupBegin::default()
        };
        let (sender, requests) = tokio::sync::mpsc::channel(2);
        for message in [Message::Begin(begin), Message::Commit(BackupCommit {})] {
            sender.send(BackupRequest { message: Some(message) }).await.unwrap();
        }
        let answers = connection.ingest().backup(ReceiverStream::new(requests)).await;
        let mut answers = answers.unwrap().into_inner();
        drop(sender);
        while answers.message().await.unwrap().is_some() {}
        (dir, connection)
    }

    fn latest() -> GenerationSelector {
        GenerationSelector { which: Some(thinbak_proto::v1::generation_selector::Which::Latest(true)) }
    }

    fn named(name: &str) -> VolumeName {
        VolumeName { name: name.to_owned(), host: String::new() }
    }

    #[tokio::test]
    async fn work_ends_when_the_server_stops_and_what_it_reads_may_go() {
        let (_dir, connection) = one_generation().await;
        let held = connection.hold_one(named("v"), latest()).await.unwrap();
        assert_eq!(held.generations().iter().map(|found| found.number).collect::<Vec<_>>(), [1]);
        assert_eq!(held.during(async { Ok(7) }).await, Ok(7));
        let repository = connection.embedded.clone().unwrap();
        let work = held.during(std::future::pending::<Result<(), Failed>>());
        let (ended, ()) = tokio::join!(work, repository.close());
        assert_eq!(ended.unwrap_err().exit_code(), 11);
    }

    #[tokio::test]
    async fn what_is_not_there_cannot_be_held() {
        let (_dir, connection) = one_generation().await;
        let ranges = |first, last| vec![GenerationRange { first, last }];
        for (name, ranges) in [("w", ranges(1, 9)), ("v", ranges(2, 9))] {
            let failed = connection.hold(named(name), Vec::new(), ranges).await.err().unwrap();
            assert_eq!(failed.exit_code(), 10, "{failed}");
        }
        let failed = connection.hold(named("v"), Vec::new(), Vec::new()).await.err().unwrap();
        assert_eq!(failed.exit_code(), 2, "{failed}");
    }
}
