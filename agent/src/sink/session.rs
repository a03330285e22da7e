//! One call of the server's Ingest service: what was asked, what was acknowledged, why it broke.

use std::{collections::VecDeque, sync::Arc};

use parking_lot::Mutex;
use thinbak_proto::{
    Failed, FailureKind, MAX_PAYLOAD_LEN,
    v1::{
        BackupBatch, BackupBegin, BackupCommit, BackupQuery, BackupRequest, BackupResponse, BackupSession,
        Generation, backup_request, backup_response, ingest_client::IngestClient,
    },
};
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;

use crate::channel::BoxedChannel;

/// Messages queued towards the server; batches are also limited by the window in bytes.
const QUEUED_MESSAGES: usize = 16;

/// The agent's side of an open backup session.
pub(super) struct Session {
    requests: mpsc::Sender<BackupRequest>,
    shared: Arc<Shared>,
    /// Serialises "remember who waits" and "send", so that answers meet their questions.
    asking: tokio::sync::Mutex<()>,
    committed: Mutex<Option<oneshot::Receiver<Result<Commit, Failed>>>>,
    info: BackupSession,
}

/// What a commit came to.
#[derive(Debug)]
pub enum Commit {
    /// The generation is visible and durable.
    Done {
        /// As the server has it.
        generation: Box<Generation>,
        /// Plain bytes that took the place of damaged ones on the server.
        healed_bytes: u64,
    },
    /// Nothing was made visible: so many chunks that the server had when it was asked were found damaged since.
    Incomplete(usize),
}

struct Shared {
    questions: Mutex<VecDeque<oneshot::Sender<Vec<bool>>>>,
    window: Semaphore,
    failed: Mutex<Option<Failed>>,
}

impl Shared {
    fn why(&self) -> Failed {
        let failed = self.failed.lock().clone();
        failed.unwrap_or_else(|| Failed::new(FailureKind::Failed, "the server ended the backup session"))
    }
}

impl Session {
    /// Opens a session. Fails as the server says: another volume under the name, a parent that is not
    /// what the client believes, a session already open.
    pub(super) async fn begin(
        mut client: IngestClient<BoxedChannel>,
        begin: BackupBegin,
    ) -> Result<Self, Failed> {
        let (requests, queue) = mpsc::channel(QUEUED_MESSAGES);
        let gone = |_| Failed::new(FailureKind::Failed, "the backup session ended before it began");
        requests.send(request(backup_request::Message::Begin(begin))).await.map_err(gone)?;
        let mut answers = client.backup(ReceiverStream::new(queue)).await?.into_inner();
        let info = match answers.message().await?.and_then(|answer| answer.message) {
            Some(backup_response::Message::Session(info)) => info,
            _ => return Err(protocol("anything but a session")),
        };
        let window = usize::try_from(info.window_bytes).unwrap_or(0).clamp(MAX_PAYLOAD_LEN, 1 << 28);
        let shared = Arc::new(Shared {
            questions: Mutex::default(),
            window: Semaphore::new(window),
            failed: Mutex::default(),
        });
        let (done, committed) = oneshot::channel();
        tokio::spawn(route(answers, Arc::clone(&shared), done));
        Ok(Self {
            requests,
            shared,
            asking: tokio::sync::Mutex::new(()),
            committed: Mutex::new(Some(committed)),
            info,
        })
    }

    /// Size of the repository's chunks in bytes.
    #[must_use]
    pub(super) fn chunk_bytes(&self) -> u32 {
        self.info.chunk_bytes
    }

    /// Which of these chunks the server lacks, in the order of `ids`.
    pub(super) async fn missing(&self, ids: Vec<bytes::Bytes>) -> Result<Vec<bool>, Failed> {
        let asked = ids.len();
        let (sender, answer) = oneshot::channel();
        {
            let _turn = self.asking.lock().await;
            self.shared.questions.lock().push_back(sender);
            // The window is closed before the last questions are dropped: one that came after that is seen here.
            if self.shared.window.is_closed() {
                return Err(self.shared.why());
            }
            self.send(backup_request::Message::Query(BackupQuery { ids })).await?;
        }
        let missing = answer.await.map_err(|_| self.shared.why())?;
        if missing.len() != asked {
            return Err(protocol("an answer about another number of chunks"));
        }
        Ok(missing)
    }

    /// Sends one batch, once the window lets `stored_bytes` more through.
    pub(super) async fn batch(&self, batch: BackupBatch, stored_bytes: usize) -> Result<(), Failed> {
        let permits = u32::try_from(stored_bytes).unwrap_or(u32::MAX);
        let permits = self.shared.window.acquire_many(permits).await.map_err(|_| self.shared.why())?;
        permits.forget();
        self.send(backup_request::Message::Batch(batch)).await
    }

    /// Makes the generation visible. Waits for everything sent to be on stable storage.
    pub(super) async fn commit(&self) -> Result<Commit, Failed> {
        let committed = self.committed.lock().take();
        let committed = committed.ok_or_else(|| protocol("a second commit"))?;
        self.send(backup_request::Message::Commit(BackupCommit {})).await?;
        committed.await.map_err(|_| self.shared.why())?
    }

    async fn send(&self, message: backup_request::Message) -> Result<(), Failed> {
        if self.requests.send(request(message)).await.is_ok() {
            return Ok(());
        }
        // The stream is closed from the other side. The reason arrives with the answers, and then the window
        // closes, which was never as wide as this.
        let _ = self.shared.window.acquire_many(u32::MAX >> 1).await;
        Err(self.shared.why())
    }
}

fn request(message: backup_request::Message) -> BackupRequest {
    BackupRequest { message: Some(message) }
}

fn protocol(what: &str) -> Failed {
    Failed::new(FailureKind::Failed, format!("the server answered a backup with {what}"))
}

/// Gives each answer to whoever waits for it, until the stream ends. Then everybody who still waits is
/// told why.
async fn route(
    mut answers: Streaming<BackupResponse>,
    shared: Arc<Shared>,
    done: oneshot::Sender<Result<Commit, Failed>>,
) {
    let outcome = route_until_committed(&mut answers, &shared).await;
    if let Err(failed) = &outcome {
        *shared.failed.lock() = Some(failed.clone());
    }
    shared.window.close();
    shared.questions.lock().clear();
    // Nobody waits when the job was given up.
    let _ = done.send(outcome);
}

async fn route_until_committed(
    answers: &mut Streaming<BackupResponse>,
    shared: &Shared,
) -> Result<Commit, Failed> {
    let mut acknowledged = 0;
    while let Some(answer) = answers.message().await? {
        match answer.message {
            Some(backup_response::Message::Missing(missing)) => {
                let asked = shared.questions.lock().pop_front();
                let asked = asked.ok_or_else(|| protocol("an answer to no question"))?;
                // A job that was given up no longer listens.
                let _ = asked.send(missing.missing);
            }
            Some(backup_response::Message::Ack(ack)) => {
                let more = ack.stored_bytes.saturating_sub(acknowledged);
                acknowledged = acknowledged.max(ack.stored_bytes);
                shared.window.add_permits(usize::try_from(more).unwrap_or(0).min(1 << 28));
            }
            Some(backup_response::Message::Committed(generation)) => {
                let healed_bytes = answer.healed_bytes;
                return Ok(Commit::Done { generation: Box::new(generation), healed_bytes });
            }
            Some(backup_response::Message::Incomplete(incomplete)) => {
                return Ok(Commit::Incomplete(incomplete.missing.len()));
            }
            Some(backup_response::Message::Session(_)) | None => {
                return Err(protocol("a message out of turn"));
            }
        }
    }
    Err(Failed::new(FailureKind::Failed, "the server ended the backup session before it was committed"))
}
