//! The whole life of a volume, through the services.

mod client;
mod holds;
mod life;
mod refusals;
mod survival;
