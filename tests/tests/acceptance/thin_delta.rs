//! Differences between devices: the exact runs.

use anyhow::{Result, ensure};
use thinbak_engine::{Pool, metadata_view::Roots};

use crate::{
    place::{BLOCK, Place, id, message, stomp},
    tools::delta,
};

/// The lines that tell of blocks, of a delta from device 0 to device 1 after something was done to 16 blocks and a snapshot.
fn runs(change: impl FnOnce(&Pool) -> Result<()>) -> Result<Vec<String>> {
    let place = Place::new(200)?;
    place.on(|pool| {
        pool.create_thin(id(0))?;
        stomp(pool, 0, 0..16, 1)?;
        pool.create_snap(id(1), id(0))?;
        change(pool)
    })?;
    let text = delta(&place.metadata(), Roots::Live, 0, 1)?;
    let lines = text.lines().map(str::trim).filter(|line| line.contains("begin="));
    Ok(lines.map(str::to_owned).collect())
}

#[test]
fn nothing_differs_between_a_thin_and_its_fresh_snapshot() -> Result<()> {
    let found = runs(|_| Ok(()))?;
    ensure!(found == [r#"<same begin="0" length="16"/>"#], "{found:?}");
    Ok(())
}

#[test]
fn the_first_block_differs() -> Result<()> {
    let found = runs(|pool| Ok(stomp(pool, 1, 0..1, 2)?))?;
    ensure!(
        found == [r#"<different begin="0" length="1"/>"#, r#"<same begin="1" length="15"/>"#],
        "{found:?}"
    );
    Ok(())
}

#[test]
fn the_last_block_differs() -> Result<()> {
    let found = runs(|pool| Ok(stomp(pool, 0, 15..16, 2)?))?;
    ensure!(
        found == [r#"<same begin="0" length="15"/>"#, r#"<different begin="15" length="1"/>"#],
        "{found:?}"
    );
    Ok(())
}

#[test]
fn a_block_in_the_middle_differs() -> Result<()> {
    let found = runs(|pool| Ok(stomp(pool, 1, 7..8, 2)?))?;
    let expected = [
        r#"<same begin="0" length="7"/>"#,
        r#"<different begin="7" length="1"/>"#,
        r#"<same begin="8" length="8"/>"#,
    ];
    ensure!(found == expected, "{found:?}");
    Ok(())
}

#[test]
fn a_block_is_only_on_the_left() -> Result<()> {
    let found = runs(|pool| Ok(pool.discard(id(1), 7 * BLOCK, BLOCK)?))?;
    let expected = [
        r#"<same begin="0" length="7"/>"#,
        r#"<left_only begin="7" length="1"/>"#,
        r#"<same begin="8" length="8"/>"#,
    ];
    ensure!(found == expected, "{found:?}");
    Ok(())
}

#[test]
fn a_block_is_only_on_the_right() -> Result<()> {
    let found = runs(|pool| Ok(stomp(pool, 1, 100..101, 2)?))?;
    let expected = [r#"<same begin="0" length="16"/>"#, r#"<right_only begin="100" length="1"/>"#];
    ensure!(found == expected, "{found:?}");
    Ok(())
}

#[test]
fn a_deleted_origin_leaves_nothing_to_compare_with() -> Result<()> {
    let place = Place::new(200)?;
    place.on(|pool| {
        pool.create_thin(id(0))?;
        stomp(pool, 0, 0..16, 1)?;
        pool.create_snap(id(1), id(0))?;
        message(pool, "reserve_metadata_snap")?;
        Ok(message(pool, "delete 0")?)
    })?;
    ensure!(delta(&place.metadata(), Roots::Live, 0, 1).is_err());
    // The metadata snapshot has it still.
    let held = delta(&place.metadata(), Roots::MetadataSnap, 0, 1)?;
    ensure!(held.contains(r#"<same begin="0" length="16"/>"#), "{held}");
    Ok(())
}

#[test]
fn every_pair_of_a_family_differs_as_thin_delta_says() -> Result<()> {
    let place = Place::new(4000)?;
    place.on(|pool| {
        pool.create_thin(id(0))?;
        // Several leaves.
        stomp(pool, 0, 0..600, 1)?;
        for number in 1..5 {
            pool.create_snap(id(number), id(number - 1))?;
            stomp(pool, number, number * 40..number * 40 + 30, number + 1)?;
            (0..20).try_for_each(|step| stomp(pool, 0, step * 29..step * 29 + 1, number + 1))?;
            pool.discard(id(number), number * 100 * BLOCK, 17 * BLOCK)?;
            stomp(pool, number, 1000 * number..1000 * number + 3, 1)?;
        }
        Ok(())
    })?;
    for left in 0..5 {
        for right in 0..5 {
            let text = delta(&place.metadata(), Roots::Live, left, right)?;
            ensure!((left == right) != text.contains("<different"), "{left}, {right}: {text}");
        }
    }
    Ok(())
}
