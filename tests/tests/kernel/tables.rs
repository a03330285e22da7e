//! Tables: what is taken, how it is printed, and what the status says of it.

use anyhow::Result;

use crate::{
    guest::Guest,
    steps::{Step, Table},
    twin::Twin,
};

const SECTORS: u64 = 32_768;

const fn table(arguments: &'static str) -> Table {
    Table { sectors: SECTORS, block: 128, arguments }
}

/// Low water mark, count of features, features.
const TAKEN: &[&str] = &[
    "0",
    "0 0",
    "32",
    "18446744073709551615 0",
    "5 1 skip_block_zeroing",
    "5 1 SKIP_Block_Zeroing",
    "0 1 ignore_discard",
    "0 1 no_discard_passdown",
    "0 1 error_if_no_space",
    "0 1 read_only",
    "7 2 error_if_no_space read_only",
    "0 2 no_discard_passdown ignore_discard",
    "0 2 read_only read_only",
    "0 3 no_discard_passdown skip_block_zeroing error_if_no_space",
    "1 4 error_if_no_space no_discard_passdown ignore_discard skip_block_zeroing",
    "1 4 read_only error_if_no_space no_discard_passdown ignore_discard",
    // Words behind those that were counted.
    "0 0 read_only",
    "0 1 error_if_no_space read_only bogus",
    "+3 1 ignore_discard",
    "3 01 ignore_discard",
];

/// What is refused, a fifth feature too.
const REFUSED: &[&str] = &[
    "",
    "x",
    "-1",
    "18446744073709551616",
    "0 1",
    "0 2 read_only",
    "0 1 bogus",
    "0 5 skip_block_zeroing ignore_discard no_discard_passdown read_only error_if_no_space",
    "0 9 a",
    "0 x",
    "3 +1 ignore_discard",
];

#[test]
fn tables_are_taken_and_printed_as_the_kernel_does() -> Result<()> {
    let Some(guest) = Guest::find()? else { return Ok(()) };
    let mut twin = Twin::new(guest, 8192, SECTORS, None)?;
    let mut steps = vec![
        // Nothing is formatted when nothing may be written.
        Step::Up(table("0 1 read_only")),
        Step::Up(table("0")),
        Step::Message("create_thin 0"),
        Step::Thin(0, 1024),
        Step::Write(0, 0, 100 * 512, 0),
        Step::Down,
    ];
    for arguments in TAKEN {
        let message = Step::Message("delete 5");
        steps.extend([Step::Up(table(arguments)), message, Step::Events, Step::Down]);
    }
    steps.extend(REFUSED.iter().map(|arguments| Step::Up(table(arguments))));
    twin.same(&steps)
}
