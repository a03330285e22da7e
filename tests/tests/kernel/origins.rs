//! Thin devices over an external origin: equal, shorter, longer, and one that ends inside a block.

use anyhow::Result;

use crate::{
    guest::Guest,
    steps::{Step, Table},
    twin::Twin,
};

const BLOCK: u64 = 65_536;
const SECTORS: u64 = 32_768;
/// Blocks of the thin devices.
const BLOCKS: u64 = 10;
const THIN: u64 = BLOCKS * 128;

fn table(arguments: &'static str) -> Table {
    Table { sectors: SECTORS, block: 128, arguments }
}

/// Both provision blocks of thin 0 inside the origin, at its end and beyond it, whole and in part; then they exchange their
/// pools, see the same, and go on with discards and with a snapshot over the same origin.
fn over(origin_sectors: u64, arguments: &'static str) -> Result<()> {
    let Some(guest) = Guest::find()? else { return Ok(()) };
    let mut twin = Twin::new(guest, 8192, SECTORS, Some(origin_sectors))?;
    let end = origin_sectors / 128;
    let last = end.min(BLOCKS - 2);
    twin.same(&[
        Step::Up(table(arguments)),
        Step::Message("create_thin 0"),
        Step::Over(0, THIN),
        Step::Read(0),
        Step::Write(0, 1024, 512, 0),
        Step::Write(0, 2 * BLOCK, BLOCK, 512),
        Step::Write(0, 3 * BLOCK - 4096, 8192, 512),
        // The block in which the origin ends, and those beside it.
        Step::Write(0, last * BLOCK + 512, 1024, 0),
        Step::Write(0, (BLOCKS - 1) * BLOCK + 1024, 512, 0),
        Step::Read(0),
        Step::Down,
    ])?;
    twin.exchange();
    twin.same(&[
        Step::Up(table(arguments)),
        Step::Over(0, THIN),
        Step::Read(0),
        Step::Message("create_snap 1 0"),
        Step::Over(1, THIN),
        Step::Write(1, last * BLOCK + 4096, 512, 0),
        Step::Write(0, 1536, 512, 4096),
        // They read as the origin again, and zeroes beyond it.
        Step::Discard(0, 0, BLOCK),
        Step::Discard(0, last * BLOCK, BLOCK),
        Step::Discard(0, (BLOCKS - 1) * BLOCK, BLOCK),
        Step::Read(0),
        Step::Read(1),
        Step::Write(0, last * BLOCK + 8192, 512, 0),
        Step::Write(0, last * BLOCK, BLOCK, 0),
        Step::Write(0, (last + 1) * BLOCK - 512, 512, 0),
        Step::Read(0),
        Step::Remove(0),
        // Without the origin, and smaller and larger than before.
        Step::Thin(0, THIN),
        Step::Read(0),
        Step::Remove(0),
        Step::Over(0, 5 * 128 + 8),
        Step::Read(0),
        Step::Remove(0),
        Step::Over(0, 2 * THIN),
        Step::Read(0),
        Step::Down,
    ])
}

#[test]
fn a_thin_as_long_as_its_origin_is_the_same_to_both() -> Result<()> {
    over(THIN, "0")
}

#[test]
fn a_thin_shorter_than_its_origin_is_the_same_to_both() -> Result<()> {
    over(2 * THIN, "0")
}

#[test]
fn a_thin_longer_than_its_origin_is_the_same_to_both() -> Result<()> {
    over(THIN / 2, "0")
}

#[test]
fn a_thin_over_an_origin_that_ends_inside_a_block_is_the_same_to_both() -> Result<()> {
    over(THIN / 2 + 16, "0")
}

/// All bytes of these devices are defined: the data device is blank where nothing was written before.
#[test]
fn a_thin_over_an_origin_that_ends_inside_a_block_is_the_same_to_both_without_zeroing() -> Result<()> {
    over(THIN / 2 + 16, "0 1 skip_block_zeroing")
}
