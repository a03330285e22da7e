//! The thinbak backup server: content-addressed chunks, generations, catalogue, and the gRPC services over
//! them. The same library is the embedded repository of a client.

mod catalogue;
pub mod config;
mod content;
mod environment;
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
mod verify;

pub use catalogue::CatalogueError;
pub use environment::{Clock, Environment, Random};
pub use metrics::serve_metrics;
pub use rebuild::{
    Damage, MAX_DAMAGE, ONLY_IN_THE_CATALOGUE, OnlyInTheCatalogue, Rebuilt, rebuild_catalogue,
    restore_catalogue,
};
pub use repository::{CatalogueBackup, InitOptions, Repository, RepositoryError};
pub use retention::{InvalidPattern, KeepsNothing, Pattern, Policy, RetentionRule};
pub use service::{ServeError, routes, serve};
