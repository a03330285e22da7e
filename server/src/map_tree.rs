//! Map trees: which chunk lies where in a generation. The node's encoding and the rules of a canonical
//! tree are in `thinbak_proto`'s `map_node`; here are the two walks over them.
//!
//! [`Editor`] applies ascending edits to a parent tree and gives the nodes that are new; [`TreeDiff`] lists
//! where two trees differ. Both skip what is shared without reading it, hold one path of nodes at a time
//! (at most [`MAX_LEVELS`](thinbak_proto::MAX_LEVELS)), and take trees of different height.

mod ahead;
mod diff;
mod edit;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzzing;
#[cfg(test)]
mod tests;

use std::future::Future;

use thinbak_proto::{FAN_OUT, MapEntry, MapNode, MapNodeError, NodeId, levels_for, span_of_level};

pub(crate) use ahead::NodesAhead;
#[cfg(test)]
use diff::Difference;
pub(crate) use diff::TreeDiff;
pub(crate) use edit::{Edit, EditError, Editor, FreshNode};

use crate::store::{Kind, Store, StoreError, StoredRecord};

/// A stored tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Tree {
    /// Id of the root node.
    pub(crate) root: NodeId,
    /// Chunks of the volume; the height follows from it.
    pub(crate) chunks: u64,
}

impl Tree {
    /// Levels of the tree, at least 1.
    pub(crate) fn levels(&self) -> u32 {
        levels_for(self.chunks)
    }
}

/// A node that could not be had.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NodeError {
    #[error("map node {0} is not in the repository")]
    Missing(NodeId),
    #[error("map node {id} cannot be read: {source}")]
    Invalid { id: NodeId, source: MapNodeError },
    #[error("the content of map node {0} does not match its id")]
    Mismatch(NodeId),
    #[error("map node {id} is of level {found}, not {expected}")]
    Level { id: NodeId, expected: u32, found: u32 },
    #[error("cannot read map node {id}: {source}")]
    Store { id: NodeId, source: StoreError },
}

/// Where nodes come from. A node that is returned has the id that was asked for: it was recomputed.
pub(crate) trait NodeSource {
    /// The node with this id.
    fn load(&self, id: NodeId) -> impl Future<Output = Result<MapNode, NodeError>> + Send;

    /// Says that these nodes will be asked for soon. Only a matter of speed.
    fn will_load(&self, _ids: Vec<NodeId>) -> impl Future<Output = ()> + Send {
        std::future::ready(())
    }
}

impl NodeSource for Store {
    async fn load(&self, id: NodeId) -> Result<MapNode, NodeError> {
        let record = self.get(*id.as_bytes()).await.map_err(|source| NodeError::Store { id, source })?;
        node_of(id, record)
    }
}

/// The node in a record that was found by its id, which is recomputed.
fn node_of(id: NodeId, record: Option<StoredRecord>) -> Result<MapNode, NodeError> {
    let record = record.filter(|record| record.kind == Kind::MapNode).ok_or(NodeError::Missing(id))?;
    if NodeId::of(&record.stored) != id {
        return Err(NodeError::Mismatch(id));
    }
    MapNode::decode(&record.stored).map_err(|source| NodeError::Invalid { id, source })
}

/// The same, of a node that must stand at `level`.
pub(crate) fn decode_node(
    id: NodeId,
    level: u32,
    record: Option<StoredRecord>,
) -> Result<MapNode, NodeError> {
    let node = node_of(id, record)?;
    of_level(id, level, node)
}

fn of_level(id: NodeId, expected: u32, node: MapNode) -> Result<MapNode, NodeError> {
    let found = u32::from(node.level());
    if found == expected { Ok(node) } else { Err(NodeError::Level { id, expected, found }) }
}

/// Loads a node and checks that it stands at the level it was found at.
async fn load_at<S: NodeSource>(source: &S, id: NodeId, level: u32) -> Result<MapNode, NodeError> {
    of_level(id, level, source.load(id).await?)
}

/// A node of `level` all of whose slots say `entry`.
fn filled(level: u32, entry: MapEntry) -> MapNode {
    let mut node = MapNode::new(u8::try_from(level).unwrap_or(u8::MAX));
    node.slots_mut().fill(entry);
    node
}

/// What the tree says of one chunk.
pub(crate) async fn entry_at<S: NodeSource>(
    source: &S,
    tree: Tree,
    chunk: u64,
) -> Result<MapEntry, NodeError> {
    if chunk >= tree.chunks {
        return Ok(MapEntry::Hole);
    }
    let mut entry = MapEntry::from(tree.root);
    for level in (0..tree.levels()).rev() {
        let Some(id) = entry.node() else { break };
        let node = load_at(source, id, level).await?;
        let slot = chunk / span_of_level(level) % FAN_OUT as u64;
        entry = slot_of(&node, slot);
    }
    Ok(entry)
}

fn slot_of(node: &MapNode, slot: u64) -> MapEntry {
    usize::try_from(slot).ok().and_then(|slot| node.slots().get(slot)).copied().unwrap_or_default()
}
