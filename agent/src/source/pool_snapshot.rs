//! Source: a snapshot in a pool, of which only what a change list names is read.

use std::{
    collections::VecDeque,
    io,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use bytes::{Bytes, BytesMut};
use thinbak_proto::{Failed, FailureKind};
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

impl PoolSource {
    /// Starts reading what `changes` names. `chunk_bytes` is the unit in which mixed runs are told apart.
    #[must_use]
    pub fn start(volume: PoolVolume, changes: ChangeList, chunk_bytes: u64) -> Self {
        let (sender, batches) = mpsc::channel(2);
        let read_bytes = Arc::new(AtomicU64::new(0));
        let mut reader = Reader {
            volume,
            chunk_bytes,
            buffers: Buffers::default(),
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
    buffers: Buffers,
    batch: Batch,
    batch_bytes: u64,
    sender: mpsc::Sender<Result<Batch, Failed>>,
    read_bytes: Arc<AtomicU64>,
}

/// Buffers that were handed out, oldest first. One that nobody else holds any more is read into again: memory fresh from
/// the system costs more than what is read into it.
#[derive(Default)]
struct Buffers {
    lent: VecDeque<Bytes>,
}

/// Buffers remembered; more than are ever under way at a time.
const REMEMBERED: usize = 64;

impl Buffers {
    fn take(&mut self, len: usize) -> BytesMut {
        match self.lent.pop_front().map(Bytes::try_into_mut) {
            Some(Ok(mut buffer)) => {
                buffer.resize(len, 0);
                return buffer;
            }
            Some(Err(held)) => self.lent.push_front(held),
            None => {}
        }
        BytesMut::zeroed(len)
    }

    fn lend(&mut self, buffer: BytesMut) -> Bytes {
        let data = buffer.freeze();
        if self.lent.len() < REMEMBERED {
            self.lent.push_back(data.clone());
        }
        data
    }
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
            self.volume.read(offset, &mut buffer)?;
            self.read_bytes.fetch_add(len, Ordering::Relaxed);
            let data = self.buffers.lend(buffer);
            self.push(Extent { offset, content: Content::Data(data) })?;
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_is_used_again_when_nobody_holds_a_piece_of_it_and_not_before() {
        let mut buffers = Buffers::default();
        let mut first = buffers.take(4096);
        first.fill(1);
        let (place, first) = (first.as_ptr(), buffers.lend(first));
        let piece = first.slice(1024..2048);
        drop(first);
        let second = buffers.take(4096);
        assert_ne!(second.as_ptr(), place);
        assert!(piece.iter().all(|byte| *byte == 1));
        drop(piece);
        let third = buffers.take(2048);
        assert_eq!((third.as_ptr(), third.len()), (place, 2048));
    }
}
