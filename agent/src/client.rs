//! Ways to a service, behind one type: over TCP, over a unix socket, or straight into the service in
//! this process. Generated clients cannot tell them apart.
//!
//! In this process there is neither socket nor HTTP/2: the request goes to the service's `tower::Service`
//! as it is, bodies stream both ways, and each side's back-pressure is the other's polling.

use std::{convert::Infallible, io, path::Path, sync::Arc};

use hyper_util::rt::TokioIo;
use thinbak_proto::{
    Failed, FailureKind, MAX_MESSAGE_LEN,
    v1::{agent_client::AgentClient, jobs_client::JobsClient, pools_client::PoolsClient},
};
use tokio::net::UnixStream;
use tonic::{
    body::Body,
    codegen::http,
    service::Routes,
    transport::{Endpoint, Uri},
};
use tower::{ServiceExt, util::BoxCloneSyncService};

use crate::{
    config::Settings,
    daemon::AgentService,
    jobs::JobsService,
    pools::{PoolManager, PoolsService},
};

/// What every generated client of this crate is built on.
pub type BoxedChannel = BoxCloneSyncService<http::Request<Body>, http::Response<Body>, ChannelError>;

/// Why a request did not reach its service.
#[derive(Debug, thiserror::Error)]
pub enum ChannelError {
    /// The connection failed.
    #[error(transparent)]
    Transport(#[from] tonic::transport::Error),
}

impl From<Infallible> for ChannelError {
    fn from(never: Infallible) -> Self {
        match never {}
    }
}

/// A channel into services of this process.
#[must_use]
pub fn in_process(routes: Routes) -> BoxedChannel {
    let service = ServiceExt::<http::Request<Body>>::map_err(routes.prepare(), ChannelError::from);
    BoxCloneSyncService::new(service)
}

/// Connects to an agent's unix socket. [`FailureKind::NotFound`] when nothing answers there.
pub async fn over_unix_socket(socket: &Path) -> Result<BoxedChannel, Failed> {
    let place: Arc<Path> = Arc::from(socket);
    let connector = tower::service_fn(move |_: Uri| {
        let place = Arc::clone(&place);
        async move { UnixStream::connect(&*place).await.map(TokioIo::new) }
    });
    // The address is never resolved: the connector goes to the socket.
    let channel = Endpoint::from_static("http://agent.localhost")
        .connect_with_connector(connector)
        .await
        .map_err(|error| no_answer(&format!("connect to the agent at {}", socket.display()), &error))?;
    Ok(BoxCloneSyncService::new(channel.map_err(ChannelError::from)))
}

/// Connects to a server at `http://HOST:PORT`. [`FailureKind::NotFound`] when nothing answers there.
pub async fn over_tcp(url: &str) -> Result<BoxedChannel, Failed> {
    let endpoint = Endpoint::from_shared(url.to_owned())
        .map_err(|error| {
            Failed::new(FailureKind::Usage, format!("read the server address {url}: {error}"))
                .with_hint("a server is named as http://HOST:PORT")
        })?
        .connect_timeout(std::time::Duration::from_secs(10))
        .tcp_nodelay(true)
        .initial_stream_window_size(4 * 1024 * 1024)
        .initial_connection_window_size(16 * 1024 * 1024);
    let channel = endpoint
        .connect()
        .await
        .map_err(|error| no_answer(&format!("connect to the server {url}"), &error))?;
    Ok(BoxCloneSyncService::new(channel.map_err(ChannelError::from)))
}

/// The services of an agent, on the pools of `manager`.
#[must_use]
pub fn agent_routes(manager: Arc<PoolManager>) -> Routes {
    Routes::new(PoolsService::new(Arc::clone(&manager)).into_server())
        .add_service(JobsService::new(Arc::clone(&manager)).into_server())
        .add_service(AgentService::new(manager).into_server())
}

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

/// The innermost cause says why; what is around it only repeats "transport error".
fn no_answer(attempt: &str, error: &tonic::transport::Error) -> Failed {
    let mut cause: &dyn std::error::Error = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    Failed::new(FailureKind::NotFound, format!("{attempt}: {cause}"))
}

#[cfg(test)]
mod tests;
