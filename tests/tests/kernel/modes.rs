//! Modes: out of data space, out of metadata space, read-only, in need of a check, failed; and the way back.

use anyhow::Result;

use crate::{
    breakable::Broken,
    guest::Guest,
    steps::{Step, Table},
    twin::Twin,
};

const BLOCK: u64 = 65_536;
/// A pool of 16 blocks.
const SMALL: u64 = 16 * 128;

const fn table(sectors: u64, arguments: &'static str) -> Table {
    Table { sectors, block: 128, arguments }
}

fn same(metadata_sectors: u64, steps: &[Step]) -> Result<()> {
    let Some(guest) = Guest::find()? else { return Ok(()) };
    Twin::new(guest, metadata_sectors, 4 * SMALL, None)?.same(steps)
}

/// One write for each of so many blocks.
fn fill(device: u32, blocks: std::ops::Range<u64>) -> impl Iterator<Item = Step> {
    blocks.map(move |block| Step::Write(device, block * BLOCK, BLOCK, block % 8 * BLOCK))
}

#[test]
fn a_full_pool_that_errors_says_so_and_recovers_by_deletion_discard_and_growth() -> Result<()> {
    let errors = "4 1 error_if_no_space";
    let mut steps = vec![
        Step::Up(table(SMALL, errors)),
        Step::Message("create_thin 0"),
        Step::Message("create_thin 1"),
        Step::Thin(0, 4 * SMALL),
        Step::Thin(1, 4 * SMALL),
        Step::Events,
    ];
    steps.extend(fill(0, 0..11));
    // The low water mark is looked at before a block is taken.
    steps.extend([Step::Write(1, 0, BLOCK, 0), Step::Events, Step::Write(1, BLOCK, BLOCK, 0), Step::Events]);
    steps.extend(fill(0, 11..15));
    steps.extend([
        Step::Events,
        Step::Write(1, 4096, 8192, 0),
        Step::Message("create_thin 2"),
        Step::Message("create_snap 3 0"),
        Step::Write(0, 4096, 4096, 0),
        Step::Message("reserve_metadata_snap"),
        Step::Message("release_metadata_snap"),
        // Shared: nothing gets free.
        Step::Discard(0, 0, 2 * BLOCK),
        Step::Message("delete 3"),
        Step::Events,
        Step::Write(0, 0, 2 * BLOCK, 0),
        Step::Write(0, 20 * BLOCK, BLOCK, 0),
        Step::Events,
        Step::Discard(1, 0, BLOCK),
        Step::Events,
        Step::Write(0, 20 * BLOCK, BLOCK, 0),
        Step::Write(0, 21 * BLOCK, BLOCK, 0),
        Step::Reload(table(2 * SMALL, errors)),
        Step::Events,
        Step::Write(0, 21 * BLOCK, BLOCK, 0),
        Step::Read(0),
        Step::Read(1),
        Step::Events,
        Step::Down,
    ]);
    same(8192, &steps)
}

#[test]
fn writes_wait_in_a_full_pool_until_there_is_space() -> Result<()> {
    let mut steps =
        vec![Step::Up(table(SMALL, "0")), Step::Message("create_thin 0"), Step::Thin(0, 4 * SMALL)];
    steps.extend(fill(0, 0..16));
    steps.extend([
        Step::Begin(0, 20 * BLOCK, BLOCK, 0),
        Step::Await("out_of_data_space"),
        Step::Events,
        Step::Read(0),
        Step::Discard(0, 3 * BLOCK, BLOCK),
        Step::End,
        Step::Events,
        Step::Begin(0, 21 * BLOCK + 512, 512, 0),
        Step::Await("out_of_data_space"),
        Step::Reload(table(2 * SMALL, "0")),
        Step::End,
        Step::Events,
        Step::Read(0),
        Step::Down,
    ]);
    same(8192, &steps)
}

#[test]
fn writes_that_waited_too_long_fail_and_so_does_what_comes_after_them() -> Result<()> {
    let mut steps = vec![
        Step::Timeout(2),
        Step::Up(table(SMALL, "0")),
        Step::Message("create_thin 0"),
        Step::Thin(0, 4 * SMALL),
    ];
    steps.extend(fill(0, 0..16));
    steps.extend([
        Step::Begin(0, 20 * BLOCK, BLOCK, 0),
        Step::Await("error_if_no_space"),
        Step::End,
        Step::Events,
        Step::Write(0, 21 * BLOCK, BLOCK, 0),
        Step::Write(0, 3 * BLOCK, BLOCK, 0),
        Step::Discard(0, 3 * BLOCK, BLOCK),
        Step::Events,
        Step::Write(0, 21 * BLOCK, BLOCK, 0),
        Step::Down,
    ]);
    same(8192, &steps)
}

#[test]
fn a_read_only_pool_reads_and_overwrites_and_changes_nothing_else() -> Result<()> {
    let mut steps = vec![
        Step::Up(table(SMALL, "0")),
        Step::Message("create_thin 0"),
        Step::Message("create_thin 1"),
        Step::Thin(0, SMALL),
    ];
    steps.extend(fill(0, 0..3));
    steps.extend([
        Step::Message("create_snap 2 0"),
        Step::Message("reserve_metadata_snap"),
        Step::Write(0, 5 * BLOCK, BLOCK, 0),
        Step::Down,
        Step::Up(table(SMALL, "0 1 read_only")),
        Step::Message("create_thin 9"),
        Step::Message("create_snap 9 0"),
        Step::Message("delete 1"),
        Step::Message("delete 99"),
        Step::Message("set_transaction_id 0 1"),
        Step::Message("reserve_metadata_snap"),
        Step::Message("release_metadata_snap"),
        Step::Message("bogus"),
        Step::Thin(0, SMALL),
        Step::Thin(2, SMALL),
        Step::Thin(9, SMALL),
        Step::Write(0, 5 * BLOCK, BLOCK, 4096),
        Step::Write(0, 4096, 4096, 0),
        Step::Write(0, 7 * BLOCK, BLOCK, 0),
        Step::Discard(0, 5 * BLOCK, BLOCK),
        Step::Read(0),
        Step::Read(2),
        Step::Events,
        // As large as before, and writing again.
        Step::Reload(table(SMALL, "0")),
        Step::Write(0, 4096, 4096, 0),
        Step::Message("delete 1"),
        Step::Events,
        Step::Reload(table(SMALL, "0 1 read_only")),
        Step::Message("create_thin 1"),
        Step::Events,
        Step::Down,
    ]);
    same(8192, &steps)
}

#[test]
fn a_failed_commit_leaves_a_read_only_pool_that_needs_a_check() -> Result<()> {
    let mut steps =
        vec![Step::Up(table(SMALL, "0")), Step::Message("create_thin 0"), Step::Thin(0, 4 * SMALL)];
    steps.extend(fill(0, 0..4));
    steps.extend([
        Step::Message("create_snap 1 0"),
        Step::Events,
        Step::Break(Broken::Writes),
        Step::Unsaid("create_thin 7"),
        Step::Events,
        Step::Message("create_thin 8"),
        Step::Message("reserve_metadata_snap"),
        Step::Write(0, 9 * BLOCK, BLOCK, 0),
        Step::Read(0),
        Step::Break(Broken::Nothing),
        Step::Message("create_thin 8"),
        Step::Reload(table(SMALL, "0")),
        Step::Message("create_thin 8"),
        Step::Events,
        Step::Down,
        Step::Up(table(SMALL, "0")),
        Step::Events,
        Step::Message("create_thin 8"),
        Step::Thin(0, SMALL),
        Step::Write(0, 9 * BLOCK, BLOCK, 0),
        Step::Reload(table(2 * SMALL, "0")),
        Step::Down,
        Step::ClearNeedsCheck,
        Step::Up(table(SMALL, "0")),
        Step::Events,
        Step::Thin(0, SMALL),
        Step::Write(0, 9 * BLOCK, BLOCK, 0),
        Step::Read(0),
        Step::Down,
    ]);
    same(8192, &steps)
}

#[test]
fn a_pool_without_metadata_device_fails() -> Result<()> {
    let steps = [
        Step::Up(table(SMALL, "0")),
        Step::Message("create_thin 0"),
        Step::Thin(0, SMALL),
        Step::Write(0, 0, BLOCK, 0),
        Step::Write(0, BLOCK, 4096, 0),
        Step::Events,
        Step::Break(Broken::All),
        Step::Unsaid("create_thin 1"),
        Step::Events,
        Step::Message("create_thin 2"),
        Step::Message("set_transaction_id 0 1"),
        Step::Down,
        Step::Break(Broken::Nothing),
        Step::Up(table(SMALL, "0")),
        Step::Thin(0, SMALL),
        Step::Read(0),
        Step::Down,
    ];
    same(8192, &steps)
}

/// A metadata device that is small, but not so small that the engine's reserve is larger than the kernel's.
const METADATA: u64 = 800 * 8;

/// A pool with few free metadata blocks.
fn crowded(steps: &[Step]) -> Result<()> {
    let Some(guest) = Guest::find()? else { return Ok(()) };
    let mut twin = Twin::new(guest, METADATA, 4 * SMALL, None)?;
    twin.prepare(SMALL, |pool| {
        let mut id = 0;
        while pool.status().metadata_used < pool.status().metadata_total - 6 {
            pool.message(&["create_thin", &id.to_string()])?;
            id += 1;
        }
        Ok(())
    })?;
    twin.same(steps)
}

#[test]
fn metadata_that_are_full_are_read_only_until_they_grow() -> Result<()> {
    let mut steps = vec![Step::Up(table(SMALL, "0")), Step::Events, Step::Thin(0, SMALL)];
    for message in
        ["create_thin 1001", "create_thin 1002", "create_thin 1003", "create_thin 1004", "create_thin 1005"]
    {
        steps.extend([Step::Message(message), Step::Events]);
    }
    steps.extend([
        Step::Message("create_thin 1006"),
        Step::Message("create_thin 1007"),
        Step::Events,
        Step::Write(0, 0, BLOCK, 0),
        Step::Message("delete 1"),
        Step::Message("reserve_metadata_snap"),
        Step::Read(0),
        Step::Events,
        Step::Reload(table(SMALL, "0")),
        Step::Events,
        Step::ResizeMetadata(2 * METADATA),
        Step::Reload(table(SMALL, "0")),
        Step::Events,
        Step::Message("create_thin 1008"),
        Step::Message("delete 1"),
        Step::Write(0, 0, BLOCK, 0),
        Step::Read(0),
        Step::Events,
        Step::Down,
    ]);
    crowded(&steps)
}

#[test]
fn a_larger_metadata_device_is_taken_into_use_by_a_reload_and_when_a_pool_comes_up() -> Result<()> {
    same(
        METADATA,
        &[
            Step::Up(table(SMALL, "0")),
            Step::Message("create_thin 0"),
            Step::ResizeMetadata(2 * METADATA),
            Step::Message("create_thin 1"),
            Step::Reload(table(SMALL, "0")),
            Step::Message("create_thin 2"),
            Step::Events,
            Step::Down,
            Step::ResizeMetadata(3 * METADATA),
            Step::Up(table(2 * SMALL, "0")),
            Step::Message("create_thin 3"),
            Step::Events,
            Step::Down,
        ],
    )
}

#[test]
fn a_device_that_has_become_shorter_is_refused() -> Result<()> {
    same(
        METADATA,
        &[
            Step::Up(table(2 * SMALL, "0")),
            Step::Message("create_thin 0"),
            Step::Down,
            Step::Up(table(SMALL, "0")),
            Step::ResizeMetadata(METADATA / 2),
            Step::Up(table(2 * SMALL, "0")),
            Step::ResizeMetadata(METADATA),
            Step::Up(table(2 * SMALL, "0")),
            Step::Down,
        ],
    )
}
