//! The engine and the kernel's own thin-pool target, in a guest (see `tests/vm`), take turns on one pool.
//!
//! Each side finds the other's pool as a naive model says (contents, mapped blocks, status line, held metadata
//! snapshot), changes it, and the checkers of both have nothing to say.

#[path = "kernel/behaviour.rs"]
mod behaviour;
#[path = "kernel/block_devices.rs"]
mod block_devices;
#[path = "kernel/breakable.rs"]
mod breakable;
#[path = "kernel/driven.rs"]
mod driven;
#[path = "kernel/engine_side.rs"]
mod engine_side;
#[path = "kernel/file_system.rs"]
mod file_system;
#[path = "kernel/guest.rs"]
mod guest;
#[path = "kernel/kernel_side.rs"]
mod kernel_side;
#[path = "kernel/lab.rs"]
mod lab;
#[path = "kernel/large_metadata.rs"]
mod large_metadata;
#[path = "kernel/lvm.rs"]
mod lvm;
#[path = "kernel/many.rs"]
mod many;
#[path = "kernel/messages.rs"]
mod messages;
#[path = "kernel/model.rs"]
mod model;
#[path = "kernel/modes.rs"]
mod modes;
#[path = "kernel/msnap.rs"]
mod msnap;
#[path = "kernel/origins.rs"]
mod origins;
#[path = "kernel/rebuilt.rs"]
mod rebuilt;
#[path = "kernel/replaced.rs"]
mod replaced;
#[path = "kernel/steps.rs"]
mod steps;
#[path = "kernel/tables.rs"]
mod tables;
#[path = "kernel/twin.rs"]
mod twin;

use anyhow::Result;

use crate::{guest::Guest, lab::Lab};

const KIB: u64 = 1024;

/// The engine's pool goes to the kernel and back, and once more.
fn engine_first(block_bytes: u64, device_bytes: u64) -> Result<()> {
    let Some(guest) = Guest::find()? else { return Ok(()) };
    let mut lab = Lab::new(guest, block_bytes, device_bytes)?;
    lab.engine_formats()?;
    lab.engine_turn()?;
    lab.kernel_turn()?;
    lab.engine_turn()?;
    lab.kernel_turn()
}

/// The mapping trees have several leaves.
#[test]
fn the_kernel_takes_a_pool_that_the_engine_wrote_and_gives_it_back() -> Result<()> {
    engine_first(64 * KIB, 20 * 1024 * KIB)
}

/// The last block of a device is partial.
#[test]
fn the_kernel_takes_a_pool_of_192_kib_blocks_and_gives_it_back() -> Result<()> {
    engine_first(192 * KIB, 10 * 1024 * KIB)
}

#[test]
fn the_engine_takes_a_pool_that_the_kernel_made_and_gives_it_back() -> Result<()> {
    let Some(guest) = Guest::find()? else { return Ok(()) };
    let mut lab = Lab::new(guest, 64 * KIB, 17 * 1024 * KIB + 4 * KIB)?;
    lab.kernel_turn()?;
    lab.engine_turn()?;
    lab.kernel_turn()?;
    lab.engine_turn()
}
