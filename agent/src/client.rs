//! Clients of an agent: of the one that runs on this host, or of one made for this process alone.

use std::{io, sync::Arc};

use thinbak_proto::{
    Failed, FailureKind, MAX_MESSAGE_LEN,
    v1::{
        agent_client::AgentClient, jobs_client::JobsClient, pools_client::PoolsClient,
        schedule_client::ScheduleClient,
    },
};
use tokio::net::UnixStream;

use crate::{
    channel::{BoxedChannel, in_process, over_unix_socket},
    config::Settings,
    daemon::agent_routes,
    pools::PoolManager,
    schedule::{Keeper, ScheduleService},
};

/// An agent, running elsewhere or made for this process alone.
pub struct AgentChannel {
    channel: BoxedChannel,
    /// Present when the pools are opened in this process.
    own: Option<Own>,
}

/// What an agent of this process alone consists of.
struct Own {
    manager: Arc<PoolManager>,
    keeper: Arc<Keeper>,
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

    /// Jobs of the configuration, and how volumes are backed up.
    #[must_use]
    pub fn schedule(&self) -> ScheduleClient<BoxedChannel> {
        ScheduleClient::new(self.channel.clone()).max_decoding_message_size(MAX_MESSAGE_LEN)
    }

    /// The agent itself.
    #[must_use]
    pub fn agent(&self) -> AgentClient<BoxedChannel> {
        AgentClient::new(self.channel.clone())
    }

    /// Closes what was opened in this process, so that its pools are committed and given up. A job of the
    /// configuration that is running ends before.
    pub async fn close(self) {
        drop(self.channel);
        if let Some(Own { manager, keeper }) = self.own {
            keeper.stop();
            keeper.drained().await;
            drop(keeper);
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
    let manager = PoolManager::with_guard(settings.state_dir.clone(), settings.guard);
    let keeper = Keeper::new(Arc::clone(&manager), settings.clone(), None);
    let schedule = ScheduleService::new(Arc::clone(&keeper)).into_server();
    let routes = agent_routes(Arc::clone(&manager)).add_service(schedule);
    AgentChannel { channel: in_process(routes), own: Some(Own { manager, keeper }) }
}

/// The agent at the socket of `settings`, if one answers there.
pub async fn connect_running_agent(settings: &Settings) -> Result<Option<AgentChannel>, Failed> {
    let socket = &settings.socket;
    match UnixStream::connect(socket).await {
        Ok(_) => Ok(Some(AgentChannel { channel: over_unix_socket(socket).await?, own: None })),
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
