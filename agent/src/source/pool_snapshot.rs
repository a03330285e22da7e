//! Source: a snapshot in a pool, of which only what a change list names is read.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use thinbak_proto::{BufferPool, Failed, FailureKind};
use tokio::sync::mpsc;

use super::change_list::{ChangeList, Run, RunKind};
use crate::{
    stream::{BATCH_BYTES, Batch, Content, Extent, Source},
    volume::PoolVolume,
};

/// Reads the changed pieces of a read-only snapshot on a thread of its own, a little ahead of the sink.
pub struct PoolSource {
    batches: mpsc::Receiver<Result<Batch, Failed>>,
    read_bytes: Arc<AtomicU64>,
}

/// Length of one data extent at most; a multiple of every chunk size.
const PIECE_BYTES: u64 = 1024 * 1024;

/// Buffers that wait for their next use; more than are ever under way at a time.
const IDLE_BUFFERS: usize = 64;

impl PoolSource {
    /// Starts reading what `changes` names. `chunk_bytes` is the unit in which mixed runs are told apart.
    #[must_use]
    pub fn start(volume: PoolVolume, changes: ChangeList, chunk_bytes: u64) -> Self {
        let (sender, batches) = mpsc::channel(2);
        let read_bytes = Arc::new(AtomicU64::new(0));
        let mut reader = Reader {
            volume,
            chunk_bytes,
            buffers: BufferPool::new(usize::try_from(PIECE_BYTES).unwrap_or_default(), IDLE_BUFFERS),
            batch: Vec::new(),
            batch_bytes: 0,
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
    batch: Batch,
    batch_bytes: u64,
    sender: mpsc::Sender<Result<Batch, Failed>>,
    read_bytes: Arc<AtomicU64>,
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
                    self.push(Extent { offset: run.offset, content: Content::Unmapped(run.len) })?;
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
                self.push(Extent { offset: at, content: Content::Unmapped(begin - at) })?;
            }
            self.data(begin, stop)?;
            at = stop;
        }
        if at < end {
            self.push(Extent { offset: at, content: Content::Unmapped(end - at) })?;
        }
        Ok(())
    }

    fn data(&mut self, mut offset: u64, end: u64) -> Result<(), Stop> {
        while offset < end {
            let len = (end - offset).min(PIECE_BYTES - offset % PIECE_BYTES);
            let mut buffer = self.buffers.take(usize::try_from(len).unwrap_or(0));
            self.volume.read(offset, buffer.bytes_mut())?;
            self.read_bytes.fetch_add(len, Ordering::Relaxed);
            self.push(Extent { offset, content: Content::Data(buffer.freeze()) })?;
            offset += len;
        }
        Ok(())
    }

    fn push(&mut self, extent: Extent) -> Result<(), Stop> {
        if let Content::Data(bytes) = &extent.content {
            self.batch_bytes += bytes.len() as u64;
        }
        self.batch.push(extent);
        if self.batch_bytes >= BATCH_BYTES || self.batch.len() >= 1024 {
            self.send()?;
        }
        Ok(())
    }

    fn send(&mut self) -> Result<(), Stop> {
        if self.batch.is_empty() {
            return Ok(());
        }
        self.batch_bytes = 0;
        let batch = std::mem::take(&mut self.batch);
        self.sender.blocking_send(Ok(batch)).map_err(|_| Stop::Unwanted)
    }
}
