//! The small trees: devices and their details.

use super::{blocks::BlockReader, error::ViewError};
use crate::{
    DeviceId, MetadataBlock, MetadataError,
    format::{NodeProblem, NodeValue},
};

/// Levels that a tree of devices may have; 2^24 devices need 4.
const MAX_LEVELS: usize = 12;

impl BlockReader {
    /// The value of `key`, if the tree has it.
    pub(super) fn lookup<V: NodeValue>(&self, root: MetadataBlock, key: u64) -> Result<Option<V>, ViewError> {
        let mut block = root;
        for _ in 0..MAX_LEVELS {
            let node = self.node::<V>(block)?;
            if node.is_leaf() {
                return Ok(node.search(key).ok().and_then(|entry| node.value(entry)));
            }
            match node.lower_bound(key).and_then(|entry| node.child(entry)) {
                Some(child) => block = child,
                None => return Ok(None),
            }
        }
        Err(MetadataError::TooDeep { block, limit: MAX_LEVELS }.into())
    }

    /// All entries of a tree that is keyed by device id, ascending.
    pub(super) fn device_tree<V: NodeValue>(
        &self,
        root: MetadataBlock,
    ) -> Result<Vec<(DeviceId, V)>, ViewError> {
        let mut entries = Vec::new();
        self.collect(root, 0, u64::MAX, MAX_LEVELS, &mut entries)?;
        Ok(entries)
    }

    fn collect<V: NodeValue>(
        &self,
        block: MetadataBlock,
        first: u64,
        last: u64,
        levels: usize,
        entries: &mut Vec<(DeviceId, V)>,
    ) -> Result<(), ViewError> {
        let Some(below) = levels.checked_sub(1) else {
            return Err(MetadataError::TooDeep { block, limit: MAX_LEVELS }.into());
        };
        let node = self.node::<V>(block)?;
        if let Some(key) = node.keys().find(|key| !(first..=last).contains(key)) {
            return Err(ViewError::KeyOutOfRange { block, key, first, last });
        }
        if node.is_leaf() {
            for (key, value) in node.entries() {
                let id = DeviceId::new(key)
                    .map_err(|_| MetadataError::BadNode { block, problem: NodeProblem::DeviceId(key) })?;
                entries.push((id, value));
            }
            return Ok(());
        }
        let ends = node.keys().skip(1).map(|key| key.saturating_sub(1)).chain(std::iter::once(last));
        for ((first, child), last) in node.children().zip(ends) {
            self.collect(child, first, last, below, entries)?;
        }
        Ok(())
    }
}
