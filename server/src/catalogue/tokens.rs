//! Tokens, and the audit log.

use sqlx::Row as _;
use thinbak_proto::v1::{AuditEntry, TokenInfo};

use super::{
    Catalogue, CatalogueError,
    rows::{number, signed},
};

impl Catalogue {
    /// All tokens that were ever made, each with the hash of its secret.
    pub(crate) async fn tokens(&self) -> Result<Vec<(TokenInfo, [u8; 32])>, CatalogueError> {
        let rows = sqlx::query(
            "SELECT id, name, scope, volumes, secret_hash, created_at_ms,
                    coalesce(expires_at_ms, 0) AS expires, coalesce(revoked_at_ms, 0) AS revoked FROM tokens",
        );
        let rows = rows.fetch_all(&self.pool).await?;
        let read = |row: &sqlx::sqlite::SqliteRow| {
            let volumes: String = row.try_get("volumes")?;
            let hash: Vec<u8> = row.try_get("secret_hash")?;
            let info = TokenInfo {
                id: row.try_get("id")?,
                name: row.try_get("name")?,
                scope: row.try_get("scope")?,
                volumes: volumes.lines().map(str::to_owned).collect(),
                created_at_ms: number(row, "created_at_ms")?,
                expires_at_ms: number(row, "expires")?,
                revoked_at_ms: number(row, "revoked")?,
            };
            Ok((info, hash.try_into().map_err(|_| CatalogueError::Row("hash of a token"))?))
        };
        rows.iter().map(read).collect()
    }

    /// Keeps a token that was made.
    pub(crate) async fn add_token(&self, token: &TokenInfo, hash: &[u8; 32]) -> Result<(), CatalogueError> {
        let expires = Some(token.expires_at_ms).filter(|at| *at != 0).map(signed).transpose()?;
        let add = sqlx::query(
            "INSERT INTO tokens (id, name, scope, volumes, secret_hash, created_at_ms, expires_at_ms)
             VALUES (?, ?, ?, ?, ?, ?, ?)",
        )
        .bind(&token.id)
        .bind(&token.name)
        .bind(token.scope)
        .bind(token.volumes.join("\n"))
        .bind(hash.as_slice())
        .bind(signed(token.created_at_ms)?)
        .bind(expires);
        self.noting(async { Ok(add.execute(&self.pool).await?) }).await.map(drop)
    }

    /// Says that a token is no good any more.
    pub(crate) async fn revoke_token(&self, id: &str, at_ms: u64) -> Result<(), CatalogueError> {
        let revoke =
            sqlx::query("UPDATE tokens SET revoked_at_ms = ?2 WHERE id = ?1 AND revoked_at_ms IS NULL");
        let revoke = revoke.bind(id).bind(signed(at_ms)?);
        self.noting(async { Ok(revoke.execute(&self.pool).await?) }).await.map(drop)
    }

    /// Adds to the audit log; the entry's number is the log's to give.
    pub(crate) async fn note(&self, entry: &AuditEntry) -> Result<(), CatalogueError> {
        let add = sqlx::query(
            "INSERT INTO audit (at_ms, token, peer, call, volume, outcome) VALUES (?, ?, ?, ?, ?, ?)",
        )
        .bind(signed(entry.at_ms)?)
        .bind(&entry.token)
        .bind(&entry.peer)
        .bind(&entry.call)
        .bind(&entry.volume)
        .bind(&entry.outcome);
        self.noting(async { Ok(add.execute(&self.pool).await?) }).await.map(drop)
    }

    /// A page of the audit log, oldest first.
    pub(crate) async fn audit(
        &self,
        after: u64,
        since_ms: u64,
        limit: u32,
    ) -> Result<Vec<AuditEntry>, CatalogueError> {
        let rows = sqlx::query("SELECT * FROM audit WHERE number > ? AND at_ms >= ? ORDER BY number LIMIT ?")
            .bind(signed(after)?)
            .bind(signed(since_ms)?)
            .bind(limit)
            .fetch_all(&self.pool)
            .await?;
        let read = |row: &sqlx::sqlite::SqliteRow| {
            Ok(AuditEntry {
                number: number(row, "number")?,
                at_ms: number(row, "at_ms")?,
                token: row.try_get("token")?,
                peer: row.try_get("peer")?,
                call: row.try_get("call")?,
                volume: row.try_get("volume")?,
                outcome: row.try_get("outcome")?,
            })
        };
        rows.iter().map(read).collect()
    }

    /// What a volume is called, if it is known.
    pub(crate) async fn name_of(&self, volume: uuid::Uuid) -> Result<Option<String>, CatalogueError> {
        let name = sqlx::query_scalar("SELECT name FROM volumes WHERE uuid = ?").bind(volume.to_string());
        Ok(name.fetch_optional(&self.pool).await?)
    }
}
