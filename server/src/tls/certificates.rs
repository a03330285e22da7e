//! The server's certificate: made, read, and read again.

use std::{
    fs::{self, OpenOptions},
    io::{self, Write as _},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, UdpSocket},
    os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime},
};

use parking_lot::{Mutex, RwLock};
use rcgen::{CertificateParams, DnType, KeyPair};
use rustls::{ServerConfig, server::WebPkiClientVerifier};
use thinbak_proto::{
    Failed, FailureKind,
    remote::{ALPN, Fingerprint, certificates, private_key, provider, roots},
};

/// How often the files are looked at.
const LOOK_EVERY: Duration = Duration::from_secs(2);

/// Where the certificate is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsFiles {
    /// The certificate and those that vouch for it, PEM.
    pub certificate: PathBuf,
    /// Its private key, PEM.
    pub key: PathBuf,
    /// Of those who vouch for clients, PEM; with it, clients without a certificate are turned away.
    pub client_ca: Option<PathBuf>,
}

impl TlsFiles {
    /// Where `init` puts them in a repository's directory.
    #[must_use]
    pub fn of_repository(dir: &Path) -> Self {
        let tls = dir.join("tls");
        Self { certificate: tls.join("certificate.pem"), key: tls.join("key.pem"), client_ca: None }
    }

    /// Of the certificate.
    pub fn fingerprint(&self) -> Result<Fingerprint, TlsError> {
        let chain = certificates(&self.certificate).map_err(TlsError::Unreadable)?;
        chain.first().map(|first| Fingerprint::of(first)).ok_or(TlsError::Empty)
    }
}

/// Why there is no TLS.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file that cannot be understood.
    #[error("{0}")]
    Unreadable(Failed),
    /// A file without a certificate.
    #[error("there is no certificate")]
    Empty,
    /// Certificate and key cannot be used.
    #[error("cannot serve with certificate {}: {reason}", certificate.display())]
    Unusable {
        /// The certificate's file.
        certificate: PathBuf,
        /// Why not.
        reason: String,
    },
    /// A certificate cannot be made.
    #[error("cannot make a certificate: {0}")]
    Make(#[from] rcgen::Error),
    /// A file cannot be written.
    #[error("cannot write {}: {source}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
}

impl From<TlsError> for Failed {
    fn from(error: TlsError) -> Self {
        match error {
            TlsError::Unreadable(failed) => failed.with_hint(
                "`thinbak-server fingerprint --make` makes a certificate where a repository has none",
            ),
            error => Failed::new(FailureKind::Failed, error.to_string()),
        }
    }
}

/// The certificate that new connections get.
#[derive(Debug)]
pub struct Certificates {
    files: TlsFiles,
    pub(super) current: RwLock<Arc<ServerConfig>>,
    seen: Mutex<Seen>,
}

type Seen = Vec<Option<(SystemTime, u64)>>;

impl Certificates {
    /// Reads the files.
    pub fn load(files: TlsFiles) -> Result<Arc<Self>, TlsError> {
        let seen = Mutex::new(look(&files));
        let current = RwLock::new(Arc::new(read(&files)?));
        Ok(Arc::new(Self { files, current, seen }))
    }

    /// Reads the files again. Connections that are there go on with what they have; where the files cannot be used,
    /// all stays as it was.
    pub fn reload(&self) -> Result<Fingerprint, TlsError> {
        *self.seen.lock() = look(&self.files);
        let config = read(&self.files)?;
        *self.current.write() = Arc::new(config);
        self.files.fingerprint()
    }

    /// Of the certificate as its file is now.
    pub fn fingerprint(&self) -> Result<Fingerprint, TlsError> {
        self.files.fingerprint()
    }

    /// What the next connection gets.
    pub(crate) fn current(&self) -> Arc<ServerConfig> {
        Arc::clone(&self.current.read())
    }

    /// Reads the files again whenever they have changed, or `asked` says so; never ends.
    pub async fn keep_current(&self, mut asked: impl AsyncFnMut()) {
        loop {
            let told = tokio::select! {
                () = asked() => true,
                () = tokio::time::sleep(LOOK_EVERY) => false,
            };
            if !told && *self.seen.lock() == look(&self.files) {
                continue;
            }
            match self.reload() {
                Ok(fingerprint) => {
                    tracing::info!(%fingerprint, "new connections get the certificate as it is now")
                }
                Err(error) => tracing::error!(%error, "the certificate stays as it was"),
            }
        }
    }
}

fn look(files: &TlsFiles) -> Seen {
    let look =
        |path: &PathBuf| fs::metadata(path).and_then(|found| Ok((found.modified()?, found.len()))).ok();
    [Some(&files.certificate), Some(&files.key), files.client_ca.as_ref()]
        .into_iter()
        .flatten()
        .map(look)
        .collect()
}

fn read(files: &TlsFiles) -> Result<ServerConfig, TlsError> {
    let unusable = |reason: String| TlsError::Unusable { certificate: files.certificate.clone(), reason };
    let chain = certificates(&files.certificate).map_err(TlsError::Unreadable)?;
    let key = private_key(&files.key).map_err(TlsError::Unreadable)?;
    if fs::metadata(&files.key).is_ok_and(|found| found.permissions().mode() & 0o077 != 0) {
        tracing::warn!(key = %files.key.display(), "others than the owner may read the private key");
    }
    let builder = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(|error| unusable(error.to_string()))?;
    let builder = match &files.client_ca {
        None => builder.with_no_client_auth(),
        Some(path) => {
            let roots = roots(&path.display().to_string()).map_err(TlsError::Unreadable)?;
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider()).build();
            builder.with_client_cert_verifier(verifier.map_err(|error| unusable(error.to_string()))?)
        }
    };
    let mut config = builder.with_single_cert(chain, key).map_err(|error| unusable(error.to_string()))?;
    config.alpn_protocols = vec![ALPN.to_vec()];
    Ok(config)
}

/// Makes a key and a certificate signed by it, for this host's names and addresses and `names`. The key is its
/// owner's alone. An existing file is never written over; the certificate is written last.
pub fn make_certificate(files: &TlsFiles, names: &[String]) -> Result<Fingerprint, TlsError> {
    let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
    let mut all = vec![host.clone(), "localhost".to_owned()];
    all.extend(
        [IpAddr::from(Ipv4Addr::LOCALHOST), IpAddr::from(Ipv6Addr::LOCALHOST)].map(|ip| ip.to_string()),
    );
    all.extend(outward_addresses().map(|ip| ip.to_string()));
    all.extend_from_slice(names);
    all.retain(|name| !name.is_empty());
    all.sort_unstable();
    all.dedup();
    let key = KeyPair::generate()?;
    let mut params = CertificateParams::new(all)?;
    params.distinguished_name.push(DnType::CommonName, host);
    let certificate = params.self_signed(&key)?;
    if let Some(dir) = files.certificate.parent() {
        fs::create_dir_all(dir).map_err(|source| TlsError::Write { path: dir.to_owned(), source })?;
    }
    write(&files.key, 0o600, &zeroize::Zeroizing::new(key.serialize_pem()))?;
    write(&files.certificate, 0o644, &certificate.pem())?;
    Ok(Fingerprint::of(certificate.der()))
}

fn write(path: &Path, mode: u32, text: &str) -> Result<(), TlsError> {
    let written =
        OpenOptions::new().write(true).create_new(true).mode(mode).open(path).and_then(|mut file| {
            file.write_all(text.as_bytes())?;
            file.sync_all()
        });
    written.map_err(|source| TlsError::Write { path: path.to_owned(), source })
}

/// The addresses from which this host would speak to others. Nothing is sent to find out.
fn outward_addresses() -> impl Iterator<Item = IpAddr> {
    let ways = [("0.0.0.0:0", "192.0.2.1:9"), ("[::]:0", "[2001:db8::1]:9")];
    ways.into_iter().filter_map(|(from, to)| {
        let socket = UdpSocket::bind(from).ok()?;
        socket.connect(to).ok()?;
        Some(socket.local_addr().ok()?.ip())
    })
}
