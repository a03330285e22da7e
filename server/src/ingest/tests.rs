//! The whole life of a volume, through the services.

pub(crate) mod client;
mod holds;
mod life;
mod refusals;
mod survival;
