//! Says what an input makes of its image, and what the checker says of that.

use std::sync::Arc;

use thinbak_engine::BlockDevice;
use thinbak_engine::check::check;
use thinbak_engine_fuzz::{edits::edited, images::IMAGES};

fn main() {
    let path = std::env::args().nth(1).expect("a file");
    let data = std::fs::read(path).expect("an input");
    let (device, rest) = edited(&data);
    let number = usize::from(data.first().copied().unwrap_or(0)) % IMAGES.len();
    println!("image {number}");
    for (block, kind) in &IMAGES[number].blocks {
        let before = IMAGES[number].block(*block);
        let mut after = [0; 4096];
        device.read_at(block.0 * 4096, &mut after).expect("a block of the image");
        let changed = before.iter().zip(after).enumerate().filter(|(_, (before, after))| *before != after);
        let changed: Vec<_> =
            changed.map(|(at, (before, after))| format!("{at}: {before:#x} {after:#x}")).collect();
        if changed.len() > 40 {
            println!("block {block}, a {kind}: {} bytes", changed.len());
        } else if !changed.is_empty() {
            println!("block {block}, a {kind}: {}", changed.join(", "));
        }
    }
    println!("operations: {:?}", rest.0);
    match check(Arc::new(device), None) {
        Ok(report) => report.damage.iter().for_each(|damage| println!("{damage}")),
        Err(error) => println!("{error}"),
    }
}
