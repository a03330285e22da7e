//! The Agent service: what this agent is doing.

use std::sync::Arc;

use thinbak_proto::{
    MAX_MESSAGE_LEN,
    v1::{
        AgentStatusRequest, AgentStatusResponse,
        agent_server::{Agent, AgentServer},
    },
};
use tonic::{Request, Response, Status};

use crate::pools::{PoolManager, blocking, now_ms, open_pool_infos};

/// The Agent service.
pub struct AgentService {
    manager: Arc<PoolManager>,
    started_at_ms: u64,
}

impl AgentService {
    /// Of an agent that starts now, on the pools of `manager`.
    #[must_use]
    pub fn new(manager: Arc<PoolManager>) -> Self {
        Self { manager, started_at_ms: now_ms() }
    }

    /// As a service that can be added to a router.
    #[must_use]
    pub fn into_server(self) -> AgentServer<Self> {
        AgentServer::new(self)
            .max_decoding_message_size(MAX_MESSAGE_LEN)
            .max_encoding_message_size(MAX_MESSAGE_LEN)
    }
}

#[tonic::async_trait]
impl Agent for AgentService {
    async fn status(
        &self,
        _request: Request<AgentStatusRequest>,
    ) -> Result<Response<AgentStatusResponse>, Status> {
        let manager = Arc::clone(&self.manager);
        let pools = blocking(move || Ok(open_pool_infos(&manager))).await?;
        Ok(Response::new(AgentStatusResponse {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id().into(),
            started_at_ms: self.started_at_ms,
            pools,
            jobs: self.manager.jobs().list(),
        }))
    }
}
