//! What is known to be damaged, and which packs were read back whole.

use std::collections::HashMap;

use sqlx::{Row as _, sqlite::SqliteRow};
use thinbak_proto::{ManifestId, v1};

use super::{
    Catalogue, CatalogueError,
    rows::{number, signed, small, unsigned},
};
use crate::store::{Change, DamagedRecord, Quarantined, RecordPlace};

/// A row of the quarantine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct QuarantineEntry {
    pub(crate) place: Quarantined,
    pub(crate) id: [u8; 32],
}

/// Damage that was not healed yet, for metrics and health.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Unhealed {
    /// Records.
    pub(crate) records: u64,
    /// When the oldest of them was found.
    pub(crate) oldest_found_at_ms: Option<u64>,
}

impl Catalogue {
    /// Everything in quarantine, healed or not.
    pub(crate) async fn quarantined(&self) -> Result<Vec<QuarantineEntry>, CatalogueError> {
        let rows = sqlx::query("SELECT pack, offset_bytes, id, healed_at_ms FROM quarantine")
            .fetch_all(&self.pool)
            .await?;
        rows.iter().map(entry_of).collect()
    }

    /// Takes over what the store has found out since, all in one transaction.
    pub(crate) async fn keep_changes(&self, changes: &[Change], now_ms: u64) -> Result<(), CatalogueError> {
        let now = signed(now_ms)?;
        let mut transaction = self.pool.begin_with("BEGIN IMMEDIATE").await?;
        for change in changes {
            let query = match change {
                Change::Found(DamagedRecord { place, id, kind, reason }) => sqlx::query(
                    "INSERT INTO quarantine (pack, offset_bytes, id, kind, reason, found_at_ms)
                     VALUES (?1, ?2, ?3, ?4, ?5, ?6) ON CONFLICT DO NOTHING",
                )
                .bind(place.pack)
                .bind(place.offset)
                .bind(id.as_slice())
                .bind(*kind as i64)
                .bind(reason)
                .bind(now),
                Change::Healed(place) => sqlx::query(
                    "UPDATE quarantine SET healed_at_ms = ?3
                     WHERE pack = ?1 AND offset_bytes = ?2 AND healed_at_ms IS NULL",
                )
                .bind(place.pack)
                .bind(place.offset)
                .bind(now),
                Change::Lifted(place) => {
                    sqlx::query("DELETE FROM quarantine WHERE pack = ?1 AND offset_bytes = ?2")
                        .bind(place.pack)
                        .bind(place.offset)
                }
            };
            query.execute(&mut *transaction).await?;
        }
        Ok(transaction.commit().await?)
    }

    /// Forgets all that was known of packs that were removed.
    pub(crate) async fn forget_packs(&self, packs: &[u32]) -> Result<(), CatalogueError> {
        let mut transaction = self.pool.begin_with("BEGIN IMMEDIATE").await?;
        for pack in packs {
            for statement in
                ["DELETE FROM quarantine WHERE pack = ?1", "DELETE FROM pack_verifications WHERE pack = ?1"]
            {
                sqlx::query(statement).bind(*pack).execute(&mut *transaction).await?;
            }
        }
        Ok(transaction.commit().await?)
    }

    /// Damage that was not healed yet.
    pub(crate) async fn unhealed(&self) -> Result<Unhealed, CatalogueError> {
        let row = sqlx::query(
            "SELECT count(*) AS records, min(found_at_ms) AS oldest FROM quarantine WHERE healed_at_ms IS NULL",
        )
        .fetch_one(&self.pool)
        .await?;
        let oldest: Option<i64> = row.try_get("oldest")?;
        let oldest_found_at_ms = oldest.map(unsigned).transpose()?;
        Ok(Unhealed { records: number(&row, "records")?, oldest_found_at_ms })
    }

    /// Notes that all records of a pack were read back and are good.
    pub(crate) async fn set_verified(&self, pack: u32, now_ms: u64) -> Result<(), CatalogueError> {
        sqlx::query(
            "INSERT INTO pack_verifications (pack, verified_at_ms) VALUES (?1, ?2)
             ON CONFLICT (pack) DO UPDATE SET verified_at_ms = excluded.verified_at_ms",
        )
        .bind(pack)
        .bind(signed(now_ms)?)
        .execute(&self.pool)
        .await?;
        Ok(())
    }

    /// The manifest of a generation that is visible or may become so again.
    pub(crate) async fn manifest(
        &self,
        generation: &v1::Generation,
    ) -> Result<Option<ManifestId>, CatalogueError> {
        let row = sqlx::query("SELECT manifest FROM generations WHERE volume_uuid = ?1 AND number = ?2")
            .bind(&generation.volume_uuid)
            .bind(signed(generation.number)?)
            .fetch_optional(&self.pool)
            .await?;
        let Some(row) = row else { return Ok(None) };
        let id: Vec<u8> = row.try_get("manifest")?;
        ManifestId::try_from(id.as_slice()).map(Some).map_err(|_| CatalogueError::Row("manifest id"))
    }

    /// When each pack was last read back whole; packs that never were are not in it.
    pub(crate) async fn verifications(&self) -> Result<HashMap<u32, u64>, CatalogueError> {
        let rows =
            sqlx::query("SELECT pack, verified_at_ms FROM pack_verifications").fetch_all(&self.pool).await?;
        rows.iter().map(|row| Ok((small(row, "pack")?, number(row, "verified_at_ms")?))).collect()
    }
}

fn entry_of(row: &SqliteRow) -> Result<QuarantineEntry, CatalogueError> {
    let place = RecordPlace { pack: small(row, "pack")?, offset: small(row, "offset_bytes")? };
    let healed = row.try_get::<Option<i64>, _>("healed_at_ms")?.is_some();
    let id: Vec<u8> = row.try_get("id")?;
    let id = id.try_into().map_err(|_| CatalogueError::Row("record id"))?;
    Ok(QuarantineEntry { place: Quarantined { place, healed }, id })
}
