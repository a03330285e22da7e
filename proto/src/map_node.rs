//! Map nodes: the tree that says which chunk lies where in a generation.
//!
//! A tree has a fixed fan-out. A leaf (level 0) names chunks, a node of level n names nodes of level
//! n - 1; any slot may instead be a hole (not mapped) or zero (reads as zero, takes space), and then
//! stands for everything below it. A tree is canonical: a node below the root that would be all hole or
//! all zero is never stored but becomes such a slot of its parent, and slots beyond the end of the
//! volume are holes. So equal content is an equal root.
//!
//! Encoding: one byte version (1), one byte level, two zero bytes, then 2 bits a slot (slot `i` in byte
//! `i / 4` at bit `2 * (i % 4)`: 0 hole, 1 zero, 2 id), then the ids of the slots that have one, in order.

use crate::{ChunkId, NodeId, id::ID_LEN};

/// Slots of a map node.
pub const FAN_OUT: usize = 128;
/// A tree has at most this many levels: 128^9 chunks of 512 bytes hold more than 2^64 bytes.
pub const MAX_LEVELS: u32 = 9;

const VERSION: u8 = 1;
const HEADER_LEN: usize = 4;
const TAGS_LEN: usize = FAN_OUT / 4;
/// Length of the longest encoding.
pub const MAX_NODE_LEN: usize = HEADER_LEN + TAGS_LEN + FAN_OUT * ID_LEN;

/// What a slot says of its range.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum MapEntry {
    /// Not mapped: reads as zero and takes no space.
    #[default]
    Hole,
    /// Reads as zero.
    Zero,
    /// In a leaf the id of a chunk, above it the id of a node.
    Id([u8; ID_LEN]),
}

impl MapEntry {
    /// A leaf slot's chunk.
    #[must_use]
    pub fn chunk(&self) -> Option<ChunkId> {
        match self {
            Self::Id(id) => Some(ChunkId::from_bytes(*id)),
            Self::Hole | Self::Zero => None,
        }
    }

    /// The child node that a slot above the leaves names.
    #[must_use]
    pub fn node(&self) -> Option<NodeId> {
        match self {
            Self::Id(id) => Some(NodeId::from_bytes(*id)),
            Self::Hole | Self::Zero => None,
        }
    }
}

impl From<ChunkId> for MapEntry {
    fn from(id: ChunkId) -> Self {
        Self::Id(*id.as_bytes())
    }
}

impl From<NodeId> for MapEntry {
    fn from(id: NodeId) -> Self {
        Self::Id(*id.as_bytes())
    }
}

/// A decoded map node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MapNode {
    level: u8,
    slots: [MapEntry; FAN_OUT],
}

/// Bytes that are no map node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum MapNodeError {
    /// Shorter or longer than its own tags say.
    #[error("a map node of {found} bytes, where its tags ask for {expected}")]
    Length {
        /// What the tags ask for.
        expected: usize,
        /// What is there.
        found: usize,
    },
    /// A format version that this program does not know.
    #[error("map node version {0} is not known")]
    Version(u8),
    /// Impossible level or non-zero reserved bytes.
    #[error("map node header is not valid")]
    Header,
    /// A slot tag that is not defined.
    #[error("slot {0} of a map node has an undefined tag")]
    Tag(usize),
}

impl MapNode {
    /// A node of `level` whose slots are all holes.
    #[must_use]
    pub fn new(level: u8) -> Self {
        Self { level, slots: [MapEntry::Hole; FAN_OUT] }
    }

    /// 0 for a leaf.
    #[must_use]
    pub fn level(&self) -> u8 {
        self.level
    }

    /// All slots in order.
    #[must_use]
    pub fn slots(&self) -> &[MapEntry; FAN_OUT] {
        &self.slots
    }

    /// All slots in order, to be changed.
    pub fn slots_mut(&mut self) -> &mut [MapEntry; FAN_OUT] {
        &mut self.slots
    }

    /// The one entry that stands for the whole node, if all slots are holes or all are zero.
    #[must_use]
    pub fn uniform(&self) -> Option<MapEntry> {
        let first = self.slots.first().copied().unwrap_or_default();
        let same = !matches!(first, MapEntry::Id(_)) && self.slots.iter().all(|slot| *slot == first);
        same.then_some(first)
    }

    /// The encoding described at the head of this file.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut tags = [0u8; TAGS_LEN];
        let mut ids = Vec::with_capacity(FAN_OUT * ID_LEN);
        for (quad, tag) in self.slots.chunks(4).zip(tags.iter_mut()) {
            for (place, slot) in quad.iter().enumerate() {
                let bits = match slot {
                    MapEntry::Hole => 0,
                    MapEntry::Zero => 1,
                    MapEntry::Id(id) => {
                        ids.extend_from_slice(id);
                        2
                    }
                };
                *tag |= bits << (2 * place);
            }
        }
        let mut out = Vec::with_capacity(HEADER_LEN + TAGS_LEN + ids.len());
        out.extend_from_slice(&[VERSION, self.level, 0, 0]);
        out.extend_from_slice(&tags);
        out.extend_from_slice(&ids);
        out
    }

    /// Reads an encoding; anything that [`encode`](Self::encode) would not write is an error.
    pub fn decode(bytes: &[u8]) -> Result<Self, MapNodeError> {
        let too_short = MapNodeError::Length { expected: HEADER_LEN + TAGS_LEN, found: bytes.len() };
        let (header, rest) = bytes.split_first_chunk::<HEADER_LEN>().ok_or(too_short)?;
        let [version, level, reserved @ ..] = *header;
        if version != VERSION {
            return Err(MapNodeError::Version(version));
        }
        if u32::from(level) >= MAX_LEVELS || reserved != [0, 0] {
            return Err(MapNodeError::Header);
        }
        let (tags, ids) = rest.split_first_chunk::<TAGS_LEN>().ok_or(too_short)?;
        let mut node = Self::new(level);
        let (mut ids, tail) = (ids.as_chunks::<ID_LEN>().0.iter(), ids.as_chunks::<ID_LEN>().1.len());
        let mut wanted = 0;
        for (number, slot) in node.slots.iter_mut().enumerate() {
            let tag = tags.get(number / 4).copied().unwrap_or_default() >> (2 * (number % 4)) & 3;
            *slot = match tag {
                0 => MapEntry::Hole,
                1 => MapEntry::Zero,
                2 => {
                    wanted += ID_LEN;
                    MapEntry::Id(ids.next().copied().unwrap_or_default())
                }
                _ => return Err(MapNodeError::Tag(number)),
            };
        }
        let expected = HEADER_LEN + TAGS_LEN + wanted;
        if expected != bytes.len() || tail != 0 {
            return Err(MapNodeError::Length { expected, found: bytes.len() });
        }
        Ok(node)
    }

    /// The id of the encoding.
    #[must_use]
    pub fn id(&self) -> NodeId {
        NodeId::of(&self.encode())
    }
}

/// Chunks of a volume of `size_bytes`, the last one possibly short.
#[must_use]
pub fn chunk_count(size_bytes: u64, chunk_bytes: u32) -> u64 {
    size_bytes.div_ceil(u64::from(chunk_bytes.max(1)))
}

/// Levels of the canonical tree over `chunks` chunks: the fewest that hold them, at least 1.
#[must_use]
pub fn levels_for(chunks: u64) -> u32 {
    let mut levels = 1;
    while levels < MAX_LEVELS && span_of_level(levels - 1).saturating_mul(FAN_OUT as u64) < chunks {
        levels += 1;
    }
    levels
}

/// Chunks that one *slot* of a node of `level` stands for: 1 in a leaf, 128 above it, and so on.
#[must_use]
pub fn span_of_level(level: u32) -> u64 {
    (FAN_OUT as u64).saturating_pow(level)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn entry() -> impl Strategy<Value = MapEntry> {
        prop_oneof![Just(MapEntry::Hole), Just(MapEntry::Zero), any::<[u8; ID_LEN]>().prop_map(MapEntry::Id),]
    }

    proptest! {
        #[test]
        fn what_is_encoded_is_decoded(level in 0u8..9, slots in prop::collection::vec(entry(), FAN_OUT)) {
            let mut node = MapNode::new(level);
            node.slots_mut().copy_from_slice(&slots);
            let bytes = node.encode();
            prop_assert!(bytes.len() <= MAX_NODE_LEN);
            prop_assert_eq!(MapNode::decode(&bytes).unwrap(), node);
        }

        #[test]
        fn arbitrary_bytes_never_panic_and_decode_only_to_themselves(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
            if let Ok(node) = MapNode::decode(&bytes) {
                prop_assert_eq!(node.encode(), bytes);
            }
        }
    }

    #[test]
    fn a_cut_or_lengthened_node_is_refused() {
        let mut node = MapNode::new(0);
        node.slots_mut()[5] = MapEntry::Id([7; ID_LEN]);
        let bytes = node.encode();
        assert!(matches!(MapNode::decode(&bytes[..bytes.len() - 1]), Err(MapNodeError::Length { .. })));
        let longer = [bytes.as_slice(), &[0]].concat();
        assert!(matches!(MapNode::decode(&longer), Err(MapNodeError::Length { .. })));
        assert!(matches!(MapNode::decode(&[]), Err(MapNodeError::Length { .. })));
    }

    #[test]
    fn levels_grow_with_the_fan_out() {
        assert_eq!(levels_for(0), 1);
        assert_eq!(levels_for(128), 1);
        assert_eq!(levels_for(129), 2);
        assert_eq!(levels_for(128 * 128), 2);
        assert_eq!(levels_for(128 * 128 + 1), 3);
        assert_eq!(levels_for(u64::MAX), 9.min(MAX_LEVELS));
    }

    #[test]
    fn only_a_node_all_hole_or_all_zero_is_uniform() {
        let mut node = MapNode::new(1);
        assert_eq!(node.uniform(), Some(MapEntry::Hole));
        node.slots_mut().fill(MapEntry::Zero);
        assert_eq!(node.uniform(), Some(MapEntry::Zero));
        node.slots_mut()[127] = MapEntry::Hole;
        assert_eq!(node.uniform(), None);
        node.slots_mut().fill(MapEntry::Id([1; ID_LEN]));
        assert_eq!(node.uniform(), None);
    }
}
