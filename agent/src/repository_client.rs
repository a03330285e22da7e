//! Clients of a repository, wherever it is: a server at a URL, or a directory opened in this process.

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    sync::{Arc, Weak},
};

use thinbak_proto::{
    Failed, FailureKind, MAX_MESSAGE_LEN,
    v1::{
        RepositoryAddress, content_client::ContentClient, ingest_client::IngestClient,
        repository_address::Address, repository_client::RepositoryClient,
    },
};
use thinbak_server::Repository;
use tokio::sync::Mutex;

use crate::channel::{self, BoxedChannel};

/// A repository and the clients of its services. Cheap to clone.
#[derive(Clone)]
pub struct RepositoryConnection {
    channel: BoxedChannel,
    embedded: Option<Arc<Repository>>,
}

impl RepositoryConnection {
    /// Volumes and generations.
    #[must_use]
    pub fn repository(&self) -> RepositoryClient<BoxedChannel> {
        RepositoryClient::new(self.channel.clone())
            .max_decoding_message_size(MAX_MESSAGE_LEN)
            .max_encoding_message_size(MAX_MESSAGE_LEN)
    }

    /// Adding generations.
    #[must_use]
    pub fn ingest(&self) -> IngestClient<BoxedChannel> {
        IngestClient::new(self.channel.clone())
            .max_decoding_message_size(MAX_MESSAGE_LEN)
            .max_encoding_message_size(MAX_MESSAGE_LEN)
    }

    /// Reading generations.
    #[must_use]
    pub fn content(&self) -> ContentClient<BoxedChannel> {
        ContentClient::new(self.channel.clone())
            .max_decoding_message_size(MAX_MESSAGE_LEN)
            .max_encoding_message_size(MAX_MESSAGE_LEN)
    }

    /// Ends the use of the repository. An embedded one is closed when its last user has gone: its pack is
    /// sealed and its lock given up. Not calling this loses nothing; the next open does the work.
    pub async fn close(self) {
        drop(self.channel);
        if let Some(repository) = self.embedded
            && let Some(last) = Arc::into_inner(repository)
        {
            last.close().await;
        }
    }
}

/// The embedded repositories that are open in this process, so that two jobs can share one.
static OPEN: Mutex<Option<HashMap<PathBuf, Weak<Repository>>>> = Mutex::const_new(None);

/// Connects to the repository that `address` names. [`FailureKind::NotFound`] where there is none,
/// [`FailureKind::Busy`] where another process has it open.
pub async fn connect(address: &RepositoryAddress) -> Result<RepositoryConnection, Failed> {
    match &address.address {
        None => Err(Failed::new(FailureKind::Usage, "no repository is named")
            .with_hint("name one with --repo DIR or --server URL")),
        Some(Address::Url(url)) => {
            let channel = channel::over_tcp(url).await.map_err(|failed| match failed.hint {
                Some(_) => failed,
                None => failed.with_hint("is thinbak-server running there?"),
            })?;
            Ok(RepositoryConnection { channel, embedded: None })
        }
        Some(Address::Directory(directory)) => open(Path::new(directory)).await,
    }
}

async fn open(directory: &Path) -> Result<RepositoryConnection, Failed> {
    let place = directory.canonicalize().map_err(|error| {
        Failed::new(FailureKind::NotFound, format!("open repository {}: {error}", directory.display()))
            .with_hint(format!("make one with: thinbak-server init --repo {}", directory.display()))
    })?;
    let mut open = OPEN.lock().await;
    let open = open.get_or_insert_with(HashMap::new);
    open.retain(|_, repository| repository.strong_count() > 0);
    let repository = match open.get(&place).and_then(Weak::upgrade) {
        Some(repository) => repository,
        None => {
            let repository = Repository::open(&place).await.map_err(Failed::from)?;
            open.insert(place, Arc::downgrade(&repository));
            repository
        }
    };
    let channel = channel::in_process(thinbak_server::routes(Arc::clone(&repository)));
    Ok(RepositoryConnection { channel, embedded: Some(repository) })
}
