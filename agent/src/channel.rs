//! Ways to a service, behind one type: over TCP, over a unix socket, or straight into the service in
//! this process. Generated clients cannot tell them apart.
//!
//! In this process there is neither socket nor HTTP/2: the request goes to the service's `tower::Service`
//! as it is, bodies stream both ways, and each side's back-pressure is the other's polling.

use std::{convert::Infallible, path::Path, sync::Arc, time::Duration};

use hyper_util::rt::TokioIo;
use thinbak_proto::{FRAME_LEN, Failed, FailureKind};
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

/// How long a connection with calls under way may be silent before its other end is asked for a sign of life, and how
/// long that may take.
const SILENCE: Duration = Duration::from_secs(30);

/// Connects to a server at `http://HOST:PORT`. [`FailureKind::NotFound`] when nothing answers there.
pub async fn over_tcp(url: &str) -> Result<BoxedChannel, Failed> {
    let unreadable = |why: &str| {
        Failed::new(FailureKind::Usage, format!("read the server address `{url}`: {why}"))
            .with_hint("a server is named as http://HOST:PORT")
    };
    let address = url.parse::<Uri>().map_err(|error| unreadable(&error.to_string()))?;
    match address.scheme_str() {
        Some("http") if address.host().is_some() => {}
        // Never in the clear where somebody asked for more.
        Some("https") => return Err(unreadable("TLS is not supported by this version")),
        _ => return Err(unreadable("it does not begin with http://")),
    }
    let endpoint = Endpoint::from(address)
        .http2_keep_alive_interval(SILENCE)
        .keep_alive_timeout(SILENCE)
        .connect_timeout(Duration::from_secs(10))
        .tcp_nodelay(true)
        .max_frame_size(FRAME_LEN)
        .initial_stream_window_size(4 * 1024 * 1024)
        .initial_connection_window_size(16 * 1024 * 1024);
    let channel = endpoint
        .connect()
        .await
        .map_err(|error| no_answer(&format!("connect to the server {url}"), &error))?;
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
