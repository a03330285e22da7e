//! Clients of an agent: of the one that runs on this host, or of one made for this process alone.

use std::{io, sync::Arc};

use thinbak_proto::{
    Failed, FailureKind, MAX_MESSAGE_LEN,
    v1::{agent_client::AgentClient, jobs_client::JobsClient, pools_client::PoolsClient},
};
use tokio::net::UnixStream;

use crate::{
    channel::{BoxedChannel, in_process, over_unix_socket},
    config::Settings,
    daemon::agent_routes,
    pools::PoolManager,
};

/// An agent, running elsewhere or made for this process alone.
pub struct AgentChannel {
    channel: BoxedChannel,
    /// Present when the pools are opened in this process.
    manager: Option<Arc<PoolManager>>,
}

impl AgentChannel {
    /// Pools and volumes.
    #[must_use]
    pub fn pools(&self) -> PoolsClient<BoxedChannel> {
        PoolsClient::new(self.channel.clone())
            .max_decoding_message_size(MAX_MESSAGE_LEN)
            .max_encoding_message_size(MAX_MESSAGE_LEN)
    }

    /// Backup and restore.
    #[must_use]
    pub fn jobs(&self) -> JobsClient<BoxedChannel> {
        JobsClient::new(self.channel.clone())
            .max_decoding_message_size(MAX_MESSAGE_LEN)
            .max_encoding_message_size(MAX_MESSAGE_LEN)
    }

    /// The agent itself.
    #[must_use]
    pub fn agent(&self) -> AgentClient<BoxedChannel> {
        AgentClient::new(self.channel.clone())
    }

    /// Closes what was opened in this process, so that its pools are committed and given up.
    pub async fn close(self) {
        drop(self.channel);
        if let Some(manager) = self.manager {
            // Closing a pool commits it.
            let _ = tokio::task::spawn_blocking(move || manager.close()).await;
        }
    }
}

/// The agent at the socket of `settings` if one answers there, else one in this process.
pub async fn connect_agent(settings: &Settings) -> Result<AgentChannel, Failed> {
    match connect_running_agent(settings).await? {
        Some(agent) => Ok(agent),
        None => Ok(agent_in_process(settings)),
    }
}

/// An agent in this process, whether or not one is running.
#[must_use]
pub fn agent_in_process(settings: &Settings) -> AgentChannel {
    let manager = PoolManager::new(settings.state_dir.clone());
    AgentChannel { channel: in_process(agent_routes(Arc::clone(&manager))), manager: Some(manager) }
}

/// The agent at the socket of `settings`, if one answers there.
pub async fn connect_running_agent(settings: &Settings) -> Result<Option<AgentChannel>, Failed> {
    let socket = &settings.socket;
    match UnixStream::connect(socket).await {
        Ok(_) => Ok(Some(AgentChannel { channel: over_unix_socket(socket).await?, manager: None })),
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) => {
            Ok(None)
        }
        Err(error) => {
            let kind = match error.kind() {
                io::ErrorKind::PermissionDenied => FailureKind::Denied,
                _ => FailureKind::Failed,
            };
            Err(Failed::new(kind, format!("connect to the agent at {}: {error}", socket.display())))
        }
    }
}
