//! Why a repository cannot be made, opened or used, and what is said of it.

use std::{
    io,
    path::{Path, PathBuf},
};

use thinbak_proto::{Failed, FailureKind};

use super::{FILE_NAME, catalogue_backups};
use crate::{catalogue::CatalogueError, store::StoreError};

/// Why a repository cannot be made or opened.
#[derive(Debug, thiserror::Error)]
pub enum RepositoryError {
    /// There is no repository in the directory.
    #[error("{} is no repository: it has no file {FILE_NAME}", .0.display())]
    NotFound(PathBuf),
    /// `init` makes a repository in a new or empty directory only.
    #[error("cannot make a repository in {}: {}", dir.display(), if *repository { "one is there already" } else { "the directory is not empty" })]
    NotEmpty {
        /// The directory.
        dir: PathBuf,
        /// It holds a repository.
        repository: bool,
    },
    /// A chunk size that the format does not allow.
    #[error("chunks cannot have {0} bytes: a power of two from 4096 to 1048576 is needed")]
    ChunkBytes(u32),
    /// Made by a newer program.
    #[error("repository {} has format version {found}; this program knows versions up to {known}", dir.display())]
    NewerFormat {
        /// The directory.
        dir: PathBuf,
        /// Its version.
        found: u32,
        /// The newest that is known here.
        known: u32,
    },
    /// Another process has it open.
    #[error("repository {} is open in another process", .0.display())]
    Busy(PathBuf),
    /// The file that says what the repository is cannot be understood.
    #[error("{} is damaged: {reason}", path.display())]
    Config {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The catalogue cannot be opened, and must be made anew or brought back.
    #[error("the catalogue of repository {} cannot be used: {source}", dir.display())]
    NoCatalogue {
        /// The directory.
        dir: PathBuf,
        /// The newest copy, if there is one.
        newest_backup: Option<PathBuf>,
        /// What is wrong with it.
        source: CatalogueError,
    },
    /// The catalogue.
    #[error(transparent)]
    Catalogue(#[from] CatalogueError),
    /// The store of chunks.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A file operation failed.
    #[error("cannot {attempt} {}: {source}", path.display())]
    Io {
        /// What was attempted.
        attempt: &'static str,
        /// On what.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
}

impl RepositoryError {
    pub(crate) fn io(attempt: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io { attempt, path: path.into(), source }
    }

    pub(super) fn no_catalogue(dir: &Path) -> impl FnOnce(CatalogueError) -> Self {
        move |source| match source {
            source @ (CatalogueError::Damaged { .. } | CatalogueError::Foreign { .. }) => {
                Self::NoCatalogue { dir: dir.into(), newest_backup: catalogue_backups::newest(dir), source }
            }
            source => Self::Catalogue(source),
        }
    }
}

const MAKE_ROOM: &str =
    "make room on the repository's file system; writing goes on by itself then, reading never stopped";

/// What to do without a catalogue.
fn way_back(dir: &Path, newest_backup: Option<&Path>) -> String {
    let dir = dir.display();
    match newest_backup {
        Some(backup) => format!(
            "`thinbak-server restore-catalogue --repo {dir} {}` brings back the newest copy and adds what is later in the \
             packs; without a copy `thinbak-server rebuild-catalogue --repo {dir}` makes it anew from the packs",
            backup.display()
        ),
        None => format!("`thinbak-server rebuild-catalogue --repo {dir}` makes it anew from the packs"),
    }
}

impl From<RepositoryError> for Failed {
    fn from(error: RepositoryError) -> Self {
        let hint = |text: &str| Some(text.to_owned());
        let (kind, said) = match &error {
            RepositoryError::NotFound(_) => {
                (FailureKind::NotFound, hint("`thinbak-server init --repo DIR` makes a repository"))
            }
            RepositoryError::NotEmpty { .. } => {
                (FailureKind::Refused, hint("name a new or an empty directory"))
            }
            RepositoryError::ChunkBytes(_) => (FailureKind::Usage, None),
            RepositoryError::NewerFormat { .. } => {
                (FailureKind::Failed, hint("use the program that made it, or a newer one"))
            }
            RepositoryError::Busy(_) => {
                (FailureKind::Busy, hint("address the server that has it open, or stop that server first"))
            }
            RepositoryError::Config { .. } => {
                (FailureKind::Damaged, hint("restore the file from a copy; the packs are not touched"))
            }
            RepositoryError::NoCatalogue { dir, newest_backup, source } => {
                let kind = match source {
                    CatalogueError::Foreign { .. } => FailureKind::Refused,
                    _ => FailureKind::Damaged,
                };
                (kind, Some(way_back(dir, newest_backup.as_deref())))
            }
            RepositoryError::Catalogue(CatalogueError::Foreign { .. }) => {
                (FailureKind::Refused, hint("name a copy that was made in this repository"))
            }
            RepositoryError::Catalogue(error) if error.is_no_space() => {
                (FailureKind::NoSpace, hint(MAKE_ROOM))
            }
            RepositoryError::Catalogue(CatalogueError::Damaged { .. }) => (
                FailureKind::Damaged,
                hint(
                    "`thinbak-server rebuild-catalogue` makes the catalogue anew; all content and all manifests are in packs/",
                ),
            ),
            RepositoryError::Catalogue(CatalogueError::Newer { .. }) => {
                (FailureKind::Failed, hint("use the program that wrote it, or a newer one"))
            }
            RepositoryError::Store(StoreError::IndexLocked { .. }) => (
                FailureKind::Busy,
                hint("the process that had the repository open is still ending: try again"),
            ),
            RepositoryError::Store(error) if error.is_damage() => (FailureKind::Damaged, None),
            RepositoryError::Store(StoreError::RecordTooLarge { .. }) => (FailureKind::Usage, None),
            RepositoryError::Store(StoreError::NoSpace { .. }) => (FailureKind::NoSpace, hint(MAKE_ROOM)),
            RepositoryError::Io { source, .. } if source.kind() == io::ErrorKind::StorageFull => {
                (FailureKind::NoSpace, hint(MAKE_ROOM))
            }
            RepositoryError::Catalogue(_) | RepositoryError::Store(_) | RepositoryError::Io { .. } => {
                (FailureKind::Failed, None)
            }
        };
        let failed = Failed::new(kind, error.to_string());
        match said {
            Some(said) => failed.with_hint(said),
            None => failed,
        }
    }
}

impl From<CatalogueError> for Failed {
    fn from(error: CatalogueError) -> Self {
        match error {
            CatalogueError::NameTaken { .. } => Failed::new(FailureKind::Refused, error.to_string())
                .with_hint("`--adopt` gives the name to this volume; what was backed up so far stays under NAME.UUID"),
            CatalogueError::TooLarge(_) => Failed::new(FailureKind::Usage, error.to_string()),
            error => RepositoryError::Catalogue(error).into(),
        }
    }
}

impl From<StoreError> for Failed {
    fn from(error: StoreError) -> Self {
        RepositoryError::Store(error).into()
    }
}
