//! Edits: how an input changes an image.

use std::collections::BTreeMap;

use thinbak_engine::format::{BlockBytes, BlockKind, checksum};
use thinbak_engine::{BlockDevice, MemoryDevice, MetadataBlock};

use crate::images::{IMAGES, Image, KINDS};

/// Edits taken from an input at most.
const MAX_EDITS: usize = 64;

/// Takes an input apart. What is missing at its end reads as zero.
#[derive(Debug)]
pub struct Input<'a>(pub &'a [u8]);

impl Input<'_> {
    /// Whether nothing is left.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The next byte.
    pub fn byte(&mut self) -> u8 {
        self.take::<1>()[0]
    }

    /// The next two bytes.
    pub fn u16(&mut self) -> u16 {
        u16::from_le_bytes(self.take())
    }

    /// The next eight bytes.
    pub fn u64(&mut self) -> u64 {
        u64::from_le_bytes(self.take())
    }

    fn take<const N: usize>(&mut self) -> [u8; N] {
        let mut bytes = [0; N];
        let (head, tail) = self.0.split_at(N.min(self.0.len()));
        bytes[..head.len()].copy_from_slice(head);
        self.0 = tail;
        bytes
    }
}

/// Writes location and checksum, as whoever writes a block does.
pub fn seal(bytes: &mut BlockBytes, location: MetadataBlock, kind: BlockKind) {
    bytes[8..16].copy_from_slice(&location.0.to_le_bytes());
    let sum = checksum(bytes, kind);
    bytes[..4].copy_from_slice(&sum.to_le_bytes());
}

/// The image that an input describes: `[image] [count] [edit]*`, and the input's rest.
pub fn edited<'a>(data: &'a [u8]) -> (MemoryDevice, Input<'a>) {
    let mut input = Input(data);
    let image = &IMAGES[usize::from(input.byte()) % IMAGES.len()];
    let mut touched = BTreeMap::new();
    for _ in 0..usize::from(input.byte()).min(MAX_EDITS) {
        if input.is_empty() {
            break;
        }
        edit(image, &mut touched, &mut input);
    }
    let device = image.device.duplicate();
    for (block, (kind, bytes)) in &mut touched {
        if let Some(kind) = kind {
            seal(bytes, *block, *kind);
        }
        device.write_at(block.0 * 4096, bytes.as_slice()).expect("a block of the image");
    }
    (device, input)
}

type Touched = BTreeMap<MetadataBlock, (Option<BlockKind>, Box<BlockBytes>)>;

/// One edit: `[what] [block] ...`.
fn edit(image: &Image, touched: &mut Touched, input: &mut Input<'_>) {
    let what = input.byte();
    let chosen = |byte: u8| image.blocks[usize::from(byte) % image.blocks.len()];
    let (block, kind) = chosen(input.byte());
    let (seal_as, bytes) = touched.entry(block).or_insert_with(|| (Some(kind), image.block(block)));
    match what % 8 {
        // A byte, a word, a long word; the latter also as the number of another block.
        0 => {
            let at = usize::from(input.u16()) % 4096;
            bytes[at] = input.byte();
        }
        1 => put(bytes, input.u16(), &input.u16().to_le_bytes()),
        2 => put(bytes, input.u16(), &input.u64().to_le_bytes()),
        3 => {
            let at = input.u16();
            let (other, _) = chosen(input.byte());
            put(bytes, at, &other.0.to_le_bytes());
        }
        // A field of the header, of the first keys or values, at its natural place.
        4 => put(bytes, u16::from(input.byte()) * 4, &u32::from(input.u16()).to_le_bytes()),
        // The contents of another block.
        5 => {
            let (other, other_kind) = chosen(input.byte());
            (*seal_as, *bytes) = (Some(other_kind), image.block(other));
        }
        // As a block of another kind.
        6 => *seal_as = Some(KINDS[usize::from(input.byte()) % KINDS.len()]),
        // Not sealed at all.
        _ => *seal_as = None,
    }
}

fn put(bytes: &mut BlockBytes, at: u16, value: &[u8]) {
    let at = usize::from(at) % (4096 - value.len() + 1);
    bytes[at..at + value.len()].copy_from_slice(value);
}
