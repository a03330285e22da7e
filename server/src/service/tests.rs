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

/// Asks one version of the reflection protocol which services there are.
macro_rules! reflected_services {
    ($version:ident, $channel:expr) => {{
        use tonic_reflection::pb::$version::{
            ServerReflectionRequest, server_reflection_client::ServerReflectionClient,
            server_reflection_request::MessageRequest, server_reflection_response::MessageResponse,
        };
        let request = ServerReflectionRequest {
            host: String::new(),
            message_request: Some(MessageRequest::ListServices(String::new())),
        };
        let mut client = ServerReflectionClient::new($channel);
        let answers = client.server_reflection_info(tokio_stream::iter([request])).await.unwrap();
        match answers.into_inner().message().await.unwrap().unwrap().message_response.unwrap() {
            MessageResponse::ListServicesResponse(list) => {
                list.service.into_iter().map(|service| service.name).collect::<Vec<_>>()
            }
            other => panic!("{other:?}"),
        }
    }};
}

#[tokio::test]
async fn reflection_names_the_services_in_both_versions_of_its_protocol() {
    let (_dir, repository) = repository().await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let server = tokio::spawn(serve(repository, listener, std::future::pending()));
    let channel = Endpoint::from_shared(url).unwrap().connect().await.unwrap();
    for services in [reflected_services!(v1, channel.clone()), reflected_services!(v1alpha, channel.clone())]
    {
        for service in ["thinbak.v1.Repository", "thinbak.v1.Ingest", "thinbak.v1.Content"] {
            assert!(services.iter().any(|found| found == service), "{services:?}");
        }
    }
    server.abort();
}
