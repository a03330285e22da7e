//! The checker: every invariant of a pool's metadata, read from the device alone.
//!
//! | invariant | says |
//! |---|---|
//! | F1 | the superblock is intact, of a known version, without unknown features, with legal block sizes |
//! | F2 | the space maps cover no more than the devices have |
//! | F3 | every block that is referred to exists, is intact, and is where it says that it is |
//! | F4 | every node has the flags, value size and room of its tree, ascending keys, and is a third full unless it is a root |
//! | F5 | all leaves of a tree are on one level; a node's keys lie in the range that its parent gives it |
//! | F6 | no cycles; a block has one role |
//! | F7 | both trees of devices have the same ids; mapped blocks and times are right |
//! | F8 | mappings point into the data device and are not from the future |
//! | F9 | the data space map counts what the mapping leaves refer to |
//! | F10 | the metadata space map counts what refers to each metadata block |
//! | F11 | the trees of large counts have exactly the blocks whose bits say so |
//! | F12 | index entries are complete and their figures, like those of the superblock, are right |
//! | F13 | bits beyond the last block are zero |
//! | F14 | a metadata snapshot is a valid superblock without space maps, not newer than the pool |
//!
//! It decodes blocks on its own, so that a mistake in the code that writes pools is not repeated here. Damage
//! is reported and the search goes on; counts are compared only when all trees could be read.
//!
//! A scan (`scan`) first reads all that can be reached, with several threads, neighbouring blocks together, and notes
//! of each leaf whether it is flawless. Then one thread follows every reference in order and judges it
//! (`checker`); it reads again only what is not flawless. Last, the bitmaps are compared with what was counted
//! (`bitmaps`). The report is the same whatever the threads' timing.
//!
//! Memory, whatever the image says of itself: 34 bytes per metadata block of the device (at most 4,161,600 blocks);
//! 16 KiB for each bitmap whose data blocks have references, and as much again where it records large counts (80 KiB
//! where an eighth of these is 255 or more), but never for more than 8,192 bitmaps at once, nor for more than there are
//! metadata blocks: data blocks beyond the first 133,693,440 are counted in further passes, which read all leaves
//! again. Also 24 bytes per bitmap, 56 bytes per thin device, 32 MiB of nodes, and a megabyte a thread.

mod agreement;
mod bitmaps;
mod checker;
mod counts;
mod devices;
mod mappings;
mod raw;
mod scan;
mod space_maps;
mod superblock;
mod sweep;
mod table;
mod tally;
mod trees;

use std::{fmt, sync::Arc};

use serde::Serialize;

use self::{checker::Checker, superblock::Superblock};
use crate::{BlockDevice, DeviceId, MetadataBlock};

/// Damage listed at most, of either severity; the rest is only counted.
const MAX_LISTED: usize = 1_000;
/// Bitmaps whose data blocks are counted in one pass: 133,693,440 blocks, of 64 KiB 8 TiB.
const SPAN_BITMAPS: u64 = 8_192;

/// One broken invariant.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Damage {
    /// Its name, `F1` to `F14`.
    pub invariant: &'static str,
    /// Whether the pool must not be used as it is. What is not fatal wastes space or asks for attention.
    pub fatal: bool,
    /// The metadata block in which it shows.
    pub block: Option<MetadataBlock>,
    /// The thin device that is affected.
    pub device: Option<DeviceId>,
    /// First and last key (virtual block, device id or block number) that may be affected.
    pub keys: Option<(u64, u64)>,
    /// What is wrong, in a sentence that names all of the above.
    pub description: String,
}

impl fmt::Display for Damage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.invariant, self.description)
    }
}

/// What a check found.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct CheckReport {
    /// Broken invariants, in the order found.
    pub damage: Vec<Damage>,
    /// Fatal damage beyond what is listed.
    pub fatal_omitted: u64,
    /// Other damage beyond what is listed.
    pub minor_omitted: u64,
    /// Thin devices.
    pub devices: u64,
    /// Mappings of all thin devices, shared ones counted for each.
    pub mappings: u64,
    /// Metadata blocks in use.
    pub blocks: u64,
}

impl CheckReport {
    /// Whether the pool can be used: no fatal damage.
    #[must_use]
    pub fn is_sound(&self) -> bool {
        self.fatal_omitted == 0 && self.damage.iter().all(|damage| !damage.fatal)
    }

    fn add(&mut self, damage: Damage) {
        match damage.fatal {
            true if self.fatal_omitted > 0 => return self.fatal_omitted += 1,
            false if self.minor_omitted > 0 => return self.minor_omitted += 1,
            _ => {}
        }
        let listed = self.damage.iter().filter(|listed| listed.fatal == damage.fatal).count();
        match (listed < MAX_LISTED, damage.fatal) {
            (true, _) => self.damage.push(damage),
            (false, true) => self.fatal_omitted += 1,
            (false, false) => self.minor_omitted += 1,
        }
    }
}

/// Why there is no report.
#[derive(Debug, thiserror::Error)]
pub enum CheckError {
    /// The device does not even have a superblock.
    #[error("the metadata device has {0} bytes, a pool's has at least 4096")]
    TooSmall(u64),
}

/// Checks the metadata of a pool at rest. `data_bytes` is the size of its data device, where it is known.
///
/// # Errors
/// Only when there is nothing to look at. Damage and failed reads are in the report.
pub fn check(device: Arc<dyn BlockDevice>, data_bytes: Option<u64>) -> Result<CheckReport, CheckError> {
    check_in_spans(device.as_ref(), data_bytes, SPAN_BITMAPS)
}

fn check_in_spans(
    device: &dyn BlockDevice,
    data_bytes: Option<u64>,
    span_bitmaps: u64,
) -> Result<CheckReport, CheckError> {
    let size = device.size_bytes();
    if size < raw::BLOCK_LEN as u64 {
        return Err(CheckError::TooSmall(size));
    }
    let mut report = CheckReport::default();
    let Some(superblock) = Superblock::read(device, &mut report) else { return Ok(report) };
    superblock.check_sizes(size, data_bytes, &mut report);
    let mut checker = Checker::new(device, &superblock, span_bitmaps, report);
    checker.superblock_block();
    checker.pool();
    let maps = checker.space_map_structures();
    checker.compare(maps, span_bitmaps);
    Ok(checker.finish())
}

#[cfg(test)]
mod tests;
