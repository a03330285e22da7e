//! Deletion, what can undo it, and what ends it: a deleted generation stays in the catalogue, and keeps its
//! content alive, until it is forgotten.

use sqlx::{Row as _, sqlite::SqliteRow};
use thinbak_proto::{ManifestId, NodeId, v1};
use uuid::Uuid;

use super::{
    Catalogue, CatalogueError, Entry, GENERATION_COLUMNS,
    rows::{generation_of, number, signed, small, unsigned},
};

/// Names a generation for good: numbers are never given twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct GenerationKey {
    pub(crate) volume: Uuid,
    pub(crate) number: u64,
}

/// What keeps records alive: the map tree of a generation that is visible, or that may become visible again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Root {
    pub(crate) key: GenerationKey,
    pub(crate) root: NodeId,
    pub(crate) size_bytes: u64,
    pub(crate) chunk_bytes: u32,
    /// Of the newest manifest or tombstone that the catalogue knows.
    pub(crate) revision: u64,
    /// The manifest that counts; those of lower revisions are not needed any more.
    pub(crate) manifest: ManifestId,
    /// Of a deleted generation.
    pub(crate) tombstone: Option<ManifestId>,
}

/// A deletion as the catalogue takes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Deletion {
    pub(crate) key: GenerationKey,
    /// Of the tombstone.
    pub(crate) revision: u64,
    pub(crate) tombstone: ManifestId,
}

/// A deleted generation.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Deleted {
    pub(crate) entry: Entry,
    pub(crate) deleted_at_ms: u64,
}

const ROOT_COLUMNS: &str =
    "SELECT volume_uuid, number, root, size_bytes, chunk_bytes, revision, manifest, tombstone
     FROM generations WHERE (volume_uuid, number) > (?1, ?2)";
pub(super) const ALIVE: &str = "AND (deleted_at_ms IS NULL OR deleted_at_ms > ?3)";
pub(super) const EXPIRED: &str = "AND deleted_at_ms IS NOT NULL AND deleted_at_ms <= ?3";

/// The statement for a page of roots.
pub(super) fn root_statement(condition: &str) -> String {
    format!("{ROOT_COLUMNS} {condition} ORDER BY volume_uuid, number LIMIT ?4")
}

impl Catalogue {
    /// At most `limit` of the generations that are visible or were deleted after `cutoff_ms`, by key, those
    /// after `after`. The pages of a walk are not one moment: what is committed meanwhile may be in them or not.
    pub(crate) async fn roots(
        &self,
        cutoff_ms: u64,
        after: Option<GenerationKey>,
        limit: u32,
    ) -> Result<Vec<Root>, CatalogueError> {
        self.root_page(ALIVE, cutoff_ms, after, limit).await
    }

    /// At most `limit` of the generations that were deleted at `cutoff_ms` or before, by key, those after
    /// `after`. With the cutoff where the grace period ends, nobody can bring them back.
    pub(crate) async fn expired(
        &self,
        cutoff_ms: u64,
        after: Option<GenerationKey>,
        limit: u32,
    ) -> Result<Vec<Root>, CatalogueError> {
        self.root_page(EXPIRED, cutoff_ms, after, limit).await
    }

    async fn root_page(
        &self,
        condition: &'static str,
        cutoff_ms: u64,
        after: Option<GenerationKey>,
        limit: u32,
    ) -> Result<Vec<Root>, CatalogueError> {
        let (volume, number) = match after {
            Some(key) => (key.volume.to_string(), signed(key.number)?),
            None => (String::new(), 0),
        };
        let rows = sqlx::query(sqlx::AssertSqlSafe(root_statement(condition)))
            .bind(volume)
            .bind(number)
            .bind(moment(cutoff_ms))
            .bind(limit)
            .fetch_all(&self.pool)
            .await?;
        rows.iter().map(root_of).collect()
    }

    /// Drops deleted generations for good: from now on their records may be collected. All in one
    /// transaction; those that are not deleted, or were deleted after `cutoff_ms`, stay. Returns how many went.
    pub(crate) async fn forget(
        &self,
        generations: &[GenerationKey],
        cutoff_ms: u64,
    ) -> Result<u64, CatalogueError> {
        self.noting(self.forget_all(generations, cutoff_ms)).await
    }

    async fn forget_all(&self, generations: &[GenerationKey], cutoff_ms: u64) -> Result<u64, CatalogueError> {
        let mut transaction = self.pool.begin_with("BEGIN IMMEDIATE").await?;
        let mut gone = 0;
        for key in generations {
            let done = sqlx::query(
                "DELETE FROM generations WHERE volume_uuid = ?1 AND number = ?2 AND deleted_at_ms <= ?3",
            )
            .bind(key.volume.to_string())
            .bind(signed(key.number)?)
            .bind(moment(cutoff_ms))
            .execute(&mut *transaction)
            .await?;
            gone += done.rows_affected();
        }
        transaction.commit().await?;
        Ok(gone)
    }

    /// Marks generations as deleted, in one transaction. What is not there, is protected, or is its volume's
    /// newest stays. Returns those that were marked.
    pub(crate) async fn mark_deleted(
        &self,
        deletions: &[Deletion],
        deleted_at_ms: u64,
    ) -> Result<Vec<GenerationKey>, CatalogueError> {
        self.noting(self.mark_all(deletions, deleted_at_ms)).await
    }

    async fn mark_all(
        &self,
        deletions: &[Deletion],
        deleted_at_ms: u64,
    ) -> Result<Vec<GenerationKey>, CatalogueError> {
        let mut transaction = self.pool.begin_with("BEGIN IMMEDIATE").await?;
        let mut marked = Vec::with_capacity(deletions.len());
        for deletion in deletions {
            let done = sqlx::query(
                "UPDATE generations SET deleted_at_ms = ?3, tombstone = ?4, revision = ?5
                 WHERE volume_uuid = ?1 AND number = ?2 AND deleted_at_ms IS NULL AND protected = 0
                 AND number < (SELECT max(number) FROM generations WHERE volume_uuid = ?1 AND deleted_at_ms IS NULL)",
            )
            .bind(deletion.key.volume.to_string())
            .bind(signed(deletion.key.number)?)
            .bind(signed(deleted_at_ms)?)
            .bind(deletion.tombstone.as_bytes().as_slice())
            .bind(signed(deletion.revision)?)
            .execute(&mut *transaction)
            .await?;
            if done.rows_affected() == 1 {
                marked.push(deletion.key);
            }
        }
        transaction.commit().await?;
        Ok(marked)
    }

    /// A generation that was deleted and not forgotten.
    pub(crate) async fn deleted(&self, key: GenerationKey) -> Result<Option<Deleted>, CatalogueError> {
        let row = sqlx::query(sqlx::AssertSqlSafe(format!(
            "{GENERATION_COLUMNS} WHERE g.volume_uuid = ?1 AND g.number = ?2 AND g.deleted_at_ms IS NOT NULL"
        )))
        .bind(key.volume.to_string())
        .bind(signed(key.number)?)
        .fetch_optional(&self.pool)
        .await?;
        row.as_ref()
            .map(|row| {
                let deleted_at_ms = number(row, "deleted_at_ms")?;
                Ok(Deleted { entry: generation_of(row)?, deleted_at_ms })
            })
            .transpose()
    }

    /// Makes a deleted generation visible again, as its new manifest says it. `false`: it is not there.
    pub(crate) async fn undelete(
        &self,
        generation: &v1::Generation,
        revision: u64,
        manifest: ManifestId,
    ) -> Result<bool, CatalogueError> {
        let change = "deleted_at_ms = NULL, tombstone = NULL, protected = ?5";
        self.noting(self.renew(generation, revision, manifest, change, "deleted_at_ms IS NOT NULL")).await
    }

    /// How long a deletion can be undone, in milliseconds.
    pub(crate) async fn grace_ms(&self) -> Result<u64, CatalogueError> {
        let grace = sqlx::query_scalar("SELECT grace_ms FROM settings WHERE id = 1").fetch_one(&self.pool);
        unsigned(grace.await?)
    }

    /// Changes how long a deletion can be undone; this holds also for what is deleted already.
    pub(crate) async fn set_grace_ms(&self, grace_ms: u64) -> Result<(), CatalogueError> {
        sqlx::query("UPDATE settings SET grace_ms = ? WHERE id = 1")
            .bind(signed(grace_ms)?)
            .execute(&self.pool)
            .await?;
        Ok(())
    }
}

/// A moment to compare with; one that the catalogue cannot hold is later than all that it holds.
pub(super) fn moment(ms: u64) -> i64 {
    i64::try_from(ms).unwrap_or(i64::MAX)
}

fn root_of(row: &SqliteRow) -> Result<Root, CatalogueError> {
    let volume: String = row.try_get("volume_uuid")?;
    let volume = Uuid::parse_str(&volume).map_err(|_| CatalogueError::Row("volume uuid"))?;
    let tombstone = row.try_get::<Option<Vec<u8>>, _>("tombstone")?;
    Ok(Root {
        key: GenerationKey { volume, number: number(row, "number")? },
        root: NodeId::try_from(row.try_get::<Vec<u8>, _>("root")?.as_slice())
            .map_err(|_| CatalogueError::Row("root"))?,
        size_bytes: number(row, "size_bytes")?,
        chunk_bytes: small(row, "chunk_bytes")?,
        revision: number(row, "revision")?,
        manifest: manifest_of(&row.try_get::<Vec<u8>, _>("manifest")?)?,
        tombstone: tombstone.as_deref().map(manifest_of).transpose()?,
    })
}

fn manifest_of(bytes: &[u8]) -> Result<ManifestId, CatalogueError> {
    ManifestId::try_from(bytes).map_err(|_| CatalogueError::Row("manifest"))
}
