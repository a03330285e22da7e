//! When the server last did what it does by itself.

use super::{
    Catalogue, CatalogueError,
    rows::{signed, unsigned},
};

impl Catalogue {
    /// The moment from which the next run of a job is counted: when it was last begun, else when it was first
    /// asked for.
    pub(crate) async fn job_counted_from(&self, job: &str, now_ms: u64) -> Result<u64, CatalogueError> {
        sqlx::query(
            "INSERT INTO schedules (job, counted_from_ms) VALUES (?, ?) ON CONFLICT (job) DO NOTHING",
        )
        .bind(job)
        .bind(signed(now_ms)?)
        .execute(&self.pool)
        .await?;
        let counted = sqlx::query_scalar("SELECT counted_from_ms FROM schedules WHERE job = ?").bind(job);
        unsigned(counted.fetch_one(&self.pool).await?)
    }

    /// Remembers that a job was begun, and done.
    pub(crate) async fn remember_job(&self, job: &str, began_ms: u64) -> Result<(), CatalogueError> {
        sqlx::query(
            "INSERT INTO schedules (job, counted_from_ms) VALUES (?, ?)
             ON CONFLICT (job) DO UPDATE SET counted_from_ms = excluded.counted_from_ms",
        )
        .bind(job)
        .bind(signed(began_ms)?)
        .execute(&self.pool)
        .await?;
        Ok(())
    }
}
