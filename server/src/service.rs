//! The gRPC services over a repository, in this process or over TCP.

mod generations;
#[cfg(test)]
mod tests;

use std::{convert::Infallible, future::Future, net::SocketAddr, sync::Arc, time::Duration};

use thinbak_proto::{
    DESCRIPTOR_SET, FRAME_LEN, Failed, FailureKind, MAX_MESSAGE_LEN,
    v1::{
        access_server::AccessServer, content_server::ContentServer, ingest_server::IngestServer,
        repository_server::RepositoryServer,
    },
};
use tokio::net::TcpListener;
use tonic::{server::NamedService as _, service::Routes, transport::Server};

use crate::{
    access::{AccessService, Door, Gate, Guarded},
    content::ContentService,
    health::{Health, State},
    ingest::IngestService,
    repository::Repository,
    tls::{Certificates, incoming},
};
pub(crate) use generations::{GenerationService, PAGE, generation_token};
use tonic_health::{ServingStatus, server::HealthReporter};

/// A client that does not answer a ping for this long is gone; its backup ends and its volume is free again.
const KEEPALIVE: Duration = Duration::from_secs(20);
/// What clients have to end what they do when the server stops.
const GRACE: Duration = Duration::from_secs(10);
/// How often the health is looked at.
const HEALTH_EVERY: Duration = Duration::from_secs(2);
/// Calls of one connection at a time.
const STREAMS: u32 = 64;

/// Why a server cannot serve.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// In the clear everybody on the way could read, and change what is said.
    #[error("refused to listen on {0} without TLS: it can be reached from other machines")]
    NotLoopback(SocketAddr),
    /// The address of the listener.
    #[error("cannot tell the address that is listened on: {0}")]
    Address(#[source] std::io::Error),
    /// The description of the services.
    #[error("cannot prepare gRPC reflection: {0}")]
    Reflection(#[source] tonic_reflection::server::Error),
    /// The transport.
    #[error("the server ended: {0}")]
    Transport(#[from] tonic::transport::Error),
}

impl From<ServeError> for Failed {
    fn from(error: ServeError) -> Self {
        match error {
            ServeError::NotLoopback(_) => Failed::new(FailureKind::Refused, error.to_string())
                .with_hint("serve over TLS, or listen on 127.0.0.1 or ::1"),
            error => Failed::new(FailureKind::Failed, error.to_string()),
        }
    }
}

/// Of a request that names volumes, policies or tokens: what is longer is refused before it is read.
const MAX_REQUEST_LEN: usize = 512 * 1024;
/// Of one that names as many ids as are allowed, in bytes.
const MAX_IDS_LEN: usize = 128 * 1024;

/// The services Repository, Ingest, Content and Access, to be called in this process, by one who may do everything.
pub fn routes(repository: Arc<Repository>) -> Routes {
    routes_through(repository, Door::Process)
}

/// The same for those who come by `door`.
fn routes_through(repository: Arc<Repository>, door: Door) -> Routes {
    let gate = Gate::new(Arc::clone(&repository), door);
    let generations = Guarded::new(GenerationService(Arc::clone(&repository)), gate.clone());
    let ingest = Guarded::new(IngestService(Arc::clone(&repository)), gate.clone());
    let content = Guarded::new(ContentService(Arc::clone(&repository)), gate.clone());
    let access = Guarded::new(AccessService(repository), gate);
    Routes::new(RepositoryServer::new(generations).max_decoding_message_size(MAX_REQUEST_LEN))
        .add_service(IngestServer::new(ingest).max_decoding_message_size(MAX_MESSAGE_LEN))
        .add_service(ContentServer::new(content).max_decoding_message_size(MAX_IDS_LEN))
        .add_service(AccessServer::new(access).max_decoding_message_size(MAX_REQUEST_LEN))
}

/// Serves a repository in the clear, with health and reflection, until `shutdown` resolves. Only loopback addresses
/// are served. The repository stays open.
pub async fn serve(
    repository: Arc<Repository>,
    listener: TcpListener,
    shutdown: impl Future<Output = ()> + Send,
) -> Result<(), ServeError> {
    serve_with(repository, listener, None, shutdown).await
}

/// The same over TLS.
pub async fn serve_over_tls(
    repository: Arc<Repository>,
    listener: TcpListener,
    certificates: Arc<Certificates>,
    shutdown: impl Future<Output = ()> + Send,
) -> Result<(), ServeError> {
    serve_with(repository, listener, Some(certificates), shutdown).await
}

async fn serve_with(
    repository: Arc<Repository>,
    listener: TcpListener,
    certificates: Option<Arc<Certificates>>,
    shutdown: impl Future<Output = ()> + Send,
) -> Result<(), ServeError> {
    let address = listener.local_addr().map_err(ServeError::Address)?;
    if certificates.is_none() && !address.ip().is_loopback() {
        return Err(ServeError::NotLoopback(address));
    }
    let door = if certificates.is_some() { Door::Network } else { Door::Loopback };
    // Both versions of the protocol: many clients still ask for the older one only.
    let described = || {
        tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(DESCRIPTOR_SET)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
    };
    let reflection = described().build_v1().map_err(ServeError::Reflection)?;
    let older_reflection = described().build_v1alpha().map_err(ServeError::Reflection)?;
    let (reporter, health) = tonic_health::server::health_reporter();

    let now = repository.health().await;
    tell_health(&reporter, &now).await;
    let watched = watch_health(Arc::clone(&repository), reporter, now);
    let mut stopping = repository.stopping();
    let stop = Arc::clone(&repository);
    let server = Server::builder()
        .http2_keepalive_interval(Some(KEEPALIVE))
        .http2_keepalive_timeout(Some(KEEPALIVE))
        .max_concurrent_streams(STREAMS)
        .max_frame_size(FRAME_LEN)
        .add_routes(routes_through(repository, door))
        .add_service(health)
        .add_service(reflection)
        .add_service(older_reflection)
        .serve_with_incoming_shutdown(incoming(listener, certificates), async move {
            shutdown.await;
            stop.stop();
        });
    let patience = async move {
        // An error would mean that the repository is gone, which ends the patience as well.
        let _ = stopping.wait_for(|stopping| *stopping).await.is_ok();
        tokio::time::sleep(GRACE).await;
    };
    tokio::select! {
        ended = server => Ok(ended?),
        () = patience => Ok(()),
        never = watched => match never {},
    }
}

/// Keeps telling what works.
async fn watch_health(repository: Arc<Repository>, reporter: HealthReporter, mut said: Health) -> Infallible {
    loop {
        tokio::time::sleep(HEALTH_EVERY).await;
        let health = repository.health().await;
        if said == health {
            continue;
        }
        tell_health(&reporter, &health).await;
        match health.state() {
            State::Ok => tracing::info!("the repository is ok again"),
            state => {
                tracing::warn!(%state, causes = ?health.causes, "the repository is not as it should be");
            }
        }
        said = health;
    }
}

/// Backups need more than restores.
async fn tell_health(reporter: &HealthReporter, health: &Health) {
    let serving = |works| if works { ServingStatus::Serving } else { ServingStatus::NotServing };
    let (reads, backups) = (serving(health.serves_reads()), serving(health.takes_backups()));
    reporter.set_service_status("", reads).await;
    reporter.set_service_status(<RepositoryServer<GenerationService>>::NAME, reads).await;
    reporter.set_service_status(<ContentServer<ContentService>>::NAME, reads).await;
    reporter.set_service_status(<IngestServer<IngestService>>::NAME, backups).await;
}
