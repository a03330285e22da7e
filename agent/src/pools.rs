//! Pools of this host: which are known, which are open, and the services on them.
//!
//! A pool is named by the name under which it was registered, or by kind and place (`dir:/path`). It is opened
//! on demand and stays open as long as its [`PoolManager`] lives: in a daemon until it stops, in a command
//! without one until it ends.

mod admin;
mod blocking;
mod export;
mod failure;
mod import;
mod info;
mod known;
mod manager;
mod msnap;
mod place;
mod running;
mod service;
mod settings;
mod text;
mod volumes;

pub(crate) use self::{blocking::blocking, info::open_pool_infos, running::now_ms};
pub use self::{
    failure::failed,
    manager::PoolManager,
    running::{JobTable, RunningJobGuard, VolumeLock},
    service::PoolsService,
};

#[cfg(test)]
mod tests;
