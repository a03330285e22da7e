//! Ways to a service, behind one type: over the network, over a unix socket, or straight into the service in
//! this process. Generated clients cannot tell them apart.
//!
//! In this process there is neither socket nor HTTP/2: the request goes to the service's `tower::Service`
//! as it is, bodies stream both ways, and each side's back-pressure is the other's polling.

use std::{convert::Infallible, path::Path, sync::Arc};

use hyper_util::rt::TokioIo;
use thinbak_proto::{Failed, FailureKind, remote, v1::ServerAddress};
use tokio::net::UnixStream;
use tonic::{
    body::Body,
    codegen::http,
    service::Routes,
    transport::{Endpoint, Uri},
};
use tower::{ServiceExt, util::BoxCloneSyncService};

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

/// Connects to a server. [`FailureKind::NotFound`] when nothing answers there.
pub async fn over_network(server: &ServerAddress) -> Result<BoxedChannel, Failed> {
    let channel = remote::connect(server).await?;
    Ok(BoxCloneSyncService::new(channel.map_err(ChannelError::from)))
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
