//! Calling the services of a repository, wherever it is open.

use std::path::PathBuf;

use thinbak_proto::{
    Failed, FailureKind,
    remote::{RemoteChannel, connect},
    v1::ServerAddress,
};

use super::{Config, arguments::At, place};

/// Where to call.
pub(super) enum Address {
    /// A server that has the repository open.
    Server(RemoteChannel),
    /// A repository to be opened in this process.
    Directory(PathBuf),
}

impl At {
    /// Connects to the server if one is named.
    pub(super) async fn address(self, config: &Config) -> Result<Address, Failed> {
        let Some(url) = self.server else { return Ok(Address::Directory(place(self.repo, config)?)) };
        if self.fingerprint.as_deref() == Some("") {
            let message = format!("trust the server {url}: the fingerprint that is named is empty");
            return Err(Failed::new(FailureKind::Usage, message));
        }
        let path = |path: Option<PathBuf>| path.map(|path| path.display().to_string()).unwrap_or_default();
        let server = ServerAddress {
            url,
            fingerprint: self.fingerprint.unwrap_or_default(),
            ca_file: path(self.ca),
            token_file: path(self.token_file),
            certificate_file: path(self.client_cert),
            key_file: path(self.client_key),
        };
        let channel = connect(&server).await.map_err(|failed| match failed.hint {
            Some(_) => failed,
            None => failed.with_hint("`thinbak-server run` starts one"),
        })?;
        Ok(Address::Server(channel))
    }
}
