//! The change stream: every job is a source, a stream of extents, and a sink.
//!
//! A source says in ascending order what a volume holds: *data*, *zero* (reads as zero) or *unmapped*
//! (reads as zero and should take no space). What it does not name is as it was in the base, or unmapped
//! where there is no base. A sink applies that, and may be told the same extent twice. Neither knows
//! what the other is; a new job is a new pairing of the two.

mod pace;

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use bytes::Bytes;
use thinbak_proto::Failed;
use tokio::sync::mpsc;

pub use pace::{Paced, Rate};

/// What one extent holds. Lengths in bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Content {
    /// These bytes.
    Data(Bytes),
    /// This many bytes that read as zero.
    Zero(u64),
    /// This many bytes that read as zero and should take no space.
    Unmapped(u64),
}

/// A piece of a volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Extent {
    /// Where it begins, in bytes.
    pub offset: u64,
    /// What it holds.
    pub content: Content,
}

impl Extent {
    /// Length in bytes.
    #[must_use]
    pub fn len(&self) -> u64 {
        match &self.content {
            Content::Data(bytes) => bytes.len() as u64,
            Content::Zero(len) | Content::Unmapped(len) => *len,
        }
    }

    /// Whether it covers nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The first byte after it.
    #[must_use]
    pub fn end(&self) -> u64 {
        self.offset.saturating_add(self.len())
    }
}

/// Extents that travel together: ascending, not overlapping, a few MiB of data at most.
pub type Batch = Vec<Extent>;

/// Data of one batch at most, in bytes.
pub const BATCH_LEN: usize = 4 * 1024 * 1024;

/// Where a change stream comes from.
pub trait Source: Send {
    /// The next batch, after everything before it; `None` at the end of the stream.
    fn next(&mut self) -> impl Future<Output = Result<Option<Batch>, Failed>> + Send;
}

/// Where a change stream goes.
///
/// Contract: extents may arrive that have been applied already; applying is idempotent. Nothing is
/// promised to be durable before `finish` has returned.
pub trait Sink: Send {
    /// Takes one batch. May return before it is applied, but holds a bounded number of them.
    fn apply(&mut self, batch: Batch) -> impl Future<Output = Result<(), Failed>> + Send;
    /// Waits until all is applied and on stable storage.
    fn finish(&mut self) -> impl Future<Output = Result<(), Failed>> + Send;
}

/// How far a job is, for whoever watches.
#[derive(Debug, Default)]
pub struct Progress {
    done: AtomicU64,
    total: AtomicU64,
}

impl Progress {
    /// A fresh one at 0 of `total` bytes.
    #[must_use]
    pub fn new(total: u64) -> Arc<Self> {
        Arc::new(Self { done: AtomicU64::new(0), total: AtomicU64::new(total) })
    }

    /// Starts again at 0 of `total` bytes.
    pub fn restart(&self, total: u64) {
        self.done.store(0, Ordering::Relaxed);
        self.total.store(total, Ordering::Relaxed);
    }

    /// Counts `bytes` as done.
    pub fn add(&self, bytes: u64) {
        self.done.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Bytes done and bytes in total.
    #[must_use]
    pub fn get(&self) -> (u64, u64) {
        (self.done.load(Ordering::Relaxed), self.total.load(Ordering::Relaxed))
    }
}

/// Runs a stream to its end: the source reads ahead while the sink applies. Returns the bytes that the
/// extents covered. On an error of either side the stream stops there and the sink is not finished.
pub async fn pump(
    source: &mut impl Source,
    sink: &mut impl Sink,
    progress: &Progress,
) -> Result<u64, Failed> {
    let (sender, mut receiver) = mpsc::channel::<Batch>(2);
    let produce = async move {
        while let Some(batch) = source.next().await? {
            if sender.send(batch).await.is_err() {
                break;
            }
        }
        Ok::<_, Failed>(())
    };
    let consume = async {
        let mut covered = 0;
        while let Some(batch) = receiver.recv().await {
            let len: u64 = batch.iter().map(Extent::len).sum();
            sink.apply(batch).await?;
            covered += len;
            progress.add(len);
        }
        Ok::<_, Failed>(covered)
    };
    let ((), covered) = tokio::try_join!(produce, consume)?;
    sink.finish().await?;
    Ok(covered)
}
