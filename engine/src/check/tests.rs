use std::{fs::File, io, path::Path};

use parking_lot::Mutex;

use super::{CheckReport, SPAN_BITMAPS, check_in_spans};
use crate::{
    BlockDevice, MemoryDevice,
    format::{BlockKind, checksum},
};

/// First value of a node with values of 8 bytes.
const VALUES: usize = 32 + 8 * 252;

fn fixture(case: &str) -> MemoryDevice {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures").join(case);
    let image = zstd::decode_all(File::open(path.join("metadata.img.zst")).unwrap()).unwrap();
    let device = MemoryDevice::new(image.len() as u64);
    device.write_at(0, &image).unwrap();
    device
}

fn block(device: &dyn BlockDevice, number: u64) -> Box<[u8; 4096]> {
    let mut bytes = Box::new([0; 4096]);
    device.read_at(number * 4096, bytes.as_mut_slice()).unwrap();
    bytes
}

fn u64_at(device: &dyn BlockDevice, number: u64, offset: usize) -> u64 {
    u64::from_le_bytes(block(device, number)[offset..offset + 8].try_into().unwrap())
}

fn put_u64(device: &dyn BlockDevice, number: u64, offset: usize, value: u64) {
    let mut bytes = block(device, number);
    bytes[offset..offset + 8].copy_from_slice(&value.to_le_bytes());
    let sum = checksum(&bytes, BlockKind::Node);
    bytes[..4].copy_from_slice(&sum.to_le_bytes());
    device.write_at(number * 4096, bytes.as_slice()).unwrap();
}

/// The first leaf of the first device.
fn first_leaf(device: &dyn BlockDevice) -> u64 {
    let mut node = u64_at(device, u64_at(device, 0, 320), VALUES);
    while block(device, node)[4] == 1 {
        node = u64_at(device, node, VALUES);
    }
    node
}

fn check(device: &dyn BlockDevice, span_bitmaps: u64) -> CheckReport {
    check_in_spans(device, None, span_bitmaps).unwrap()
}

#[test]
fn counting_in_several_passes_finds_the_same() {
    // There are 258 bitmaps, two and one.
    for (case, spans) in
        [("f-fragmented-1t", &[2, 7, 100][..]), ("c-nested-msnap", &[1]), ("e-1m-blocks", &[1, 2])]
    {
        let device = fixture(case);
        let whole = check(&device, SPAN_BITMAPS);
        assert_eq!(whole.damage, [], "{case}");
        let leaf = first_leaf(&device);
        let damaged = device.duplicate();
        put_u64(&damaged, leaf, VALUES + 8, u64_at(&device, leaf, VALUES));
        let whole_damaged = check(&damaged, SPAN_BITMAPS);
        assert!(whole_damaged.damage.iter().any(|damage| damage.invariant == "F9"), "{case}");
        for &span in spans {
            assert_eq!(check(&device, span), whole, "{case}, {span} bitmaps a pass");
            assert_eq!(check(&damaged, span), whole_damaged, "{case}, {span} bitmaps a pass");
        }
    }
}

/// One block of it can be read so many times.
struct Worn {
    device: MemoryDevice,
    block: u64,
    reads: Mutex<u32>,
}

impl BlockDevice for Worn {
    fn size_bytes(&self) -> u64 {
        self.device.size_bytes()
    }
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        if (offset / 4096..(offset + buf.len() as u64).div_ceil(4096)).contains(&self.block) {
            let mut reads = self.reads.lock();
            *reads = reads.checked_sub(1).ok_or_else(|| io::Error::other("worn out"))?;
        }
        self.device.read_at(offset, buf)
    }
    fn write_at(&self, _: u64, _: &[u8]) -> io::Result<()> {
        panic!("a check writes");
    }
    fn flush(&self) -> io::Result<()> {
        panic!("a check flushes");
    }
    fn discard(&self, _: u64, _: u64) -> io::Result<()> {
        panic!("a check discards");
    }
    fn resize(&self, _: u64) -> io::Result<()> {
        panic!("a check resizes");
    }
}

/// There could be many spans, far apart, in an index that is not right.
#[test]
fn there_is_one_pass_if_the_index_of_the_bitmaps_is_wrong() {
    let device = fixture("f-fragmented-1t");
    let mut index = u64_at(&device, 0, 64 + 16);
    while block(&device, index)[4] == 1 {
        index = u64_at(&device, index, VALUES);
    }
    // The last entry of a leaf is missing.
    put_u64(&device, index, 16, u64_at(&device, index, 16) - 1);
    let leaf = first_leaf(&device);
    let whole = check(&device, SPAN_BITMAPS);
    assert!(whole.damage.iter().any(|damage| damage.invariant == "F12"), "{:#?}", whole.damage);
    let worn = Worn { device, block: leaf, reads: Mutex::new(100) };
    assert_eq!(check(&worn, 1), whole);
    assert_eq!(*worn.reads.lock(), 99);
}

#[test]
fn a_leaf_that_cannot_be_read_in_a_later_pass_is_damage() {
    let device = fixture("f-fragmented-1t");
    let leaf = first_leaf(&device);
    let worn = Worn { device, block: leaf, reads: Mutex::new(1) };
    let report = check(&worn, 2);
    assert!(!report.is_sound());
    assert_eq!(report.damage.len(), 1, "{:#?}", report.damage);
    assert_eq!(report.damage[0].block.unwrap().0, leaf);
    assert_eq!(report.damage[0].invariant, "F3");
}
