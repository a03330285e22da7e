//! The checker: quiet about what the kernel wrote, and never about damage.

use std::sync::Arc;

use rand::Rng;
use thinbak_engine::{
    BlockDevice, MemoryDevice,
    check::{CheckError, CheckReport, check},
    metadata_view::{MetadataView, Roots},
};

use crate::{
    fixture::{CASES, Fixture},
    image::Image,
    random,
};

const MAPPING_ROOT: usize = 320;
const DETAILS_ROOT: usize = 328;
const DATA_MAP: usize = 64;
const METADATA_MAP: usize = 192;
/// First value of a node with values of 8 bytes.
const VALUES: usize = 32 + 8 * 252;

fn invariants(report: &CheckReport) -> Vec<&'static str> {
    let mut found: Vec<_> =
        report.damage.iter().filter(|damage| damage.fatal).map(|damage| damage.invariant).collect();
    found.dedup();
    found
}

/// The check must name exactly this invariant.
fn assert_breaks(invariant: &str, image: &Image) -> CheckReport {
    let report = image.check();
    assert_eq!(invariants(&report), [invariant], "{:#?}", report.damage);
    report
}

#[test]
fn what_the_kernel_wrote_is_sound() {
    for case in CASES {
        let fixture = Fixture::load(case);
        let report = check(fixture.device(), None).unwrap();
        let notes: Vec<_> = report.damage.iter().map(ToString::to_string).collect();
        match case {
            "g1-needs-check" => {
                assert_eq!(notes.len(), 1, "{notes:#?}");
                assert!(notes[0].contains("needs_check"), "{notes:#?}");
            }
            _ => assert_eq!(notes, [""; 0], "{case}"),
        }
        assert!(report.is_sound());
        let devices = fixture.view(Roots::Live).devices().unwrap();
        assert_eq!(report.devices, devices.len() as u64);
        assert_eq!(report.mappings, devices.iter().map(|device| device.details.mapped_blocks).sum::<u64>());
    }
}

#[test]
fn every_flipped_bit_in_a_reachable_block_is_found() {
    let mut random = random();
    for case in ["c-nested-msnap", "h-data"] {
        let image = Image::load(case);
        let reachable = image.reachable();
        assert!(reachable.len() > 10);
        for block in reachable {
            for _ in 0..3 {
                let bit = random.random_range(0..4096 * 8);
                image.flip(block, bit);
                let report = image.check();
                assert!(!report.is_sound(), "{case}: bit {bit} of block {block} was not missed");
                image.flip(block, bit);
            }
        }
        assert!(image.check().is_sound());
    }
}

#[test]
fn a_flipped_bit_outside_of_what_is_reachable_is_no_damage() {
    let image = Image::load("h-data");
    let reachable = image.reachable();
    let free = (0..4096).find(|block| !reachable.contains(block)).unwrap();
    image.flip(free, 77);
    assert!(image.check().damage.is_empty());
}

#[test]
fn damage_names_block_device_and_keys() {
    let image = Image::load("h-data");
    let device_tree = image.u64_at(0, MAPPING_ROOT);
    let leaf = image.u64_at(device_tree, VALUES + 8);
    image.flip(leaf, 4096);
    let report = image.check();
    let damage = &report.damage[0];
    assert_eq!(damage.invariant, "F3");
    assert_eq!(damage.block.unwrap().0, leaf);
    assert_eq!(damage.device.unwrap().get(), 1);
    assert_eq!(damage.keys, Some((0, u64::MAX)));
    assert!(damage.description.contains("device 1"), "{damage}");
}

#[test]
fn a_wrong_field_of_the_superblock_is_found() {
    for (invariant, offset, value) in
        [("F1", 40, 3), ("F1", 360, 1), ("F1", 356, 1), ("F1", 336, 129), ("F1", 340, 16), ("F1", 4, 2)]
    {
        let image = Image::load("b-seq-64k");
        image.put_u32(0, offset, value);
        assert_breaks(invariant, &image);
    }
    let image = Image::load("b-seq-64k");
    image.put_u64(0, 32, 1);
    assert_breaks("F1", &image);
}

#[test]
fn space_maps_larger_than_the_devices_are_found() {
    let image = Image::load("b-seq-64k");
    let device: Arc<dyn BlockDevice> = Arc::clone(&image.device) as _;
    assert!(check(Arc::clone(&device), Some(256 * 65536)).unwrap().is_sound());
    assert_eq!(invariants(&check(device, Some(256 * 65536 - 1)).unwrap()), ["F2"]);
    image.device.resize(8 << 20).unwrap();
    assert!(invariants(&image.check()).contains(&"F2"));
}

#[test]
fn a_wrong_node_header_is_found() {
    for (offset, value) in [(4, 3), (16, 253), (20, 251), (24, 4)] {
        let image = Image::load("b-seq-64k");
        let leaf = image.u64_at(image.u64_at(0, MAPPING_ROOT), VALUES);
        image.put_u32(leaf, offset, value);
        assert_breaks("F4", &image);
    }
    let image = Image::load("b-seq-64k");
    let leaf = image.u64_at(image.u64_at(0, MAPPING_ROOT), VALUES);
    image.put_u64(leaf, 32 + 8, 0);
    assert_breaks("F4", &image);
}

#[test]
fn keys_outside_of_their_range_and_cycles_are_found() {
    let image = Image::load("f-fragmented-1t");
    let devices = image.u64_at(0, MAPPING_ROOT);
    let root = image.u64_at(devices, VALUES);
    assert_eq!(image.u32_at(root, 4), 1, "the tree of device 0 has internal nodes");
    let first = image.u64_at(root, VALUES);
    let second = image.u64_at(root, VALUES + 8);
    image.put_u64(root, VALUES, second);
    assert!(invariants(&image.check()).contains(&"F5"));
    image.put_u64(root, VALUES, root);
    assert!(invariants(&image.check()).contains(&"F6"));
    image.put_u64(root, VALUES, devices);
    assert!(invariants(&image.check()).contains(&"F6"));
    image.put_u64(root, VALUES, 1 << 40);
    assert!(invariants(&image.check()).contains(&"F3"));
    image.put_u64(root, VALUES, first);
    assert!(image.check().is_sound());
}

#[test]
fn devices_that_their_details_contradict_are_found() {
    let details_values = 32 + 8 * 126;
    for (offset, value) in [(0, 36), (16, (2 << 32) | 3), (16, 9 << 32)] {
        let image = Image::load("h-data");
        let details = image.u64_at(0, DETAILS_ROOT);
        image.put_u64(details, details_values + offset, value);
        assert_breaks("F7", &image);
    }
    let image = Image::load("b-seq-64k");
    image.put_u64(image.u64_at(0, DETAILS_ROOT), 32, 5);
    assert_breaks("F7", &image);
}

#[test]
fn mappings_beyond_the_data_and_from_the_future_are_found() {
    let image = Image::load("b-seq-64k");
    let leaf = image.u64_at(image.u64_at(0, MAPPING_ROOT), VALUES);
    let mapped = image.u64_at(leaf, VALUES);
    image.put_u64(leaf, VALUES, mapped | 5);
    assert_breaks("F8", &image);
    image.put_u64(leaf, VALUES, 256 << 24);
    assert!(invariants(&image.check()).contains(&"F8"));
}

#[test]
fn wrong_counts_are_found_and_a_leak_is_not_fatal() {
    let image = Image::load("b-seq-64k");
    let leaf = image.u64_at(image.u64_at(0, MAPPING_ROOT), VALUES);
    // Virtual block 0 takes the data block of virtual block 1: that one has a reference too few recorded.
    let second = image.u64_at(leaf, VALUES + 8);
    image.put_u64(leaf, VALUES, second);
    let report = assert_breaks("F9", &image);
    assert!(report.damage.iter().any(|damage| !damage.fatal && damage.description.contains("leaked")));

    let image = Image::load("b-seq-64k");
    let index = image.u64_at(0, METADATA_MAP + 16);
    let bitmap = image.u64_at(index, 16);
    // Superblock: count 1 becomes 2.
    image.edit(bitmap, |bytes| bytes[16] ^= 3);
    assert_breaks("F10", &image);
}

#[test]
fn large_counts_must_be_where_the_bits_say() {
    let image = Image::load("b-seq-64k");
    let bitmap = image.u64_at(image.u64_at(0, METADATA_MAP + 16), 16);
    image.edit(bitmap, |bytes| bytes[16] |= 3);
    assert_breaks("F11", &image);
}

#[test]
fn wrong_figures_of_a_space_map_are_found() {
    let image = Image::load("b-seq-64k");
    let index = image.u64_at(0, METADATA_MAP + 16);
    let free = image.u32_at(index, 24);
    image.put_u32(index, 24, free - 1);
    assert_breaks("F12", &image);
    image.put_u32(index, 24, free);
    let hint = image.u32_at(index, 28);
    image.put_u32(index, 28, 16_000);
    assert_breaks("F12", &image);
    image.put_u32(index, 28, hint);
    image.put_u64(index, 16 + 16 * 200, 5);
    assert_breaks("F12", &image);
    image.put_u64(index, 16 + 16 * 200, 0);
    for map in [DATA_MAP, METADATA_MAP] {
        let allocated = image.u64_at(0, map + 8);
        image.put_u64(0, map + 8, allocated + 1);
        assert_breaks("F12", &image);
        image.put_u64(0, map + 8, allocated);
    }
    let bitmap = image.u64_at(index, 16);
    image.edit(bitmap, |bytes| bytes[16 + 4096 / 4] |= 2);
    assert!(invariants(&image.check()).contains(&"F13"));
}

#[test]
fn a_metadata_snapshot_that_is_none_is_found() {
    for (offset, value) in [(56, 7), (64, 1), (48, 1 << 40)] {
        let image = Image::load("h-data");
        let held = image.u64_at(0, 56);
        image.put_u64(held, offset, value);
        assert_breaks("F14", &image);
    }
}

#[test]
fn a_device_without_room_for_a_superblock_is_refused() {
    let error = check(Arc::new(MemoryDevice::new(4095)), None).unwrap_err();
    assert!(matches!(error, CheckError::TooSmall(4095)));
    let report = check(Arc::new(MemoryDevice::new(4096)), None).unwrap();
    assert_eq!(invariants(&report), ["F1"]);
}

/// Hostile metadata with valid checksums: nothing may panic, run for ever or take much memory.
#[test]
fn arbitrary_sealed_metadata_is_survived() {
    let mut random = random();
    for case in ["c-nested-msnap", "h-data"] {
        let image = Image::load(case);
        let reachable = image.reachable();
        for _ in 0..250 {
            let damaged = Image { device: Arc::new(image.device.duplicate()) };
            for _ in 0..random.random_range(1..6) {
                let block = reachable[random.random_range(0..reachable.len())];
                let offset = match random.random_range(0..4) {
                    0 => random.random_range(4..40),
                    1 => random.random_range(32..400),
                    2 => random.random_range(VALUES..VALUES + 64),
                    _ => random.random_range(4..4096),
                };
                let value: u8 = random.random();
                damaged.edit(block, |bytes| bytes[offset] = value);
            }
            damaged.check();
            for roots in [Roots::Live, Roots::MetadataSnap] {
                let device: Arc<dyn BlockDevice> = Arc::clone(&damaged.device) as _;
                let Ok(view) = MetadataView::open(device, roots) else { continue };
                let Ok(devices) = view.devices() else { continue };
                for pair in devices.windows(2) {
                    view.changes(Some(pair[0].root), pair[1].root).for_each(drop);
                    view.delta(pair[0].root, pair[1].root).for_each(drop);
                }
            }
        }
    }
}
