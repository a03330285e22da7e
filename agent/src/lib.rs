//! The thinbak node agent and command.
