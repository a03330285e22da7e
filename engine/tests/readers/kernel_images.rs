//! The readers against metadata that the kernel wrote, and what thin-provisioning-tools say of it.

use thinbak_engine::{
    DeviceId,
    delta::{DeltaOptions, delta_json, delta_xml},
    dump::{TextError, dump_json, dump_xml},
    metadata_view::{ChangeKind, DeltaKind, MetadataView, Roots},
};

use crate::fixture::{CASES, Fixture, id};

fn text(write: impl FnOnce(&mut Vec<u8>) -> Result<(), TextError>) -> String {
    let mut out = Vec::new();
    write(&mut out).unwrap();
    String::from_utf8(out).unwrap()
}

/// Fails with the first line that differs, not with megabytes.
fn assert_same_text(what: &str, ours: &str, theirs: &str) {
    for (number, (ours, theirs)) in ours.lines().zip(theirs.lines()).enumerate() {
        assert_eq!(ours, theirs, "{what}, line {}", number + 1);
    }
    assert!(ours == theirs, "{what}: {} bytes instead of {}", ours.len(), theirs.len());
}

fn options(data_blocks: bool, changes_only: bool) -> DeltaOptions {
    DeltaOptions { data_blocks, changes_only }
}

#[test]
fn dumps_are_those_of_thin_dump() {
    for case in CASES {
        let fixture = Fixture::load(case);
        let live = fixture.view(Roots::Live);
        assert_same_text(case, &text(|out| dump_xml(&live, None, out)), &fixture.text("dump.xml").unwrap());
        let Some(expected) = fixture.text("dump-msnap.xml") else { continue };
        let held = fixture.view(Roots::MetadataSnap);
        assert_same_text(case, &text(|out| dump_xml(&held, None, out)), &expected);
    }
}

#[test]
fn a_dump_of_one_device_is_that_part_of_the_dump() {
    let fixture = Fixture::load("e-1m-blocks");
    let view = fixture.view(Roots::Live);
    let all = text(|out| dump_xml(&view, None, out));
    let one = text(|out| dump_xml(&view, Some(id(1)), out));
    assert_eq!(one.matches("<device ").count(), 1);
    assert!(one.contains(r#"<device dev_id="1" mapped_blocks="96""#));
    assert!(one.lines().all(|line| all.contains(line)));
    let error = dump_xml(&view, Some(id(77)), &mut Vec::new()).unwrap_err();
    assert!(matches!(error, TextError::NoSuchDevice(missing) if missing == id(77)), "{error}");
}

#[test]
fn deltas_are_those_of_thin_delta() {
    let mut compared = 0;
    for case in CASES {
        let fixture = Fixture::load(case);
        for delta in fixture.deltas() {
            let roots = if delta.metadata_snap { Roots::MetadataSnap } else { Roots::Live };
            let view = fixture.view(roots);
            let ours =
                text(|out| delta_xml(&view, delta.left, delta.right, options(delta.verbose, false), out));
            assert_same_text(&format!("{case}/{}", delta.name), &ours, &fixture.text(&delta.name).unwrap());
            compared += 1;
        }
    }
    assert!(compared >= 40, "only {compared} deltas were found");
}

#[test]
fn changes_are_the_delta_without_what_is_the_same() {
    for case in CASES {
        let fixture = Fixture::load(case);
        let view = fixture.view(Roots::Live);
        let devices = view.devices().unwrap();
        for left in &devices {
            for right in &devices {
                let mut expected = Vec::new();
                for run in view.delta(left.root, right.root) {
                    let run = run.unwrap();
                    let kind = match run.kind {
                        DeltaKind::Same { .. } => continue,
                        DeltaKind::Different { .. } | DeltaKind::RightOnly { .. } => ChangeKind::Changed,
                        DeltaKind::LeftOnly { .. } => ChangeKind::Unmapped,
                    };
                    expected.extend((run.begin.0..run.begin.0 + run.length).map(|block| (block, kind)));
                }
                let mut end = None;
                let mut found = Vec::new();
                for change in view.changes(Some(left.root), right.root) {
                    let change = change.unwrap();
                    assert!(end != Some((change.begin.0, change.kind)), "two runs that touch");
                    end = Some((change.begin.0 + change.length, change.kind));
                    let blocks = change.begin.0..change.begin.0 + change.length;
                    found.extend(blocks.map(|block| (block, change.kind)));
                }
                assert!(found == expected, "{case}: {} against {}", left.id, right.id);
            }
        }
    }
}

#[test]
fn a_text_of_changes_is_the_whole_text_without_what_is_the_same() {
    let mut compared = 0;
    for case in CASES {
        let fixture = Fixture::load(case);
        for delta in fixture.deltas().into_iter().filter(|delta| !delta.verbose) {
            let roots = if delta.metadata_snap { Roots::MetadataSnap } else { Roots::Live };
            let view = fixture.view(roots);
            let theirs = fixture.text(&delta.name).unwrap();
            let expected: String = theirs
                .lines()
                .filter(|line| !line.contains("<same "))
                .map(|line| format!("{line}\n"))
                .collect();
            let ours = text(|out| delta_xml(&view, delta.left, delta.right, options(false, true), out));
            assert_same_text(&format!("{case}/{}", delta.name), &ours, &expected);
            compared += usize::from(ours != theirs);
        }
        let view = fixture.view(Roots::Live);
        for left in view.devices().unwrap() {
            for right in view.devices().unwrap() {
                let json = |data_blocks, changes_only| -> serde_json::Value {
                    let options = options(data_blocks, changes_only);
                    serde_json::from_str(&text(|out| delta_json(&view, left.id, right.id, options, out)))
                        .unwrap()
                };
                for data_blocks in [false, true] {
                    let mut whole = json(data_blocks, false);
                    whole["runs"].as_array_mut().unwrap().retain(|run| run["kind"] != "same");
                    assert_eq!(json(data_blocks, true), whole, "{case}: {} against {}", left.id, right.id);
                }
                let ranges = |changes_only| {
                    let options = options(true, changes_only);
                    let xml = text(|out| delta_xml(&view, left.id, right.id, options, out));
                    let mut is_same = false;
                    let mut ranges: Vec<String> = Vec::new();
                    for line in xml.lines() {
                        is_same = (is_same || line.contains("<same>")) && !line.contains("</same>");
                        if !is_same && line.contains("<range ") {
                            ranges.push(line.to_owned());
                        }
                    }
                    ranges
                };
                assert_eq!(ranges(true), ranges(false), "{case}: {} against {}", left.id, right.id);
            }
        }
    }
    assert!(compared >= 10, "only {compared} of the texts had something to leave out");
}

#[test]
fn json_says_what_xml_says() {
    let fixture = Fixture::load("h-data");
    let view = fixture.view(Roots::Live);
    let dump: serde_json::Value = serde_json::from_str(&text(|out| dump_json(&view, None, out))).unwrap();
    assert_eq!(dump["superblock"]["nr_data_blocks"], 256);
    assert_eq!(dump["devices"][1]["dev_id"], 1);
    assert_eq!(dump["devices"][1]["mappings"][0]["length"], 40);
    let delta: serde_json::Value =
        serde_json::from_str(&text(|out| delta_json(&view, id(0), id(1), options(false, false), out)))
            .unwrap();
    assert_eq!(delta["superblock"]["metadata_snap"], 55);
    let runs = delta["runs"].as_array().unwrap();
    let xml = text(|out| delta_xml(&view, id(0), id(1), options(false, false), out));
    assert_eq!(runs.len(), xml.lines().count() - 4);
    assert_eq!(runs[1], serde_json::json!({"kind": "different", "begin": 2, "length": 1}));
    let verbose: serde_json::Value =
        serde_json::from_str(&text(|out| delta_json(&view, id(0), id(1), options(true, false), out)))
            .unwrap();
    assert_eq!(
        verbose["runs"][1],
        serde_json::json!(
            {"kind": "different", "begin": 2, "length": 1, "left_data_begin": 47, "right_data_begin": 2}
        )
    );
}

#[test]
fn devices_are_found_one_by_one_as_in_the_list() {
    for case in CASES {
        let view = Fixture::load(case).view(Roots::Live);
        let devices = view.devices().unwrap();
        for device in &devices {
            assert_eq!(view.device(device.id).unwrap().as_ref(), Some(device));
            let mapped = view.mappings(device.root, thinbak_engine::VirtualBlock(0)).count();
            assert_eq!(u64::try_from(mapped).unwrap(), device.details.mapped_blocks);
        }
        assert_eq!(view.device(DeviceId::new(4_000_000).unwrap()).unwrap(), None);
    }
}

#[test]
fn mappings_begin_where_asked() {
    let fixture = Fixture::load("f-fragmented-1t");
    let view = fixture.view(Roots::Live);
    for device in view.devices().unwrap() {
        let all: Vec<_> =
            view.mappings(device.root, thinbak_engine::VirtualBlock(0)).map(Result::unwrap).collect();
        for part in [1, 2, 3, 50] {
            let from = all[all.len() - all.len() / part].virtual_block.min(all[all.len() - 1].virtual_block);
            let tail: Vec<_> = view.mappings(device.root, from).map(Result::unwrap).collect();
            let begin = all.partition_point(|mapping| mapping.virtual_block < from);
            assert!(tail == all[begin..]);
        }
    }
}

#[test]
fn a_pool_without_a_metadata_snapshot_says_so() {
    let fixture = Fixture::load("b-seq-64k");
    let error = MetadataView::open(fixture.device(), Roots::MetadataSnap).unwrap_err();
    assert_eq!(error.to_string(), "the pool holds no metadata snapshot");
}
