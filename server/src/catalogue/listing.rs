//! Lists that may be long, in pages, and lists of little.

use futures::TryStreamExt as _;
use sqlx::Row as _;
use thinbak_proto::v1;
use uuid::Uuid;

use super::{
    Catalogue, CatalogueError, Deleted, Entry,
    rows::{generation_of, number, signed, volume_of},
};
use crate::retention::Candidate;

/// Where a list of generations goes on: after this one. Lists are in the order of names and numbers.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Position {
    pub(crate) volume_name: String,
    pub(crate) number: u64,
}

/// Which generations a list has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Filter {
    /// Of this volume, else of all.
    pub(crate) volume: Option<Uuid>,
    /// Those that were deleted after this moment, in place of those that are visible.
    pub(crate) deleted_after_ms: Option<u64>,
    /// Of each volume only so many, the newest; 0: all.
    pub(crate) newest: u32,
}

impl Filter {
    /// The statement for a page, with `place` as the place where it begins. The parameters: 1 the volume's uuid,
    /// 2 and 3 the name and number to go on after, 4 the moment, 5 and 6 the bounds of the count.
    pub(super) fn statement(self, place: &str) -> String {
        let state = match self.deleted_after_ms {
            None => "deleted_at_ms IS NULL",
            Some(_) => "deleted_at_ms IS NOT NULL AND deleted_at_ms > ?4",
        };
        let newest = match self.newest {
            0 => String::new(),
            _ => format!(
                "AND g.number >= coalesce((SELECT n.number FROM generations n WHERE n.volume_uuid = v.uuid
                     AND n.{state} ORDER BY n.number DESC LIMIT 1 OFFSET ?5 - 1), 0)"
            ),
        };
        // The order of the tables is the order of the rows.
        format!(
            "SELECT g.*, v.name FROM volumes v CROSS JOIN generations g ON g.volume_uuid = v.uuid
             WHERE {place} AND g.{state} {newest} ORDER BY v.name, g.number LIMIT ?6"
        )
    }
}

/// The rest of the volume that the page before ended in.
pub(super) const IN_VOLUME: &str = "v.name = ?2 AND g.number > ?3";
/// The volumes after it.
pub(super) const IN_LATER: &str = "v.name > ?2";
/// One volume, whatever it is called by now.
pub(super) const IN_ONE: &str = "v.uuid = ?1 AND g.number > ?3";

/// A page of the volumes that have a generation: those with names after 1, at most 2.
pub(super) const VOLUMES: &str =
    "SELECT v.uuid, v.name, g.number, g.created_at_ms, g.size_bytes,
         (SELECT count(*) FROM generations c WHERE c.volume_uuid = v.uuid AND c.deleted_at_ms IS NULL) AS generations
     FROM volumes v CROSS JOIN generations g ON g.volume_uuid = v.uuid
         AND g.number = (SELECT n.number FROM generations n WHERE n.volume_uuid = v.uuid AND n.deleted_at_ms IS NULL
                         ORDER BY n.number DESC LIMIT 1)
     WHERE v.name > ?1 ORDER BY v.name LIMIT ?2";

/// The visible generations of one volume or of all, in the order of the tables, which is that of the rows.
pub(super) const GENERATIONS: &str =
    "SELECT g.*, v.name FROM volumes v CROSS JOIN generations g ON g.volume_uuid = v.uuid
     WHERE g.deleted_at_ms IS NULL AND (?1 IS NULL OR v.uuid = ?1) ORDER BY v.name, g.number";

impl Catalogue {
    /// At most `limit` of the volumes that have a generation, by name, those after the name `after`.
    pub(crate) async fn volumes(&self, after: &str, limit: u32) -> Result<Vec<v1::Volume>, CatalogueError> {
        let rows = sqlx::query(VOLUMES).bind(after).bind(limit).fetch_all(&self.pool).await?;
        rows.iter().map(volume_of).collect()
    }

    /// At most `limit` generations of a list, those after `after`. Those that are not deleted have 0 as
    /// the time of their deletion.
    pub(crate) async fn page(
        &self,
        filter: Filter,
        after: &Position,
        limit: u32,
    ) -> Result<Vec<Deleted>, CatalogueError> {
        let places: &[&str] = match filter.volume {
            Some(_) => &[IN_ONE],
            None => &[IN_VOLUME, IN_LATER],
        };
        let mut page = Vec::new();
        for place in places {
            let room = limit.saturating_sub(u32::try_from(page.len()).unwrap_or(u32::MAX));
            let rows = sqlx::query(sqlx::AssertSqlSafe(filter.statement(place)))
                .bind(filter.volume.map(|uuid| uuid.to_string()))
                .bind(&after.volume_name)
                .bind(signed(after.number)?)
                .bind(filter.deleted_after_ms.map(super::deletion::moment))
                .bind(filter.newest)
                .bind(room)
                .fetch_all(&self.pool)
                .await?;
            for row in &rows {
                let deleted_at_ms = match filter.deleted_after_ms {
                    Some(_) => number(row, "deleted_at_ms")?,
                    None => 0,
                };
                page.push(Deleted { entry: generation_of(row)?, deleted_at_ms });
            }
        }
        Ok(page)
    }

    /// Uuid and name of every volume, by name.
    pub(crate) async fn names(&self) -> Result<Vec<(Uuid, String)>, CatalogueError> {
        let rows: Vec<(String, String)> =
            sqlx::query_as("SELECT uuid, name FROM volumes ORDER BY name").fetch_all(&self.pool).await?;
        let parsed = |(uuid, name): (String, String)| {
            Uuid::parse_str(&uuid).map(|uuid| (uuid, name)).map_err(|_| CatalogueError::Row("volume uuid"))
        };
        rows.into_iter().map(parsed).collect()
    }

    /// All visible generations of a volume or of all volumes at one moment, by name and number, without their points
    /// and groups. 100,000 of them take 45 MiB of memory (measured), and no more while they are read.
    pub(crate) async fn generations(
        &self,
        volume: Option<Uuid>,
    ) -> Result<Vec<v1::Generation>, CatalogueError> {
        let mut rows = sqlx::query(GENERATIONS).bind(volume.map(|uuid| uuid.to_string())).fetch(&self.pool);
        let mut generations = Vec::new();
        while let Some(row) = rows.try_next().await? {
            let Entry { generation, .. } = generation_of(&row)?;
            generations.push(v1::Generation { point: None, group: String::new(), ..generation });
        }
        Ok(generations)
    }

    /// All visible generations of a volume, as far as retention looks at them, by number. 100,000 of them take 6 MiB
    /// of memory (measured), and no more while they are read.
    pub(crate) async fn candidates(&self, volume: Uuid) -> Result<Vec<Candidate>, CatalogueError> {
        let mut rows = sqlx::query(
            "SELECT number, created_at_ms, protected, group_uuid FROM generations
             WHERE volume_uuid = ? AND deleted_at_ms IS NULL ORDER BY number",
        )
        .bind(volume.to_string())
        .fetch(&self.pool);
        let mut candidates = Vec::new();
        while let Some(row) = rows.try_next().await? {
            let group: String = row.try_get("group_uuid")?;
            candidates.push(Candidate {
                number: number(&row, "number")?,
                created_at_ms: number(&row, "created_at_ms")?,
                protected: row.try_get("protected")?,
                group: Uuid::parse_str(&group).ok(),
            });
        }
        Ok(candidates)
    }
}
