//! A repository that somebody uses, and what its catalogue says.

use std::{path::Path, time::Duration};

use sqlx::{Connection as _, SqliteConnection, sqlite::SqliteConnectOptions};
use thinbak_proto::{Failed, v1};
use uuid::Uuid;

use super::super::ONLY_IN_THE_CATALOGUE;
use crate::{
    catalogue::{CATALOGUE_NAME, GenerationKey},
    ingest::tests::client::{CHUNK, Place, full, named, new, number},
    retention::forget_expired,
};

/// Of a test volume: two levels of map nodes.
pub(super) const CHUNKS: u64 = 300;

impl Place {
    /// Backs up a volume that has a chunk of content `seed` at `at`.
    pub(crate) async fn back_up_chunk(
        &self,
        (uuid, name): (Uuid, &str),
        (at, seed): (u64, u64),
        parent: Option<&v1::Generation>,
    ) -> Result<v1::Generation, Failed> {
        let begin = v1::BackupBegin {
            adopt: true,
            parent: parent.map_or(0, |parent| parent.number),
            parent_root: parent.map(|parent| parent.root.clone()).unwrap_or_default(),
            point: Some(v1::Point { device_id: seed, ..Default::default() }),
            ..full(uuid, name, CHUNKS * CHUNK)
        };
        self.back_up(begin, vec![new(at, seed)]).await
    }

    pub(super) async fn delete(&self, generation: &v1::Generation) -> Result<(), Failed> {
        let name = self.name_of(generation).await;
        let (volume, selector) = (named(&name), number(generation.number));
        self.generations().delete_generation(v1::DeleteGenerationRequest { volume, selector }).await?;
        Ok(())
    }

    pub(super) async fn protect(&self, generation: &v1::Generation, protected: bool) -> Result<(), Failed> {
        let name = self.name_of(generation).await;
        let (volume, selector) = (named(&name), number(generation.number));
        let request = v1::ProtectGenerationRequest { volume, selector, protected };
        self.generations().protect_generation(request).await?;
        Ok(())
    }

    pub(super) async fn undelete(&self, generation: &v1::Generation) -> Result<(), Failed> {
        let name = self.name_of(generation).await;
        let (volume, number) = (named(&name), generation.number);
        self.generations().undelete_generation(v1::UndeleteGenerationRequest { volume, number }).await?;
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
        let volumes = self.volumes().await;
        volumes.into_iter().find(|volume| volume.uuid == generation.volume_uuid).unwrap().name
    }

    pub(super) async fn visible(&self) -> Vec<(String, u64)> {
        let request = v1::ListGenerationsRequest::default();
        let listed = self.generations().list_generations(request).await.unwrap().into_inner().generations;
        listed.into_iter().map(|generation| (generation.volume_name, generation.number)).collect()
    }
}

pub(super) fn key(volume: Uuid, number: u64) -> GenerationKey {
    GenerationKey { volume, number }
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
