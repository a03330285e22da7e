//! The first inputs, made by code: what structure there is to find, each once.

use std::{fs, path::Path, process};

/// With the arguments `seeds DIR` writes the first inputs of `target` to that directory and ends the process.
pub fn seeds(target: &str) {
    let arguments: Vec<String> = std::env::args().collect();
    let [_, command, dir] = arguments.as_slice() else { return };
    if command != "seeds" {
        return;
    }
    for (number, input) in inputs(target).iter().enumerate() {
        fs::write(Path::new(dir).join(format!("seed-{number:02}")), input).expect("writing the corpus");
    }
    process::exit(0);
}

fn inputs(target: &str) -> Vec<Vec<u8>> {
    match target {
        "values" => (0..4u8).flat_map(|which| (0..6u8).map(move |inner| value(which, inner))).collect(),
        "packs" => (0..64u8).map(|how| [vec![1], pack(how)].concat()).collect(),
        "recovery" => {
            (0..16u8).map(|how| [vec![2], pack(how), pack(how | 8), pack(0), vec![3]].concat()).collect()
        }
        "maps" => (0..3u8).map(map).collect(),
        _ => crate::requests::corpus(),
    }
}

fn value(which: u8, inner: u8) -> Vec<u8> {
    let mut input = vec![which];
    match which {
        // A leaf that names a chunk, and a node above it.
        0 => {
            input.extend([1, inner, 0, 0, 2]);
            input.extend([0; 31]);
            input.extend([7; 32]);
        }
        1 | 2 => input.extend([8, 1, 16, 1, 26, 2, 24, inner]),
        _ => {
            input.push(inner);
            input.extend([0; 12]);
            let magic: &[u8] = match inner {
                3 => b"tbrc\x01",
                4 => b"tbakpack\x01",
                5 => b"tbakfoot\x01",
                _ => b"\x01",
            };
            input.extend(magic);
            input.extend([0; 120]);
        }
    }
    input
}

/// As `thinbak_server::fuzzing::packs` reads it: how, creation time, pieces, edits.
fn pack(how: u8) -> Vec<u8> {
    if how & 1 != 0 {
        return vec![how, 4, 0, b't', b'b', b'a', b'k'];
    }
    let mut input = vec![how];
    input.extend(if how & 2 != 0 { &[2, 0][..] } else { &[] });
    input.extend(if how & 4 != 0 { &[9, 0, 0, 0][..] } else { &[] });
    input.extend([0, 0, 4]);
    for kind in 0..3 {
        input.extend([0, kind, 3, 1, 2, 3, kind, 0]);
    }
    input.extend([5, 100, 0]);
    input.extend(if how & 24 == 24 { &[64, 0, 0, 0][..] } else { &[] });
    input.extend(if how & 4 != 0 { &[1, 80, 0, 1][..] } else { &[0] });
    input.extend(if how & 32 != 0 { &[30, 0][..] } else { &[] });
    input
}

/// As `thinbak_server::fuzzing::maps` reads it: size, parent, edits.
fn map(parent: u8) -> Vec<u8> {
    let edits = [4, 0, 0, 0, 1, 1, 7, 3, 0, 2, 3, 2, 3, 4, 9, 0];
    let mut input = vec![100, 20, parent];
    if parent == 1 {
        input.extend([2, 0, 1, 0, 5, 2, 1, 1, 0, 5, 3]);
    } else if parent == 2 {
        input.extend(edits);
    }
    input.extend([1, 90, 9]);
    input.extend(edits);
    input
}
