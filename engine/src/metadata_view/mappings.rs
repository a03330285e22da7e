//! The mappings of one tree, in order.

use super::{error::ViewError, lock_step::LockStep};
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

/// The mappings of a tree, ascending. Made by [`MetadataView::mappings`](super::MetadataView::mappings).
/// Over after the first error.
#[derive(Debug)]
pub struct Mappings {
    walk: LockStep,
}

impl Mappings {
    pub(super) fn new(walk: LockStep) -> Self {
        Self { walk }
    }
}

impl Iterator for Mappings {
    type Item = Result<Mapping, ViewError>;

    fn next(&mut self) -> Option<Self::Item> {
        match self.walk.next() {
            Ok(pair) => pair.and_then(|pair| pair.new).map(|entry| {
                Ok(Mapping {
                    virtual_block: VirtualBlock(entry.key),
                    data_block: entry.data_block(),
                    time: entry.time(),
                })
            }),
            Err(error) => Some(Err(error)),
        }
    }
}
