//! Batches of nodes, read by many threads at once, verified and decoded where they were read.
//!
//! A disk answers tens of requests together in little more time than one, so a batch is cut into reads of
//! neighbouring blocks, and as many threads as pay have one of them in flight each. The threads are started when
//! the first batch is large enough to need them, and kept. Two batches may be under way, so that the disk
//! has work while somebody looks at the first.

use std::{
    collections::VecDeque,
    fmt,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread::JoinHandle,
};

use parking_lot::{Condvar, Mutex};

use super::{error::ViewError, leaf};
use crate::{
    BlockDevice, MetadataBlock, MetadataError,
    block_device::AlignedBuffer,
    format::{BLOCK_BYTES, BlockBytes, MappedBlock, Node, RawBlock},
};

/// Blocks that are not wanted but read all the same, because they lie between two that are: reading four blocks more takes
/// about as long as one more request.
const MAX_GAP_BLOCKS: u64 = 4;
/// Blocks in one read at most.
const MAX_RUN_BLOCKS: u64 = 16;
/// Threads at most: requests in flight.
const MAX_THREADS: usize = 32;
/// Reads that are worth starting one more thread.
const RUNS_PER_THREAD: usize = 4;

/// A node of a mapping tree, as a walk wants it.
#[derive(Debug, Clone)]
pub(super) enum Decoded {
    /// The runs of a leaf, packed.
    Leaf(Arc<[u8]>),
    /// An internal node.
    Internal(Arc<Node>),
}

/// Nodes that were asked for together.
#[derive(Debug)]
pub(super) struct Batch {
    /// Ascending, each once.
    blocks: Vec<MetadataBlock>,
    /// First and last of the blocks that one read fetches, as indexes.
    runs: Vec<(usize, usize)>,
    next_run: AtomicUsize,
    progress: Mutex<Progress>,
    done: Condvar,
}

#[derive(Debug)]
struct Progress {
    unfinished_runs: usize,
    /// By index of the block; none while it is not read.
    nodes: Vec<Option<Result<Decoded, ViewError>>>,
}

impl Batch {
    fn new(mut blocks: Vec<MetadataBlock>) -> Self {
        blocks.sort_unstable();
        blocks.dedup();
        let runs = split_runs(&blocks);
        let nodes = blocks.iter().map(|_| None).collect();
        let progress = Mutex::new(Progress { unfinished_runs: runs.len(), nodes });
        Self { blocks, runs, next_run: AtomicUsize::new(0), progress, done: Condvar::new() }
    }

    /// A run that nobody else reads.
    fn claim(&self) -> Option<(usize, usize)> {
        self.runs.get(self.next_run.fetch_add(1, Ordering::Relaxed)).copied()
    }

    fn read(&self, (first, last): (usize, usize), device: &dyn BlockDevice, scratch: &mut Scratch) {
        let _finished = Finished(self);
        let wanted = self.blocks.get(first..=last).unwrap_or_default();
        let nodes = scratch.read(device, wanted);
        let mut progress = self.progress.lock();
        for (place, node) in progress.nodes.iter_mut().skip(first).zip(nodes) {
            *place = Some(node);
        }
    }
}

/// Counts a run as read when it is dropped: a thread that panics leaves nobody waiting for it.
struct Finished<'a>(&'a Batch);

impl Drop for Finished<'_> {
    fn drop(&mut self) {
        let mut progress = self.0.progress.lock();
        progress.unfinished_runs -= 1;
        if progress.unfinished_runs == 0 {
            self.0.done.notify_all();
        }
    }
}

/// What was read of a batch.
#[derive(Debug)]
pub(super) struct Nodes {
    blocks: Vec<MetadataBlock>,
    nodes: Vec<Option<Result<Decoded, ViewError>>>,
}

impl Nodes {
    /// A node of the batch. Its failure, if that is what reading came to, is told once.
    pub(super) fn get(&mut self, block: MetadataBlock) -> Result<Decoded, ViewError> {
        let index = self.blocks.binary_search(&block).unwrap_or(usize::MAX);
        match self.nodes.get_mut(index) {
            Some(Some(Ok(node))) => Ok(node.clone()),
            Some(failed) => match failed.take() {
                Some(Err(error)) => Err(error),
                _ => Err(ViewError::UnevenTree { block }),
            },
            None => Err(ViewError::UnevenTree { block }),
        }
    }

    /// The leaves among them.
    pub(super) fn leaves(self) -> impl Iterator<Item = (MetadataBlock, Arc<[u8]>)> {
        self.blocks.into_iter().zip(self.nodes).filter_map(|(block, node)| match node {
            Some(Ok(Decoded::Leaf(packed))) => Some((block, packed)),
            _ => None,
        })
    }
}

/// The threads, and what they have to do.
pub(super) struct ReadAhead {
    shared: Arc<Shared>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

impl fmt::Debug for ReadAhead {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ReadAhead").field("threads", &self.threads.lock().len()).finish_non_exhaustive()
    }
}

struct Shared {
    device: Arc<dyn BlockDevice>,
    queue: Mutex<Queue>,
    work: Condvar,
}

#[derive(Default)]
struct Queue {
    batches: VecDeque<Arc<Batch>>,
    closed: bool,
}

impl ReadAhead {
    pub(super) fn new(device: Arc<dyn BlockDevice>) -> Self {
        let shared = Shared { device, queue: Mutex::default(), work: Condvar::new() };
        Self { shared: Arc::new(shared), threads: Mutex::default() }
    }

    /// Has the nodes read, which takes a while.
    pub(super) fn begin(&self, blocks: Vec<MetadataBlock>) -> Arc<Batch> {
        let batch = Arc::new(Batch::new(blocks));
        let pay = (batch.runs.len() / RUNS_PER_THREAD).min(MAX_THREADS);
        let mut threads = self.threads.lock();
        while threads.len() < pay {
            let shared = Arc::clone(&self.shared);
            // Where no thread can be had, those that are there do the work.
            match std::thread::Builder::new().spawn(move || shared.work()) {
                Ok(thread) => threads.push(thread),
                Err(_) => break,
            }
        }
        if pay > 0 {
            self.shared.queue.lock().batches.push_back(Arc::clone(&batch));
            self.shared.work.notify_all();
        }
        batch
    }

    /// Waits for the nodes, reading with the others what nobody has begun to read yet.
    pub(super) fn finish(&self, batch: &Batch, scratch: &mut Scratch) -> Nodes {
        while let Some(run) = batch.claim() {
            batch.read(run, self.shared.device.as_ref(), scratch);
        }
        let mut progress = batch.progress.lock();
        while progress.unfinished_runs > 0 {
            batch.done.wait(&mut progress);
        }
        Nodes { blocks: batch.blocks.clone(), nodes: std::mem::take(&mut progress.nodes) }
    }
}

impl Drop for ReadAhead {
    fn drop(&mut self) {
        self.shared.queue.lock().closed = true;
        self.shared.work.notify_all();
        for thread in self.threads.get_mut().drain(..) {
            // A thread that panicked has said so already.
            let _ = thread.join();
        }
    }
}

impl Shared {
    /// What each thread does.
    fn work(&self) {
        let mut scratch = Scratch::default();
        while let Some((batch, run)) = self.claim() {
            batch.read(run, self.device.as_ref(), &mut scratch);
        }
    }

    fn claim(&self) -> Option<(Arc<Batch>, (usize, usize))> {
        let mut queue = self.queue.lock();
        loop {
            if queue.closed {
                return None;
            }
            match queue.batches.front().map(|batch| (Arc::clone(batch), batch.claim())) {
                Some((batch, Some(run))) => return Some((batch, run)),
                Some((_, None)) => drop(queue.batches.pop_front()),
                None => self.work.wait(&mut queue),
            }
        }
    }
}

/// Memory that a thread uses again for each read.
#[derive(Debug, Default)]
pub(super) struct Scratch {
    buffer: AlignedBuffer,
    block: Option<Box<BlockBytes>>,
    packed: Vec<u8>,
}

impl Scratch {
    /// The blocks of one read; of each what came of it.
    fn read(
        &mut self,
        device: &dyn BlockDevice,
        wanted: &[MetadataBlock],
    ) -> Vec<Result<Decoded, ViewError>> {
        let (Some(first), Some(last)) = (wanted.first(), wanted.last()) else { return Vec::new() };
        let mut buffer = std::mem::take(&mut self.buffer);
        let bytes = buffer.bytes((last.0 - first.0 + 1) as usize * BLOCK_BYTES);
        let nodes = match device.read_at(first.0 * BLOCK_BYTES as u64, bytes) {
            Ok(()) => {
                let (read, _) = bytes.as_chunks::<BLOCK_BYTES>();
                let mut wanted = wanted.iter().copied().peekable();
                let read = (first.0..).map(MetadataBlock).zip(read);
                let read = read.filter(|(block, _)| wanted.next_if_eq(block).is_some());
                read.map(|(block, bytes)| self.decode(block, bytes)).collect()
            }
            Err(source) if wanted.len() == 1 => {
                let error = MetadataError::Io { action: "read", block: *first, source };
                vec![Err(error.into())]
            }
            // Which of them cannot be read? One that nobody wants is no failure.
            Err(_) => wanted.chunks(1).flat_map(|block| self.read(device, block)).collect(),
        };
        self.buffer = buffer;
        nodes
    }

    fn decode(&mut self, block: MetadataBlock, bytes: &BlockBytes) -> Result<Decoded, ViewError> {
        let mut copy = self.block.take().unwrap_or_else(|| Box::new([0; BLOCK_BYTES]));
        *copy = *bytes;
        let node = Node::verify::<MappedBlock>(RawBlock::new(block, copy))?;
        if !node.is_leaf() {
            return Ok(Decoded::Internal(Arc::new(node)));
        }
        self.packed.clear();
        leaf::pack(&node, &mut self.packed);
        self.block = Some(node.into_bytes());
        Ok(Decoded::Leaf(Arc::from(self.packed.as_slice())))
    }
}

/// Splits ascending blocks where one read would fetch too much, or too much that is not wanted.
fn split_runs(blocks: &[MetadataBlock]) -> Vec<(usize, usize)> {
    let mut runs: Vec<(usize, usize)> = Vec::new();
    let mut open: Option<(MetadataBlock, MetadataBlock)> = None;
    for (index, &block) in blocks.iter().enumerate() {
        match (&mut open, runs.last_mut()) {
            (Some((first, last)), Some(run))
                if block.0 - last.0 <= MAX_GAP_BLOCKS + 1 && block.0 - first.0 < MAX_RUN_BLOCKS =>
            {
                *last = block;
                run.1 = index;
            }
            _ => {
                open = Some((block, block));
                runs.push((index, index));
            }
        }
    }
    runs
}

#[cfg(test)]
mod tests {
    use super::{MAX_RUN_BLOCKS, split_runs};
    use crate::MetadataBlock;

    fn split(blocks: impl IntoIterator<Item = u64>) -> Vec<(u64, usize)> {
        let blocks: Vec<_> = blocks.into_iter().map(MetadataBlock).collect();
        split_runs(&blocks).iter().map(|(first, last)| (blocks[*first].0, last - first + 1)).collect()
    }

    #[test]
    fn near_blocks_are_one_read_and_far_ones_are_not() {
        let most = MAX_RUN_BLOCKS as usize;
        assert_eq!(split([]), []);
        assert_eq!(split([7]), [(7, 1)]);
        assert_eq!(split([7, 8, 13, 19, 20, 100]), [(7, 3), (19, 2), (100, 1)]);
        assert_eq!(
            split(0..2 * MAX_RUN_BLOCKS + 2),
            [(0, most), (MAX_RUN_BLOCKS, most), (2 * MAX_RUN_BLOCKS, 2)]
        );
    }
}
