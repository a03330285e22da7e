//! The Schedule service.

use std::sync::Arc;

use thinbak_proto::{
    MAX_MESSAGE_LEN,
    v1::{
        BackupStatusRequest, BackupStatusResponse, JobEvent, ListJobsRequest, ListJobsResponse,
        ReloadRequest, ReloadResponse, RunJobRequest,
        schedule_server::{Schedule, ScheduleServer},
    },
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use super::{Keeper, report, run::Order};
use crate::pools::blocking;

/// Events that may wait for a slow reader; status events are dropped beyond that.
const QUEUED_EVENTS: usize = 64;

/// The Schedule service of an agent, or of a command without one.
pub struct ScheduleService {
    keeper: Arc<Keeper>,
}

impl ScheduleService {
    /// Of the jobs that `keeper` has.
    #[must_use]
    pub fn new(keeper: Arc<Keeper>) -> Self {
        Self { keeper }
    }

    /// As a service that can be added to a router.
    #[must_use]
    pub fn into_server(self) -> ScheduleServer<Self> {
        ScheduleServer::new(self).max_encoding_message_size(MAX_MESSAGE_LEN)
    }
}

#[tonic::async_trait]
impl Schedule for ScheduleService {
    type RunJobStream = ReceiverStream<Result<JobEvent, Status>>;

    async fn list_jobs(&self, _: Request<ListJobsRequest>) -> Result<Response<ListJobsResponse>, Status> {
        Ok(Response::new(report::jobs(&self.keeper).await?))
    }

    async fn run_job(&self, request: Request<RunJobRequest>) -> Result<Response<Self::RunJobStream>, Status> {
        let job = self.keeper.job(&request.into_inner().name)?;
        let (sender, receiver) = mpsc::channel(QUEUED_EVENTS);
        let order = Order { job, attempt: 0, volumes: Vec::new(), plan: None };
        self.keeper.start(order, Some(sender)).await?;
        Ok(Response::new(ReceiverStream::new(receiver)))
    }

    async fn backup_status(
        &self,
        _: Request<BackupStatusRequest>,
    ) -> Result<Response<BackupStatusResponse>, Status> {
        Ok(Response::new(report::status(&self.keeper).await?))
    }

    async fn reload(&self, _: Request<ReloadRequest>) -> Result<Response<ReloadResponse>, Status> {
        let keeper = Arc::clone(&self.keeper);
        let changes = blocking(move || keeper.reload()).await?;
        let jobs = self.keeper.settings().jobs.jobs.len() as u64;
        Ok(Response::new(ReloadResponse { jobs, changes }))
    }
}
