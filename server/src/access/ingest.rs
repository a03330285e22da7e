//! The Ingest service, guarded. Its volume is in the first message of the stream, so the session itself asks the caller
//! whether it may add to it.

use std::pin::Pin;

use futures::{Stream, StreamExt as _};
use thinbak_proto::v1::{self, backup_response::Message, ingest_server::Ingest};
use tonic::{Request, Response, Status, Streaming};

use super::Guarded;
use crate::ingest::IngestService;

#[tonic::async_trait]
impl Ingest for Guarded<IngestService> {
    type BackupStream = Pin<Box<dyn Stream<Item = Result<v1::BackupResponse, Status>> + Send>>;

    async fn backup(
        &self,
        mut request: Request<Streaming<v1::BackupRequest>>,
    ) -> Result<Response<Self::BackupStream>, Status> {
        let admission = self.gate.admit("Ingest/Backup", &request).await?;
        request.extensions_mut().insert(admission.caller.clone());
        let (gate, noted) = (self.gate.clone(), admission.clone());
        // A generation is told of when it is written down that it was made.
        let answer = self.inner.backup(request).await?.map(|answers| {
            let answers = answers.then(move |answer| {
                let (gate, noted) = (gate.clone(), noted.clone());
                async move {
                    match &answer {
                        Ok(v1::BackupResponse { message: Some(Message::Committed(made)), .. }) => {
                            let outcome = format!("generation {}", made.number);
                            gate.note(&noted, &made.volume_name, &outcome).await;
                        }
                        Err(status) => {
                            gate.note_once(&noted, status.message()).await;
                        }
                        Ok(_) => {}
                    }
                    answer
                }
            });
            Box::pin(answers) as Self::BackupStream
        });
        Ok(self.gate.watched(admission, answer))
    }
}
