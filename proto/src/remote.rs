//! Reaching a server: in the clear on this host, or over TLS, with a certificate that is pinned or vouched for; and
//! with the token that says who asks.
//!
//! Off the loopback a token goes over TLS only. TLS is version 1.3, with aws-lc as the one provider.

mod fingerprint;
mod token;
mod verifier;

use std::{io, net::IpAddr, path::Path, sync::Arc, time::Duration};

use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use rustls::{
    ClientConfig, RootCertStore,
    client::WebPkiServerVerifier,
    crypto::CryptoProvider,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject as _},
};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tonic::{
    body::Body,
    codegen::http::{self, header::AUTHORIZATION},
    transport::{Endpoint, Uri},
};
use tower::{ServiceExt, util::BoxCloneSyncService};

pub use fingerprint::{Fingerprint, InvalidFingerprint};
pub use token::{ID_DIGITS, InvalidToken, Token};
use verifier::{Pinned, WrongCertificate};

use crate::{FRAME_LEN, Failed, FailureKind, v1::ServerAddress};

/// What generated clients are built on.
pub type RemoteChannel =
    BoxCloneSyncService<http::Request<Body>, http::Response<Body>, tonic::transport::Error>;

/// How long a connection with calls under way may be silent before its other end is asked for a sign of life, and how
/// long that may take.
const SILENCE: Duration = Duration::from_secs(30);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// What speaks over TLS here.
pub const ALPN: &[u8] = b"h2";

/// The one provider of cryptography.
#[must_use]
pub fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}

/// Connects to a server. [`FailureKind::NotFound`] when nothing answers there, or what answers does not speak TLS where
/// it should; [`FailureKind::Denied`] when its certificate is not the one that is expected.
pub async fn connect(address: &ServerAddress) -> Result<RemoteChannel, Failed> {
    let uri = parse(&address.url)?;
    let token = match address.token_file.as_str() {
        "" => None,
        file => Some(Token::read(Path::new(file))?),
    };
    let secure = uri.scheme_str() == Some("https");
    if !secure {
        check_in_the_clear(address, &uri)?;
    }
    let endpoint = Endpoint::from(uri.clone())
        .http2_keep_alive_interval(SILENCE)
        .keep_alive_timeout(SILENCE)
        .connect_timeout(CONNECT_TIMEOUT)
        .tcp_nodelay(true)
        .max_frame_size(FRAME_LEN)
        .initial_stream_window_size(4 * 1024 * 1024)
        .initial_connection_window_size(16 * 1024 * 1024);
    let attempt = format!("connect to the server {}", address.url);
    let channel = if secure {
        let (connector, name) = (tls_connector(address)?, server_name(&uri)?);
        // The transport's error does not tell what the handshake found.
        let found = Arc::new(Mutex::new(None));
        let place = Arc::new((host_of(&uri).to_owned(), uri.port_u16().unwrap_or(443)));
        let service = {
            let found = Arc::clone(&found);
            tower::service_fn(move |_: Uri| {
                let (connector, name, place) = (connector.clone(), name.clone(), Arc::clone(&place));
                let found = Arc::clone(&found);
                async move {
                    let stream = TcpStream::connect((place.0.as_str(), place.1)).await?;
                    stream.set_nodelay(true)?;
                    match connector.connect(name, stream).await {
                        Ok(stream) => Ok(TokioIo::new(stream)),
                        Err(error) => {
                            *found.lock() = Some(not_secure(&error));
                            Err(error)
                        }
                    }
                }
            })
        };
        endpoint.connect_with_connector(service).await.map_err(|error| match found.lock().take() {
            Some(why) => Failed { message: format!("{attempt}: {}", why.message), ..why },
            None => no_answer(&attempt, &error),
        })?
    } else {
        endpoint.connect().await.map_err(|error| no_answer(&attempt, &error))?
    };
    let header = token.as_ref().map(Token::header);
    let authorised =
        ServiceExt::<http::Request<Body>>::map_request(channel, move |mut request: http::Request<Body>| {
            if let Some(header) = &header {
                request.headers_mut().insert(AUTHORIZATION, header.clone());
            }
            request
        });
    Ok(BoxCloneSyncService::new(authorised))
}

fn parse(url: &str) -> Result<Uri, Failed> {
    let unreadable = |why: &str| {
        Failed::new(FailureKind::Usage, format!("read the server address `{url}`: {why}"))
            .with_hint("a server is named as https://HOST:PORT, on this host also as http://HOST:PORT")
    };
    let uri = url.parse::<Uri>().map_err(|error| unreadable(&error.to_string()))?;
    match uri.scheme_str() {
        Some("http" | "https") if uri.host().is_some_and(|host| !host.is_empty()) => Ok(uri),
        _ => Err(unreadable("it does not begin with https:// or http://")),
    }
}

/// Without the brackets of an address of IPv6.
fn host_of(uri: &Uri) -> &str {
    uri.host().unwrap_or_default().trim_start_matches('[').trim_end_matches(']')
}

fn server_name(uri: &Uri) -> Result<ServerName<'static>, Failed> {
    ServerName::try_from(host_of(uri).to_owned())
        .map_err(|error| Failed::new(FailureKind::Usage, format!("read the server address `{uri}`: {error}")))
}

/// Nobody gets less than was asked for.
fn check_in_the_clear(address: &ServerAddress, uri: &Uri) -> Result<(), Failed> {
    let url = &address.url;
    let trusted = [&address.fingerprint, &address.ca_file, &address.certificate_file, &address.key_file];
    if trusted.iter().any(|named| !named.is_empty()) {
        let message = format!("connect to the server {url}: a certificate is named, and http:// has none");
        return Err(
            Failed::new(FailureKind::Usage, message).with_hint("name the server as https://HOST:PORT")
        );
    }
    let host = host_of(uri);
    let here = host == "localhost" || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback());
    if !here {
        let what = if address.token_file.is_empty() { "all" } else { "a token" };
        let message = format!("connect to the server {url}: {what} would go over the network in the clear");
        return Err(
            Failed::new(FailureKind::Refused, message).with_hint("name the server as https://HOST:PORT")
        );
    }
    Ok(())
}

fn tls_connector(address: &ServerAddress) -> Result<TlsConnector, Failed> {
    let failed = |what: String| {
        Failed::new(FailureKind::Usage, format!("connect to the server {}: {what}", address.url))
    };
    let provider = provider();
    let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(|error| failed(error.to_string()))?;
    let builder = match address.fingerprint.as_str() {
        "" => {
            let roots = roots(&address.ca_file)?;
            let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider).build();
            builder.with_webpki_verifier(verifier.map_err(|error| failed(error.to_string()))?)
        }
        _ if !address.ca_file.is_empty() => {
            return Err(
                failed("both a fingerprint and a CA file are named".to_owned()).with_hint("choose one")
            );
        }
        text => {
            let pinned = text.parse::<Fingerprint>().map_err(|error| failed(error.to_string()))?;
            builder.dangerous().with_custom_certificate_verifier(Arc::new(Pinned { pinned, provider }))
        }
    };
    let mut config = match (address.certificate_file.as_str(), address.key_file.as_str()) {
        ("", "") => builder.with_no_client_auth(),
        (certificate, key) if !certificate.is_empty() && !key.is_empty() => {
            let chain = certificates(Path::new(certificate))?;
            let key = private_key(Path::new(key))?;
            builder.with_client_auth_cert(chain, key).map_err(|error| failed(error.to_string()))?
        }
        _ => {
            return Err(failed(
                "a certificate of this client needs its key, and a key its certificate".to_owned(),
            ));
        }
    };
    config.alpn_protocols = vec![ALPN.to_vec()];
    Ok(TlsConnector::from(Arc::new(config)))
}

/// Who may vouch for a certificate: those of a PEM file, else those whom this host trusts.
pub fn roots(ca_file: &str) -> Result<RootCertStore, Failed> {
    let mut roots = RootCertStore::empty();
    let certificates = match ca_file {
        "" => rustls_native_certs::load_native_certs().certs,
        file => certificates(Path::new(file))?,
    };
    let (_, bad) = roots.add_parsable_certificates(certificates);
    if !ca_file.is_empty() && (bad > 0 || roots.is_empty()) {
        return Err(Failed::new(
            FailureKind::Usage,
            format!("read certificates {ca_file}: {bad} of them cannot be used"),
        ));
    }
    Ok(roots)
}

/// The certificates of a PEM file, at least one.
pub fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, Failed> {
    let failed =
        |why: String| Failed::new(FailureKind::Usage, format!("read certificates {}: {why}", path.display()));
    let read = CertificateDer::pem_file_iter(path).map_err(|error| failed(error.to_string()))?;
    let chain = read.collect::<Result<Vec<_>, _>>().map_err(|error| failed(error.to_string()))?;
    if chain.is_empty() { Err(failed("there is none in it".to_owned())) } else { Ok(chain) }
}

/// The first private key of a PEM file.
pub fn private_key(path: &Path) -> Result<PrivateKeyDer<'static>, Failed> {
    PrivateKeyDer::from_pem_file(path).map_err(|error| {
        Failed::new(FailureKind::Usage, format!("read private key {}: {error}", path.display()))
    })
}

/// What a handshake that failed means.
fn not_secure(error: &io::Error) -> Failed {
    let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
    match inner {
        Some(rustls::Error::Other(other)) if other.0.downcast_ref::<WrongCertificate>().is_some() => {
            Failed::new(FailureKind::Denied, other.0.to_string()).with_hint(
                "if it was changed on purpose, `thinbak-server fingerprint` on the server tells the new one; else somebody is in between",
            )
        }
        Some(rustls::Error::InvalidCertificate(why)) => {
            Failed::new(FailureKind::Denied, format!("its certificate is not trusted: {why}"))
                .with_hint("pin it with --fingerprint sha256:HEX, or name who vouches for it with --ca FILE")
        }
        Some(rustls::Error::InvalidMessage(_)) => {
            Failed::new(FailureKind::NotFound, "what answers there does not speak TLS")
                .with_hint("a server without TLS, on this host only, is named as http://HOST:PORT")
        }
        _ if error.kind() == io::ErrorKind::UnexpectedEof => {
            Failed::new(FailureKind::NotFound, "the connection was closed in the TLS handshake")
                .with_hint("a server without TLS, on this host only, is named as http://HOST:PORT")
        }
        _ => Failed::new(FailureKind::NotFound, format!("the TLS handshake failed: {error}")),
    }
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
mod tests {
    use super::*;

    async fn refused(address: ServerAddress) -> Failed {
        connect(&address).await.err().unwrap()
    }

    #[tokio::test]
    async fn what_would_be_less_safe_than_asked_for_is_refused() {
        let url = |url: &str| ServerAddress { url: url.to_owned(), ..ServerAddress::default() };
        let dir = tempfile::tempdir().unwrap();
        let token = dir.path().join("token");
        std::fs::write(&token, Token::draw().text().as_str()).unwrap();
        let token_file = token.display().to_string();
        let fingerprint = Fingerprint::of(b"x").to_string();
        for (address, code) in [
            (url("ftp://127.0.0.1:1"), 2),
            (url("127.0.0.1:1"), 2),
            (ServerAddress { fingerprint: fingerprint.clone(), ..url("http://127.0.0.1:1") }, 2),
            (ServerAddress { token_file: token_file.clone(), ..url("http://192.0.2.1:1") }, 5),
            (url("http://192.0.2.1:1"), 5),
            (ServerAddress { token_file: "/nowhere".to_owned(), ..url("https://127.0.0.1:1") }, 2),
            (ServerAddress { fingerprint: "sha256:12".to_owned(), ..url("https://127.0.0.1:1") }, 2),
            (ServerAddress { key_file: token_file, ..url("https://127.0.0.1:1") }, 2),
            (ServerAddress { fingerprint, ca_file: "/x".to_owned(), ..url("https://127.0.0.1:1") }, 2),
        ] {
            let failed = refused(address.clone()).await;
            assert_eq!(failed.exit_code(), code, "{address:?}: {failed:?}");
        }
    }
}
