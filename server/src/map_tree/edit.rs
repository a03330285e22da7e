//! Applying edits to a tree.

use thinbak_proto::{ChunkId, FAN_OUT, MapEntry, MapNode, NodeId, levels_for, span_of_level};

use super::{NodeError, NodeSource, Tree, filled, load_at, slot_of};

/// What a range of chunks is to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Edit {
    /// One chunk with content.
    Chunk(ChunkId),
    /// This many chunks that read as zero.
    Zero(u64),
    /// This many chunks that are not mapped.
    Hole(u64),
}

impl Edit {
    /// Chunks that the edit covers.
    pub(crate) fn chunks(&self) -> u64 {
        match self {
            Self::Chunk(_) => 1,
            Self::Zero(chunks) | Self::Hole(chunks) => *chunks,
        }
    }

    fn entry(&self) -> MapEntry {
        match self {
            Self::Chunk(id) => MapEntry::from(*id),
            Self::Zero(_) => MapEntry::Zero,
            Self::Hole(_) => MapEntry::Hole,
        }
    }
}

/// A node that the tree has and its parent had not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct FreshNode {
    pub(crate) id: NodeId,
    pub(crate) encoded: Vec<u8>,
}

/// An edit that cannot be applied.
#[derive(Debug, thiserror::Error)]
pub(crate) enum EditError {
    #[error("chunk {chunk} comes after chunk {next} was passed")]
    Order { chunk: u64, next: u64 },
    #[error("{count} chunks at {chunk} end past the volume's {chunks} chunks")]
    Bounds { chunk: u64, count: u64, chunks: u64 },
    #[error(transparent)]
    Node(#[from] NodeError),
}

struct Open {
    node: MapNode,
    /// First chunk of the node's range.
    first: u64,
    /// What the parent tree says of this range; `Hole` also where it has nothing.
    origin: MapEntry,
    changed: bool,
}

impl Open {
    fn level(&self) -> u32 {
        u32::from(self.node.level())
    }

    fn end(&self) -> u64 {
        self.first.saturating_add(span_of_level(self.level()).saturating_mul(FAN_OUT as u64))
    }

    fn slot(&self, chunk: u64) -> u64 {
        (chunk - self.first) / span_of_level(self.level())
    }

    fn set(&mut self, slot: u64, entry: MapEntry) {
        let slot = usize::try_from(slot).ok().and_then(|slot| self.node.slots_mut().get_mut(slot));
        if let Some(slot) = slot.filter(|slot| **slot != entry) {
            *slot = entry;
            self.changed = true;
        }
    }
}

/// Turns a parent tree into a new one, left to right. The open nodes are the path from the root to where
/// the last edit was made; a node is closed, and given to the caller when it is new, as soon as an edit
/// lies behind its range.
pub(crate) struct Editor<S> {
    source: S,
    chunks: u64,
    /// First chunk that may still be edited.
    next: u64,
    /// The parent is longer: what lies past the end has to go.
    trim: bool,
    path: Vec<Open>,
    fresh: Vec<FreshNode>,
    /// Chunks at which the edits that come next begin and end, ascending.
    expected: Vec<u64>,
}

impl<S: NodeSource> Editor<S> {
    /// Begins a tree over `chunks` chunks from `parent`, or from holes.
    pub(crate) async fn new(source: S, parent: Option<Tree>, chunks: u64) -> Result<Self, NodeError> {
        let path = match parent {
            None => vec![Open::changed(MapNode::new(top_level(levels_for(chunks))), MapEntry::Hole)],
            Some(parent) => opening(&source, parent, levels_for(chunks)).await?,
        };
        let trim = parent.is_some_and(|parent| parent.chunks > chunks);
        Ok(Self { source, chunks, next: 0, trim, path, fresh: Vec::new(), expected: Vec::new() })
    }

    /// Says which edits will be applied next, so that the nodes that they need are read together.
    pub(crate) async fn expect(&mut self, edits: &[(u64, Edit)]) {
        let ends =
            |(chunk, edit): &(u64, Edit)| [*chunk, chunk.saturating_add(edit.chunks().saturating_sub(1))];
        self.expected = edits.iter().flat_map(ends).collect();
        let mut nodes = Vec::new();
        // The lower an open node, the nearer: what lies in it is not asked of those above.
        let mut from = self.next;
        for open in self.path.iter().rev() {
            nodes.extend(self.expected_below(open, from));
            from = from.max(open.end());
        }
        self.source.will_load(nodes).await;
    }

    /// The nodes below an open one in which expected edits from chunk `from` on begin or end.
    fn expected_below(&self, open: &Open, from: u64) -> Vec<NodeId> {
        if open.level() == 0 {
            return Vec::new();
        }
        let begin = self.expected.partition_point(|chunk| *chunk < from.max(open.first));
        let within = self.expected.iter().skip(begin).take_while(|chunk| **chunk < open.end());
        let mut slots: Vec<u64> = within.map(|chunk| open.slot(*chunk)).collect();
        slots.dedup();
        slots.into_iter().filter_map(|slot| slot_of(&open.node, slot).node()).collect()
    }

    /// Applies one edit; edits come in ascending order and do not overlap.
    pub(crate) async fn apply(&mut self, chunk: u64, edit: Edit) -> Result<(), EditError> {
        let (count, chunks) = (edit.chunks(), self.chunks);
        if chunk < self.next {
            return Err(EditError::Order { chunk, next: self.next });
        }
        let end = chunk.checked_add(count).filter(|end| *end <= chunks);
        let end = end.ok_or(EditError::Bounds { chunk, count, chunks })?;
        self.next = end;
        // Past the end all is hole anyway: a hole up to the end needs no node cut there. It takes with it what a longer
        // parent has there; doing so once more would ask for nodes that are closed and not stored yet.
        let to_the_end = end == chunks && matches!(edit, Edit::Hole(_));
        let end = if to_the_end { self.capacity() } else { end };
        self.trim &= !to_the_end;
        Ok(self.fill(chunk, end, edit.entry()).await?)
    }

    /// The nodes that were completed since the last call.
    pub(crate) fn take_fresh(&mut self) -> Vec<FreshNode> {
        std::mem::take(&mut self.fresh)
    }

    /// Nodes that wait to be taken.
    pub(crate) fn fresh_nodes(&self) -> usize {
        self.fresh.len()
    }

    /// Closes the tree: its root, and the last new nodes.
    pub(crate) async fn finish(mut self) -> Result<(NodeId, Vec<FreshNode>), NodeError> {
        if self.trim {
            self.fill(self.chunks, self.capacity(), MapEntry::Hole).await?;
        }
        while self.path.len() > 1 {
            self.close();
        }
        let root = self.path.pop();
        let node = root.as_ref().map_or_else(|| MapNode::new(0), |open| open.node.clone());
        let encoded = node.encode();
        let id = NodeId::of(&encoded);
        if root.is_some_and(|open| open.origin != MapEntry::from(id)) {
            self.fresh.push(FreshNode { id, encoded });
        }
        Ok((id, self.fresh))
    }

    fn capacity(&self) -> u64 {
        span_of_level(levels_for(self.chunks))
    }

    async fn fill(&mut self, mut chunk: u64, end: u64, entry: MapEntry) -> Result<(), NodeError> {
        while chunk < end {
            while self.path.len() > 1 && self.path.last().is_some_and(|open| chunk >= open.end()) {
                self.close();
            }
            let Some(open) = self.path.last_mut() else { break };
            let (level, slot) = (open.level(), open.slot(chunk));
            let slot_first = open.first + slot * span_of_level(level);
            let slot_end = slot_first.saturating_add(span_of_level(level));
            let current = slot_of(&open.node, slot);
            if slot_first == chunk && slot_end <= end {
                open.set(slot, entry);
                chunk = slot_end;
            } else if current == entry {
                chunk = slot_end.min(end);
            } else {
                let node = match current.node() {
                    Some(id) => load_at(&self.source, id, level.saturating_sub(1)).await?,
                    None => filled(level.saturating_sub(1), current),
                };
                let open = Open { node, first: slot_first, origin: current, changed: false };
                let below = self.expected_below(&open, chunk);
                self.path.push(open);
                self.source.will_load(below).await;
            }
        }
        Ok(())
    }

    /// Closes the lowest open node into its parent.
    fn close(&mut self) {
        let Some(open) = self.path.pop() else { return };
        let first = open.first;
        let entry = if open.changed { self.settle(&open) } else { open.origin };
        if let Some(parent) = self.path.last_mut() {
            parent.set(parent.slot(first), entry);
        }
    }

    fn settle(&mut self, open: &Open) -> MapEntry {
        if let Some(entry) = open.node.uniform() {
            return entry;
        }
        let encoded = open.node.encode();
        let id = NodeId::of(&encoded);
        if open.origin != MapEntry::from(id) {
            self.fresh.push(FreshNode { id, encoded });
        }
        id.into()
    }
}

impl Open {
    fn changed(node: MapNode, origin: MapEntry) -> Self {
        Self { node, first: 0, origin, changed: true }
    }
}

fn top_level(levels: u32) -> u8 {
    u8::try_from(levels.saturating_sub(1)).unwrap_or(u8::MAX)
}

/// The path that the editor starts with: the parent's root, brought to `levels`.
async fn opening<S: NodeSource>(source: &S, parent: Tree, levels: u32) -> Result<Vec<Open>, NodeError> {
    let (top, root) = (levels.saturating_sub(1), MapEntry::from(parent.root));
    if parent.levels() < levels {
        // The old root becomes the first slot of a node above it, unless it is uniform: then its entry does.
        let node = load_at(source, parent.root, parent.levels() - 1).await?;
        let mut path: Vec<Open> = (parent.levels()..levels)
            .rev()
            .map(|level| Open::changed(filled(level, MapEntry::Hole), MapEntry::Hole))
            .collect();
        if let Some(lowest) = path.last_mut() {
            lowest.set(0, node.uniform().unwrap_or(root));
        }
        return Ok(path);
    }
    let mut entry = root;
    for level in (levels..parent.levels()).rev() {
        let Some(id) = entry.node() else { break };
        entry = slot_of(&load_at(source, id, level).await?, 0);
    }
    Ok(vec![match entry.node() {
        Some(id) => Open { node: load_at(source, id, top).await?, first: 0, origin: entry, changed: false },
        None => Open::changed(filled(top, entry), entry),
    }])
}
