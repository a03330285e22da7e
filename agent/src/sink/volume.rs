//! Sink: a private head in a pool.

use std::ops::Range;

use thinbak_proto::{Failed, FailureKind};
use tokio::task::JoinHandle;

use crate::{
    stream::{Batch, Content, Sink},
    volume::PoolVolume,
};

/// Writes a stream into a thin device that nobody else uses. One batch is written while the next one is
/// awaited.
pub struct VolumeSink {
    target: PoolVolume,
    /// Nothing is mapped in the target yet, so zero and unmapped extents need no work.
    clean: bool,
    writing: Option<JoinHandle<Result<(), Failed>>>,
}

impl VolumeSink {
    /// A sink into a device that holds nothing yet.
    #[must_use]
    pub fn clean(target: PoolVolume) -> Self {
        Self { target, clean: true, writing: None }
    }

    /// A sink into a device with content of its own.
    #[must_use]
    pub fn dirty(target: PoolVolume) -> Self {
        Self { target, clean: false, writing: None }
    }

    async fn settle(&mut self) -> Result<(), Failed> {
        match self.writing.take() {
            Some(writing) => joined(writing.await),
            None => Ok(()),
        }
    }
}

fn joined(result: Result<Result<(), Failed>, tokio::task::JoinError>) -> Result<(), Failed> {
    result.unwrap_or_else(|error| {
        Err(Failed::new(FailureKind::Failed, format!("a writing task ended early: {error}")))
    })
}

impl Sink for VolumeSink {
    async fn apply(&mut self, batch: Batch) -> Result<(), Failed> {
        self.settle().await?;
        let (target, clean) = (self.target.clone(), self.clean);
        self.writing = Some(tokio::task::spawn_blocking(move || write(&target, clean, batch)));
        Ok(())
    }

    async fn finish(&mut self) -> Result<(), Failed> {
        self.settle().await?;
        let target = self.target.clone();
        joined(tokio::task::spawn_blocking(move || target.flush()).await)
    }
}

fn write(target: &PoolVolume, clean: bool, batch: Batch) -> Result<(), Failed> {
    for extent in batch {
        match extent.content {
            Content::Data(bytes) => write_data(target, clean, extent.offset, &bytes)?,
            Content::Zero(_) | Content::Unmapped(_) if clean => {}
            Content::Zero(len) | Content::Unmapped(len) => target.unmap(extent.offset, len)?,
        }
    }
    Ok(())
}

/// Writes an extent: touches only the blocks that it changes, for a block that is written is no longer shared with the
/// snapshots of the device, and maps none that read as zero. What an extent brings may be there already: a chunk may be
/// larger than a block, and the last one of a volume is another one when only its length has changed.
fn write_data(target: &PoolVolume, clean: bool, offset: u64, data: &[u8]) -> Result<(), Failed> {
    let (block, end) = (target.block_bytes(), offset.saturating_add(data.len() as u64));
    // In one block something is not zero, or it would not come as data.
    if clean && end.div_ceil(block) <= offset / block + 1 {
        return target.write(offset, data);
    }
    let slice = |piece: &Range<u64>| {
        let bound = |at: u64| usize::try_from(at - offset).unwrap_or(usize::MAX);
        data.get(bound(piece.start)..bound(piece.end)).unwrap_or_default()
    };
    let mut held = vec![0; if clean { 0 } else { data.len() }];
    // Written together with what comes right behind it.
    let mut waiting = offset..offset;
    let mut at = offset;
    while at < end {
        let piece = at..((at / block + 1) * block).min(end);
        at = piece.end;
        let part = slice(&piece);
        let is_zero = part.iter().all(|byte| *byte == 0);
        if clean && is_zero {
            continue;
        }
        if !clean {
            let held = held.get_mut(..part.len()).unwrap_or_default();
            target.read(piece.start, held)?;
            if held == part {
                continue;
            }
            if is_zero {
                target.unmap(piece.start, piece.end - piece.start)?;
                continue;
            }
        }
        if waiting.end == piece.start {
            waiting.end = piece.end;
        } else {
            write_piece(target, &waiting, slice(&waiting))?;
            waiting = piece;
        }
    }
    write_piece(target, &waiting, slice(&waiting))
}

fn write_piece(target: &PoolVolume, piece: &Range<u64>, data: &[u8]) -> Result<(), Failed> {
    if data.is_empty() { Ok(()) } else { target.write(piece.start, data) }
}
