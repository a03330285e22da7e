//! The agent daemon on its unix socket.
