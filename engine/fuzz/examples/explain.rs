//! Says what an input makes of its image.
use std::sync::Arc;
use thinbak_engine::BlockDevice;
use thinbak_engine_fuzz::{edits::edited, images::IMAGES};
fn main() {
    let path = std::env::args().nth(1).expect("a file");
    let data = std::fs::read(path).expect("an input");
    let (device, rest) = edited(&data);
    let image = &IMAGES[usize::from(data[0]) % IMAGES.len()];
    println!("image {}, blocks {:?}", usize::from(data[0]) % IMAGES.len(), image.blocks);
    for block in 0..device.size_bytes() / 4096 {
        let (mut a, mut b) = ([0; 4096], [0; 4096]);
        image.device.read_at(block * 4096, &mut a).unwrap();
        device.read_at(block * 4096, &mut b).unwrap();
        for at in 0..4096 {
            if a[at] != b[at] {
                println!("block {block} byte {at}: {:#x} -> {:#x}", a[at], b[at]);
            }
        }
    }
    println!("rest {:?}", rest.0);
    println!("{:#?}", thinbak_engine::check::check(Arc::new(device), None));
}
