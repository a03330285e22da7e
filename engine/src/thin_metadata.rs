//! Devices, their mapping trees, snapshots and commits.
