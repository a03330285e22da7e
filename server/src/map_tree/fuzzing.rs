//! Trees and edits made of an input's bytes.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
    task::{Context, Poll, Waker},
};

use thinbak_proto::{ChunkId, FAN_OUT, MAX_LEVELS, MapEntry, MapNode, NodeId};

use super::{Edit, Editor, FreshNode, NodeError, NodeSource, Tree, TreeDiff, entry_at};
use crate::fuzzing::Input;

const MAX_NODES: u8 = 12;
const MAX_EDITS: u8 = 24;
/// Differences that are looked at: trees of 2^60 chunks may have as many.
const MAX_DIFFERENCES: usize = 5000;

#[derive(Clone, Default)]
struct Nodes(Arc<Mutex<HashMap<NodeId, Vec<u8>>>>);

impl NodeSource for Nodes {
    async fn load(&self, id: NodeId) -> Result<MapNode, NodeError> {
        let nodes = self.0.lock().expect("no thread panicked");
        let encoded = nodes.get(&id).ok_or(NodeError::Missing(id))?;
        MapNode::decode(encoded).map_err(|source| NodeError::Invalid { id, source })
    }
}

impl Nodes {
    fn keep(&self, fresh: Vec<FreshNode>) {
        let mut nodes = self.0.lock().expect("no thread panicked");
        for FreshNode { id, encoded } in fresh {
            assert_eq!(NodeId::of(&encoded), id);
            let node = MapNode::decode(&encoded).expect("an editor writes nodes that can be read");
            assert_eq!(node.encode(), encoded);
            nodes.insert(id, encoded);
        }
    }
}

/// Every future over memory is ready at once.
fn now<T>(future: impl Future<Output = T>) -> T {
    match std::pin::pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(value) => value,
        Poll::Pending => panic!("a future over memory waits"),
    }
}

/// `[size] [nodes] [size] [edits]`.
pub(crate) fn edit(input: &mut Input<'_>) {
    let nodes = Nodes::default();
    let chunks = 1 + input.magnitude() % (1 << 51);
    // A tree of an editor's making, on nodes of anybody's.
    let parent = match input.byte() % 3 {
        0 => None,
        1 => foreign(&nodes, chunks, input),
        _ => apply(&nodes, None, chunks, input),
    };
    let chunks = if input.byte().is_multiple_of(2) { chunks } else { 1 + input.magnitude() % (1 << 51) };
    let Some(tree) = apply(&nodes, parent, chunks, input) else { return };
    let mut next = 0;
    let mut differences = TreeDiff::new(nodes.clone(), parent, tree);
    for _ in 0..MAX_DIFFERENCES {
        let Some(difference) = now(differences.next()) else { break };
        let Ok(difference) = difference else { continue };
        assert!(difference.first >= next && difference.chunks > 0, "differences overlap");
        next = difference.first.saturating_add(difference.chunks);
        assert_ne!(difference.old, difference.new);
        if difference.first < tree.chunks {
            // Where the new tree can be read in one walk it can in another.
            let found = now(entry_at(&nodes, tree, difference.first)).expect("a node that was read before");
            assert_eq!(found, difference.new);
        }
    }
}

/// A tree of nodes that an input describes; children are named by their place among the nodes before.
fn foreign(nodes: &Nodes, chunks: u64, input: &mut Input<'_>) -> Option<Tree> {
    let mut ids: Vec<NodeId> = Vec::new();
    for _ in 0..input.byte() % (MAX_NODES + 1) {
        let mut node = MapNode::new(input.byte() % MAX_LEVELS as u8);
        for _ in 0..input.byte() % 16 {
            let (first, count, what) = (input.byte(), input.byte(), input.byte());
            let entry = match what % 4 {
                0 => MapEntry::Hole,
                1 => MapEntry::Zero,
                2 => MapEntry::from(ChunkId::of(&[what])),
                _ => match ids.get(usize::from(what / 4) % ids.len().max(1)) {
                    Some(id) => MapEntry::from(*id),
                    None => MapEntry::Id([what; 32]),
                },
            };
            let first = usize::from(first) % FAN_OUT;
            node.slots_mut().iter_mut().skip(first).take(count.into()).for_each(|slot| *slot = entry);
        }
        ids.push(node.id());
        nodes.0.lock().expect("no thread panicked").insert(node.id(), node.encode());
    }
    Some(Tree { root: *ids.last()?, chunks })
}

/// Applies the edits of an input; `None` when the parent cannot be read. What was edited reads as it was
/// edited.
fn apply(nodes: &Nodes, parent: Option<Tree>, chunks: u64, input: &mut Input<'_>) -> Option<Tree> {
    let mut editor = now(Editor::new(nodes.clone(), parent, chunks)).ok()?;
    let (mut applied, mut given) = (Vec::new(), Vec::new());
    let mut next = 0u64;
    for _ in 0..input.byte() % (MAX_EDITS + 1) {
        let what = input.byte();
        let chunk = if what & 4 == 0 { next.wrapping_add(input.magnitude()) } else { input.u64() };
        let edit = match what % 4 {
            0 | 3 => Edit::Chunk(ChunkId::of(&[what])),
            1 => Edit::Zero(1 + input.magnitude() % (1 << 52)),
            _ => Edit::Hole(1 + input.magnitude() % (1 << 52)),
        };
        if now(editor.apply(chunk, edit)).is_ok() {
            assert!(chunk >= next && chunk < chunks, "an edit out of order or of bounds was taken");
            next = chunk + edit.chunks();
            assert!(next <= chunks);
            applied.push((chunk, edit));
        } else if parent.is_some() {
            // It may have been a node that cannot be read, and then the editor is at an end.
            return None;
        }
        given.extend(editor.take_fresh());
    }
    let (root, fresh) = now(editor.finish()).ok()?;
    nodes.keep(given);
    nodes.keep(fresh);
    let tree = Tree { root, chunks };
    for (chunk, edit) in applied {
        let entry = match edit {
            Edit::Chunk(id) => id.into(),
            Edit::Zero(_) => MapEntry::Zero,
            Edit::Hole(_) => MapEntry::Hole,
        };
        for at in [chunk, chunk + edit.chunks() / 2, chunk + edit.chunks() - 1] {
            assert_eq!(now(entry_at(nodes, tree, at)).expect("an edited place can be read"), entry);
        }
    }
    Some(tree)
}
