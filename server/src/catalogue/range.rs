//! Generations of a volume by their numbers.

use uuid::Uuid;

use super::{Catalogue, CatalogueError, Entry, GENERATION_COLUMNS, rows::generation_of};

impl Catalogue {
    /// The first `limit` visible generations of a volume with numbers from `first` to `last`, ascending.
    pub(crate) async fn range(
        &self,
        volume: Uuid,
        first: u64,
        last: u64,
        limit: usize,
    ) -> Result<Vec<Entry>, CatalogueError> {
        // No number is beyond what SQLite holds.
        let clip = |number: u64| i64::try_from(number).unwrap_or(i64::MAX);
        let rows = sqlx::query(sqlx::AssertSqlSafe(format!(
            "{GENERATION_COLUMNS} WHERE g.deleted_at_ms IS NULL AND g.volume_uuid = ?1
             AND g.number BETWEEN ?2 AND ?3 ORDER BY g.number LIMIT ?4"
        )))
        .bind(volume.to_string())
        .bind(clip(first))
        .bind(clip(last))
        .bind(i64::try_from(limit).unwrap_or(i64::MAX))
        .fetch_all(&self.pool)
        .await?;
        rows.iter().map(generation_of).collect()
    }
}
