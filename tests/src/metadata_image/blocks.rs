//! Blocks of an image: sealed and written, and the counts of what refers to them.

use std::{
    fs::{File, OpenOptions},
    os::unix::fs::FileExt as _,
    path::Path,
};

use anyhow::{Context as _, Result, ensure};
use thinbak_engine::{
    MetadataBlock,
    format::{
        Bitmap, BlockBytes, BlockKind, ENTRIES_PER_BITMAP, IndexEntry, MetadataIndex, NodeValue, RawCount,
        checksum, max_entries,
    },
};

/// Bytes of a metadata block.
pub(super) const BLOCK_BYTES: u64 = 4096;
/// Blocks that lie side by side and are written together.
const BATCH_BLOCKS: usize = 64;

/// Writes location and checksum into a block.
fn seal(bytes: &mut BlockBytes, block: u64, kind: BlockKind) {
    fill(bytes, 8, &block.to_le_bytes());
    let sum = checksum(bytes, kind);
    fill(bytes, 0, &sum.to_le_bytes());
}

fn fill(bytes: &mut [u8], at: usize, value: &[u8]) {
    if let Some(place) = bytes.get_mut(at..at + value.len()) {
        place.copy_from_slice(value);
    }
}

/// A node of a tree, complete. More entries than it has room for are an error of the caller's.
pub(super) fn encode_node<V: NodeValue>(
    block: u64,
    is_leaf: bool,
    entries: impl Iterator<Item = (u64, V)>,
) -> Box<BlockBytes> {
    let capacity = max_entries(V::SIZE);
    let mut bytes = Box::new([0; BLOCK_BYTES as usize]);
    let (header, body) = bytes.split_at_mut(32);
    let (keys, values) = body.split_at_mut(8 * capacity);
    let slots = keys.as_chunks_mut::<8>().0.iter_mut().zip(values.chunks_exact_mut(V::SIZE));
    let mut used = 0u32;
    for ((key, value), (key_slot, value_slot)) in entries.zip(slots) {
        *key_slot = key.to_le_bytes();
        value.encode(value_slot);
        used += 1;
    }
    fill(header, 4, &(if is_leaf { 2u32 } else { 1 }).to_le_bytes());
    fill(header, 16, &used.to_le_bytes());
    fill(header, 20, &(capacity as u32).to_le_bytes());
    fill(header, 24, &(V::SIZE as u32).to_le_bytes());
    seal(&mut bytes, block, BlockKind::Node);
    bytes
}

/// The file of an image.
pub(super) struct BlockFile {
    file: File,
}

impl BlockFile {
    pub(super) fn create(path: &Path) -> Result<Self> {
        let file = OpenOptions::new().write(true).create_new(true).open(path);
        Ok(Self { file: file.with_context(|| format!("making {}", path.display()))? })
    }

    /// Writes a block that is complete.
    pub(super) fn put(&self, block: u64, bytes: &BlockBytes) -> Result<()> {
        Ok(self.file.write_all_at(bytes, block * BLOCK_BYTES)?)
    }

    pub(super) fn set_len(&self, bytes: u64) -> Result<()> {
        Ok(self.file.set_len(bytes)?)
    }

    pub(super) fn sync(&self) -> Result<()> {
        Ok(self.file.sync_all()?)
    }

    /// Writes `count` blocks on all cores; `block` says where each is to stand, and what it is.
    pub(super) fn put_all(
        &self,
        count: u64,
        block: impl Fn(u64) -> (u64, Box<BlockBytes>) + Sync,
    ) -> Result<()> {
        let threads = std::thread::available_parallelism().map_or(1, |threads| threads.get() as u64);
        let share = count.div_ceil(threads).max(1);
        let work = |first: u64| -> Result<()> {
            let mut batch = Batch { file: self, first: 0, bytes: Vec::new() };
            for index in first..(first + share).min(count) {
                let (place, bytes) = block(index);
                batch.add(place, &bytes)?;
            }
            batch.write()
        };
        std::thread::scope(|scope| {
            let started: Vec<_> =
                (0..threads).map(|thread| scope.spawn(move || work(thread * share))).collect();
            let mut outcomes = started
                .into_iter()
                .map(|thread| thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
            outcomes.try_for_each(|outcome| outcome)
        })
    }
}

/// Blocks that lie side by side.
struct Batch<'a> {
    file: &'a BlockFile,
    first: u64,
    bytes: Vec<u8>,
}

impl Batch<'_> {
    fn add(&mut self, block: u64, bytes: &BlockBytes) -> Result<()> {
        let held = self.bytes.len() / bytes.len();
        if held == BATCH_BLOCKS || self.first + held as u64 != block {
            self.write()?;
            self.first = block;
        }
        self.bytes.extend_from_slice(bytes);
        Ok(())
    }

    fn write(&mut self) -> Result<()> {
        self.file.file.write_all_at(&self.bytes, self.first * BLOCK_BYTES)?;
        self.bytes.clear();
        Ok(())
    }
}

/// How often data and metadata blocks are referred to.
pub(super) struct Counts {
    data: Vec<u8>,
    metadata: Vec<u8>,
}

impl Counts {
    pub(super) fn new(data_blocks: u64) -> Self {
        Self { data: vec![0; data_blocks as usize], metadata: Vec::new() }
    }

    pub(super) fn data(&mut self, block: u64) {
        if let Some(count) = self.data.get_mut(block as usize) {
            *count += 1;
        }
    }

    pub(super) fn metadata(&mut self, block: u64) {
        let index = block as usize;
        if self.metadata.len() <= index {
            self.metadata.resize((index + 1).next_power_of_two(), 0);
        }
        if let Some(count) = self.metadata.get_mut(index) {
            *count += 1;
        }
    }

    pub(super) fn take_data(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.data)
    }

    pub(super) fn take_metadata(&mut self, blocks: u64) -> Vec<u8> {
        let mut metadata = std::mem::take(&mut self.metadata);
        metadata.resize(blocks as usize, 0);
        metadata
    }
}

/// Writes the bitmaps of `counts` from block `next` on, and says what an index says of them.
pub(super) fn write_bitmaps(file: &BlockFile, next: &mut u64, counts: &[u8]) -> Result<Vec<IndexEntry>> {
    ensure!(counts.iter().all(|count| *count < 3), "a count that needs an overflow tree");
    let mut index = Vec::new();
    for counts in counts.chunks(ENTRIES_PER_BITMAP as usize) {
        let mut bitmap = Bitmap::empty();
        for (entry, count) in (0..).zip(counts).filter(|(_, count)| **count > 0) {
            bitmap.set(entry, RawCount::from_count(u32::from(*count)));
        }
        let used = counts.iter().filter(|count| **count > 0).count() as u64;
        let none_free_before = bitmap.find_zero(0, ENTRIES_PER_BITMAP).unwrap_or(ENTRIES_PER_BITMAP);
        let mut bytes = Box::new(*bitmap.bytes());
        seal(&mut bytes, *next, BlockKind::Bitmap);
        file.put(*next, &bytes)?;
        index.push(IndexEntry {
            bitmap: MetadataBlock(*next),
            nr_free: (ENTRIES_PER_BITMAP - used) as u32,
            none_free_before: none_free_before as u32,
        });
        *next += 1;
    }
    Ok(index)
}

/// Writes the index of the metadata space map.
pub(super) fn write_index(file: &BlockFile, block: u64, entries: Vec<IndexEntry>) -> Result<()> {
    let mut bytes = MetadataIndex { entries }.encode();
    seal(&mut bytes, block, BlockKind::Index);
    file.put(block, &bytes)
}
