//! B-trees whose nodes several trees may share.
//!
//! A tree is named by the block of its root; a change returns the new root. Every change walks down from the root and
//! shadows each node on its way, so that no node of the last commit and no node of another tree is changed. Nodes are
//! split and merged on the way down, before they are entered: below a node that has room (or can spare an entry) nothing
//! can propagate up again.
//!
//! Except for the root every node holds at least a third of its maximum of entries.

mod delete;
mod insert;
mod remove;
mod shed;
mod walk;

use std::sync::Arc;

use crate::format::{MappedBlock, MetadataBlock, MetadataError, Node, NodeProblem, NodeValue};

pub(crate) use self::delete::delete_tree;
pub(crate) use self::insert::insert;
pub(crate) use self::remove::{remove, remove_run};
pub(crate) use self::shed::shed_leaves;
pub(crate) use self::walk::{last_key, lookup, walk};

use super::{DataSpaceMap, MetadataStore, Result};

/// Levels of the deepest tree there can be, with room to spare: a cycle is met before.
pub(crate) const MAX_LEVELS: usize = 16;

/// What the values of a tree's leaves refer to, and what it means to have a leaf twice or no more.
pub(crate) trait References<V> {
    /// Whether nodes of such trees are ever shared; a space map's own trees are not.
    const SHARED: bool;

    /// One more leaf holds `value`.
    fn inc(&mut self, store: &mut MetadataStore, value: V) -> Result<()>;

    /// One leaf less holds `value`.
    fn dec(&mut self, store: &mut MetadataStore, value: V) -> Result<()>;
}

/// Trees of the space maps: values refer to nothing that is counted, nodes are never shared.
pub(crate) struct Uncounted;

impl<V> References<V> for Uncounted {
    const SHARED: bool = false;

    fn inc(&mut self, _: &mut MetadataStore, _: V) -> Result<()> {
        Ok(())
    }

    fn dec(&mut self, _: &mut MetadataStore, _: V) -> Result<()> {
        Ok(())
    }
}

/// The tree of device details: values refer to nothing, but a metadata snapshot shares nodes.
pub(crate) struct Plain;

impl<V> References<V> for Plain {
    const SHARED: bool = true;

    fn inc(&mut self, _: &mut MetadataStore, _: V) -> Result<()> {
        Ok(())
    }

    fn dec(&mut self, _: &mut MetadataStore, _: V) -> Result<()> {
        Ok(())
    }
}

/// Mapping trees: each leaf that maps a data block counts once.
impl References<MappedBlock> for DataSpaceMap {
    const SHARED: bool = true;

    fn inc(&mut self, store: &mut MetadataStore, value: MappedBlock) -> Result<()> {
        DataSpaceMap::inc(self, store, value.data_block)
    }

    fn dec(&mut self, store: &mut MetadataStore, value: MappedBlock) -> Result<()> {
        DataSpaceMap::dec(self, store, value.data_block)
    }
}

/// The tree of mapping trees: each leaf that holds a root counts once; a leaf less deletes the mapping tree.
pub(crate) struct MappingRoots<'a>(pub(crate) &'a mut DataSpaceMap);

impl References<MetadataBlock> for MappingRoots<'_> {
    const SHARED: bool = true;

    fn inc(&mut self, store: &mut MetadataStore, root: MetadataBlock) -> Result<()> {
        store.inc(root)
    }

    fn dec(&mut self, store: &mut MetadataStore, root: MetadataBlock) -> Result<()> {
        delete_tree(store, self.0, root)
    }
}

/// A new tree without entries.
pub(crate) fn empty<V: NodeValue>(store: &mut MetadataStore) -> Result<MetadataBlock> {
    store.add_node(Node::empty_leaf::<V>())
}

/// The block of a node that may be changed: itself when only this tree has it and it belongs to the open transaction,
/// else a copy. The caller puts the result where the pointer to `block` was.
fn shadow<V: NodeValue, R: References<V>>(
    store: &mut MetadataStore,
    references: &mut R,
    block: MetadataBlock,
) -> Result<MetadataBlock> {
    let shared = R::SHARED && store.count(block)? > 1;
    if !shared && store.is_new(block) {
        return Ok(block);
    }
    let node = store.node::<V>(block)?;
    let copy = store.add_node(Node::clone(&node))?;
    store.dec(block)?;
    if shared {
        // The original lives on with its other parents: now two nodes hold every child.
        inc_contents(store, references, &node)?;
    }
    Ok(copy)
}

/// Counts one more holder for everything a node refers to.
fn inc_contents<V: NodeValue, R: References<V>>(
    store: &mut MetadataStore,
    references: &mut R,
    node: &Arc<Node>,
) -> Result<()> {
    if node.is_leaf() {
        return node.entries::<V>().try_for_each(|(_, value)| references.inc(store, value));
    }
    node.children().try_for_each(|(_, child)| store.inc(child))
}

/// The child at an entry of an internal node.
fn child_at(node: &Node, block: MetadataBlock, entry: usize) -> Result<MetadataBlock> {
    node.child(entry).ok_or_else(|| no_entry(node, block, entry))
}

fn key_at(node: &Node, block: MetadataBlock, entry: usize) -> Result<u64> {
    node.key(entry).ok_or_else(|| no_entry(node, block, entry))
}

fn no_entry(node: &Node, block: MetadataBlock, entry: usize) -> MetadataError {
    MetadataError::BadNode { block, problem: NodeProblem::NoEntry { entry, entries: node.len() } }
}

fn too_deep(block: MetadataBlock) -> MetadataError {
    MetadataError::TooDeep { block, limit: MAX_LEVELS }
}

/// Shadows the child at an entry of a node of the open transaction, and refers to the result.
fn shadow_child<V: NodeValue, R: References<V>>(
    store: &mut MetadataStore,
    references: &mut R,
    parent: MetadataBlock,
    entry: usize,
) -> Result<MetadataBlock> {
    let child = child_at(store.node::<V>(parent)?.as_ref(), parent, entry)?;
    let shadowed = shadow::<V, R>(store, references, child)?;
    if shadowed != child {
        store.edit_node(parent, |node| node.set_child(entry, shadowed))?;
    }
    Ok(shadowed)
}

/// Spreads the entries of two neighbouring nodes of the open transaction so that the left one gets `left_len`, and
/// corrects the key of the right one in their parent.
fn redistribute<V: NodeValue>(
    store: &mut MetadataStore,
    parent: MetadataBlock,
    entry: usize,
    (left, right): (MetadataBlock, MetadataBlock),
    left_len: usize,
) -> Result<()> {
    let (l, r) = (store.node::<V>(left)?, store.node::<V>(right)?);
    let (mut new_left, mut new_right) = (l.empty_like(), r.empty_like());
    let problem = |problem| MetadataError::BadNode { block: left, problem };
    let from_left = left_len.min(l.len());
    new_left.append_from(&l, 0, from_left).map_err(problem)?;
    new_left.append_from(&r, 0, left_len - from_left).map_err(problem)?;
    new_right.append_from(&l, from_left, l.len() - from_left).map_err(problem)?;
    let taken = left_len - from_left;
    new_right.append_from(&r, taken, r.len().saturating_sub(taken)).map_err(problem)?;
    let key = key_at(&new_right, right, 0)?;
    store.put_node(left, new_left)?;
    store.put_node(right, new_right)?;
    store.edit_node(parent, |node| node.set_key(entry + 1, key))
}
