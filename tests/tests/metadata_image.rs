//! The images that the benchmark is measured on are sound by the word of independent judges, and are what was asked for.

use std::{path::Path, process::Command, sync::Arc};

use anyhow::{Context as _, Result, ensure};
use thinbak_engine::{Access, ChangeKind, DeviceId, FileDevice, MetadataView, Roots, check::check};
use thinbak_tests::{Changed, Layout, MetadataImage, Scratch, Written, thin_check};

const AGED: Layout = Layout::Aged { run_blocks: 9 };

/// From a single leaf to a tree of four levels.
const IMAGES: [(u64, Changed, Layout, u64, bool); 9] = [
    (1, Changed::Nothing, Layout::Sequential, 126, false),
    (100, Changed::Nothing, AGED, 84, true),
    (253, Changed::Scattered(3), AGED, 252, false),
    (20_000, Changed::Nothing, Layout::Sequential, 126, false),
    (40_000, Changed::Clustered(1_000), Layout::Sequential, 126, false),
    (40_000, Changed::Clustered(39_999), AGED, 252, true),
    (40_000, Changed::Scattered(1_000), Layout::Sequential, 252, true),
    (600_000, Changed::Scattered(20), AGED, 84, false),
    (600_000, Changed::Scattered(50_000), AGED, 84, true),
];

/// Writes an image and checks what does not depend on what it is for.
fn sound(path: &Path, image: MetadataImage) -> Result<Written> {
    let written = image.write(path)?;
    ensure!(path.metadata()?.len() == written.bytes);
    thin_check(path)?;
    let device = Arc::new(FileDevice::open(path, Access::ReadOnly)?);
    let report = check(device, None)?;
    ensure!(report.damage.is_empty(), "{:#?}", report.damage);
    ensure!(report.mappings == 2 * image.blocks && report.devices == 2);
    Ok(written)
}

#[test]
fn images_are_sound_and_differ_where_they_should() -> Result<()> {
    for (seed, (blocks, changed, layout, entries_per_node, metadata_snap)) in (1..).zip(IMAGES) {
        let scratch = Scratch::new()?;
        let path = scratch.join("image");
        let image = MetadataImage { blocks, changed, layout, entries_per_node, metadata_snap, seed };
        let written = sound(&path, image).with_context(|| format!("{image:?}"))?;
        let device = Arc::new(FileDevice::open(&path, Access::ReadOnly)?);
        let view = MetadataView::open(device, if metadata_snap { Roots::MetadataSnap } else { Roots::Live })?;
        let root = |id| -> Result<_> { Ok(view.device(DeviceId::new(id)?)?.context("no device")?.root) };
        let mut found = Vec::new();
        for change in view.changes(Some(root(2)?), root(1)?) {
            let change = change?;
            ensure!(change.kind == ChangeKind::Changed);
            found.extend(change.begin.0..change.begin.0 + change.length);
        }
        ensure!(found == written.changed, "{image:?}");
        let expected = match changed {
            Changed::Nothing => 0,
            Changed::Clustered(count) | Changed::Scattered(count) => count,
        };
        ensure!(found.len() as u64 == expected, "{image:?}");
    }
    Ok(())
}

#[test]
fn an_aged_pool_has_runs_of_the_length_asked_for_in_no_order() -> Result<()> {
    let scratch = Scratch::new()?;
    let path = scratch.join("image");
    let layout = Layout::Aged { run_blocks: 20 };
    let image = MetadataImage {
        blocks: 100_000,
        changed: Changed::Nothing,
        layout,
        entries_per_node: 84,
        metadata_snap: false,
        seed: 1,
    };
    sound(&path, image)?;
    let dump = Command::new("thin_dump").arg("--dev-id").arg("1").arg(&path).output()?;
    let text = String::from_utf8(dump.stdout)?;
    let begins: Vec<u64> = text
        .lines()
        .filter_map(|line| line.split_once("data_begin=\"").or_else(|| line.split_once("data_block=\"")))
        .filter_map(|(_, rest)| rest.split('"').next()?.parse().ok())
        .collect();
    ensure!((4_500..5_500).contains(&begins.len()), "{} runs", begins.len());
    let ascending = begins.iter().zip(begins.iter().skip(1)).filter(|(one, next)| one < next).count();
    ensure!(ascending.abs_diff(begins.len() / 2) < begins.len() / 10, "{ascending} of {}", begins.len());
    Ok(())
}
