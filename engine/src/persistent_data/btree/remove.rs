//! Removing.

use crate::format::{MetadataBlock, MetadataError, Node, NodeProblem, NodeValue};

use super::{
    MAX_LEVELS, References, child_at, inc_contents, lookup, redistribute, shadow, shadow_child, too_deep,
    walk,
};
use crate::persistent_data::{MetadataStore, Result};

/// Removes a key; the new root, and the value that the key had. Counts of what the value refers to are the caller's.
pub(crate) fn remove<V: NodeValue, R: References<V>>(
    store: &mut MetadataStore,
    references: &mut R,
    root: MetadataBlock,
    key: u64,
) -> Result<(MetadataBlock, Option<V>)> {
    if lookup::<V>(store, root, key)?.is_none() {
        return Ok((root, None));
    }
    let (root, removed) = remove_from_leaf(store, references, root, key, key)?;
    Ok((root, removed.first().map(|&(_, value)| value)))
}

/// Removes some of the entries with keys in `begin..=end`, as many as one descent can, starting with the first; the new
/// root and the entries. None is removed only when there is none.
pub(crate) fn remove_run<V: NodeValue, R: References<V>>(
    store: &mut MetadataStore,
    references: &mut R,
    root: MetadataBlock,
    begin: u64,
    end: u64,
) -> Result<(MetadataBlock, Vec<(u64, V)>)> {
    let mut first = None;
    walk::<V>(store, root, begin..=end, |key, _| {
        first = Some(key);
        std::ops::ControlFlow::Break(())
    })?;
    match first {
        Some(first) => remove_from_leaf(store, references, root, first, end),
        None => Ok((root, Vec::new())),
    }
}

/// Removes the existing key `first`, and further keys up to `last` that its leaf can spare.
fn remove_from_leaf<V: NodeValue, R: References<V>>(
    store: &mut MetadataStore,
    references: &mut R,
    root: MetadataBlock,
    first: u64,
    last: u64,
) -> Result<(MetadataBlock, Vec<(u64, V)>)> {
    let root = shadow::<V, R>(store, references, root)?;
    let mut block = root;
    // Each level may take one more round, in which the root gives way to its only child.
    for _ in 0..2 * MAX_LEVELS {
        let node = store.node::<V>(block)?;
        if node.is_leaf() {
            let spare =
                if block == root { node.len() } else { node.len().saturating_sub(least(&node)).max(1) };
            let Ok(entry) = node.search(first) else { return Ok((root, Vec::new())) };
            let run = node.entries::<V>().skip(entry).take_while(|(key, _)| *key <= last).take(spare);
            let removed: Vec<_> = run.collect();
            drop(node);
            store.edit_node(block, |node| node.remove_entries(entry, removed.len()))?;
            return Ok((root, removed));
        }
        drop(node);
        block = enter_spare::<V, R>(store, references, root, block, first)?;
    }
    Err(too_deep(block))
}

/// One step down towards a key, into a child that belongs to this tree alone and can spare an entry. The same block again when
/// the root gave way to its only child.
pub(super) fn enter_spare<V: NodeValue, R: References<V>>(
    store: &mut MetadataStore,
    references: &mut R,
    root: MetadataBlock,
    block: MetadataBlock,
    key: u64,
) -> Result<MetadataBlock> {
    let node = store.node::<V>(block)?;
    if node.len() == 1 && block == root {
        drop(node);
        absorb_child::<V, R>(store, references, block)?;
        return Ok(block);
    }
    let entry = node.lower_bound(key).unwrap_or(0);
    drop(node);
    let child = shadow_child::<V, R>(store, references, block, entry)?;
    let node = store.node::<V>(child)?;
    if node.len() > least(&node) {
        return Ok(child);
    }
    drop(node);
    fill::<V, R>(store, references, block, entry)?;
    // Which child has the key now, and whether the root is left with one child, shows only now.
    let node = store.node::<V>(block)?;
    if node.len() > 1 || block != root {
        return child_at(&node, block, node.lower_bound(key).unwrap_or(0));
    }
    Ok(block)
}

/// The least number of entries of a node that is not a root.
pub(super) fn least(node: &Node) -> usize {
    node.capacity() / 3
}

/// Replaces a root with a single child by that child's contents. The root keeps its block.
fn absorb_child<V: NodeValue, R: References<V>>(
    store: &mut MetadataStore,
    references: &mut R,
    root: MetadataBlock,
) -> Result<()> {
    let child = child_at(store.node::<V>(root)?.as_ref(), root, 0)?;
    let node = store.node::<V>(child)?;
    if R::SHARED && store.count(child)? > 1 {
        inc_contents(store, references, &node)?;
    }
    store.put_node(root, Node::clone(&node))?;
    store.dec(child)
}

/// Gives the child at `entry`, which has the least number of entries, more of them: from a sibling, or by merging the two.
fn fill<V: NodeValue, R: References<V>>(
    store: &mut MetadataStore,
    references: &mut R,
    parent: MetadataBlock,
    entry: usize,
) -> Result<()> {
    let siblings = store.node::<V>(parent)?.len();
    if siblings < 2 {
        // An internal node of one child, below the root, is not made here; nothing can be taken from anywhere.
        return Ok(());
    }
    let left_entry = entry.saturating_sub(1);
    let left = shadow_child::<V, R>(store, references, parent, left_entry)?;
    let right = shadow_child::<V, R>(store, references, parent, left_entry + 1)?;
    let (l, r) = (store.node::<V>(left)?, store.node::<V>(right)?);
    if l.is_leaf() != r.is_leaf() {
        let problem =
            NodeProblem::ValueSize { expected: l.value_size() as u32, found: r.value_size() as u32 };
        return Err(MetadataError::BadNode { block: right, problem });
    }
    let total = l.len() + r.len();
    if total >= 2 * (least(&l) + 1) {
        return redistribute::<V>(store, parent, left_entry, (left, right), total / 2);
    }
    drop(l);
    store.edit_node(left, |node| node.append_from(&r, 0, r.len()))?;
    store.edit_node(parent, |node| node.remove_entries(left_entry + 1, 1))?;
    store.dec(right)
}
