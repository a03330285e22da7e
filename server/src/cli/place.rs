//! Calling the services of a repository, wherever it is open.

use std::path::Path;

use thinbak_proto::{Failed, FailureKind};
use tonic::transport::{Channel, Endpoint};

use super::arguments::Place;

/// Where to call.
pub(super) enum Address<'a> {
    /// A server that has the repository open.
    Server(Channel),
    /// A repository to be opened in this process.
    Directory(&'a Path),
}

impl Place {
    /// Connects to the server if one is named.
    pub(super) async fn address(&self) -> Result<Address<'_>, Failed> {
        match (&self.server, &self.repo) {
            (Some(url), _) => {
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
            (None, Some(dir)) => Ok(Address::Directory(dir)),
            (None, None) => Err(Failed::new(FailureKind::Usage, "neither --repo nor --server is given")),
        }
    }
}
