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
    metrics,
    pools::{PoolManager, PoolsService},
    schedule::{Keeper, ReadSettings, ScheduleService, check_jobs, keep},
};

/// How long calls that are running may take to end after the daemon was asked to stop. What they had made
/// durable stays, the rest is undone.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long a run of a job may take to end after that: its hook `after` has 30 s. The unit's `TimeoutStopSec` is
/// longer than both.
const PATIENCE_WITH_RUNS: Duration = Duration::from_secs(36);

/// The services of an agent, on the pools of `manager`.
#[must_use]
pub fn agent_routes(manager: Arc<PoolManager>) -> Routes {
    Routes::new(PoolsService::new(Arc::clone(&manager)).into_server())
        .add_service(JobsService::new(Arc::clone(&manager)).into_server())
        .add_service(AgentService::new(manager).into_server())
}

/// Serves, and runs jobs when they are due, until `shutdown` resolves; then lets calls and jobs that are running end, for
/// a while, and closes the pools. `read_settings` reads the configuration again.
/// [`FailureKind::Busy`] when another daemon serves this socket.
pub async fn serve(
    settings: &Settings,
    read_settings: Option<ReadSettings>,
    shutdown: impl Future<Output = ()>,
) -> Result<(), Failed> {
    check_jobs(settings)?;
    let Listening { listener, guard } = listen::listen(&settings.socket)?;
    let manager = PoolManager::with_guard(settings.state_dir.clone(), settings.guard);
    let settling = Arc::clone(&manager);
    tokio::task::spawn_blocking(move || settling.settle_lvm());
    let keeper = Keeper::new(Arc::clone(&manager), settings.clone(), read_settings);
    let _beside = Beside::start(settings, &keeper).await?;
    let kept = tokio::spawn(keep(Arc::clone(&keeper)));
    tracing::info!(socket = %settings.socket.display(), state_dir = %settings.state_dir.display(), "the agent is ready");
    let (asked, told) = tokio::sync::oneshot::channel();
    let schedule = ScheduleService::new(Arc::clone(&keeper)).into_server();
    let served = Server::builder()
        .add_routes(agent_routes(Arc::clone(&manager)).add_service(schedule))
        .serve_with_incoming_shutdown(UnixListenerStream::new(listener), async {
            shutdown.await;
            keeper.stop();
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
    keeper.stop();
    if tokio::time::timeout(PATIENCE_WITH_RUNS, kept).await.is_err() {
        tracing::warn!("stopping although a job is still running");
    }
    let closing = Arc::clone(&manager);
    let _ = tokio::task::spawn_blocking(move || closing.close()).await;
    drop(guard);
    tracing::info!("the agent has stopped");
    served.map_err(|error| {
        Failed::new(FailureKind::Failed, format!("serve at {}: {error}", settings.socket.display()))
    })
}

/// What a daemon does beside serving, until this is dropped.
struct Beside(Vec<tokio::task::JoinHandle<()>>);

impl Beside {
    async fn start(settings: &Settings, keeper: &Arc<Keeper>) -> Result<Self, Failed> {
        let mut hangup = catch(SignalKind::hangup())?;
        let reloading = Arc::clone(keeper);
        let mut tasks = vec![tokio::spawn(async move {
            while hangup.recv().await.is_some() {
                match reloading.reload() {
                    Ok(changes) => tracing::info!(?changes, "the configuration was read again"),
                    Err(failed) => tracing::error!(error = %failed, "the configuration stays as it was"),
                }
            }
        })];
        if let Some(address) = settings.metrics {
            let (listener, keeper) = (metrics::listen(address).await?, Arc::clone(keeper));
            tracing::info!(%address, "metrics are told");
            tasks.push(tokio::spawn(async move {
                if let Err(error) = metrics::serve(keeper, listener).await {
                    tracing::error!(%error, "metrics are not told any more");
                }
            }));
        }
        Ok(Self(tasks))
    }
}

impl Drop for Beside {
    fn drop(&mut self) {
        self.0.iter().for_each(tokio::task::JoinHandle::abort);
    }
}

fn catch(kind: SignalKind) -> Result<tokio::signal::unix::Signal, Failed> {
    signal(kind).map_err(|error| Failed::new(FailureKind::Failed, format!("catch signals: {error}")))
}

/// Resolves at SIGTERM or SIGINT. The signals are caught from the moment this returns.
pub fn termination() -> Result<impl Future<Output = ()>, Failed> {
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
