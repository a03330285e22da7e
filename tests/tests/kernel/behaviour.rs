//! What reads, writes and discards do under each table.

use anyhow::Result;

use crate::{
    guest::Guest,
    steps::{Step, Table},
    twin::Twin,
};

/// Bytes of a data block.
const BLOCK: u64 = 65_536;
const SECTORS: u64 = 32_768;

const fn table(arguments: &'static str) -> Table {
    Table { sectors: SECTORS, block: 128, arguments }
}

/// A life under one table: provisioning, sharing, discards of every shape, deletion.
fn life(arguments: &'static str) -> Vec<Step> {
    vec![
        Step::Up(table(arguments)),
        Step::Message("create_thin 0"),
        Step::Thin(0, 40 * 128),
        Step::Write(0, 3 * BLOCK, BLOCK, 0),
        Step::Write(0, 3 * BLOCK + 512, 1024, 4096),
        Step::Write(0, 10 * BLOCK, 3 * BLOCK, 512),
        Step::Message("create_snap 1 0"),
        Step::Thin(1, 40 * 128),
        Step::Write(0, 10 * BLOCK, BLOCK, 7 * 512),
        Step::Write(1, 11 * BLOCK + 512, 512, 0),
        // Whole blocks of a range, nothing of parts.
        Step::Discard(0, 10 * BLOCK + 512, 2 * BLOCK),
        Step::Discard(0, 10 * BLOCK, BLOCK - 512),
        Step::Discard(0, 3 * BLOCK, BLOCK),
        Step::Discard(1, 3 * BLOCK, BLOCK),
        Step::Discard(1, 0, 40 * BLOCK),
        Step::Read(1),
        Step::Write(1, 39 * BLOCK, BLOCK, 0),
        Step::Message("delete 1"),
        Step::Remove(1),
        Step::Message("delete 1"),
        Step::Message("reserve_metadata_snap"),
        Step::Discard(0, 0, 40 * BLOCK),
        Step::Write(0, 0, 2 * BLOCK, 0),
        Step::Message("release_metadata_snap"),
        Step::Read(0),
        Step::Events,
        Step::Remove(0),
        Step::Message("delete 0"),
        Step::Down,
    ]
}

fn same_life(arguments: &'static str) -> Result<()> {
    let Some(guest) = Guest::find()? else { return Ok(()) };
    let mut twin = Twin::new(guest, 8192, SECTORS, None)?;
    twin.same(&life(arguments))?;
    // And once more, each on what the other has left.
    twin.exchange();
    twin.same(&life(arguments))
}

#[test]
fn a_pool_without_features_lives_as_in_the_kernel() -> Result<()> {
    same_life("250")
}

#[test]
fn a_pool_that_does_not_pass_discards_down_lives_as_in_the_kernel() -> Result<()> {
    same_life("0 1 no_discard_passdown")
}

#[test]
fn a_pool_that_ignores_discards_lives_as_in_the_kernel() -> Result<()> {
    same_life("0 2 ignore_discard error_if_no_space")
}
