//! A volume as a list of what its chunks hold, and the ends of change streams over it.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use rand::{Rng as _, rngs::StdRng};
use thinbak_agent::stream::{Batch, Content, Extent, Sink, Source};
use thinbak_proto::Failed;

pub(crate) const CHUNK: u64 = 4096;
/// Two levels of map nodes, and a last chunk that is short.
const MAX_CHUNKS: u64 = 300;
const SECTOR: u64 = 512;
/// So few contents that volumes share chunks.
const CONTENTS: u32 = 200;

/// What one chunk holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Slot {
    Hole,
    Zero,
    Data(u32),
}

/// A volume at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Image {
    pub(crate) size: u64,
    pub(crate) slots: Vec<Slot>,
}

fn size(random: &mut StdRng) -> u64 {
    let chunks = random.random_range(1..=MAX_CHUNKS) * CHUNK;
    if random.random_bool(0.5) { chunks } else { chunks - SECTOR * random.random_range(0..CHUNK / SECTOR) }
}

impl Image {
    /// A volume of holes.
    pub(crate) fn new(random: &mut StdRng) -> Self {
        let size = size(random);
        Self { size, slots: vec![Slot::Hole; usize::try_from(size.div_ceil(CHUNK)).unwrap()] }
    }

    /// Some time passes.
    pub(crate) fn change(&mut self, random: &mut StdRng) {
        if random.random_bool(0.15) {
            self.size = size(random);
            self.slots.resize(usize::try_from(self.size.div_ceil(CHUNK)).unwrap(), Slot::Hole);
        }
        for _ in 0..random.random_range(0..6) {
            let first = random.random_range(0..self.slots.len());
            let count = random.random_range(1..40).min(self.slots.len() - first);
            let kind = random.random_range(0..5);
            for slot in &mut self.slots[first..first + count] {
                *slot = match kind {
                    0 => Slot::Hole,
                    1 => Slot::Zero,
                    _ => Slot::Data(random.random_range(0..CONTENTS)),
                };
            }
        }
    }

    fn len_of(&self, chunk: usize) -> usize {
        let offset = chunk as u64 * CHUNK;
        usize::try_from(self.size.saturating_sub(offset).min(CHUNK)).unwrap()
    }

    /// What reads where `slot` is; `None` for a hole.
    pub(crate) fn bytes(&self, chunk: usize) -> Option<Bytes> {
        let len = self.len_of(chunk);
        match self.slots[chunk] {
            Slot::Hole => None,
            Slot::Zero => Some(Bytes::from(vec![0; len])),
            Slot::Data(number) => {
                let mut bytes = vec![number as u8 | 1; len];
                let half = len / 2;
                blake3::Hasher::new().update(&number.to_le_bytes()).finalize_xof().fill(&mut bytes[..half]);
                Some(bytes.into())
            }
        }
    }

    /// What a backup has to name, against `base` or against nothing.
    fn changes(&self, base: Option<&Self>) -> Vec<usize> {
        let is_changed = |chunk: &usize| match base.and_then(|base| Some((base, *base.slots.get(*chunk)?))) {
            None => self.slots[*chunk] != Slot::Hole,
            // What a volume's end cuts is another content when the end moves.
            Some((base, slot)) => slot != self.slots[*chunk] || base.len_of(*chunk) != self.len_of(*chunk),
        };
        (0..self.slots.len()).filter(is_changed).collect()
    }
}

/// Tells a server what changed.
pub(crate) struct ImageSource {
    image: Arc<Image>,
    changes: std::vec::IntoIter<usize>,
    batch: usize,
}

impl ImageSource {
    /// Batches of at most `batch` extents.
    pub(crate) fn new(image: Arc<Image>, base: Option<&Image>, batch: usize) -> Self {
        let changes = image.changes(base).into_iter();
        Self { image, changes, batch }
    }
}

impl Source for ImageSource {
    async fn next(&mut self) -> Result<Option<Batch>, Failed> {
        let batch: Batch = self
            .changes
            .by_ref()
            .take(self.batch)
            .map(|chunk| {
                let len = self.image.len_of(chunk) as u64;
                let content = match (self.image.slots[chunk], self.image.bytes(chunk)) {
                    (Slot::Data(_), Some(bytes)) => Content::Data(bytes),
                    (Slot::Zero, _) => Content::Zero(len),
                    _ => Content::Unmapped(len),
                };
                Extent { offset: chunk as u64 * CHUNK, content }
            })
            .collect();
        Ok((!batch.is_empty()).then_some(batch))
    }
}

/// Takes what a server has.
#[derive(Default)]
pub(crate) struct ImageSink {
    chunks: std::collections::BTreeMap<usize, Bytes>,
}

impl ImageSink {
    /// Where it differs from `image`.
    pub(crate) fn difference(&self, image: &Image) -> Option<String> {
        for chunk in 0..image.slots.len() {
            if self.chunks.get(&chunk) != image.bytes(chunk).as_ref() {
                let found = self.chunks.get(&chunk).map(|bytes| (bytes.len(), blake3::hash(bytes)));
                return Some(format!("chunk {chunk} is {found:?}, not {:?}", image.slots[chunk]));
            }
        }
        let beyond = self.chunks.keys().find(|chunk| **chunk >= image.slots.len());
        beyond.map(|chunk| format!("chunk {chunk} lies behind the end"))
    }
}

impl Sink for ImageSink {
    async fn apply(&mut self, batch: Batch) -> Result<(), Failed> {
        for extent in batch {
            let mut bytes = match extent.content {
                Content::Data(bytes) => bytes,
                Content::Zero(len) => BytesMut::zeroed(usize::try_from(len).unwrap()).freeze(),
                Content::Unmapped(_) => continue,
            };
            let mut chunk = usize::try_from(extent.offset / CHUNK).unwrap();
            while !bytes.is_empty() {
                self.chunks.insert(chunk, bytes.split_to(bytes.len().min(CHUNK as usize)));
                chunk += 1;
            }
        }
        Ok(())
    }

    async fn finish(&mut self) -> Result<(), Failed> {
        Ok(())
    }
}
