use futures::{StreamExt as _, stream};
use thinbak_proto::v1::{
    BackupAck, BackupRequest, BackupResponse, backup_response,
    ingest_client::IngestClient,
    ingest_server::{Ingest, IngestServer},
};
use tokio::net::UnixListener;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::{Request, Response, Status, Streaming, codegen::BoxStream};

use super::*;

/// Answers every request at once, and ends after the last.
struct Echo;

#[tonic::async_trait]
impl Ingest for Echo {
    type BackupStream = BoxStream<BackupResponse>;

    async fn backup(
        &self,
        request: Request<Streaming<BackupRequest>>,
    ) -> Result<Response<Self::BackupStream>, Status> {
        let answers = request.into_inner().enumerate().map(|(count, message)| {
            message?;
            let ack = BackupAck { batches: count as u64 + 1, stored_bytes: 0 };
            Ok(BackupResponse { message: Some(backup_response::Message::Ack(ack)), healed_bytes: 0 })
        });
        Ok(Response::new(Box::pin(answers)))
    }
}

/// The second request is made only after the first answer arrived, and so on.
async fn ping_pong(channel: BoxedChannel) {
    let (send, receive) = tokio::sync::mpsc::channel(1);
    let requests =
        stream::unfold(receive, |mut receive| async { receive.recv().await.map(|r| (r, receive)) });
    let mut answers = IngestClient::new(channel).backup(requests).await.unwrap().into_inner();
    for round in 1..=100 {
        send.send(BackupRequest::default()).await.unwrap();
        let Some(backup_response::Message::Ack(ack)) = answers.message().await.unwrap().unwrap().message
        else {
            panic!("not an ack");
        };
        assert_eq!(ack.batches, round);
    }
    drop(send);
    assert_eq!(answers.message().await.unwrap(), None);
}

fn echo() -> Routes {
    Routes::new(IngestServer::new(Echo))
}

#[tokio::test]
async fn bodies_stream_both_ways_without_a_socket() {
    ping_pong(in_process(echo())).await;
}

#[tokio::test]
async fn bodies_stream_both_ways_over_a_unix_socket() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("s");
    let listener = UnixListener::bind(&socket).unwrap();
    tokio::spawn(
        tonic::transport::Server::builder()
            .add_routes(echo())
            .serve_with_incoming(UnixListenerStream::new(listener)),
    );
    ping_pong(over_unix_socket(&socket).await.unwrap()).await;
}

#[tokio::test]
async fn nobody_at_the_socket_is_not_found_and_says_why() {
    let dir = tempfile::tempdir().unwrap();
    let error = over_unix_socket(&dir.path().join("none")).await.err().unwrap();
    assert_eq!(error.exit_code(), 10);
    assert!(error.message.contains("No such file"), "{error}");
}

#[tokio::test]
async fn nobody_at_the_port_is_not_found_and_says_why() {
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let error = over_network(&ServerAddress { url: format!("http://{free}"), ..Default::default() })
        .await
        .err()
        .unwrap();
    assert_eq!(error.exit_code(), 10);
    assert!(error.message.contains("refused"), "{error}");
}

#[tokio::test]
async fn a_server_address_that_is_none_is_a_usage_error() {
    for url in ["not a url", "", "garbage", "127.0.0.1:7440", "unix:/run/x", "ftp://127.0.0.1:7440"] {
        assert_eq!(
            over_network(&ServerAddress { url: url.to_owned(), ..Default::default() })
                .await
                .err()
                .unwrap()
                .exit_code(),
            2,
            "{url}"
        );
    }
}
