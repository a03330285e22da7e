//! The thinbak backup server.
