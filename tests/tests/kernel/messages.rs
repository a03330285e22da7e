//! What messages are answered with.

use anyhow::Result;

use crate::{
    guest::Guest,
    steps::{Step, Table},
    twin::Twin,
};

const POOL: Table = Table { sectors: 32_768, block: 128, arguments: "0" };

/// Counts of arguments, forms of numbers, limits of ids, verbs.
#[rustfmt::skip]
const FORMS: &[&str] = &[
    "create_thin", "create_thin 0", "create_thin 0", "CREATE_THIN 1", "Create_Thin 01", "create_thin 1 2",
    "create_thin +2", "create_thin ++3", "create_thin -3", "create_thin 0x4", "create_thin 4k", "create_thin x",
    "create_thin 007", "create_thin 16777215", "create_thin 16777216", "create_thin 00016777215",
    "create_thin 18446744073709551615", "create_thin 18446744073709551616", "create_thin 99999999999999999999999",
    "create_snap", "create_snap 8", "create_snap 8 0", "create_snap 8 0", "create_snap 9 99", "create_snap 0 99",
    "create_snap 16777216 0", "create_snap 9 16777216", "create_snap x 0", "create_snap 9 x", "create_snap 9 0 0",
    "create_snap 16777214 16777215", "CREATE_SNAP +10 +8",
    "delete", "delete 5", "delete 16777216", "delete x", "delete 8 9", "delete 8", "delete 8", "DELETE +10", "delete 0007",
    "set_transaction_id", "set_transaction_id 0", "set_transaction_id 0 1", "set_transaction_id 0 2",
    "set_transaction_id 1 1", "set_transaction_id 1 2 3", "set_transaction_id x 2", "set_transaction_id 1 x",
    "set_transaction_id +1 +18446744073709551615", "set_transaction_id 18446744073709551615 18446744073709551616",
    "Set_Transaction_Id 18446744073709551615 7", "create_thin 20",
    "reserve_metadata_snap x", "release_metadata_snap", "release_metadata_snap x", "reserve_metadata_snap",
    "reserve_metadata_snap", "create_snap 21 20", "delete 1", "set_transaction_id 7 0", "RESERVE_METADATA_SNAP",
    "Release_Metadata_Snap", "release_metadata_snap",
    "bogus", "bogus 1", "create", "create_thinn 30", "trim 0", "delete 21", "delete 20",
];

#[test]
fn every_message_is_answered_as_the_kernel_does() -> Result<()> {
    let Some(guest) = Guest::find()? else { return Ok(()) };
    let mut twin = Twin::new(guest, 8192, 32_768, None)?;
    let mut steps = vec![Step::Up(POOL)];
    steps.extend(FORMS.iter().map(|message| Step::Message(message)));
    steps.push(Step::Down);
    twin.same(&steps)
}
