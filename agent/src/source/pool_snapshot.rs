//! Source: a snapshot in a pool, of which only what a change list names is read.

use std::{
    io,
    ops::Range,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use thinbak_proto::{Buffer, BufferPool, Failed, FailureKind, TRANSFER_ALIGNMENT};
use tokio::sync::mpsc;

use super::change_list::{ChangeList, Run, RunKind};
use crate::{
    stream::{BATCH_LEN, Batch, Content, Extent, Source},
    volume::PoolVolume,
};

/// Reads the changed pieces of a read-only snapshot on a thread of its own, a little ahead of the sink.
pub struct PoolSource {
    batches: mpsc::Receiver<Result<Batch, Failed>>,
    read_bytes: Arc<AtomicU64>,
}

/// Length of one data extent at most; a multiple of every chunk size.
const PIECE_BYTES: u64 = 1024 * 1024;

/// Data of the first batch; each has twice as much as the one before, up to the usual. What comes after the source does not
/// wait for a whole batch to be read: of a small change that is a good part of the time.
const FIRST_LEN: usize = 512 * 1024;

/// Extents of one batch at most.
const EXTENTS: usize = 1024;

/// Buffers that wait for their next use; more than are ever under way at a time.
const IDLE_BUFFERS: usize = 16;

impl PoolSource {
    /// Starts reading what `changes` names. `chunk_bytes` is the unit in which mixed runs are told apart.
    #[must_use]
    pub fn start(volume: PoolVolume, changes: ChangeList, chunk_bytes: u64) -> Self {
        let (sender, batches) = mpsc::channel(2);
        let read_bytes = Arc::new(AtomicU64::new(0));
        let mut reader = Reader {
            volume,
            chunk_bytes,
            buffers: BufferPool::new(BATCH_LEN, IDLE_BUFFERS),
            batch: Vec::new(),
            buffer: None,
            filled: 0,
            enough: FIRST_LEN,
            sender,
            read_bytes: Arc::clone(&read_bytes),
        };
        tokio::task::spawn_blocking(move || {
            if let Err(Stop::Failed(failed)) = reader.run(changes) {
                // Nobody waits any more when this fails too.
                let _ = reader.sender.blocking_send(Err(failed));
            }
        });
        Self { batches, read_bytes }
    }

    /// Bytes read from the snapshot so far.
    #[must_use]
    pub fn read_bytes(&self) -> u64 {
        self.read_bytes.load(Ordering::Relaxed)
    }
}

impl Source for PoolSource {
    async fn next(&mut self) -> Result<Option<Batch>, Failed> {
        self.batches.recv().await.transpose()
    }
}

struct Reader {
    volume: PoolVolume,
    chunk_bytes: u64,
    buffers: BufferPool,
    batch: Vec<(u64, Part)>,
    /// All data of the batch.
    buffer: Option<Buffer>,
    filled: usize,
    /// Data with which the batch goes on its way.
    enough: usize,
    sender: mpsc::Sender<Result<Batch, Failed>>,
    read_bytes: Arc<AtomicU64>,
}

/// What an extent of the batch in the making holds.
enum Part {
    /// This part of the batch's buffer.
    Data(Range<usize>),
    /// So many bytes that are not mapped.
    Unmapped(u64),
}

enum Stop {
    Failed(Failed),
    /// The sink has gone.
    Unwanted,
}

impl From<Failed> for Stop {
    fn from(failed: Failed) -> Self {
        Self::Failed(failed)
    }
}

impl From<io::Error> for Stop {
    fn from(error: io::Error) -> Self {
        Self::Failed(Failed::new(FailureKind::Failed, format!("reading the list of changes: {error}")))
    }
}

impl Reader {
    fn run(&mut self, changes: ChangeList) -> Result<(), Stop> {
        for run in changes.into_runs()? {
            let run = run?;
            match run.kind {
                RunKind::Data => self.data(run.offset, run.offset + run.len)?,
                RunKind::Unmapped => {
                    self.push(run.offset, Part::Unmapped(run.len))?;
                }
                RunKind::Mixed => self.mixed(run)?,
            }
        }
        self.send()
    }

    /// Tells chunk by chunk whether anything in it may read as other than zero.
    fn mixed(&mut self, run: Run) -> Result<(), Stop> {
        let end = run.offset + run.len;
        let volume = self.volume.clone();
        let mut at = run.offset;
        for range in volume.readable(run.offset, end) {
            let range = range?;
            let begin = (range.begin / self.chunk_bytes * self.chunk_bytes).max(at);
            let stop = range.end.next_multiple_of(self.chunk_bytes).min(end);
            if begin >= stop {
                continue;
            }
            if at < begin {
                self.push(at, Part::Unmapped(begin - at))?;
            }
            self.data(begin, stop)?;
            at = stop;
        }
        if at < end {
            self.push(at, Part::Unmapped(end - at))?;
        }
        Ok(())
    }

    fn data(&mut self, mut offset: u64, end: u64) -> Result<(), Stop> {
        while offset < end {
            let len = (end - offset).min(PIECE_BYTES - offset % PIECE_BYTES);
            let (begin, stop) = (self.filled, self.filled + usize::try_from(len).unwrap_or(0));
            let buffer = self.buffer.get_or_insert_with(|| self.buffers.take(BATCH_LEN));
            let place = buffer.bytes_mut().get_mut(begin..stop);
            self.volume.read(offset, place.unwrap_or_default())?;
            self.read_bytes.fetch_add(len, Ordering::Relaxed);
            self.filled = stop.next_multiple_of(TRANSFER_ALIGNMENT);
            self.push(offset, Part::Data(begin..stop))?;
            offset += len;
        }
        Ok(())
    }

    fn push(&mut self, offset: u64, part: Part) -> Result<(), Stop> {
        self.batch.push((offset, part));
        let room = BATCH_LEN.saturating_sub(self.filled) as u64;
        let is_full = self.filled >= self.enough || room < PIECE_BYTES || self.batch.len() >= EXTENTS;
        if is_full { self.send() } else { Ok(()) }
    }

    fn send(&mut self) -> Result<(), Stop> {
        if self.batch.is_empty() {
            return Ok(());
        }
        self.filled = 0;
        self.enough = self.enough.saturating_mul(2).min(BATCH_LEN);
        let bytes = self.buffer.take().map(Buffer::freeze).unwrap_or_default();
        let content = |part| match part {
            Part::Data(range) => Content::Data(bytes.slice(range)),
            Part::Unmapped(len) => Content::Unmapped(len),
        };
        let batch = self.batch.drain(..).map(|(offset, part)| Extent { offset, content: content(part) });
        self.sender.blocking_send(Ok(batch.collect())).map_err(|_| Stop::Unwanted)
    }
}
