//! The thinbak backup server: content-addressed chunks, generations, catalogue, and the gRPC services over
//! them. The same library is the embedded repository of a client.

mod catalogue;
mod content;
mod environment;
#[cfg(any(test, fuzzing))]
#[doc(hidden)]
#[expect(clippy::indexing_slicing, reason = "a panic is a finding")]
pub mod fuzzing;
mod ingest;
mod manifest;
mod map_tree;
mod marking;
mod repository;
mod retention;
mod service;
pub mod store;
mod verify;

/// What simulations and fuzzers put in the place of a disk.
#[cfg(any(fuzzing, feature = "testing"))]
#[doc(hidden)]
pub mod testing {
    pub use crate::store::memory_medium::MemoryMedium;
}

pub use catalogue::CatalogueError;
pub use environment::{Clock, Environment, Random};
pub use repository::{InitOptions, Repository, RepositoryError};
pub use service::{ServeError, routes, serve};
