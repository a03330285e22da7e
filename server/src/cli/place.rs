//! Calling the services of a repository, wherever it is open.

use std::path::PathBuf;

use thinbak_proto::{Failed, FailureKind};
use tonic::transport::{Channel, Endpoint};

use super::{Config, arguments::At, place};

/// Where to call.
pub(super) enum Address {
    /// A server that has the repository open.
    Server(Channel),
    /// A repository to be opened in this process.
    Directory(PathBuf),
}

impl At {
    /// Connects to the server if one is named.
    pub(super) async fn address(self, config: &Config) -> Result<Address, Failed> {
        match self.server {
            Some(url) => {
                let endpoint = Endpoint::from_shared(url.clone()).map_err(|error| {
                    Failed::new(
                        FailureKind::Usage,
                        format!("{url:?} is no URL like http://127.0.0.1:7440: {error}"),
                    )
                })?;
                let channel = endpoint.connect().await.map_err(|error| {
                    let mut cause: &dyn std::error::Error = &error;
                    while let Some(deeper) = cause.source() {
                        cause = deeper;
                    }
                    Failed::new(FailureKind::NotFound, format!("cannot reach the server at {url}: {cause}"))
                        .with_hint("`thinbak-server run` starts one")
                })?;
                Ok(Address::Server(channel))
            }
            None => Ok(Address::Directory(place(self.repo, config)?)),
        }
    }
}
