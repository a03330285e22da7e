//! Whose catalogue it is, and copies of it.

use std::path::Path;

use sqlx::sqlite::{SqliteConnectOptions, SqlitePoolOptions};
use uuid::Uuid;

use super::{Arc, Catalogue, CatalogueError, damaged};

impl Catalogue {
    /// Opens a copy to look at it. It is not changed.
    pub(crate) async fn open_copy(path: &Path) -> Result<Self, CatalogueError> {
        let options = SqliteConnectOptions::new().filename(path).read_only(true);
        let pool = SqlitePoolOptions::new().max_connections(1).idle_timeout(None).max_lifetime(None);
        let pool = pool.connect_with(options).await;
        Ok(Self {
            pool: pool.map_err(|error| damaged(path, error.into()))?,
            path: path.into(),
            write_failure: Arc::default(),
        })
    }

    /// Says whose catalogue this is, where it does not say so yet; another repository's is an error.
    pub(crate) async fn bind_to(&self, repository: Uuid) -> Result<(), CatalogueError> {
        // Read first: opening a sound catalogue writes nothing.
        if self.repository().await?.is_none() {
            sqlx::query("INSERT INTO repository (one, uuid) VALUES (1, ?) ON CONFLICT DO NOTHING")
                .bind(repository.to_string())
                .execute(&self.pool)
                .await?;
        }
        self.check_is_of(repository).await
    }

    /// That this is the catalogue of `repository`.
    pub(crate) async fn check_is_of(&self, repository: Uuid) -> Result<(), CatalogueError> {
        match self.repository().await? {
            Some(found) if found == repository => Ok(()),
            found => Err(CatalogueError::Foreign { path: self.path.clone(), found, expected: repository }),
        }
    }

    async fn repository(&self) -> Result<Option<Uuid>, CatalogueError> {
        let uuid: Option<String> =
            sqlx::query_scalar("SELECT uuid FROM repository").fetch_optional(&self.pool).await?;
        uuid.map(|uuid| Uuid::parse_str(&uuid).map_err(|_| CatalogueError::Row("repository uuid")))
            .transpose()
    }

    /// Writes a consistent copy to `path`, where no file may be, while others read and write. It is not on
    /// stable storage yet.
    pub(crate) async fn copy_to(&self, path: &Path) -> Result<(), CatalogueError> {
        let path = path.to_str().ok_or(CatalogueError::Row("file name of a copy: it is not UTF-8"))?;
        sqlx::query("VACUUM INTO ?").bind(path).execute(&self.pool).await?;
        Ok(())
    }

    /// Reads all of the file and compares tables with their indexes.
    pub(crate) async fn check_integrity(&self) -> Result<(), CatalogueError> {
        let verdict: Vec<String> = sqlx::query_scalar("PRAGMA integrity_check(1)")
            .fetch_all(&self.pool)
            .await
            .map_err(|error| damaged(&self.path, error.into()))?;
        match verdict.into_iter().find(|line| line != "ok") {
            Some(reason) => Err(CatalogueError::Damaged { path: self.path.clone(), reason }),
            None => Ok(()),
        }
    }
}
