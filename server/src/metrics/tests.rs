//! What is scraped, over HTTP.

use std::sync::Arc;

use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    sync::oneshot,
};

use super::*;
use crate::InitOptions;

async fn get(address: std::net::SocketAddr, path: &str) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
}

#[tokio::test]
async fn metrics_and_health_are_served_and_follow_the_repository() {
    let dir = TempDir::new().unwrap();
    Repository::init(dir.path(), InitOptions::default()).await.unwrap();
    let repository = Repository::open(dir.path()).await.unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (stop, stopped) = oneshot::channel::<()>();
    let server = tokio::spawn(serve_metrics(Arc::clone(&repository), listener, async move {
        let _ = stopped.await;
    }));
    repository.metrics.ended(Job::Backup, true);
    repository.metrics.ended(Job::Backup, false);
    repository.metrics.backed_up(700, 50);
    let metrics = get(address, "/metrics").await;
    for line in [
        "thinbak_jobs_total{job=\"backup\",outcome=\"ok\"} 1",
        "thinbak_jobs_total{job=\"backup\",outcome=\"failed\"} 1",
        "thinbak_backed_up_bytes_total 700",
        "thinbak_up 1",
        "thinbak_degraded 0",
        "thinbak_generations 0",
        "thinbak_repository_bytes{kind=\"packs\"}",
        "thinbak_free_bytes ",
    ] {
        assert!(metrics.contains(line), "{line} is not in {metrics}");
    }
    let health = get(address, "/health").await;
    assert!(health.starts_with("HTTP/1.1 200") && health.ends_with("\r\n\r\nok\n"), "{health}");
    repository.stop();
    let health = get(address, "/health").await;
    assert!(health.starts_with("HTTP/1.1 503") && health.contains("down\nstopping: "), "{health}");
    assert!(get(address, "/metrics").await.contains("thinbak_degraded_cause{cause=\"stopping\"} 1"));
    stop.send(()).unwrap();
    server.await.unwrap().unwrap();
}
