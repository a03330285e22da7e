//! Reading many metadata blocks: in the order in which they lie, neighbours in one read, by several threads.

use std::{io, thread};

use parking_lot::Mutex;

use super::{
    raw::{BLOCK_LEN, Block},
    table::{BlockSet, Known, Region, Table, made},
};
use crate::BlockDevice;

/// Reads on their way at once. Each thread reads, then examines what it read.
const MAX_THREADS: usize = 16;
const MIN_THREADS: usize = 4;
/// A further thread pays from so many blocks on.
const BLOCKS_PER_THREAD: usize = 16;
/// Blocks between two that are wanted which are read along rather than skipped: in that time a device transfers them.
const MAX_GAP: usize = 16;
/// Buffers begin at an address that suits direct input of every device.
const MEMORY_ALIGNMENT: usize = 4096;

/// Blocks to read of one region.
struct Job<'a> {
    first: u64,
    /// Indices in the region, ascending; not empty.
    wanted: Vec<usize>,
    known: &'a mut Region,
}

/// Reads the wanted blocks, each once, and has them examined in any order: number, bytes, what is known. Blocks that
/// cannot be read are not examined.
pub(super) fn sweep<F>(device: &dyn BlockDevice, table: &mut Table, wanted: &BlockSet, examine: &F)
where
    F: Fn(u64, &Block, &mut Known) + Sync,
{
    let cores = thread::available_parallelism().map_or(1, usize::from);
    let threads = (2 * cores).clamp(MIN_THREADS, MAX_THREADS).min(wanted.len() / BLOCKS_PER_THREAD + 1);
    let jobs = table.regions().zip(wanted.regions()).filter_map(|((first, region), wanted)| {
        let wanted: Vec<_> = wanted.collect();
        (!wanted.is_empty()).then(|| Job { first, wanted, known: made(region) })
    });
    let jobs = Mutex::new(jobs);
    let work = || {
        let mut buffer = Buffer::new();
        loop {
            // A statement of its own: the lock must not be held while the job is done.
            let job = jobs.lock().next();
            let Some(job) = job else { return };
            job.run(device, &mut buffer, examine);
        }
    };
    thread::scope(|scope| {
        for _ in 1..threads {
            // This thread works as well, so one that cannot be started only makes it slower.
            let _ = thread::Builder::new().spawn_scoped(scope, work);
        }
        work();
    });
}

impl Job<'_> {
    fn run<F>(self, device: &dyn BlockDevice, buffer: &mut Buffer, examine: &F)
    where
        F: Fn(u64, &Block, &mut Known),
    {
        let Self { first, wanted, known } = self;
        for near in wanted.chunk_by(|before, next| next - before <= MAX_GAP + 1) {
            let (Some(&begin), Some(&end)) = (near.first(), near.last()) else { continue };
            let together = buffer.read(device, first + begin as u64, end - begin + 1);
            for &index in near {
                let number = first + index as u64;
                // One that cannot be read must not hide the others.
                let block = match &together {
                    Ok(()) => buffer.block(index - begin),
                    Err(_) if near.len() == 1 => None,
                    Err(_) => buffer.read(device, number, 1).ok().and_then(|()| buffer.block(0)),
                };
                if let (Some(block), Some(known)) = (block, known.get_mut(index)) {
                    examine(number, block, known);
                }
            }
        }
    }
}

/// Room for some blocks, at most a region; it grows to what is needed.
struct Buffer {
    memory: Vec<u8>,
    start: usize,
}

impl Buffer {
    fn new() -> Self {
        Self { memory: Vec::new(), start: 0 }
    }

    /// Reads so many blocks from `number` on.
    fn read(&mut self, device: &dyn BlockDevice, number: u64, blocks: usize) -> io::Result<()> {
        let len = blocks * BLOCK_LEN;
        if self.memory.len() < self.start + len {
            self.memory = vec![0; len.next_power_of_two() + MEMORY_ALIGNMENT];
            self.start = self.memory.as_ptr().align_offset(MEMORY_ALIGNMENT).min(MEMORY_ALIGNMENT);
        }
        let place = self.memory.get_mut(self.start..self.start + len).ok_or(io::ErrorKind::InvalidInput)?;
        device.read_at(number * BLOCK_LEN as u64, place)
    }

    fn block(&self, index: usize) -> Option<&Block> {
        self.memory.get(self.start + index * BLOCK_LEN..)?.first_chunk()
    }
}
