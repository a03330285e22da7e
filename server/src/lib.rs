//! The thinbak backup server: content-addressed chunks, generations, catalogue, and the gRPC services over
//! them. The same library is the embedded repository of a client.

mod catalogue;
mod content;
mod ingest;
mod manifest;
mod map_tree;
mod marking;
mod rebuild;
mod repository;
mod service;
pub mod store;
mod verify;

pub use catalogue::CatalogueError;
pub use rebuild::{
    Damage, MAX_DAMAGE, ONLY_IN_THE_CATALOGUE, OnlyInTheCatalogue, Rebuilt, rebuild_catalogue,
    restore_catalogue,
};
pub use repository::{CatalogueBackup, InitOptions, Repository, RepositoryError};
pub use service::{ServeError, routes, serve};
