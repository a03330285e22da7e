//! A repository that somebody uses, and what its catalogue says.

use std::{fs, path::Path, sync::Arc, time::Duration};

use sqlx::{Connection as _, SqliteConnection, sqlite::SqliteConnectOptions};
use tempfile::TempDir;
use thinbak_proto::{CODEC_PLAIN, ChunkId, Failed, v1};
use tokio_stream::iter;
use tonic::service::Routes;
use uuid::Uuid;
use v1::{
    backup_request::Message as Asked, backup_response::Message as Answer, ingest_client::IngestClient,
    repository_client::RepositoryClient,
};

use super::super::ONLY_IN_THE_CATALOGUE;
use crate::{
    InitOptions, Repository,
    catalogue::{CATALOGUE_NAME, GenerationKey},
    retention::forget_expired,
    routes,
};

pub(super) const CHUNK: u64 = 4096;
/// Of a test volume: two levels of map nodes.
pub(super) const CHUNKS: u64 = 300;

pub(super) struct World {
    pub(super) dir: TempDir,
    pub(super) repository: Arc<Repository>,
}

impl World {
    pub(super) async fn new() -> Self {
        let dir = TempDir::new().unwrap();
        Repository::init(dir.path(), InitOptions { chunk_bytes: CHUNK as u32 }).await.unwrap();
        Self::open(dir).await
    }

    pub(super) async fn open(dir: TempDir) -> Self {
        let repository = Repository::open(dir.path()).await.unwrap();
        Self { dir, repository }
    }

    /// The directory, with nothing in it open.
    pub(super) async fn close(self) -> TempDir {
        self.repository.close().await;
        self.dir
    }

    pub(super) fn client(&self) -> RepositoryClient<Routes> {
        RepositoryClient::new(routes(Arc::clone(&self.repository)))
    }

    /// Backs up a volume that has chunks of content `seed` at `at`.
    pub(super) async fn back_up(
        &self,
        (uuid, name): (Uuid, &str),
        (at, seed): (u64, u64),
        parent: Option<&v1::Generation>,
    ) -> Result<v1::Generation, Failed> {
        let begin = v1::BackupBegin {
            volume_uuid: uuid.to_string(),
            volume_name: name.into(),
            adopt: true,
            size_bytes: CHUNKS * CHUNK,
            parent: parent.map_or(0, |parent| parent.number),
            parent_root: parent.map(|parent| parent.root.clone()).unwrap_or_default(),
            point: Some(v1::Point { device_id: seed, ..Default::default() }),
            ..Default::default()
        };
        let plain = [&seed.to_le_bytes()[..], &[1; CHUNK as usize - 8]].concat();
        let new = v1::NewChunk {
            id: ChunkId::of(&plain).to_bytes(),
            codec: CODEC_PLAIN,
            plain_len: CHUNK as u32,
            stored: plain.into(),
        };
        let items = vec![v1::MapItem { chunk: at, entry: Some(v1::map_item::Entry::New(new)) }];
        let asked = [
            Asked::Begin(begin),
            Asked::Batch(v1::BackupBatch { items }),
            Asked::Commit(v1::BackupCommit {}),
        ];
        let requests = asked.map(|message| v1::BackupRequest { message: Some(message) });
        let mut client = IngestClient::new(routes(Arc::clone(&self.repository)));
        let mut answers = client.backup(iter(requests)).await?.into_inner();
        let mut committed = None;
        while let Some(answer) = answers.message().await? {
            if let Some(Answer::Committed(generation)) = answer.message {
                committed = Some(generation);
            }
        }
        Ok(committed.unwrap())
    }

    pub(super) async fn delete(&self, generation: &v1::Generation) -> Result<(), Failed> {
        let name = self.name_of(generation).await;
        let (volume, selector) = (Some(named(&name)), Some(number(generation.number)));
        self.client().delete_generation(v1::DeleteGenerationRequest { volume, selector }).await?;
        Ok(())
    }

    pub(super) async fn protect(&self, generation: &v1::Generation, protected: bool) -> Result<(), Failed> {
        let name = self.name_of(generation).await;
        let (volume, selector) = (Some(named(&name)), Some(number(generation.number)));
        let request = v1::ProtectGenerationRequest { volume, selector, protected };
        self.client().protect_generation(request).await?;
        Ok(())
    }

    pub(super) async fn undelete(&self, generation: &v1::Generation) -> Result<(), Failed> {
        let name = self.name_of(generation).await;
        let (volume, number) = (Some(named(&name)), generation.number);
        self.client().undelete_generation(v1::UndeleteGenerationRequest { volume, number }).await?;
        Ok(())
    }

    /// Gives up everything that is deleted.
    pub(super) async fn forget(&self) -> u64 {
        let forgotten = {
            self.repository.set_grace(Duration::ZERO).await.unwrap();
            forget_expired(&self.repository, self.repository.now_ms(), None).await.unwrap()
        };
        self.repository.set_grace(Duration::from_secs(7 * 86_400)).await.unwrap();
        forgotten
    }

    /// What its volume is called now.
    async fn name_of(&self, generation: &v1::Generation) -> String {
        let volumes =
            self.client().list_volumes(v1::ListVolumesRequest {}).await.unwrap().into_inner().volumes;
        volumes.into_iter().find(|volume| volume.uuid == generation.volume_uuid).unwrap().name
    }

    pub(super) async fn visible(&self) -> Vec<(String, u64)> {
        let request = v1::ListGenerationsRequest::default();
        let listed = self.client().list_generations(request).await.unwrap().into_inner().generations;
        listed.into_iter().map(|generation| (generation.volume_name, generation.number)).collect()
    }
}

pub(super) fn key(volume: Uuid, number: u64) -> GenerationKey {
    GenerationKey { volume, number }
}

pub(super) fn named(name: &str) -> v1::VolumeName {
    v1::VolumeName { name: name.into(), host: String::new() }
}

pub(super) fn number(number: u64) -> v1::GenerationSelector {
    v1::GenerationSelector { which: Some(v1::generation_selector::Which::Number(number)) }
}

/// What a kill would leave of a directory now.
pub(super) fn copy_of(dir: &Path) -> TempDir {
    fn copy(from: &Path, to: &Path) {
        for entry in fs::read_dir(from).unwrap() {
            let entry = entry.unwrap();
            let target = to.join(entry.file_name());
            if entry.file_type().unwrap().is_dir() {
                fs::create_dir(&target).unwrap();
                copy(&entry.path(), &target);
            } else {
                fs::copy(entry.path(), target).unwrap();
            }
        }
    }
    let after = TempDir::new().unwrap();
    copy(dir, after.path());
    after
}

/// The file, without our code.
pub(super) async fn open_raw(dir: &Path) -> SqliteConnection {
    let options = SqliteConnectOptions::new().filename(dir.join(CATALOGUE_NAME));
    SqliteConnection::connect_with(&options).await.unwrap()
}

/// Every row of the tables that are made from packs, as text, without what is only in the catalogue.
pub(super) async fn rows(dir: &Path) -> Vec<String> {
    let mut catalogue = open_raw(dir).await;
    let mut rows = Vec::new();
    for table in ["repository", "volumes", "generations"] {
        let columns: Vec<String> = sqlx::query_scalar("SELECT name FROM pragma_table_info(?) ORDER BY cid")
            .bind(table)
            .fetch_all(&mut catalogue)
            .await
            .unwrap();
        let only = |column: &str| {
            let place = format!("{table}.{column}");
            // Of names it is only what happens while the clock is wrong.
            place != "volumes.name" && ONLY_IN_THE_CATALOGUE.iter().any(|only| only.place == place)
        };
        let quoted: Vec<String> = columns
            .iter()
            .filter(|column| !only(column))
            .map(|column| format!("'{column}=' || quote({column})"))
            .collect();
        assert!(!quoted.is_empty(), "{table}");
        let query = format!("SELECT '{table} ' || {} FROM {table}", quoted.join(" || ' ' || "));
        let mut found: Vec<String> =
            sqlx::query_scalar(sqlx::AssertSqlSafe(query)).fetch_all(&mut catalogue).await.unwrap();
        found.sort_unstable();
        rows.append(&mut found);
    }
    catalogue.close().await.unwrap();
    rows
}
