use std::{fs, os::unix::fs::PermissionsExt as _, sync::Arc, time::Duration};

use tempfile::TempDir;
use thinbak_proto::{
    remote::{Fingerprint, connect},
    v1::{self, ServerAddress, repository_client::RepositoryClient},
};
use tokio::{
    io::AsyncReadExt as _,
    net::{TcpListener, TcpStream},
    task::JoinHandle,
    time::timeout,
};

use super::*;
use crate::{InitOptions, Repository, serve_over_tls};

struct Place {
    dir: TempDir,
    files: TlsFiles,
    certificates: Arc<Certificates>,
    fingerprint: Fingerprint,
    port: u16,
    server: JoinHandle<()>,
}

impl Place {
    async fn new() -> Self {
        let dir = TempDir::new().unwrap();
        let place = dir.path().join("repo");
        Repository::init(&place, InitOptions::default()).await.unwrap();
        let files = TlsFiles::of_repository(&place);
        let fingerprint = make_certificate(&files, &[]).unwrap();
        let certificates = Certificates::load(files.clone()).unwrap();
        let repository = Repository::open(&place).await.unwrap();
        let (name, volumes) = ("tests".to_owned(), vec!["*".to_owned()]);
        let scope = v1::Scope::Restore.into();
        let request = v1::CreateTokenRequest { name, scope, volumes, expires_in_ms: 0 };
        let (_, token) = repository.tokens.create(&repository, request).await.unwrap();
        fs::write(dir.path().join("token"), token.text().as_str()).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let served = serve_over_tls(repository, listener, Arc::clone(&certificates), std::future::pending());
        let server = tokio::spawn(async move { served.await.unwrap() });
        Self { dir, files, certificates, fingerprint, port, server }
    }

    fn address(&self) -> ServerAddress {
        ServerAddress {
            url: format!("https://localhost:{}", self.port),
            fingerprint: self.fingerprint.to_string(),
            token_file: self.dir.path().join("token").display().to_string(),
            ..ServerAddress::default()
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.server.abort();
    }
}

async fn asks(address: &ServerAddress) -> Result<(), thinbak_proto::Failed> {
    RepositoryClient::new(connect(address).await?).info(v1::InfoRequest {}).await?;
    Ok(())
}

#[tokio::test]
async fn the_pinned_certificate_is_accepted_and_no_other() {
    let place = Place::new().await;
    assert_eq!(fs::metadata(&place.files.key).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(place.files.fingerprint().unwrap(), place.fingerprint);
    asks(&place.address()).await.unwrap();
    let other = ServerAddress { fingerprint: Fingerprint::of(b"other").to_string(), ..place.address() };
    let failed = asks(&other).await.unwrap_err();
    assert_eq!(failed.exit_code(), 12);
    assert!(failed.message.contains(&place.fingerprint.to_string()) && failed.hint.is_some(), "{failed:?}");
    // Nobody vouches for it but itself.
    let unknown = ServerAddress { fingerprint: String::new(), ..place.address() };
    assert_eq!(asks(&unknown).await.unwrap_err().exit_code(), 12);
    let ca_file = place.files.certificate.display().to_string();
    asks(&ServerAddress { ca_file, ..unknown }).await.unwrap();
    // It is not written over.
    assert!(make_certificate(&place.files, &[]).is_err());
}

#[tokio::test]
async fn a_client_that_has_no_certificate_is_turned_away_where_one_is_asked_for() {
    let place = Place::new().await;
    let client = TlsFiles::of_repository(&place.dir.path().join("client"));
    make_certificate(&client, &[]).unwrap();
    let files = TlsFiles { client_ca: Some(client.certificate.clone()), ..place.files.clone() };
    let certificates = Certificates::load(files).unwrap();
    *place.certificates.current.write() = certificates.current();
    assert!(asks(&place.address()).await.is_err());
    let (certificate_file, key_file) =
        (client.certificate.display().to_string(), client.key.display().to_string());
    asks(&ServerAddress { certificate_file, key_file, ..place.address() }).await.unwrap();
    // One for which nobody vouches.
    let (certificate_file, key_file) =
        (place.files.certificate.display().to_string(), place.files.key.display().to_string());
    assert!(asks(&ServerAddress { certificate_file, key_file, ..place.address() }).await.is_err());
}

#[tokio::test]
async fn in_the_clear_nothing_is_had_of_a_port_of_tls_and_tls_not_of_one_in_the_clear() {
    let place = Place::new().await;
    let plain = ServerAddress { url: format!("http://127.0.0.1:{}", place.port), ..ServerAddress::default() };
    assert!(asks(&plain).await.is_err());

    let dir = TempDir::new().unwrap();
    Repository::init(dir.path(), InitOptions::default()).await.unwrap();
    let repository = Repository::open(dir.path()).await.unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("https://{}", listener.local_addr().unwrap());
    let server = tokio::spawn(crate::serve(repository, listener, std::future::pending()));
    let failed = asks(&ServerAddress { url, ..place.address() }).await.unwrap_err();
    assert_eq!(failed.exit_code(), 10, "{failed:?}");
    assert!(failed.hint.is_some_and(|hint| hint.contains("http://")), "{}", failed.message);
    server.abort();
}

#[tokio::test]
async fn a_new_certificate_is_for_new_connections_and_a_bad_one_for_none() {
    let place = Place::new().await;
    let mut old = RepositoryClient::new(connect(&place.address()).await.unwrap());
    old.info(v1::InfoRequest {}).await.unwrap();
    let other = TlsFiles::of_repository(&place.dir.path().join("other"));
    let fingerprint = make_certificate(&other, &[]).unwrap();
    // A key without its certificate.
    fs::copy(&other.key, &place.files.key).unwrap();
    assert!(place.certificates.reload().is_err());
    asks(&place.address()).await.unwrap();
    fs::copy(&other.certificate, &place.files.certificate).unwrap();
    assert_eq!(place.certificates.reload().unwrap(), fingerprint);
    assert_eq!(asks(&place.address()).await.unwrap_err().exit_code(), 12);
    asks(&ServerAddress { fingerprint: fingerprint.to_string(), ..place.address() }).await.unwrap();
    old.info(v1::InfoRequest {}).await.unwrap();
}

#[tokio::test]
async fn connections_that_say_nothing_keep_nobody_out() {
    let place = Place::new().await;
    let mut silent = Vec::new();
    for _ in 0..700 {
        silent.push(TcpStream::connect(("127.0.0.1", place.port)).await.unwrap());
    }
    asks(&place.address()).await.unwrap();
    // The first ones made room.
    let mut byte = [0];
    let read = timeout(Duration::from_secs(60), silent[0].read(&mut byte)).await.unwrap();
    assert!(matches!(read, Ok(0) | Err(_)), "{read:?}");
}
