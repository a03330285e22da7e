//! The thinbak backup server: content-addressed chunks, generations, catalogue, and the gRPC services over
//! them. The same library is the embedded repository of a client.

mod access;
mod catalogue;
mod collect;
pub mod config;
mod content;
#[cfg(test)]
mod crashes;
mod environment;
mod file_size_limit;
#[cfg(any(test, fuzzing))]
#[doc(hidden)]
#[expect(clippy::indexing_slicing, reason = "a panic is a finding")]
pub mod fuzzing;
mod health;
mod ingest;
mod manifest;
mod map_tree;
mod marking;
mod metrics;
mod rebuild;
mod repository;
mod retention;
pub mod schedule;
mod service;
pub mod store;
mod tls;
mod verify;
mod write_failure;

/// What simulations and fuzzers put in the place of a disk.
#[cfg(any(fuzzing, feature = "testing"))]
#[doc(hidden)]
pub mod testing {
    pub use crate::store::memory_medium::MemoryMedium;
}

pub use catalogue::CatalogueError;
pub use environment::{Clock, Environment, Random};
pub use file_size_limit::survive_file_size_limit;
pub use metrics::serve_metrics;
pub use rebuild::{
    Damage, MAX_DAMAGE, ONLY_IN_THE_CATALOGUE, OnlyInTheCatalogue, Rebuilt, rebuild_catalogue,
    rebuild_catalogue_in, restore_catalogue,
};
pub use repository::{CatalogueBackup, InitOptions, Repository, RepositoryError};
pub use retention::{KeepsNothing, Policy, RetentionRule};
pub use service::{ServeError, routes, serve, serve_over_tls};
pub use tls::{Certificates, Peer, TlsError, TlsFiles, make_certificate};
