use tempfile::TempDir;
use thinbak_proto::v1::{self, repository_client::RepositoryClient};
use tokio::sync::oneshot;
use tonic::transport::Endpoint;
use tonic_health::pb::{
    HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
};

use super::*;
use crate::InitOptions;

async fn repository() -> (TempDir, Arc<Repository>) {
    let dir = TempDir::new().unwrap();
    Repository::init(dir.path(), InitOptions::default()).await.unwrap();
    let repository = Repository::open(dir.path()).await.unwrap();
    (dir, repository)
}

#[tokio::test]
async fn services_and_their_health_are_served_until_the_shutdown() {
    let (_dir, repository) = repository().await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let (stop, stopped) = oneshot::channel::<()>();
    let server = tokio::spawn(serve(Arc::clone(&repository), listener, async move {
        let _ = stopped.await;
    }));
    let channel = Endpoint::from_shared(url).unwrap().connect().await.unwrap();
    let info = RepositoryClient::new(channel.clone()).info(v1::InfoRequest {}).await.unwrap().into_inner();
    assert_eq!((info.repository_uuid, info.chunk_bytes), (repository.uuid().to_string(), 65536));
    for service in ["", "thinbak.v1.Repository", "thinbak.v1.Ingest", "thinbak.v1.Content"] {
        let request = HealthCheckRequest { service: service.into() };
        let health = HealthClient::new(channel.clone()).check(request).await.unwrap().into_inner();
        assert_eq!(health.status(), ServingStatus::Serving, "{service}");
    }
    stop.send(()).unwrap();
    server.await.unwrap().unwrap();
    assert!(RepositoryClient::new(channel).info(v1::InfoRequest {}).await.is_err());
}

#[tokio::test]
async fn an_address_that_others_can_reach_is_refused() {
    let (_dir, repository) = repository().await;
    let listener = TcpListener::bind("0.0.0.0:0").await.unwrap();
    let refused = serve(repository, listener, std::future::pending()).await.unwrap_err();
    assert!(matches!(refused, ServeError::NotLoopback(_)));
    let failed = Failed::from(refused);
    assert_eq!(failed.exit_code(), 5);
    assert!(failed.hint.is_some());
}
