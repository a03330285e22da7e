//! Pools of this host and the services on them.
