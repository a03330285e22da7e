//! The Content service, guarded.

use std::pin::Pin;

use futures::Stream;
use thinbak_proto::v1::{self, content_server::Content};
use tonic::{Request, Response, Status};

use super::Guarded;
use crate::content::ContentService;

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl Content for Guarded<ContentService> {
    type GetNodesStream = Answers<v1::NodeData>;
    type GetChunksStream = Answers<v1::ChunkData>;
    type HoldStream = Answers<v1::HoldEvent>;

    async fn get_nodes(
        &self,
        request: Request<v1::GetNodesRequest>,
    ) -> Result<Response<Self::GetNodesStream>, Status> {
        let admission = self.gate.admit("Content/GetNodes", &request).await?;
        let answer = self.inner.get_nodes(request).await?;
        Ok(self.gate.watched(admission, answer))
    }

    async fn get_chunks(
        &self,
        request: Request<v1::GetChunksRequest>,
    ) -> Result<Response<Self::GetChunksStream>, Status> {
        let admission = self.gate.admit("Content/GetChunks", &request).await?;
        let answer = self.inner.get_chunks(request).await?;
        Ok(self.gate.watched(admission, answer))
    }

    async fn hold(
        &self,
        mut request: Request<v1::HoldRequest>,
    ) -> Result<Response<Self::HoldStream>, Status> {
        let admission = self.gate.admit("Content/Hold", &request).await?;
        request.get_mut().volume = admission.caller.narrow(request.get_mut().volume.take())?;
        let volume = request.get_ref().volume.as_ref().map(|volume| volume.name.clone()).unwrap_or_default();
        self.gate.note(&admission, &volume, "begun").await;
        let answer = self.inner.hold(request).await?;
        Ok(self.gate.watched(admission, answer))
    }
}
