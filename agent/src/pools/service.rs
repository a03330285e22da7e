//! The Pools service.

use std::sync::Arc;

use thinbak_proto::{
    Failed, MAX_MESSAGE_LEN,
    v1::{
        CheckPoolRequest, CheckPoolResponse, CreatePoolRequest, CreateVolumeRequest, DeltaRequest,
        DumpRequest, ExportRequest, ExportResponse, ImportRequest, ListPoolVolumesResponse, ListPoolsRequest,
        ListPoolsResponse, MsnapInfo, PoolInfo, PoolMessageRequest, PoolMessageResponse, PoolRequest,
        ReleaseMsnapRequest, RemovePoolResponse, RemoveVolumeRequest, ResizePoolRequest, ResizeVolumeRequest,
        SetPoolRequest, SnapshotVolumesRequest, SnapshotVolumesResponse, TextChunk, VolumeInfo,
        pools_server::{Pools, PoolsServer},
    },
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use super::{PoolManager, admin, blocking, export, import, msnap, settings, text, volumes};

/// Messages of a stream that may wait for a slow reader.
const QUEUED_MESSAGES: usize = 4;

/// The Pools service of an agent, or of a command without one.
pub struct PoolsService {
    manager: Arc<PoolManager>,
}

type Answer<T> = Result<Response<T>, Status>;

impl PoolsService {
    /// On the pools of `manager`.
    #[must_use]
    pub fn new(manager: Arc<PoolManager>) -> Self {
        Self { manager }
    }

    /// As a service that can be added to a router.
    #[must_use]
    pub fn into_server(self) -> PoolsServer<Self> {
        PoolsServer::new(self)
            .max_decoding_message_size(MAX_MESSAGE_LEN)
            .max_encoding_message_size(MAX_MESSAGE_LEN)
    }

    async fn call<R: Send + 'static, T: Send + 'static>(
        &self,
        request: Request<R>,
        work: impl FnOnce(&PoolManager, R) -> Result<T, Failed> + Send + 'static,
    ) -> Answer<T> {
        let manager = Arc::clone(&self.manager);
        let request = request.into_inner();
        Ok(Response::new(blocking(move || work(&manager, request)).await?))
    }

    /// Runs `work` beside the stream of what it sends.
    fn stream<R: Send + 'static, T: Send + 'static>(
        &self,
        request: Request<R>,
        work: impl FnOnce(&PoolManager, R, mpsc::Sender<T>) + Send + 'static,
    ) -> Response<ReceiverStream<T>> {
        let manager = Arc::clone(&self.manager);
        let (sender, receiver) = mpsc::channel(QUEUED_MESSAGES);
        let request = request.into_inner();
        tokio::task::spawn_blocking(move || work(&manager, request, sender));
        Response::new(ReceiverStream::new(receiver))
    }
}

#[tonic::async_trait]
impl Pools for PoolsService {
    type ExportVolumeStream = ReceiverStream<Result<ExportResponse, Status>>;
    type DumpStream = ReceiverStream<Result<TextChunk, Status>>;
    type DeltaStream = ReceiverStream<Result<TextChunk, Status>>;

    async fn create_pool(&self, request: Request<CreatePoolRequest>) -> Answer<PoolInfo> {
        self.call(request, |manager, request| admin::create(manager, &request)).await
    }

    async fn list_pools(&self, request: Request<ListPoolsRequest>) -> Answer<ListPoolsResponse> {
        self.call(request, |manager, _| Ok(ListPoolsResponse { pools: admin::list(manager)? })).await
    }

    async fn pool_status(&self, request: Request<PoolRequest>) -> Answer<PoolInfo> {
        self.call(request, |manager, request| admin::status(manager, &request.pool)).await
    }

    async fn check_pool(&self, request: Request<CheckPoolRequest>) -> Answer<CheckPoolResponse> {
        self.call(request, |manager, request| admin::check(manager, request.source)).await
    }

    async fn resize_pool(&self, request: Request<ResizePoolRequest>) -> Answer<PoolInfo> {
        self.call(request, |manager, request| admin::resize(manager, &request)).await
    }

    async fn set_pool(&self, request: Request<SetPoolRequest>) -> Answer<PoolInfo> {
        self.call(request, |manager, request| settings::set(manager, &request)).await
    }

    async fn remove_pool(&self, request: Request<PoolRequest>) -> Answer<RemovePoolResponse> {
        self.call(request, |manager, request| {
            admin::remove(manager, &request.pool)?;
            Ok(RemovePoolResponse {})
        })
        .await
    }

    async fn message(&self, request: Request<PoolMessageRequest>) -> Answer<PoolMessageResponse> {
        self.call(request, |manager, request| {
            admin::message(manager, &request.pool, &request.words)?;
            Ok(PoolMessageResponse {})
        })
        .await
    }

    async fn create_volume(&self, request: Request<CreateVolumeRequest>) -> Answer<VolumeInfo> {
        self.call(request, |manager, request| volumes::create(manager, &request)).await
    }

    async fn snapshot_volumes(
        &self,
        request: Request<SnapshotVolumesRequest>,
    ) -> Answer<SnapshotVolumesResponse> {
        self.call(request, |manager, request| {
            Ok(SnapshotVolumesResponse { snapshots: volumes::snapshot(manager, &request)? })
        })
        .await
    }

    async fn list_pool_volumes(&self, request: Request<PoolRequest>) -> Answer<ListPoolVolumesResponse> {
        self.call(request, |manager, request| {
            Ok(ListPoolVolumesResponse { volumes: volumes::list(manager, &request.pool)? })
        })
        .await
    }

    async fn resize_volume(&self, request: Request<ResizeVolumeRequest>) -> Answer<VolumeInfo> {
        self.call(request, |manager, request| volumes::resize(manager, &request)).await
    }

    async fn remove_volume(&self, request: Request<RemoveVolumeRequest>) -> Answer<VolumeInfo> {
        self.call(request, |manager, request| volumes::remove(manager, &request)).await
    }

    async fn import_volume(&self, request: Request<Streaming<ImportRequest>>) -> Answer<VolumeInfo> {
        Ok(Response::new(import::run(Arc::clone(&self.manager), request.into_inner()).await?))
    }

    async fn export_volume(&self, request: Request<ExportRequest>) -> Answer<Self::ExportVolumeStream> {
        Ok(self.stream(request, |manager, request, sender| export::run(manager, &request, &sender)))
    }

    async fn reserve_msnap(&self, request: Request<PoolRequest>) -> Answer<MsnapInfo> {
        self.call(request, |manager, request| msnap::reserve(manager, &request.pool)).await
    }

    async fn release_msnap(&self, request: Request<ReleaseMsnapRequest>) -> Answer<MsnapInfo> {
        self.call(request, |manager, request| msnap::release(manager, &request)).await
    }

    async fn show_msnap(&self, request: Request<PoolRequest>) -> Answer<MsnapInfo> {
        self.call(request, |manager, request| msnap::show(manager, &request.pool)).await
    }

    async fn dump(&self, request: Request<DumpRequest>) -> Answer<Self::DumpStream> {
        Ok(self.stream(request, |manager, request, sender| text::dump(manager, &request, sender)))
    }

    async fn delta(&self, request: Request<DeltaRequest>) -> Answer<Self::DeltaStream> {
        Ok(self.stream(request, |manager, request, sender| text::delta(manager, &request, sender)))
    }
}
