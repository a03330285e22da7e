//! The agent daemon: the services of this host on a unix socket.
//!
//! One daemon has one socket and one lock file beside it (`agent.sock.lock`). Who holds the lock may replace a
//! socket file that a dead daemon left; who does not get it is the second and ends.

mod listen;
mod status;

use std::{sync::Arc, time::Duration};

use thinbak_proto::{Failed, FailureKind};
use tokio::signal::unix::{SignalKind, signal};
use tokio_stream::wrappers::UnixListenerStream;
use tonic::{service::Routes, transport::Server};

use self::listen::Listening;
pub use self::status::AgentService;
use crate::{
    config::Settings,
    jobs::JobsService,
    pools::{PoolManager, PoolsService},
};

/// How long calls that are running may take to end after the daemon was asked to stop. What they had made
/// durable stays, the rest is undone.
const PATIENCE: Duration = Duration::from_secs(10);

/// The services of an agent, on the pools of `manager`.
#[must_use]
pub fn agent_routes(manager: Arc<PoolManager>) -> Routes {
    Routes::new(PoolsService::new(Arc::clone(&manager)).into_server())
        .add_service(JobsService::new(Arc::clone(&manager)).into_server())
        .add_service(AgentService::new(manager).into_server())
}

/// Serves until `shutdown` resolves, then lets calls that are running end, for a while, and closes the pools.
/// [`FailureKind::Busy`] when another daemon serves this socket.
pub async fn serve(settings: &Settings, shutdown: impl Future<Output = ()>) -> Result<(), Failed> {
    let Listening { listener, guard } = listen::listen(&settings.socket)?;
    let manager = PoolManager::new(settings.state_dir.clone());
    tracing::info!(socket = %settings.socket.display(), state_dir = %settings.state_dir.display(), "the agent is ready");
    let (asked, told) = tokio::sync::oneshot::channel();
    let served = Server::builder()
        .add_routes(agent_routes(Arc::clone(&manager)))
        .serve_with_incoming_shutdown(UnixListenerStream::new(listener), async {
            shutdown.await;
            let _ = asked.send(());
        });
    let patience = async {
        // The sender is dropped unused only when serving failed, and then `served` says so.
        let _ = told.await;
        tokio::time::sleep(PATIENCE).await;
    };
    let served = tokio::select! {
        served = served => served,
        () = patience => {
            tracing::warn!(jobs = manager.jobs().list().len(), "stopping although calls are still running");
            Ok(())
        }
    };
    let closing = Arc::clone(&manager);
    let _ = tokio::task::spawn_blocking(move || closing.close()).await;
    drop(guard);
    tracing::info!("the agent has stopped");
    served.map_err(|error| {
        Failed::new(FailureKind::Failed, format!("serve at {}: {error}", settings.socket.display()))
    })
}

/// Resolves at SIGTERM or SIGINT. The signals are caught from the moment this returns.
pub fn termination() -> Result<impl Future<Output = ()>, Failed> {
    let catch = |kind| {
        signal(kind).map_err(|error| Failed::new(FailureKind::Failed, format!("catch signals: {error}")))
    };
    let (mut terminate, mut interrupt) = (catch(SignalKind::terminate())?, catch(SignalKind::interrupt())?);
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    })
}

#[cfg(test)]
mod tests;
