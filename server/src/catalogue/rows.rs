//! Rows to messages and back.

use prost::Message as _;
use sqlx::{Row, SqliteConnection, sqlite::SqliteRow};
use thinbak_proto::{ManifestId, v1};

use super::{CatalogueError, Entry};

/// SQLite's integers are signed.
pub(super) fn signed(value: u64) -> Result<i64, CatalogueError> {
    i64::try_from(value).map_err(|_| CatalogueError::TooLarge(value))
}

pub(super) fn unsigned(value: i64) -> Result<u64, CatalogueError> {
    u64::try_from(value).map_err(|_| CatalogueError::Row("negative number"))
}

pub(super) fn number(row: &SqliteRow, column: &'static str) -> Result<u64, CatalogueError> {
    u64::try_from(row.try_get::<i64, _>(column)?).map_err(|_| CatalogueError::Row(column))
}

pub(super) fn small(row: &SqliteRow, column: &'static str) -> Result<u32, CatalogueError> {
    u32::try_from(row.try_get::<i64, _>(column)?).map_err(|_| CatalogueError::Row(column))
}

/// A row of `generations` with its volume's `name`.
pub(super) fn generation_of(row: &SqliteRow) -> Result<Entry, CatalogueError> {
    let point = row.try_get::<Option<Vec<u8>>, _>("point")?;
    let point = point.map(|point| v1::Point::decode(point.as_slice())).transpose();
    let generation = v1::Generation {
        volume_uuid: row.try_get("volume_uuid")?,
        volume_name: row.try_get("name")?,
        number: number(row, "number")?,
        created_at_ms: number(row, "created_at_ms")?,
        size_bytes: number(row, "size_bytes")?,
        chunk_bytes: small(row, "chunk_bytes")?,
        levels: small(row, "levels")?,
        root: row.try_get::<Vec<u8>, _>("root")?.into(),
        parent: number(row, "parent")?,
        point: point.map_err(|_| CatalogueError::Row("point"))?,
        protected: row.try_get("protected")?,
        group: row.try_get("group_uuid")?,
        mapped_bytes: number(row, "mapped_bytes")?,
        changed_bytes: number(row, "changed_bytes")?,
        new_bytes: number(row, "new_bytes")?,
        stored_bytes: number(row, "stored_bytes")?,
    };
    Ok(Entry { generation, revision: number(row, "revision")? })
}

pub(super) fn volume_of(row: &SqliteRow) -> Result<v1::Volume, CatalogueError> {
    Ok(v1::Volume {
        uuid: row.try_get("uuid")?,
        name: row.try_get("name")?,
        generations: number(row, "generations")?,
        latest_generation: number(row, "number")?,
        latest_created_at_ms: number(row, "created_at_ms")?,
        latest_size_bytes: number(row, "size_bytes")?,
    })
}

/// What a row says besides the fields of the generation.
#[derive(Debug, Clone, Copy)]
pub(super) struct State {
    /// Of the newest of both records.
    pub(super) revision: u64,
    pub(super) manifest: ManifestId,
    /// Of a deleted generation: when, in milliseconds of unix time, and its tombstone.
    pub(super) deleted: Option<(u64, ManifestId)>,
}

/// Adds a generation that is not there.
pub(super) async fn insert(
    connection: &mut SqliteConnection,
    generation: &v1::Generation,
    state: State,
) -> Result<(), CatalogueError> {
    sqlx::query(
        "INSERT INTO generations (volume_uuid, number, created_at_ms, size_bytes, chunk_bytes, levels, root, parent,
             point, protected, group_uuid, mapped_bytes, changed_bytes, new_bytes, stored_bytes, revision, manifest,
             deleted_at_ms, tombstone)
         VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
    )
    .bind(&generation.volume_uuid)
    .bind(signed(generation.number)?)
    .bind(signed(generation.created_at_ms)?)
    .bind(signed(generation.size_bytes)?)
    .bind(i64::from(generation.chunk_bytes))
    .bind(i64::from(generation.levels))
    .bind(generation.root.as_ref())
    .bind(signed(generation.parent)?)
    .bind(generation.point.as_ref().map(prost::Message::encode_to_vec))
    .bind(generation.protected)
    .bind(&generation.group)
    .bind(signed(generation.mapped_bytes)?)
    .bind(signed(generation.changed_bytes)?)
    .bind(signed(generation.new_bytes)?)
    .bind(signed(generation.stored_bytes)?)
    .bind(signed(state.revision)?)
    .bind(state.manifest.as_bytes().as_slice())
    .bind(state.deleted.map(|(at_ms, _)| signed(at_ms)).transpose()?)
    .bind(state.deleted.map(|(_, tombstone)| tombstone.as_bytes().to_vec()))
    .execute(connection)
    .await?;
    Ok(())
}
