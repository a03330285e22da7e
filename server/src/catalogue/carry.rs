//! What a new catalogue takes over from the one that it replaces: who may come in, and who did what.
//!
//! Neither is in the packs, and a copy is older: without this a token that was revoked since would be good again, and what was
//! done since would not be known.

use std::path::Path;

use sqlx::{Connection as _, Executor as _};

use super::{Catalogue, CatalogueError};

/// How many rows were taken over.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Carried {
    /// Tokens that were not there.
    pub(crate) tokens: u64,
    /// Tokens that were not revoked.
    pub(crate) revoked: u64,
    /// Entries of the audit log.
    pub(crate) audit: u64,
}

const TOKENS: &str = "INSERT INTO main.tokens SELECT * FROM former.tokens WHERE true ON CONFLICT DO NOTHING";
const REVOKED: &str = "UPDATE main.tokens SET revoked_at_ms =
        (SELECT revoked_at_ms FROM former.tokens WHERE former.tokens.id = main.tokens.id)
    WHERE revoked_at_ms IS NULL AND id IN (SELECT id FROM former.tokens WHERE revoked_at_ms IS NOT NULL)";
const AUDIT: &str = "INSERT INTO main.audit SELECT * FROM former.audit WHERE true ON CONFLICT DO NOTHING";

impl Catalogue {
    /// Takes over tokens, revocations and the audit log of the catalogue in `from`, which nobody has open: all of it or
    /// nothing. It must be of this version.
    pub(crate) async fn carry_over(&self, from: &Path) -> Result<Carried, CatalogueError> {
        let mut connection = self.pool.acquire().await?;
        let from = from.to_string_lossy();
        sqlx::query("ATTACH DATABASE ? AS former").bind(&*from).execute(&mut *connection).await?;
        let carried = async {
            let mut writing = connection.begin().await?;
            let tokens = writing.execute(TOKENS).await?.rows_affected();
            let revoked = writing.execute(REVOKED).await?.rows_affected();
            let audit = writing.execute(AUDIT).await?.rows_affected();
            writing.commit().await?;
            Ok(Carried { tokens, revoked, audit })
        }
        .await;
        // It goes with the connection in any case.
        let _ = connection.execute("DETACH DATABASE former").await;
        carried
    }
}
