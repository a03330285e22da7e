//! Inserting.

use crate::format::{MetadataBlock, MetadataError, Node, NodeProblem, NodeValue};

use super::{MAX_LEVELS, References, child_at, key_at, redistribute, shadow, shadow_child, too_deep};
use crate::persistent_data::{MetadataStore, Result};

/// A sibling with less room than this is not worth moving entries to.
const WORTHWHILE_ROOM: usize = 8;

/// Sets the value of a key; the new root, and the value that the key had. Counts of what the two values refer to are
/// the caller's.
pub(crate) fn insert<V: NodeValue, R: References<V>>(
    store: &mut MetadataStore,
    references: &mut R,
    root: MetadataBlock,
    key: u64,
    value: &V,
) -> Result<(MetadataBlock, Option<V>)> {
    let root = shadow::<V, R>(store, references, root)?;
    if must_split(store.node::<V>(root)?.as_ref(), key) {
        split_root::<V>(store, root)?;
    }
    let mut block = root;
    for _ in 0..MAX_LEVELS {
        let node = store.node::<V>(block)?;
        if node.is_leaf() {
            let found = node.search(key);
            let old = found.ok().and_then(|entry| node.value(entry));
            drop(node);
            store.edit_node(block, |node| match found {
                Ok(entry) => node.set_value(entry, value),
                Err(entry) => node.insert_entry(entry, key, value),
            })?;
            return Ok((root, old));
        }
        block = enter_child::<V, R>(store, references, block, key)?;
    }
    Err(too_deep(block))
}

/// Steps into the child for `key`, shadowed and with room for one more entry.
fn enter_child<V: NodeValue, R: References<V>>(
    store: &mut MetadataStore,
    references: &mut R,
    parent: MetadataBlock,
    key: u64,
) -> Result<MetadataBlock> {
    let entry = store.node::<V>(parent)?.lower_bound(key);
    if entry.is_none() {
        // A new smallest key: the bounds on the way to it come down.
        store.edit_node(parent, |node| node.set_key(0, key))?;
    }
    let entry = entry.unwrap_or(0);
    let child = shadow_child::<V, R>(store, references, parent, entry)?;
    if !must_split(store.node::<V>(child)?.as_ref(), key) {
        return Ok(child);
    }
    make_room::<V, R>(store, references, parent, entry, child)?;
    let node = store.node::<V>(parent)?;
    let entry = node.lower_bound(key).unwrap_or(0);
    child_at(&node, parent, entry)
}

fn must_split(node: &Node, key: u64) -> bool {
    node.len() >= node.capacity() && !(node.is_leaf() && node.search(key).is_ok())
}

/// Makes the root an internal node over two halves of what it was. It keeps its block.
fn split_root<V: NodeValue>(store: &mut MetadataStore, root: MetadataBlock) -> Result<()> {
    let node = store.node::<V>(root)?;
    let (left, right) = halves(&node, root)?;
    let (left_key, right_key) = (key_at(&left, root, 0)?, key_at(&right, root, 0)?);
    let (left, right) = (store.add_node(left)?, store.add_node(right)?);
    let mut parent = Node::empty_internal();
    let problem = |problem: NodeProblem| MetadataError::BadNode { block: root, problem };
    parent.insert_entry(0, left_key, &left).map_err(problem)?;
    parent.insert_entry(1, right_key, &right).map_err(problem)?;
    store.put_node(root, parent)
}

fn halves(node: &Node, block: MetadataBlock) -> Result<(Node, Node)> {
    let half = node.len() / 2;
    let (mut left, mut right) = (node.empty_like(), node.empty_like());
    let problem = |problem: NodeProblem| MetadataError::BadNode { block, problem };
    left.append_from(node, 0, half).map_err(problem)?;
    right.append_from(node, half, node.len() - half).map_err(problem)?;
    Ok((left, right))
}

/// Takes entries off a full child: to a sibling that has room and belongs to this tree alone, else to a new node.
fn make_room<V: NodeValue, R: References<V>>(
    store: &mut MetadataStore,
    references: &mut R,
    parent: MetadataBlock,
    entry: usize,
    child: MetadataBlock,
) -> Result<()> {
    for (left, sibling) in [(entry.wrapping_sub(1), entry.wrapping_sub(1)), (entry, entry + 1)] {
        let Some(block) = store.node::<V>(parent)?.child(sibling) else { continue };
        if R::SHARED && store.count(block)? > 1 {
            continue;
        }
        let (node, full) = (store.node::<V>(block)?, store.node::<V>(child)?);
        if node.capacity() - node.len() < WORTHWHILE_ROOM || node.is_leaf() != full.is_leaf() {
            continue;
        }
        let total = node.len() + full.len();
        let block = shadow_child::<V, R>(store, references, parent, sibling)?;
        let pair = if sibling == left { (block, child) } else { (child, block) };
        return redistribute::<V>(store, parent, left, pair, total / 2);
    }
    let (left, right) = halves(store.node::<V>(child)?.as_ref(), child)?;
    let key = key_at(&right, child, 0)?;
    store.put_node(child, left)?;
    let right = store.add_node(right)?;
    store.edit_node(parent, |node| node.insert_entry(entry + 1, key, &right))
}
