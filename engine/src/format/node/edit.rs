//! Changes of a node in memory. Checksum and location are set when the block is written.

use super::{HEADER_BYTES, MetadataBlock, Node, NodeProblem, NodeValue, put};

/// A change that the node has no entry or no room for: a defect, reported instead of carried out.
type Edit = Result<(), NodeProblem>;

impl Node {
    fn set_len(&mut self, len: usize) {
        put(self.bytes.as_mut_slice(), 16, &(len as u32).to_le_bytes());
    }

    fn no_entry(&self, entry: usize) -> NodeProblem {
        NodeProblem::NoEntry { entry, entries: self.len() }
    }

    fn no_room(&self, entries: usize) -> NodeProblem {
        NodeProblem::TooManyEntries { entries: entries as u32, max: self.capacity() as u32 }
    }

    /// Changes the key of an entry.
    pub(crate) fn set_key(&mut self, entry: usize, key: u64) -> Edit {
        if entry >= self.len() {
            return Err(self.no_entry(entry));
        }
        put(self.bytes.as_mut_slice(), HEADER_BYTES + 8 * entry, &key.to_le_bytes());
        Ok(())
    }

    /// Changes the value of an entry.
    pub(crate) fn set_value<V: NodeValue>(&mut self, entry: usize, value: &V) -> Edit {
        if entry >= self.len() || self.value_size() != V::SIZE {
            return Err(self.no_entry(entry));
        }
        let at = self.value_offset(entry);
        let target =
            self.bytes.get_mut(at..at + V::SIZE).ok_or(NodeProblem::NoEntry { entry, entries: 0 })?;
        value.encode(target);
        Ok(())
    }

    /// Changes a child of an internal node.
    pub(crate) fn set_child(&mut self, entry: usize, child: MetadataBlock) -> Edit {
        self.set_value(entry, &child)
    }

    /// Inserts an entry before the one at `entry`.
    pub(crate) fn insert_entry<V: NodeValue>(&mut self, entry: usize, key: u64, value: &V) -> Edit {
        let len = self.len();
        if entry > len {
            return Err(self.no_entry(entry));
        }
        if len >= self.capacity() {
            return Err(self.no_room(len + 1));
        }
        let keys = HEADER_BYTES + 8 * entry;
        self.bytes.copy_within(keys..HEADER_BYTES + 8 * len, keys + 8);
        let (values, values_end, step) =
            (self.value_offset(entry), self.value_offset(len), self.value_size());
        self.bytes.copy_within(values..values_end, values + step);
        self.set_len(len + 1);
        self.set_key(entry, key)?;
        self.set_value(entry, value)
    }

    /// Removes `count` entries from `entry` on.
    pub(crate) fn remove_entries(&mut self, entry: usize, count: usize) -> Edit {
        let len = self.len();
        let end = entry.checked_add(count).filter(|&end| end <= len).ok_or_else(|| self.no_entry(entry))?;
        let keys = HEADER_BYTES + 8 * end;
        self.bytes.copy_within(keys..HEADER_BYTES + 8 * len, HEADER_BYTES + 8 * entry);
        let (values, values_end, target) =
            (self.value_offset(end), self.value_offset(len), self.value_offset(entry));
        self.bytes.copy_within(values..values_end, target);
        self.set_len(len - count);
        Ok(())
    }

    /// Appends `count` entries of `from`, from its entry `entry` on, as they stand there.
    pub(crate) fn append_from(&mut self, from: &Node, entry: usize, count: usize) -> Edit {
        let len = self.len();
        let end =
            entry.checked_add(count).filter(|&end| end <= from.len()).ok_or_else(|| from.no_entry(entry))?;
        if len + count > self.capacity() || from.value_size() != self.value_size() {
            return Err(self.no_room(len + count));
        }
        let keys = from.bytes.get(HEADER_BYTES + 8 * entry..HEADER_BYTES + 8 * end).unwrap_or_default();
        put(self.bytes.as_mut_slice(), HEADER_BYTES + 8 * len, keys);
        let values = from.bytes.get(from.value_offset(entry)..from.value_offset(end)).unwrap_or_default();
        let at = self.value_offset(len);
        put(self.bytes.as_mut_slice(), at, values);
        self.set_len(len + count);
        Ok(())
    }

    /// A node of the same kind and tree, without entries.
    pub(crate) fn empty_like(&self) -> Self {
        let flags = if self.is_leaf() { super::LEAF } else { super::INTERNAL };
        Self::empty(flags, self.value_size())
    }
}
