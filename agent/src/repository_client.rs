//! Clients of a repository, wherever it is: a server at a URL, or a directory opened in this process.

mod hold;

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    sync::{Arc, Weak},
    time::Duration,
};

use thinbak_proto::{
    Failed, FailureKind, MAX_MESSAGE_LEN,
    v1::{
        InfoRequest, RepositoryAddress, ServerAddress, content_client::ContentClient,
        ingest_client::IngestClient, repository_address::Address, repository_client::RepositoryClient,
    },
};
use thinbak_server::Repository;
use tokio::sync::Mutex;

pub use hold::Held;

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
        let Some(repository) = self.embedded else { return };
        // Whoever opens it next waits until it is closed.
        let _alone = OPEN.lock().await;
        if let Some(last) = Arc::into_inner(repository) {
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
            connect_to(&ServerAddress { url: url.clone(), ..Default::default() }).await
        }
        Some(Address::Server(server)) => connect_to(server).await,
        Some(Address::Directory(directory)) => open(Path::new(directory)).await,
    }
}

async fn connect_to(server: &ServerAddress) -> Result<RepositoryConnection, Failed> {
    let channel = channel::over_network(server).await.map_err(|failed| match failed.hint {
        Some(_) => failed,
        None => failed.with_hint("is thinbak-server running there?"),
    })?;
    let connection = RepositoryConnection { channel, embedded: None };
    introduce(&server.url, &connection).await?;
    Ok(connection)
}

/// How long a server may take for its first answer.
const FIRST_ANSWER: Duration = Duration::from_secs(20);

/// Finds out whether it is a server of ours that was connected to.
async fn introduce(url: &str, connection: &RepositoryConnection) -> Result<(), Failed> {
    let mut client = connection.repository();
    let why = match tokio::time::timeout(FIRST_ANSWER, client.info(InfoRequest {})).await {
        Ok(Ok(_)) => return Ok(()),
        Ok(Err(status)) if !status.details().is_empty() => return Err(status.into()),
        Ok(Err(status)) => Failed::from(status).message,
        Err(_) => format!("no answer in {} s", FIRST_ANSWER.as_secs()),
    };
    let message = format!("connect to the server {url}: what is there does not answer as one: {why}");
    let hint = match url.strip_prefix("http://") {
        Some(place) => {
            format!("is thinbak-server running there? One that serves TLS is named as https://{place}")
        }
        None => "is thinbak-server running there?".to_owned(),
    };
    Err(Failed::new(FailureKind::NotFound, message).with_hint(hint))
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

#[cfg(test)]
mod tests {
    use thinbak_server::InitOptions;

    use super::*;

    #[tokio::test]
    async fn what_answers_but_is_no_server_of_ours_is_called_that() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let _ = tokio::io::AsyncWriteExt::write_all(&mut stream, b"HTTP/1.1 400 No\r\n\r\n").await;
            }
        });
        let failed = connect(&RepositoryAddress { address: Some(Address::Url(url.clone())) }).await;
        let failed = failed.err().unwrap();
        assert_eq!(failed.exit_code(), 10);
        assert!(failed.message.contains(&url) && failed.hint.is_some(), "{failed:?}");
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
    async fn jobs_that_open_and_close_one_repository_do_not_lock_each_other_out() {
        let dir = tempfile::tempdir().unwrap();
        let place = dir.path().join("repo");
        Repository::init(&place, InitOptions::default()).await.unwrap();
        let directory = place.to_string_lossy().into_owned();
        let address = RepositoryAddress { address: Some(Address::Directory(directory)) };
        let jobs = (0..6).map(|_| {
            let address = address.clone();
            tokio::spawn(async move {
                for _ in 0..15 {
                    let connection = connect(&address).await?;
                    connection.repository().info(InfoRequest {}).await?;
                    connection.close().await;
                }
                Ok::<_, Failed>(())
            })
        });
        for job in jobs.collect::<Vec<_>>() {
            job.await.unwrap().unwrap();
        }
    }
}
