//! The thinbak backup server: content-addressed chunks, generations, catalogue, and the gRPC services over
//! them. The same library is the embedded repository of a client.

mod catalogue;
mod collect;
mod content;
mod environment;
mod ingest;
mod manifest;
mod map_tree;
mod marking;
mod repository;
mod retention;
mod service;
pub mod store;
mod verify;

pub use catalogue::CatalogueError;
pub use environment::{Clock, Environment, Random};
pub use repository::{InitOptions, Repository, RepositoryError};
pub use service::{ServeError, routes, serve};
