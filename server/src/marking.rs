//! Marking: which records a set of generations needs, one bit each.
//!
//! Map trees are walked from their roots. A node that is marked already was walked with all that is under it,
//! so what generations share is seen once, and the work follows the number of distinct nodes. Collection frees what is
//! not marked; verification reads back what is.

#[cfg(test)]
mod tests;

use std::collections::{HashMap, HashSet};

use thinbak_proto::{ChunkId, MapEntry, MapNode, NodeId};

use crate::{
    map_tree::{NodeError, Tree, decode_node},
    store::{Kind, Location, RecordMarks, Store, StoreError},
};

/// Nodes read in one step; together 1 MiB at most. What waits is bounded by the children of one step a level.
const NODES_AT_A_TIME: usize = 256;
/// Ids of lost records that are kept; with more the list is cut and says so.
const MAX_LOST: usize = 1 << 20;

/// What is needed but cannot be had.
#[derive(Debug, Default)]
pub(crate) struct Lost {
    /// Map nodes that are missing or unreadable. What is under them is not known.
    pub(crate) nodes: HashSet<NodeId>,
    /// Chunks that are not stored.
    pub(crate) chunks: HashSet<ChunkId>,
    /// There are more than are named.
    pub(crate) more: bool,
}

impl Lost {
    /// Nothing is lost.
    pub(crate) fn is_empty(&self) -> bool {
        self.nodes.is_empty() && self.chunks.is_empty()
    }

    fn node(&mut self, id: NodeId) {
        self.more |= self.nodes.len() >= MAX_LOST;
        if !self.more {
            self.nodes.insert(id);
        }
    }

    fn chunk(&mut self, id: ChunkId) {
        self.more |= self.chunks.len() >= MAX_LOST;
        if !self.more {
            self.chunks.insert(id);
        }
    }
}

/// Collects the records that trees need.
pub(crate) struct Marker {
    store: Store,
    marks: RecordMarks,
    lost: Lost,
    /// Nodes by the level that they were found at: one that also stands at another level is looked at again.
    levels: Vec<RecordMarks>,
    /// Chunks of another length than this are noted, and what the index has is marked, readable or not.
    audit: Option<u32>,
    odd: HashMap<ChunkId, u32>,
    nodes_read: u64,
}

/// A node that is to be looked at, and the level that it must be of.
#[derive(Clone, Copy)]
struct Pending {
    id: NodeId,
    level: u32,
}

impl Marker {
    pub(crate) fn new(store: Store) -> Self {
        Self {
            store,
            marks: RecordMarks::default(),
            lost: Lost::default(),
            levels: Vec::new(),
            audit: None,
            odd: HashMap::new(),
            nodes_read: 0,
        }
    }

    /// For verification: damaged records are marked as well, to be read again, and chunks that are not
    /// `chunk_bytes` long are noted.
    pub(crate) fn for_verification(store: Store, chunk_bytes: u32) -> Self {
        Self { audit: Some(chunk_bytes), ..Self::new(store) }
    }

    /// The chunks found that are shorter or longer than others, and their length in bytes.
    pub(crate) fn odd_chunks(&mut self) -> HashMap<ChunkId, u32> {
        std::mem::take(&mut self.odd)
    }

    async fn locate(&self, ids: Vec<[u8; 32]>) -> Result<Vec<Option<Location>>, StoreError> {
        match self.audit {
            Some(_) => self.store.indexed_at(ids).await,
            None => self.store.locate(ids).await,
        }
    }

    /// Marks a node at a level. False if it was marked there.
    fn mark_node(&mut self, level: u32, location: &Location) -> bool {
        self.marks.insert(location);
        let level = usize::try_from(level).unwrap_or_default();
        if self.levels.len() <= level {
            self.levels.resize_with(level + 1, RecordMarks::default);
        }
        self.levels.get_mut(level).is_some_and(|marks| marks.insert(location))
    }

    /// Distinct nodes that were read and are sound.
    pub(crate) fn nodes_read(&self) -> u64 {
        self.nodes_read
    }

    /// What was found lost so far.
    pub(crate) fn lost(&self) -> &Lost {
        &self.lost
    }

    /// Marks a record that is in use whatever the trees say; one that is not there counts as nothing.
    pub(crate) async fn record(&mut self, id: [u8; 32]) -> Result<(), StoreError> {
        for location in self.store.locate(vec![id]).await?.into_iter().flatten() {
            self.marks.insert(&location);
        }
        Ok(())
    }

    /// Marks everything under a root. Damage is noted and the walk goes on; an error is one of the index
    /// or the operating system, and means that the marks are not complete.
    pub(crate) async fn tree(&mut self, tree: Tree) -> Result<(), StoreError> {
        let root = MapEntry::from(tree.root).node();
        let mut pending: Vec<Pending> =
            root.map(|id| Pending { id, level: tree.levels().saturating_sub(1) }).into_iter().collect();
        while !pending.is_empty() {
            let step = pending.split_off(pending.len().saturating_sub(NODES_AT_A_TIME));
            let chunks = self.step(step, &mut pending).await?;
            self.chunks(chunks).await?;
        }
        Ok(())
    }

    /// Reads those of some nodes that are not marked yet. Their children are added to `pending`; the chunks
    /// that they name are returned.
    async fn step(
        &mut self,
        step: Vec<Pending>,
        pending: &mut Vec<Pending>,
    ) -> Result<Vec<ChunkId>, StoreError> {
        let ids = step.iter().map(|node| *node.id.as_bytes()).collect();
        let mut unread: Vec<(Pending, Location)> = Vec::new();
        for (node, location) in step.into_iter().zip(self.locate(ids).await?) {
            match location.filter(|location| location.kind == Kind::MapNode) {
                Some(location) if self.mark_node(node.level, &location) => unread.push((node, location)),
                Some(_) => {}
                None => self.lost.node(node.id),
            }
        }
        let ids = unread.iter().map(|(node, _)| *node.id.as_bytes()).collect();
        let mut chunks = Vec::new();
        for ((node, _), record) in unread.into_iter().zip(self.store.get_many(ids).await?) {
            let record = match record.transpose() {
                Err(error) if !error.is_damage() => return Err(error),
                record => record.map_err(|source| NodeError::Store { id: node.id, source }),
            };
            match record.and_then(|record| decode_node(node.id, node.level, record)) {
                Ok(found) => {
                    self.nodes_read += 1;
                    children(&found, node.level, pending, &mut chunks);
                }
                Err(error) => {
                    tracing::warn!(%error, "a map node is damaged");
                    self.lost.node(node.id);
                }
            }
        }
        Ok(chunks)
    }

    async fn chunks(&mut self, ids: Vec<ChunkId>) -> Result<(), StoreError> {
        let found = self.locate(ids.iter().map(|id| *id.as_bytes()).collect()).await?;
        for (id, location) in ids.into_iter().zip(found) {
            match location.filter(|location| location.kind == Kind::Chunk) {
                Some(location) => {
                    self.marks.insert(&location);
                    if self.audit.is_some_and(|usual| usual != location.plain_len)
                        && self.odd.len() < MAX_LOST
                    {
                        self.odd.insert(id, location.plain_len);
                    }
                }
                None => self.lost.chunk(id),
            }
        }
        Ok(())
    }

    /// The marks, and what is lost.
    pub(crate) fn finish(self) -> (RecordMarks, Lost) {
        (self.marks, self.lost)
    }
}

fn children(node: &MapNode, level: u32, pending: &mut Vec<Pending>, chunks: &mut Vec<ChunkId>) {
    match level.checked_sub(1) {
        None => chunks.extend(node.slots().iter().filter_map(MapEntry::chunk)),
        Some(level) => {
            pending.extend(node.slots().iter().filter_map(MapEntry::node).map(|id| Pending { id, level }));
        }
    }
}
