//! The catalogue: which volumes and generations are visible. SQLite, one file in the repository's
//! directory, opened by one process at a time.
//!
//! A generation becomes visible in one transaction, and only after everything it refers to is on stable
//! storage; see the schema in the workspace's `migrations/`.

mod carry;
mod copy;
mod deletion;
mod draft;
mod error;
mod listing;
mod quarantine;
mod range;
mod rows;
mod schedules;
mod swap;
#[cfg(test)]
mod tests;
mod tokens;
mod writing;

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use futures::future::BoxFuture;
use sqlx::{
    Connection as _, Row as _, SqliteConnection, SqlitePool,
    migrate::{MigrateError, Migrator},
    pool::PoolConnectionMetadata,
    sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous},
};
use thinbak_proto::{ManifestId, v1};
use uuid::Uuid;

pub(crate) use deletion::{Deleted, Deletion, GenerationKey, Root};
pub(crate) use draft::{Draft, Grave, RowState, VolumeRow};
pub use error::CatalogueError;
pub(crate) use listing::{Filter, Position};
pub(crate) use quarantine::QuarantineEntry;
use rows::{generation_of, signed, unsigned};
pub(crate) use swap::{CATALOGUE_NAME, DRAFT_NAME, finish_swap, remove_draft, swap_in};

use crate::{environment::ChangeGate, write_failure::WriteFailure};

type Guarded<'c> = BoxFuture<'c, Result<(), sqlx::Error>>;

static MIGRATOR: Migrator = sqlx::migrate!("../migrations");

const CONNECTIONS: u32 = 4;
const BUSY_TIMEOUT: Duration = Duration::from_secs(30);

/// Which generation of a volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Selector {
    Number(u64),
    Latest,
    AtOrBefore(u64),
}

impl Selector {
    /// The statement that finds it; 1 is the volume's uuid, 2 the number or the time.
    fn statement(self) -> String {
        let which = match self {
            Self::Number(_) => "AND g.number = ?2",
            Self::Latest => "",
            Self::AtOrBefore(_) => "AND g.created_at_ms <= ?2",
        };
        format!(
            "{GENERATION_COLUMNS} WHERE g.volume_uuid = ?1 AND g.deleted_at_ms IS NULL {which}
             ORDER BY g.number DESC LIMIT 1"
        )
    }
}

/// A generation and where its manifest is.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Entry {
    pub(crate) generation: v1::Generation,
    pub(crate) revision: u64,
}

/// Counts over everything visible.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Totals {
    pub(crate) volumes: u64,
    pub(crate) generations: u64,
    pub(crate) mapped_bytes: u64,
}

/// What the next generation of a volume must carry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Next {
    pub(crate) number: u64,
    /// Creation time of the newest generation, 0 if none.
    pub(crate) last_created_at_ms: u64,
}

const GENERATION_COLUMNS: &str =
    "SELECT g.*, v.name FROM generations g JOIN volumes v ON v.uuid = g.volume_uuid";

/// Counts and sums of each volume.
const TOTALS: &str = "SELECT count(*), coalesce(sum(mapped_bytes / 512), 0),
                    coalesce(sum(mapped_bytes % 512), 0)
             FROM generations WHERE deleted_at_ms IS NULL GROUP BY volume_uuid";

pub(crate) struct Catalogue {
    pool: SqlitePool,
    path: PathBuf,
    /// Why the last change could not be made, if SQLite or the disk was the reason.
    write_failure: Arc<WriteFailure<String>>,
}

impl Catalogue {
    /// Makes an empty catalogue where none is.
    pub(crate) async fn create(path: &Path, changes: &ChangeGate) -> Result<(), CatalogueError> {
        let catalogue = Self::connect(path, true, changes, 1).await?;
        MIGRATOR.run(&catalogue.pool).await.map_err(CatalogueError::Migrate)?;
        catalogue.close().await;
        Ok(())
    }

    /// Opens a catalogue, checks that it is sound and brings its schema up to date.
    pub(crate) async fn open(path: &Path, changes: &ChangeGate) -> Result<Self, CatalogueError> {
        Self::open_with(path, changes, CONNECTIONS).await
    }

    /// The same for one that is all in its file once it is closed: of several connections that are closed at the same
    /// time each may leave the write-ahead log to another.
    pub(crate) async fn open_draft(path: &Path, changes: &ChangeGate) -> Result<Self, CatalogueError> {
        Self::open_with(path, changes, 1).await
    }

    async fn open_with(path: &Path, changes: &ChangeGate, connections: u32) -> Result<Self, CatalogueError> {
        if !path.is_file() {
            return Err(CatalogueError::Damaged { path: path.into(), reason: "the file is missing".into() });
        }
        let catalogue =
            Self::connect(path, false, changes, connections).await.map_err(|error| damaged(path, error))?;
        let verdict: Vec<String> = sqlx::query_scalar("PRAGMA quick_check(1)")
            .fetch_all(&catalogue.pool)
            .await
            .map_err(|error| damaged(path, error.into()))?;
        if let Some(reason) = verdict.into_iter().find(|line| line != "ok") {
            return Err(CatalogueError::Damaged { path: path.into(), reason });
        }
        MIGRATOR.run(&catalogue.pool).await.map_err(|error| match error {
            MigrateError::VersionMissing(version) => CatalogueError::Newer { path: path.into(), version },
            error => CatalogueError::Migrate(error),
        })?;
        Ok(catalogue)
    }

    async fn connect(
        path: &Path,
        create: bool,
        changes: &ChangeGate,
        connections: u32,
    ) -> Result<Self, CatalogueError> {
        let options = SqliteConnectOptions::new()
            .filename(path)
            .create_if_missing(create)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full)
            .foreign_keys(true)
            .busy_timeout(BUSY_TIMEOUT);
        let pool = SqlitePoolOptions::new()
            .max_connections(connections)
            .idle_timeout(None)
            .max_lifetime(None)
            .after_connect(guard(changes.clone()))
            .before_acquire(|connection, _| Box::pin(async { Ok(is_usable(connection)) }))
            .connect_with(options)
            .await?;
        Ok(Self { pool, path: path.into(), write_failure: Arc::default() })
    }

    /// Waits for what is under way and closes the file.
    pub(crate) async fn close(&self) {
        self.pool.close().await;
    }

    /// Bytes on disk, with the write-ahead log.
    pub(crate) fn disk_bytes(&self) -> u64 {
        let wal = self.path.with_extension("sqlite-wal");
        [&self.path, &wal].into_iter().filter_map(|path| path.metadata().ok()).map(|file| file.len()).sum()
    }

    /// Whether `name` may be used for volume `uuid`.
    pub(crate) async fn check_name(&self, uuid: Uuid, name: &str, adopt: bool) -> Result<(), CatalogueError> {
        match owner_of(&mut *self.pool.acquire().await?, name).await? {
            Some(owner) if owner != uuid && !adopt => {
                Err(CatalogueError::NameTaken { name: name.into(), owner })
            }
            _ => Ok(()),
        }
    }

    /// What the volume's next generation must carry.
    pub(crate) async fn next(&self, uuid: Uuid) -> Result<Next, CatalogueError> {
        let row = sqlx::query(
            "SELECT next_number, coalesce((SELECT created_at_ms FROM generations WHERE volume_uuid = uuid
                                           ORDER BY number DESC LIMIT 1), 0) AS last
             FROM volumes WHERE uuid = ?",
        )
        .bind(uuid.to_string())
        .fetch_optional(&self.pool)
        .await?;
        let Some(row) = row else { return Ok(Next { number: 1, last_created_at_ms: 0 }) };
        Ok(Next {
            number: unsigned(row.try_get("next_number")?)?,
            last_created_at_ms: unsigned(row.try_get("last")?)?,
        })
    }

    /// Whether the catalogue can be read at all.
    pub(crate) async fn probe(&self) -> Result<(), CatalogueError> {
        sqlx::query("SELECT uuid FROM volumes LIMIT 1").fetch_optional(&self.pool).await?;
        Ok(())
    }

    /// Makes a generation visible, and binds its volume's name. All it refers to is on stable storage.
    /// A volume that loses its name by adoption keeps its generations under `NAME.UUID`.
    pub(crate) async fn add_generation(
        &self,
        generation: &v1::Generation,
        manifest: ManifestId,
        adopt: bool,
    ) -> Result<(), CatalogueError> {
        self.noting(self.add(generation, manifest, adopt)).await
    }

    async fn add(
        &self,
        generation: &v1::Generation,
        manifest: ManifestId,
        adopt: bool,
    ) -> Result<(), CatalogueError> {
        let uuid =
            Uuid::parse_str(&generation.volume_uuid).map_err(|_| CatalogueError::Row("volume uuid"))?;
        let mut transaction = self.pool.begin_with("BEGIN IMMEDIATE").await?;
        bind_name(&mut transaction, uuid, &generation.volume_name, adopt).await?;
        let taken =
            sqlx::query("UPDATE volumes SET next_number = ?2 + 1 WHERE uuid = ?1 AND next_number = ?2")
                .bind(uuid.to_string())
                .bind(signed(generation.number)?)
                .execute(&mut *transaction)
                .await?;
        if taken.rows_affected() != 1 {
            return Err(CatalogueError::NumberTaken(generation.number));
        }
        let state = rows::State { revision: 1, manifest, deleted: None };
        rows::insert(&mut transaction, generation, state).await?;
        Ok(transaction.commit().await?)
    }

    /// The uuid of the volume that is called `name`.
    pub(crate) async fn volume(&self, name: &str) -> Result<Option<Uuid>, CatalogueError> {
        owner_of(&mut *self.pool.acquire().await?, name).await
    }

    /// One visible generation.
    pub(crate) async fn generation(
        &self,
        volume: Uuid,
        which: Selector,
    ) -> Result<Option<Entry>, CatalogueError> {
        let value = match which {
            Selector::Number(number) => Some(signed(number)?),
            Selector::Latest => None,
            Selector::AtOrBefore(time) => Some(i64::try_from(time).unwrap_or(i64::MAX)),
        };
        let row = sqlx::query(sqlx::AssertSqlSafe(which.statement()))
            .bind(volume.to_string())
            .bind(value)
            .fetch_optional(&self.pool)
            .await?;
        row.as_ref().map(generation_of).transpose()
    }

    /// The number of the newest visible generation of a volume.
    pub(crate) async fn newest(&self, volume: Uuid) -> Result<Option<u64>, CatalogueError> {
        let newest: Option<i64> = sqlx::query_scalar(
            "SELECT max(number) FROM generations WHERE volume_uuid = ? AND deleted_at_ms IS NULL",
        )
        .bind(volume.to_string())
        .fetch_one(&self.pool)
        .await?;
        newest.map(unsigned).transpose()
    }

    /// Sets the protection of a generation as its new manifest says it. `false`: it is not there.
    pub(crate) async fn set_protected(
        &self,
        generation: &v1::Generation,
        revision: u64,
        manifest: ManifestId,
    ) -> Result<bool, CatalogueError> {
        let change = "protected = ?5";
        self.noting(self.renew(generation, revision, manifest, change, "deleted_at_ms IS NULL")).await
    }

    /// Makes a row say what a generation's new manifest says: the columns of `change`, where `?5` is its protection.
    /// `false`: there is no such row, or it is not as `condition` wants it.
    async fn renew(
        &self,
        generation: &v1::Generation,
        revision: u64,
        manifest: ManifestId,
        change: &str,
        condition: &str,
    ) -> Result<bool, CatalogueError> {
        let statement = format!(
            "UPDATE generations SET revision = ?3, manifest = ?4, {change}
             WHERE volume_uuid = ?1 AND number = ?2 AND {condition}"
        );
        let done = sqlx::query(sqlx::AssertSqlSafe(statement))
            .bind(&generation.volume_uuid)
            .bind(signed(generation.number)?)
            .bind(signed(revision)?)
            .bind(manifest.as_bytes().as_slice())
            .bind(generation.protected)
            .execute(&self.pool)
            .await?;
        Ok(done.rows_affected() == 1)
    }

    /// Counts over everything visible.
    pub(crate) async fn totals(&self) -> Result<Totals, CatalogueError> {
        // Summed here, for the sum of many large volumes need not fit in 63 bits.
        let rows: Vec<(i64, i64, i64)> = sqlx::query_as(TOTALS).fetch_all(&self.pool).await?;
        let mut totals = Totals { volumes: 0, generations: 0, mapped_bytes: 0 };
        for (generations, sectors, rest) in rows {
            totals.volumes += 1;
            totals.generations += unsigned(generations)?;
            let mapped = unsigned(sectors)?.saturating_mul(512).saturating_add(unsigned(rest)?);
            totals.mapped_bytes = totals.mapped_bytes.saturating_add(mapped);
        }
        Ok(totals)
    }
}

/// When the end of a transaction fails, as it does on a full disk, SQLite rolls back by itself. The connection then
/// counts one transaction too many for ever and begins no other: it is given up.
fn is_usable(connection: &SqliteConnection) -> bool {
    !connection.is_in_transaction()
}

/// Lets no transaction of a new connection end without `changes`.
fn guard(
    changes: ChangeGate,
) -> impl for<'c> Fn(&'c mut SqliteConnection, PoolConnectionMetadata) -> Guarded<'c> {
    move |connection, _| {
        let changes = changes.clone();
        Box::pin(async move {
            if changes.is_guarded() {
                connection.lock_handle().await?.set_commit_hook(move || changes.pass().is_ok());
            }
            Ok(())
        })
    }
}

async fn owner_of(connection: &mut SqliteConnection, name: &str) -> Result<Option<Uuid>, CatalogueError> {
    let uuid: Option<String> = sqlx::query_scalar("SELECT uuid FROM volumes WHERE name = ?")
        .bind(name)
        .fetch_optional(connection)
        .await?;
    uuid.map(|uuid| Uuid::parse_str(&uuid).map_err(|_| CatalogueError::Row("volume uuid"))).transpose()
}

async fn bind_name(
    connection: &mut SqliteConnection,
    uuid: Uuid,
    name: &str,
    adopt: bool,
) -> Result<(), CatalogueError> {
    match owner_of(connection, name).await? {
        Some(owner) if owner == uuid => return Ok(()),
        Some(owner) if adopt => {
            sqlx::query("UPDATE volumes SET name = ?2 WHERE uuid = ?1")
                .bind(owner.to_string())
                .bind(format!("{name}.{owner}"))
                .execute(&mut *connection)
                .await?;
        }
        Some(owner) => return Err(CatalogueError::NameTaken { name: name.into(), owner }),
        None => {}
    }
    sqlx::query(
        "INSERT INTO volumes (uuid, name, next_number) VALUES (?1, ?2, 1)
         ON CONFLICT (uuid) DO UPDATE SET name = excluded.name",
    )
    .bind(uuid.to_string())
    .bind(name)
    .execute(connection)
    .await?;
    Ok(())
}

/// Tells a damaged file (CORRUPT 11, NOTADB 26) from other failures.
fn damaged(path: &Path, error: CatalogueError) -> CatalogueError {
    match error.code() {
        Some(11 | 26) => CatalogueError::Damaged { path: path.into(), reason: error.to_string() },
        _ => error,
    }
}
