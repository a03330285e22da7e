//! Pools of this host: which are known, which are open, and the services on them.
//!
//! A pool is named by the name under which it was registered, or by kind and place (`dir:/path`, `dm:NAME`, `lvm:VG/POOL`).
//! It is opened on demand and stays open as long as its [`PoolManager`] lives: in a daemon until it stops, in a command
//! without one until it ends. Pools of LVM are open only while somebody works with them.

mod admin;
mod blocking;
mod candidate;
mod embedded;
mod export;
mod failure;
mod guard;
mod import;
mod info;
mod kernel;
mod known;
mod manager;
mod msnap;
mod place;
mod pool;
mod running;
mod service;
mod settings;
mod text;
mod volumes;

pub(crate) use self::{
    blocking::blocking,
    candidate::Candidate,
    failure::of_text,
    guard::{Need, with_notes},
    info::open_pool_infos,
    kernel::watch,
    running::now_ms,
};
pub use self::{
    failure::failed,
    manager::PoolManager,
    pool::{Content, Frozen, HeldMsnap, PoolParts, ThinPool},
    running::{JobTable, RunningJobGuard, VolumeLock},
    service::PoolsService,
};

#[cfg(test)]
mod tests;
