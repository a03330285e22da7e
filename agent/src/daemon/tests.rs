use std::{fs, os::unix::fs::PermissionsExt as _, path::Path, path::PathBuf};

use thinbak_proto::v1::{AgentStatusRequest, CreatePoolRequest, PoolRequest};
use tokio::sync::oneshot;

use super::*;
use crate::{
    client::{connect_agent, connect_running_agent},
    config::{Level, Surroundings},
};

fn settings(dir: &Path) -> Settings {
    let file = dir.join("agent.toml");
    fs::write(&file, "").unwrap();
    let flags = Level { state_dir: Some(dir.join("state")), ..Level::default() };
    let around = Surroundings { variable: &|_| None, root: false, directory: PathBuf::from("/") };
    Settings::resolve(flags, Some(&file), &around).unwrap()
}

struct Daemon {
    stop: oneshot::Sender<()>,
    ended: tokio::task::JoinHandle<Result<(), Failed>>,
}

/// Started, and answering.
async fn start(settings: &Settings) -> Daemon {
    let (stop, stopped) = oneshot::channel();
    let own = settings.clone();
    let ended = tokio::spawn(async move {
        serve(&own, None, async {
            let _ = stopped.await;
        })
        .await
    });
    while connect_running_agent(settings).await.unwrap().is_none() {
        assert!(!ended.is_finished(), "the daemon ended");
        tokio::task::yield_now().await;
    }
    Daemon { stop, ended }
}

async fn stop(daemon: Daemon) {
    daemon.stop.send(()).unwrap();
    daemon.ended.await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pool_made_through_the_daemon_is_held_by_it_and_found_after_it() {
    let dir = tempfile::tempdir().unwrap();
    let settings = settings(dir.path());
    let daemon = start(&settings).await;
    let agent = connect_agent(&settings).await.unwrap();
    let request =
        CreatePoolRequest { pool: "p".into(), size_bytes: 64 << 20, ..CreatePoolRequest::default() };
    agent.pools().create_pool(request).await.unwrap();
    let status = agent.agent().status(AgentStatusRequest {}).await.unwrap().into_inner();
    assert_eq!(status.pid, u64::from(std::process::id()));
    assert_eq!(status.pools.iter().map(|pool| pool.name.as_str()).collect::<Vec<_>>(), ["p"]);

    // Another process cannot have it at the same time.
    let beside = crate::client::agent_in_process(&settings);
    let error = beside.pools().pool_status(PoolRequest { pool: "p".into() }).await.unwrap_err();
    assert_eq!(Failed::from(error).exit_code(), 11);
    drop(agent);
    stop(daemon).await;
    assert!(!settings.socket.exists());
    beside.pools().pool_status(PoolRequest { pool: "p".into() }).await.unwrap();
    beside.close().await;
}

#[tokio::test]
async fn a_second_daemon_is_refused_and_the_first_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let settings = settings(dir.path());
    let daemon = start(&settings).await;
    let failed = serve(&settings, None, std::future::pending()).await.unwrap_err();
    assert_eq!(failed.exit_code(), 11);
    assert!(connect_running_agent(&settings).await.unwrap().is_some());
    stop(daemon).await;
}

#[tokio::test]
async fn the_socket_of_a_dead_daemon_is_no_daemon_and_is_replaced() {
    let dir = tempfile::tempdir().unwrap();
    let settings = settings(dir.path());
    fs::create_dir_all(settings.socket.parent().unwrap()).unwrap();
    drop(std::os::unix::net::UnixListener::bind(&settings.socket).unwrap());
    assert!(settings.socket.exists());
    assert!(connect_running_agent(&settings).await.unwrap().is_none());
    let daemon = start(&settings).await;
    stop(daemon).await;
}

#[tokio::test]
async fn only_the_owner_can_reach_the_socket() {
    let dir = tempfile::tempdir().unwrap();
    let settings = settings(dir.path());
    let daemon = start(&settings).await;
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&settings.socket), 0o600);
    assert_eq!(mode(settings.socket.parent().unwrap()), 0o700);
    stop(daemon).await;
}
