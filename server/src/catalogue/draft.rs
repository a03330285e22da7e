//! Filling a catalogue with what the packs say. All of it is one transaction.

use sqlx::{Row as _, Sqlite, Transaction};
use thinbak_proto::{ManifestId, v1};
use uuid::Uuid;

use super::{
    Catalogue, CatalogueError,
    rows::{self, number, signed, small, unsigned},
};

/// A volume as the catalogue has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct VolumeRow {
    pub(crate) uuid: Uuid,
    pub(crate) name: String,
    /// Number of its next generation.
    pub(crate) next_number: u64,
}

/// What the catalogue says of a generation, as far as a later record in a pack could change it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct RowState {
    pub(crate) volume: Uuid,
    pub(crate) volume_name: String,
    pub(crate) number: u64,
    pub(crate) revision: u64,
    pub(crate) root: Vec<u8>,
    pub(crate) size_bytes: u64,
    pub(crate) chunk_bytes: u32,
    pub(crate) deleted_at_ms: Option<u64>,
}

/// A tombstone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Grave {
    /// It ends all revisions up to this one.
    pub(crate) revision: u64,
    /// Unix time in milliseconds.
    pub(crate) deleted_at_ms: u64,
    pub(crate) tombstone: ManifestId,
}

/// A catalogue being filled.
pub(crate) struct Draft {
    transaction: Transaction<'static, Sqlite>,
}

const STATE_COLUMNS: &str =
    "SELECT g.volume_uuid, v.name, g.number, g.revision, g.root, g.size_bytes, g.chunk_bytes,
         g.deleted_at_ms
     FROM generations g JOIN volumes v ON v.uuid = g.volume_uuid";

impl Catalogue {
    pub(crate) async fn draft(&self) -> Result<Draft, CatalogueError> {
        Ok(Draft { transaction: self.pool.begin_with("BEGIN IMMEDIATE").await? })
    }
}

impl Draft {
    /// All volumes, in no order.
    pub(crate) async fn volumes(&mut self) -> Result<Vec<VolumeRow>, CatalogueError> {
        let rows = sqlx::query("SELECT uuid, name, next_number FROM volumes")
            .fetch_all(&mut *self.transaction)
            .await?;
        rows.iter()
            .map(|row| {
                Ok(VolumeRow {
                    uuid: uuid_of(&row.try_get::<String, _>("uuid")?)?,
                    name: row.try_get("name")?,
                    next_number: unsigned(row.try_get("next_number")?)?,
                })
            })
            .collect()
    }

    /// Makes volumes have these names and next numbers. No name may be given twice, nor belong to a volume that
    /// is not among them.
    pub(crate) async fn set_volumes(&mut self, volumes: &[VolumeRow]) -> Result<(), CatalogueError> {
        // In two steps, for names may go round in a circle. Names have no control characters.
        for volume in volumes {
            sqlx::query(
                "INSERT INTO volumes (uuid, name, next_number) VALUES (?1, char(1) || ?1, ?2)
                 ON CONFLICT (uuid) DO UPDATE SET name = excluded.name, next_number = excluded.next_number",
            )
            .bind(volume.uuid.to_string())
            .bind(signed(volume.next_number)?)
            .execute(&mut *self.transaction)
            .await?;
        }
        for volume in volumes {
            sqlx::query("UPDATE volumes SET name = ?2 WHERE uuid = ?1")
                .bind(volume.uuid.to_string())
                .bind(&volume.name)
                .execute(&mut *self.transaction)
                .await?;
        }
        Ok(())
    }

    /// What the catalogue says of one generation.
    pub(crate) async fn state(
        &mut self,
        volume: Uuid,
        number: u64,
    ) -> Result<Option<RowState>, CatalogueError> {
        let row = sqlx::query(sqlx::AssertSqlSafe(format!(
            "{STATE_COLUMNS} WHERE g.volume_uuid = ? AND g.number = ?"
        )))
        .bind(volume.to_string())
        .bind(signed(number)?)
        .fetch_optional(&mut *self.transaction)
        .await?;
        row.as_ref().map(state_of).transpose()
    }

    /// What it says of `limit` generations after `last`, by volume uuid and number.
    pub(crate) async fn states_after(
        &mut self,
        last: Option<(Uuid, u64)>,
        limit: u32,
    ) -> Result<Vec<RowState>, CatalogueError> {
        let (volume, number) = match last {
            Some((volume, number)) => (volume.to_string(), signed(number)?),
            None => (String::new(), 0),
        };
        let rows = sqlx::query(sqlx::AssertSqlSafe(format!(
            "{STATE_COLUMNS} WHERE (g.volume_uuid, g.number) > (?, ?) ORDER BY g.volume_uuid, g.number LIMIT ?"
        )))
        .bind(volume)
        .bind(number)
        .bind(limit)
        .fetch_all(&mut *self.transaction)
        .await?;
        rows.iter().map(state_of).collect()
    }

    /// Says of a generation what a manifest says, and the tombstone that ends it, if one does. Its volume is there.
    pub(crate) async fn put(
        &mut self,
        generation: &v1::Generation,
        revision: u64,
        manifest: ManifestId,
        grave: Option<Grave>,
    ) -> Result<(), CatalogueError> {
        self.remove(uuid_of(&generation.volume_uuid)?, generation.number).await?;
        let state = rows::State {
            revision: grave.map_or(revision, |grave| grave.revision.max(revision)),
            manifest,
            deleted: grave.map(|grave| (grave.deleted_at_ms, grave.tombstone)),
        };
        rows::insert(&mut self.transaction, generation, state).await
    }

    /// Marks a generation as deleted.
    pub(crate) async fn bury(
        &mut self,
        volume: Uuid,
        number: u64,
        grave: Grave,
    ) -> Result<(), CatalogueError> {
        sqlx::query(
            "UPDATE generations SET deleted_at_ms = ?3, tombstone = ?4, revision = max(revision, ?5)
             WHERE volume_uuid = ?1 AND number = ?2",
        )
        .bind(volume.to_string())
        .bind(signed(number)?)
        .bind(signed(grave.deleted_at_ms)?)
        .bind(grave.tombstone.as_bytes().as_slice())
        .bind(signed(grave.revision)?)
        .execute(&mut *self.transaction)
        .await?;
        Ok(())
    }

    /// Forgets a generation.
    pub(crate) async fn remove(&mut self, volume: Uuid, number: u64) -> Result<(), CatalogueError> {
        sqlx::query("DELETE FROM generations WHERE volume_uuid = ? AND number = ?")
            .bind(volume.to_string())
            .bind(signed(number)?)
            .execute(&mut *self.transaction)
            .await?;
        Ok(())
    }

    /// How many generations are visible, and how many are deleted.
    pub(crate) async fn counts(&mut self) -> Result<(u64, u64), CatalogueError> {
        let (all, deleted): (i64, i64) =
            sqlx::query_as("SELECT count(*), count(deleted_at_ms) FROM generations")
                .fetch_one(&mut *self.transaction)
                .await?;
        Ok((unsigned(all - deleted)?, unsigned(deleted)?))
    }

    pub(crate) async fn commit(self) -> Result<(), CatalogueError> {
        Ok(self.transaction.commit().await?)
    }
}

fn uuid_of(text: &str) -> Result<Uuid, CatalogueError> {
    Uuid::parse_str(text).map_err(|_| CatalogueError::Row("volume uuid"))
}

fn state_of(row: &sqlx::sqlite::SqliteRow) -> Result<RowState, CatalogueError> {
    Ok(RowState {
        volume: uuid_of(&row.try_get::<String, _>("volume_uuid")?)?,
        volume_name: row.try_get("name")?,
        number: unsigned(row.try_get("number")?)?,
        revision: unsigned(row.try_get("revision")?)?,
        root: row.try_get("root")?,
        size_bytes: number(row, "size_bytes")?,
        chunk_bytes: small(row, "chunk_bytes")?,
        deleted_at_ms: row.try_get::<Option<i64>, _>("deleted_at_ms")?.map(unsigned).transpose()?,
    })
}
