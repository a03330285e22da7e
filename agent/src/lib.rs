//! The thinbak node agent and command: pools, change streams, backup and restore jobs.
//!
//! Every command is a call on a generated client ([`channel::BoxedChannel`]): of a running agent, of a
//! backup server, or of the same services inside the command's own process.

pub mod channel;
pub mod cli;
pub mod client;
pub mod config;
pub mod daemon;
pub mod demo;
pub mod jobs;
mod metrics;
mod output;
pub mod pools;
pub mod repository_client;
pub mod schedule;
mod shape;
pub mod sink;
pub mod source;
pub mod stream;
pub mod volume;
