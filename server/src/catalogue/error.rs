//! What can go wrong with the catalogue.

use std::path::{Path, PathBuf};

use sqlx::migrate::MigrateError;
use uuid::Uuid;

/// What the catalogue cannot do.
#[derive(Debug, thiserror::Error)]
pub enum CatalogueError {
    /// The file is missing or not sound.
    #[error("the catalogue {} is damaged: {reason}", path.display())]
    Damaged {
        /// The SQLite file.
        path: PathBuf,
        /// What SQLite says of it.
        reason: String,
    },
    /// A newer program has changed the schema.
    #[error("the catalogue {} has schema version {version}, which this program does not know", path.display())]
    Newer {
        /// The SQLite file.
        path: PathBuf,
        /// The migration that is not known here.
        version: i64,
    },
    /// The schema could not be brought up to date.
    #[error("cannot bring the catalogue's schema up to date: {0}")]
    Migrate(#[source] MigrateError),
    /// Anything else that SQLite says.
    #[error("the catalogue: {0}")]
    Sql(#[from] sqlx::Error),
    /// A row that no program of ours would have written.
    #[error("the catalogue holds an impossible {0}")]
    Row(&'static str),
    /// A catalogue of another repository, or one that does not say whose it is.
    #[error("{} is the catalogue of {}, not of repository {expected}", path.display(), match found {
        Some(found) => format!("repository {found}"),
        None => "an unknown repository".to_owned(),
    })]
    Foreign {
        /// The SQLite file.
        path: PathBuf,
        /// Whose catalogue it says it is.
        found: Option<Uuid>,
        /// The repository that is being opened.
        expected: Uuid,
    },
    /// A number beyond what the catalogue can hold.
    #[error("{0} is beyond what the catalogue can hold")]
    TooLarge(u64),
    /// The name belongs to another volume.
    #[error("the name {name} belongs to volume {owner}")]
    NameTaken {
        /// The name.
        name: String,
        /// Uuid of the volume that has it.
        owner: Uuid,
    },
    /// The generation number went to somebody else.
    #[error("generation {0} of the volume is there already")]
    NumberTaken(u64),
}

impl CatalogueError {
    /// SQLite's primary result code, where this comes from it.
    pub(super) fn code(&self) -> Option<u32> {
        let Self::Sql(sqlx::Error::Database(error)) = self else { return None };
        error.code().and_then(|code| code.parse::<u32>().ok()).map(|code| code & 0xff)
    }

    /// Whether the file system was full (FULL, 13). What was to be written was not.
    #[must_use]
    pub fn is_no_space(&self) -> bool {
        self.code() == Some(13)
    }

    /// Whether reading or writing the file failed (READONLY 8, IOERR 10, CANTOPEN 14), or what was read is damaged
    /// (CORRUPT 11, NOTADB 26).
    #[must_use]
    pub fn is_of_the_file(&self) -> bool {
        matches!(self, Self::Damaged { .. }) || matches!(self.code(), Some(8 | 10 | 11 | 14 | 26))
    }

    /// The same of the file that a copy was made of.
    pub(crate) fn of_file(mut self, original: &Path) -> Self {
        if let Self::Damaged { path, .. } | Self::Newer { path, .. } | Self::Foreign { path, .. } = &mut self
        {
            *path = original.into();
        }
        self
    }
}
