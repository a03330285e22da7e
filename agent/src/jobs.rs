//! Jobs: each pairs a source with a sink and reports how it goes.

mod backup;
mod events;
mod healing;
mod plan;
mod point;
mod restore;
mod sample;

use std::sync::Arc;

use thinbak_proto::v1::{
    BackupJobRequest, JobEvent, RestoreJobRequest,
    jobs_server::{Jobs, JobsServer},
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use self::events::Events;
use crate::pools::PoolManager;

/// The Jobs service of an agent, or of a command without one.
pub struct JobsService {
    pools: Arc<PoolManager>,
}

impl JobsService {
    /// Jobs on the pools of `pools`.
    #[must_use]
    pub fn new(pools: Arc<PoolManager>) -> Self {
        Self { pools }
    }

    /// As a service that can be added to a router.
    #[must_use]
    pub fn into_server(self) -> JobsServer<Self> {
        JobsServer::new(self)
    }
}

/// Events that may wait for a slow reader; status events are dropped beyond that.
const QUEUED_EVENTS: usize = 64;

#[tonic::async_trait]
impl Jobs for JobsService {
    type BackupStream = ReceiverStream<Result<JobEvent, Status>>;
    type RestoreStream = ReceiverStream<Result<JobEvent, Status>>;

    async fn backup(
        &self,
        request: Request<BackupJobRequest>,
    ) -> Result<Response<Self::BackupStream>, Status> {
        let (sender, receiver) = mpsc::channel(QUEUED_EVENTS);
        let events = Events::new("backup", sender, Arc::clone(&self.pools));
        let pools = Arc::clone(&self.pools);
        tokio::spawn(async move {
            let outcome = backup::run(&pools, request.into_inner(), &events).await;
            events.end(outcome).await;
        });
        Ok(Response::new(ReceiverStream::new(receiver)))
    }

    async fn restore(
        &self,
        request: Request<RestoreJobRequest>,
    ) -> Result<Response<Self::RestoreStream>, Status> {
        let (sender, receiver) = mpsc::channel(QUEUED_EVENTS);
        let events = Events::new("restore", sender, Arc::clone(&self.pools));
        let pools = Arc::clone(&self.pools);
        tokio::spawn(async move {
            let outcome = restore::run(&pools, request.into_inner(), &events).await;
            events.end(outcome).await;
        });
        Ok(Response::new(ReceiverStream::new(receiver)))
    }
}
