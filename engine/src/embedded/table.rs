//! The pool's table: how it behaves, kept in its description.

use std::sync::Arc;

use super::description::Table;
use super::{EmbeddedError, EmbeddedPool};
use crate::pool::{PoolError, PoolTable};

impl EmbeddedPool {
    /// How the pool behaves.
    #[must_use]
    pub fn table(&self) -> PoolTable {
        self.inner.pool.table()
    }

    /// Records another table and loads it, as the kernel does when a pool is resumed with it. The record comes first:
    /// what an interruption leaves is loaded by the next [`open`](Self::open).
    ///
    /// # Errors
    /// [`PoolError::DiscardsFixed`] when `ignore_discard` would change, which takes [`reopen_with`](Self::reopen_with);
    /// a description that cannot be written; what the pool says.
    pub fn set_table(&self, table: PoolTable) -> Result<(), EmbeddedError> {
        let attempt = "the pool's table could not be loaded";
        let _books = self.inner.books.lock();
        if table.features.ignore_discard != self.table().features.ignore_discard {
            return Err(EmbeddedError::Pool { attempt, source: PoolError::DiscardsFixed });
        }
        self.describe(table)?;
        self.inner.pool.reload(table).map_err(EmbeddedError::pool(attempt))
    }

    /// Records another table, closes the pool and opens it again with it: what is needed to change whether discards are
    /// ignored.
    ///
    /// # Errors
    /// The pool itself, unchanged, while something uses it still. Else those of [`open`](Self::open).
    pub fn reopen_with(self, table: PoolTable) -> Result<Result<Self, EmbeddedError>, Self> {
        if Arc::strong_count(&self.inner) > 1 {
            return Err(self);
        }
        if let Err(error) = self.describe(table) {
            return Ok(Err(error));
        }
        let dir = self.inner.dir.clone();
        drop(self);
        Ok(Self::open(&dir))
    }

    fn describe(&self, table: PoolTable) -> Result<(), EmbeddedError> {
        let mut description = self.inner.description.clone();
        description.table = Table(table);
        description.replace(&self.inner.dir)
    }
}
