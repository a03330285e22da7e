//! The mappings of one tree, in order.

use super::{
    error::ViewError,
    lock_step::{LockStep, Mapped},
};
use crate::{DataBlock, VirtualBlock};

/// One mapped virtual block.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Mapping {
    /// Which block of the thin device.
    pub virtual_block: VirtualBlock,
    /// Where in the data device it lies.
    pub data_block: DataBlock,
    /// The pool's time when the mapping was made.
    pub time: u32,
}

/// Consecutive virtual blocks that lie in consecutive data blocks, since the same time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct MappingRun {
    /// The mapping of the first block.
    pub first: Mapping,
    /// Number of blocks, at least 1.
    pub length: u64,
}

impl MappingRun {
    /// Whether `next` is the mapping that would make this run one longer.
    fn is_followed_by(&self, next: Mapping) -> bool {
        self.first.time == next.time
            && self.first.virtual_block.0.checked_add(self.length) == Some(next.virtual_block.0)
            && self.first.data_block.0.checked_add(self.length) == Some(next.data_block.0)
    }
}

/// The mappings of a tree as runs that are as long as possible, ascending. Made by
/// [`MetadataView::mapping_runs`](super::MetadataView::mapping_runs). Over after the first error.
#[derive(Debug)]
pub struct MappingRuns {
    walk: LockStep,
    pending: Option<MappingRun>,
}

impl MappingRuns {
    pub(super) fn new(walk: LockStep) -> Self {
        Self { walk, pending: None }
    }
}

impl Iterator for MappingRuns {
    type Item = Result<MappingRun, ViewError>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let pair = match self.walk.next() {
                Ok(Some(pair)) => pair,
                Ok(None) => return self.pending.take().map(Ok),
                Err(error) => {
                    self.pending = None;
                    return Some(Err(error));
                }
            };
            let Some(Mapped { data_block, time }) = pair.new else { continue };
            let first = Mapping { virtual_block: VirtualBlock(pair.key), data_block, time };
            match &mut self.pending {
                Some(run) if run.is_followed_by(first) => run.length = run.length.saturating_add(pair.length),
                pending => {
                    if let Some(run) = pending.replace(MappingRun { first, length: pair.length }) {
                        return Some(Ok(run));
                    }
                }
            }
        }
    }
}

/// The mappings of a tree, ascending. Made by [`MetadataView::mappings`](super::MetadataView::mappings).
/// Over after the first error.
#[derive(Debug)]
pub struct Mappings {
    runs: MappingRuns,
    /// What is left of the run that was read last.
    rest: Option<MappingRun>,
}

impl Mappings {
    pub(super) fn new(walk: LockStep) -> Self {
        Self { runs: MappingRuns::new(walk), rest: None }
    }
}

impl Iterator for Mappings {
    type Item = Result<Mapping, ViewError>;

    fn next(&mut self) -> Option<Self::Item> {
        let MappingRun { first, length } = match self.rest.take() {
            Some(rest) => rest,
            None => match self.runs.next()? {
                Ok(run) => run,
                Err(error) => return Some(Err(error)),
            },
        };
        if length > 1 {
            let next = Mapping {
                virtual_block: VirtualBlock(first.virtual_block.0 + 1),
                data_block: DataBlock(first.data_block.0 + 1),
                time: first.time,
            };
            self.rest = Some(MappingRun { first: next, length: length - 1 });
        }
        Some(Ok(first))
    }
}
