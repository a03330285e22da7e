//! The thinbak backup server.

pub mod store;
